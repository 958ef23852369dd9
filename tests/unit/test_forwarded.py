"""What is believed of the fields that tell of hops, and what the backend is told."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7proxy.access import UNIX_CLIENT, Blocks
from l7proxy.forwarded import (
    ForwardedWriter,
    Hop,
    came_to,
    client_address,
    is_claim,
    parse_forwarded,
    parse_node,
)
from l7proxy.model import FieldPolicy, ForwardedFields

TRUSTED = Blocks(["10.0.0.0/8", "2001:db8::/32"])
XFF, FORWARDED = b"x-forwarded-for", b"forwarded"

CLIENTS = [
    ("192.0.2.1", [(XFF, b"203.0.113.5")], "192.0.2.1"),  # not trusted: not believed
    ("10.0.0.1", [], "10.0.0.1"),
    ("10.0.0.1", [(XFF, b"203.0.113.5")], "203.0.113.5"),
    ("10.0.0.1", [(XFF, b"198.51.100.1, 203.0.113.5")], "203.0.113.5"),  # its left is a claim
    ("10.0.0.1", [(XFF, b"198.51.100.1, 203.0.113.5, 10.2.3.4")], "203.0.113.5"),
    ("10.0.0.1", [(XFF, b"203.0.113.5"), (XFF, b"10.2.3.4")], "203.0.113.5"),
    ("10.0.0.1", [(XFF, b"10.0.0.9,10.2.3.4")], "10.0.0.9"),  # all trusted: the first one
    ("10.0.0.1", [(XFF, b"203.0.113.5, unknown")], "10.0.0.1"),
    ("10.0.0.1", [(XFF, b"203.0.113.5, , 10.2.3.4")], "10.2.3.4"),
    ("10.0.0.1", [(XFF, b"203.0.113.5:4711")], "203.0.113.5"),  # some write the port
    ("10.0.0.1", [(XFF, b"[2001:db9::1]:4711")], "2001:db9::1"),
    ("10.0.0.1", [(XFF, b"2001:db9::1")], "2001:db9::1"),
    ("::ffff:10.0.0.1", [(XFF, b"203.0.113.5")], "203.0.113.5"),
    ("10.0.0.1", [(FORWARDED, b"for=203.0.113.5;proto=https, for=10.1.1.1")], "203.0.113.5"),
    ("10.0.0.1", [(FORWARDED, b'for="[2001:db9::1]:4711"')], "2001:db9::1"),
    ("10.0.0.1", [(FORWARDED, b"for=_hidden")], "10.0.0.1"),
    ("10.0.0.1", [(FORWARDED, b"for=203.0.113.5, for=")], "10.0.0.1"),  # malformed: not believed
    ("10.0.0.1", [(FORWARDED, b"for=1.1.1.1"), (XFF, b"203.0.113.5")], "203.0.113.5"),
    (UNIX_CLIENT, [(XFF, b"203.0.113.5")], UNIX_CLIENT),
]


@pytest.mark.parametrize(("peer", "headers", "client"), CLIENTS)
def test_the_client(peer: str, headers: list[tuple[bytes, bytes]], client: str) -> None:
    assert client_address(peer, tuple(headers), TRUSTED) == client


PROTO, PORT = b"x-forwarded-proto", b"x-forwarded-port"

CAME_TO = [
    ([], ("http", 8080)),
    ([(PROTO, b"https")], ("https", None)),
    ([(PROTO, b"HTTPS, http")], ("https", None)),  # the first one is the client's
    ([(PROTO, b"https"), (PROTO, b"http")], ("https", None)),
    ([(PROTO, b"http")], ("http", None)),
    ([(PROTO, b"wss")], ("http", 8080)),
    ([(PROTO, b"javascript:alert(1)")], ("http", 8080)),
    ([(PROTO, b"https"), (PORT, b"8443")], ("https", 8443)),
    ([(PROTO, b"https"), (PORT, b"8443, 80")], ("https", 8443)),
    ([(PORT, b"81")], ("http", 81)),
    ([(PORT, b"0")], ("http", 8080)),
    ([(PORT, b"65536")], ("http", 8080)),
    ([(PORT, b"8443/x")], ("http", 8080)),
    ([(PORT, "\u00b2".encode("latin-1"))], ("http", 8080)),
    ([(FORWARDED, b"for=203.0.113.5;proto=https, for=10.1.1.1;proto=http")], ("https", None)),
    ([(FORWARDED, b"for=203.0.113.5, for=10.1.1.1;proto=https")], ("http", 8080)),
    ([(FORWARDED, b"proto=https;;=")], ("http", 8080)),  # malformed
    ([(FORWARDED, b"proto=http"), (PROTO, b"https")], ("https", None)),
]


@pytest.mark.parametrize(("headers", "found"), CAME_TO)
def test_where_the_client_came_to(
    headers: list[tuple[bytes, bytes]], found: tuple[str, int | None]
) -> None:
    assert came_to("http", 8080, tuple(headers)) == found


def test_hops_are_looked_at_up_to_a_limit() -> None:
    chain = b"203.0.113.5," + b",".join([b"10.0.0.2"] * 1000)
    assert client_address("10.0.0.1", ((XFF, chain),), TRUSTED) == "10.0.0.2"


NODES = [
    ("192.0.2.1", "192.0.2.1"),
    ("192.0.2.1:80", "192.0.2.1"),
    ("192.0.2.1:_obf", "192.0.2.1"),
    ("[2001:DB8::1]", "2001:db8::1"),
    ("[2001:db8::1]:80", "2001:db8::1"),
    ("2001:db8::1", "2001:db8::1"),
    ("unknown", None),
    ("_gazonk", None),
    ("", None),
    ("192.0.2.1:", None),
    ("192.0.2.1:x", None),
    ("192.0.2.01", None),
    ("[2001:db8::1", None),
    ("[2001:db8::1]x", None),
    ("fe80::1%lo", None),
    ("a.example", None),
    ("1" * 1000, None),
]


@pytest.mark.parametrize(("text", "address"), NODES)
def test_a_node(text: str, address: str | None) -> None:
    assert parse_node(text) == address


ELEMENTS = [
    # the examples of RFC 7239 section 4
    (b'for="_gazonk"', [{"for": "_gazonk"}]),
    (b'For="[2001:db8:cafe::17]:4711"', [{"for": "[2001:db8:cafe::17]:4711"}]),
    (
        b"for=192.0.2.60;proto=http;by=203.0.113.43",
        [{"for": "192.0.2.60", "proto": "http", "by": "203.0.113.43"}],
    ),
    (b"for=192.0.2.43, for=198.51.100.17", [{"for": "192.0.2.43"}, {"for": "198.51.100.17"}]),
    (b'for="a, b\\"; c"', [{"for": 'a, b"; c'}]),
    (b", for=a ,, for=b;", [{"for": "a"}, {"for": "b"}]),
    (b"", []),
    (b"for=a;for=b", None),
    (b"for", None),
    (b"for=", None),
    (b'for="a', None),
    (b"for =a", None),
    (b"for=a b", None),
    (b'for="a"b', None),
    (b"for=[::1]", None),
]


@pytest.mark.parametrize(("value", "elements"), ELEMENTS)
def test_forwarded(value: bytes, elements: list[dict[str, str]] | None) -> None:
    assert parse_forwarded(value) == elements


@given(st.one_of(st.binary(max_size=60), st.text('for=;,"\\[]:1 \t_', max_size=40).map(str.encode)))
def test_forwarded_never_raises(value: bytes) -> None:
    parse_forwarded(value)
    client_address("10.0.0.1", ((FORWARDED, value), (XFF, value)), TRUSTED)
    client_address("10.0.0.1", ((FORWARDED, value),), TRUSTED)


# ---- what the backend is told

SAID = (
    (b"x-forwarded-for", b"203.0.113.5"),
    (b"x-forwarded-proto", b"https"),
    (b"x-forwarded-host", b"said.example"),
    (b"x-forwarded-port", b"443"),
    (b"x-real-ip", b"203.0.113.9"),
    (b"forwarded", b"for=203.0.113.5"),
    (b"via", b"1.0 fred"),
)
OWN = {
    "X-Forwarded-For": "10.0.0.1",
    "X-Forwarded-Proto": "http",
    "X-Forwarded-Host": "a.example:8080",
    "X-Forwarded-Port": "8080",
    "X-Real-IP": "203.0.113.5",
    "Forwarded": 'for=10.0.0.1;host="a.example:8080";proto=http',
    "Via": "1.1 l7proxy",
}
ALL = {
    "x_forwarded_for": "X-Forwarded-For",
    "x_forwarded_proto": "X-Forwarded-Proto",
    "x_forwarded_host": "X-Forwarded-Host",
    "x_forwarded_port": "X-Forwarded-Port",
    "x_real_ip": "X-Real-IP",
    "forwarded": "Forwarded",
    "via": "Via",
}
LISTS = ("X-Forwarded-For", "Forwarded", "Via")


def told(
    fields: ForwardedFields, headers: tuple[tuple[bytes, bytes], ...], hop: Hop
) -> dict[str, str]:
    found = ForwardedWriter(fields).fields(hop, headers, authority="a.example:8080", version="1.1")
    names = [name.decode() for name, _ in found]
    assert len(names) == len(set(names))
    return {name.decode(): value.decode() for name, value in found}


@pytest.mark.parametrize(("policy", "trusted"), [*product(FieldPolicy, [True, False])])
def test_each_policy_of_each_field(policy: FieldPolicy, trusted: bool) -> None:
    fields = ForwardedFields(**dict.fromkeys(ALL, policy))
    hop = Hop("10.0.0.1", "203.0.113.5", trusted, "http", 8080)
    found = told(fields, SAID, hop)
    for name, said in zip(ALL.values(), (value.decode() for _, value in SAID), strict=True):
        believed = said if trusted or name == "Via" else ""
        if policy is FieldPolicy.REMOVE:
            expected = ""
        elif policy is FieldPolicy.SET:
            expected = OWN[name]
        elif policy is FieldPolicy.PASS:
            expected = believed
        elif name in LISTS and believed:
            expected = f"{believed}, {OWN[name]}"
        else:
            expected = believed or OWN[name]
        assert found.get(name, "") == expected, name


def test_what_is_usual() -> None:
    hop = Hop("192.0.2.7", "192.0.2.7", False, "http", 80)
    assert told(ForwardedFields(), SAID, hop) == {
        "X-Forwarded-For": "192.0.2.7",
        "X-Forwarded-Proto": "http",
        "X-Forwarded-Host": "a.example:8080",
        "Via": "1.0 fred, 1.1 l7proxy",
    }


def test_repeated_fields_are_joined_and_empty_ones_dropped() -> None:
    hop = Hop("10.0.0.1", "1.1.1.1", True, "http", 80)
    headers = ((XFF, b"1.1.1.1"), (XFF, b""), (b"via", b"1.0 a"), (XFF, b"2.2.2.2"))
    found = told(ForwardedFields(), headers, hop)
    assert found["X-Forwarded-For"] == "1.1.1.1, 2.2.2.2, 10.0.0.1"


def test_ipv6_is_quoted_in_forwarded_only() -> None:
    fields = ForwardedFields(forwarded=FieldPolicy.SET)
    found = told(fields, (), Hop("2001:db9::1", "2001:db9::1", False, "http", 80))
    assert found["Forwarded"] == 'for="[2001:db9::1]";host="a.example:8080";proto=http'
    assert found["X-Forwarded-For"] == "2001:db9::1"


def test_the_client_of_a_unix_socket_has_no_address() -> None:
    fields = ForwardedFields(**dict.fromkeys(ALL, FieldPolicy.SET))
    found = told(fields, (), Hop(UNIX_CLIENT, UNIX_CLIENT, True, "http", None))
    assert "X-Forwarded-For" not in found
    assert "X-Real-IP" not in found
    assert "X-Forwarded-Port" not in found
    assert found["Forwarded"] == 'for=unknown;host="a.example:8080";proto=http'


def test_claims() -> None:
    for name in (b"x-forwarded-for", b"x-forwarded-prefix", b"x-real-ip", b"forwarded"):
        assert is_claim(name)
    for name in (b"via", b"x-forwardedfor", b"host"):
        assert not is_claim(name)


def test_the_quick_way_says_the_same() -> None:
    """What is usual takes a short cut; what is unusual in nothing that shows does not."""
    hop = Hop("192.0.2.7", "192.0.2.7", False, "http", 80)
    unusual = ForwardedFields(x_real_ip=FieldPolicy.REMOVE)
    assert told(ForwardedFields(), (), hop) == told(unusual, (), hop)
    assert list(told(ForwardedFields(), (), hop)) == list(told(unusual, (), hop))
