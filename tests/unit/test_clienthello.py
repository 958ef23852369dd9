"""ClientHellos: what routes with which name, and what is refused by which rule."""

from __future__ import annotations

import ssl
from itertools import pairwise

import hellos
import pytest
from hellos import ALPN, ECH, GREASE, SNI, message, protocols, records, server_name, vector
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.clienthello import LEAST_LIMIT, HelloReader, Rule, alert
from l7proxy.errors import BadHello
from l7proxy.model import Hello

EXAMPLE = server_name(b"www.example.com")


def read(data: bytes, limit: int = LEAST_LIMIT) -> Hello | None:
    return HelloReader(limit).feed(data)


# ---- real ones


@pytest.mark.parametrize("most", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_openssl(most: ssl.TLSVersion) -> None:
    sent = hellos.real("www.example.com", ["h2", "http/1.1"], most=most)
    assert read(sent) == Hello("www.example.com", ("h2", "http/1.1"))
    assert read(hellos.real(None, most=most)) == Hello()


def test_a_real_hello_in_records_of_one_byte() -> None:
    plain = hellos.real("a.example", ["h2"])
    assert plain[0] == 22
    split = records(plain[5:], 1)
    assert len(split) == 6 * (len(plain) - 5)
    reader = HelloReader()
    assert [reader.feed(split[at : at + 1]) for at in range(len(split))] == [
        *[None] * (len(split) - 1),
        Hello("a.example", ("h2",)),
    ]
    assert reader.taken == split


def test_what_follows_is_kept_for_the_backend() -> None:
    sent = hellos.real() + records(b"early data", kind=23) + b"rest"
    reader = HelloReader()
    assert reader.feed(sent) == Hello("www.example.com")
    assert reader.taken == sent


# ---- what routes, and with which name

ROUTED = {
    "no extensions at all": (hellos.hello(), Hello()),
    "no SNI": (hellos.hello(protocols(b"h2")), Hello("", ("h2",))),
    "no ALPN": (hellos.hello(EXAMPLE), Hello("www.example.com")),
    "the order of extensions is free": (
        hellos.hello(protocols(b"h2"), (5, b"?"), EXAMPLE),
        Hello("www.example.com", ("h2",)),
    ),
    "upper case": (hellos.hello(server_name(b"WWW.Example.COM")), Hello("www.example.com")),
    "a trailing dot": (hellos.hello(server_name(b"a.example.")), Hello("a.example")),
    "an IPv4 address is no name": (hellos.hello(server_name(b"192.0.2.1")), Hello()),
    "an IPv6 address is no name": (hellos.hello(server_name(b"2001:db8::1")), Hello()),
    "nor is one that only some resolvers read": (hellos.hello(server_name(b"127.1")), Hello()),
    "nor one in hexadecimal": (hellos.hello(server_name(b"0x7f000001")), Hello()),
    "an underscore": (hellos.hello(server_name(b"_sip.example")), Hello("_sip.example")),
    "a name of an unknown type only": (hellos.hello(server_name(b"?", kind=7)), Hello()),
    "an unknown type beside the host": (
        hellos.hello((SNI, vector(2, b"\x07" + vector(2, b"?") + b"\0" + vector(2, b"a.b")))),
        Hello("a.b"),
    ),
    "ECH: the outer name": (
        hellos.hello((ECH, bytes(200)), server_name(b"public.example")),
        Hello("public.example"),
    ),
    "GREASE": (
        hellos.hello((GREASE, b""), EXAMPLE, protocols(b"\x1a\x1a", b"h2"), (0x2A2A, b"\0")),
        Hello("www.example.com", ("\x1a\x1a", "h2")),
    ),
    "a session id of 32 bytes": (
        records(message(hellos.body(EXAMPLE, session=bytes(32)))),
        Hello("www.example.com"),
    ),
    "more handshake behind it in the same record": (
        records(message(hellos.body(EXAMPLE)) + message(b"x", kind=20)),
        Hello("www.example.com"),
    ),
    "the version of the record is ignored": (
        b"\x16\x03\x09" + hellos.hello(EXAMPLE)[3:],
        Hello("www.example.com"),
    ),
}


@pytest.mark.parametrize("case", ROUTED)
def test_routed(case: str) -> None:
    sent, expected = ROUTED[case]
    assert read(sent) == expected


# ---- what is refused


def extension(kind: int, data: bytes) -> bytes:
    return hellos.hello((kind, data))


LONG = b".".join([b"a" * 63] * 4)  # 255

REFUSED = {
    "HTTP": (b"GET / HTTP/1.1\r\n", Rule.NOT_TLS),
    "an alert": (b"\x15\x03\x01\x00\x02\x02\x28", Rule.NOT_TLS),
    "application data": (b"\x17\x03\x03\x00\x01x", Rule.NOT_TLS),
    "SSL 2.0": (b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10" + bytes(37), Rule.SSLV2),
    "nearly SSL 2.0": (b"\x80\x2e\x02\x03\x01", Rule.NOT_TLS),
    "another record between": (
        records(message(hellos.body(EXAMPLE))[:20]) + records(b"\x01", kind=20),
        Rule.NOT_TLS,
    ),
    "a version of the record": (b"\x16\x02\x00\x00\x20", Rule.RECORD_VERSION),
    "a large record": (b"\x16\x03\x01\x40\x01", Rule.RECORD_SIZE),
    "an empty record": (b"\x16\x03\x01\x00\x00", Rule.EMPTY_RECORD),
    "an empty record in the middle": (
        records(message(hellos.body(EXAMPLE))[:9]) + b"\x16\x03\x01\x00\x00",
        Rule.EMPTY_RECORD,
    ),
    "a server hello": (records(message(hellos.body(), kind=2)), Rule.NOT_A_HELLO),
    "large by its own account": (records(b"\x01\x7f\xff\xff"), Rule.TOO_LARGE),
    "a name with a NUL": (hellos.hello(server_name(b"a.example\0.evil")), Rule.NAME),
    "a name with a space": (hellos.hello(server_name(b"a b")), Rule.NAME),
    "a name with a port": (hellos.hello(server_name(b"a.example/")), Rule.NAME),
    "a name beyond ASCII": (hellos.hello(server_name("ä.example".encode())), Rule.NAME),
    "a wildcard": (hellos.hello(server_name(b"*.example")), Rule.NAME),
    "an empty label": (hellos.hello(server_name(b"a..example")), Rule.NAME),
    "only a dot": (hellos.hello(server_name(b".")), Rule.NAME),
    "too long a name": (hellos.hello(server_name(LONG)), Rule.NAME),
    "two names": (hellos.hello(server_name(b"a.example", b"b.example")), Rule.NAME_REPEATED),
    "the same name twice": (hellos.hello(server_name(b"a.b", b"a.b")), Rule.NAME_REPEATED),
    "two SNI": (hellos.hello(EXAMPLE, EXAMPLE), Rule.EXTENSION_REPEATED),
    "any extension twice": (hellos.hello((5, b""), (5, b"")), Rule.EXTENSION_REPEATED),
    "an empty SNI": (extension(SNI, b""), Rule.SYNTAX),
    "an empty list of names": (extension(SNI, vector(2, b"")), Rule.SYNTAX),
    "an empty name": (hellos.hello(server_name(b"")), Rule.SYNTAX),
    "bytes behind the names": (extension(SNI, EXAMPLE[1] + b"x"), Rule.SYNTAX),
    "a name that goes beyond": (extension(SNI, b"\0\x05\0\0\x09ab"), Rule.SYNTAX),
    "an empty ALPN": (extension(ALPN, b""), Rule.SYNTAX),
    "an empty list of protocols": (extension(ALPN, vector(2, b"")), Rule.SYNTAX),
    "an empty protocol": (hellos.hello(protocols(b"h2", b"")), Rule.SYNTAX),
    "bytes behind the protocols": (extension(ALPN, protocols(b"h2")[1] + b"x"), Rule.SYNTAX),
    "a long session id": (
        records(message(hellos.body(EXAMPLE, session=bytes(33)))),
        Rule.SYNTAX,
    ),
    "no cipher suite": (records(message(hellos.body(EXAMPLE, suites=b""))), Rule.SYNTAX),
    "half a cipher suite": (records(message(hellos.body(EXAMPLE, suites=bytes(3)))), Rule.SYNTAX),
    "no compression method": (records(message(hellos.body(compression=b""))), Rule.SYNTAX),
    "bytes behind the extensions": (records(message(hellos.body(EXAMPLE) + b"x")), Rule.SYNTAX),
    "half an extension": (
        records(message(hellos.body() + vector(2, b"\0\0\0"))),
        Rule.SYNTAX,
    ),
    "an empty hello": (records(message(b"")), Rule.SYNTAX),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    sent, rule = REFUSED[case]
    with pytest.raises(BadHello) as caught:
        read(sent)
    assert caught.value.rule is rule
    assert 0 < caught.value.alert < 256
    assert caught.value.detail in str(caught.value)


def test_every_rule_has_a_case() -> None:
    assert {rule for _, rule in REFUSED.values()} == set(Rule)


def test_a_hello_goes_up_to_the_limit_and_not_beyond() -> None:
    """Counted on the wire, the headers of both records included."""
    padding = LEAST_LIMIT - len(hellos.hello(EXAMPLE, (21, b""))) - 5

    def sent(more: int) -> bytes:
        return records(message(hellos.body(EXAMPLE, (21, bytes(padding + more)))), 1 << 13)

    assert len(sent(0)) == LEAST_LIMIT
    assert read(sent(0) + b"more") == Hello("www.example.com")
    with pytest.raises(BadHello) as caught:
        read(sent(1))
    assert caught.value.rule is Rule.TOO_LARGE
    assert read(sent(1), LEAST_LIMIT + 1) == Hello("www.example.com")


def test_a_hello_that_never_ends_is_refused_at_the_limit() -> None:
    reader = HelloReader(100)  # never less than LEAST_LIMIT
    drip = records(b"\x01\x00\x3f\x00" + bytes(LEAST_LIMIT), 1)
    for at in range(LEAST_LIMIT - 1):
        assert reader.feed(drip[at : at + 1]) is None
    with pytest.raises(BadHello) as caught:
        reader.feed(drip[LEAST_LIMIT - 1 : LEAST_LIMIT])
    assert caught.value.rule is Rule.TOO_LARGE


def test_a_reader_is_spent_when_it_has_answered() -> None:
    for sent in (hellos.hello(), b"GET "):
        reader = HelloReader()
        try:
            reader.feed(sent)
        except BadHello:
            pass
        with pytest.raises(RuntimeError):
            reader.feed(b"x")


def test_no_data_is_no_news() -> None:
    assert read(b"") is None


def test_openssl_reads_the_alert() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="a.example")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    incoming.write(alert(112))
    with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
        client.do_handshake()


# ---- any bytes, in any cut

VALID = [sent for sent, _ in ROUTED.values()] + [hellos.real(), hellos.real("a.b", ["h2"])]
BROKEN = [sent for sent, _ in REFUSED.values()]


@st.composite
def nearly(draw: st.DrawFn) -> bytes:
    """A hello that is right, or nearly so, in records of any size."""
    data = bytearray(draw(st.sampled_from(VALID + BROKEN)))
    if draw(st.booleans()) and data[:1] == b"\x16":
        data = bytearray(records(bytes(data[5:]), draw(st.integers(1, 80))))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(data)))
        data[start : start + draw(st.integers(0, 2))] = draw(st.binary(max_size=3))
    return bytes(data)


def answer(pieces: list[bytes], limit: int) -> tuple[object, ...]:
    reader = HelloReader(limit)
    for piece in pieces:
        try:
            found = reader.feed(piece)
        except BadHello as error:
            return error.rule, error.alert, error.detail
        if found is not None:
            return (found,)
    return ()


@settings(max_examples=600, deadline=None)
@given(st.one_of(nearly(), st.binary(max_size=200)), st.sets(st.integers(1, 2000), max_size=9))
def test_the_cut_makes_no_difference_and_nothing_else_is_raised(
    data: bytes, cuts: set[int]
) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    pieces = [data[a:b] for a, b in pairwise(edges)]
    whole = answer([data], LEAST_LIMIT)
    assert answer(pieces, LEAST_LIMIT) == whole
    assert answer([data[at : at + 1] for at in range(len(data))], LEAST_LIMIT) == whole
    if whole:
        assert answer([data + b"more"], LEAST_LIMIT) == whole
        if isinstance(whole[0], Hello):
            assert whole[0].sni == whole[0].sni.lower()
            assert "\0" not in whole[0].sni
