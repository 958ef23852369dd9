"""The PROXY protocol: tables from its specification, and round trips."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.errors import BadProxyHeader
from l7proxy.model import Address, ProxyVersion, SocketAddress, UnixAddress
from l7proxy.proxyproto import (
    MAX_V1,
    MAX_V2,
    SIGNATURE,
    Header,
    HeaderReader,
    Rule,
    Tlv,
    encode,
)
from l7proxy.proxyproto.checksum import crc32c

V1, V2 = ProxyVersion.V1, ProxyVersion.V2


def read(data: bytes, *, required: bool = True) -> tuple[Header | None, bytes] | None:
    """(the header, the surplus), None when more is needed."""
    reader = HeaderReader(required=required)
    return (reader.header, reader.surplus) if reader.feed(data) else None


def v2(family: int, block: bytes, tlvs: bytes = b"", *, command: int = 0x21) -> bytes:
    size = struct.pack("!H", len(block) + len(tlvs))
    return SIGNATURE + bytes((command, family)) + size + block + tlvs


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def with_checksum(family: int, block: bytes, front: bytes = b"", back: bytes = b"") -> bytes:
    raw = v2(family, block, front + tlv(Tlv.CRC32C, bytes(4)) + back)
    at = len(raw) - len(back) - 4
    return raw[:at] + struct.pack("!I", crc32c(raw)) + raw[at + 4 :]


FOUR = bytes((192, 0, 2, 1, 198, 51, 100, 7)) + struct.pack("!HH", 56324, 443)
FROM4, TO4 = Address("192.0.2.1", 56324), Address("198.51.100.7", 443)
SIX = bytes.fromhex("20010db8000000000000000000000001 20010db8000000000000000000000002") + FOUR[-4:]
FROM6, TO6 = Address("2001:db8::1", 56324), Address("2001:db8::2", 443)
UNIX = b"/run/a.sock".ljust(108, b"\0") + b"\0name".ljust(108, b"\0")

GOOD = {
    "the line of the specification": (
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
        Header(V1, Address("192.168.0.1", 56324), Address("192.168.0.11", 443)),
    ),
    "TCP6": (
        b"PROXY TCP6 2001:db8::1 2001:DB8:0::2 56324 443\r\n",
        Header(V1, FROM6, TO6),
    ),
    "the longest line of TCP6": (
        b"PROXY TCP6 " + b" ".join([b":".join([b"ffff"] * 8)] * 2) + b" 65535 65535\r\n",
        Header(V1, *[Address(":".join(["ffff"] * 8), 65535)] * 2),
    ),
    "UNKNOWN": (b"PROXY UNKNOWN\r\n", Header(V1)),
    "UNKNOWN, the worst case": (
        b"PROXY UNKNOWN " + b" ".join([b":".join([b"ffff"] * 8)] * 2) + b" 65535 65535\r\n",
        Header(V1),
    ),
    "UNKNOWN and whatever": (b"PROXY UNKNOWN \x01\xff  nonsense\r\n", Header(V1)),
    "port 0": (
        b"PROXY TCP4 192.0.2.1 192.0.2.2 0 65535\r\n",
        Header(V1, Address("192.0.2.1", 0), Address("192.0.2.2", 65535)),
    ),
    "v2, TCP over IPv4": (v2(0x11, FOUR), Header(V2, FROM4, TO4)),
    "v2, TCP over IPv6": (v2(0x21, SIX), Header(V2, FROM6, TO6)),
    "v2, UDP over IPv4": (v2(0x12, FOUR), Header(V2, FROM4, TO4)),
    "v2, unix": (v2(0x31, UNIX), Header(V2, UnixAddress("/run/a.sock"), UnixAddress("@name"))),
    "v2, unnamed unix sockets": (
        v2(0x31, bytes(216)),
        Header(V2, UnixAddress(""), UnixAddress("")),
    ),
    "v2, LOCAL": (v2(0, b"", command=0x20), Header(V2, local=True)),
    "v2, LOCAL with addresses": (v2(0x11, FOUR, command=0x20), Header(V2, local=True)),
    "v2, LOCAL of any family": (v2(0xEE, b"junk", command=0x20), Header(V2, local=True)),
    "v2, UNSPEC": (v2(0, b""), Header(V2)),
    "v2, UNSPEC with bytes": (v2(0, b"\x01\xff\xff?"), Header(V2)),
    "v2, a family without a protocol": (v2(0x10, FOUR), Header(V2)),
    "v2, vectors": (
        v2(0x11, FOUR, tlv(Tlv.ALPN, b"h2") + tlv(Tlv.NOOP, b"") + tlv(0xE7, b"own")),
        Header(V2, FROM4, TO4, tlvs=((1, b"h2"), (4, b""), (0xE7, b"own"))),
    ),
}


@pytest.mark.parametrize("case", GOOD)
@pytest.mark.parametrize("required", [True, False])
def test_good(case: str, required: bool) -> None:
    sent, expected = GOOD[case]
    assert read(sent + b"GET /", required=required) == (expected, b"GET /")
    assert read(sent, required=required) == (expected, b"")
    reader = HeaderReader(required=required)
    assert [reader.feed(sent[at : at + 1]) for at in range(len(sent))] == [
        *[False] * (len(sent) - 1),
        True,
    ]
    assert reader.header == expected


def test_a_checksum() -> None:
    for front, back in ((b"", b""), (tlv(0xE0, b"x"), b""), (b"", tlv(Tlv.NOOP, bytes(9)))):
        sent = with_checksum(0x11, FOUR, front, back)
        found = read(sent)
        assert found is not None
        assert found[0] is not None
        assert found[0].source == FROM4
        for at in range(len(sent) - 4 - len(back), len(sent) - len(back)):
            broken = sent[:at] + bytes([sent[at] ^ 1]) + sent[at + 1 :]
            with pytest.raises(BadProxyHeader) as caught:
                read(broken)
            assert caught.value.rule is Rule.CHECKSUM


def test_any_changed_byte_of_the_addresses_breaks_the_checksum() -> None:
    sent = with_checksum(0x21, SIX)
    for at in range(16, 16 + len(SIX)):
        with pytest.raises(BadProxyHeader, match="checksum"):
            read(sent[:at] + bytes([sent[at] ^ 0x80]) + sent[at + 1 :])


@pytest.mark.parametrize(
    ("data", "value"),  # RFC 3720 appendix B.4
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_crc32c(data: bytes, value: int) -> None:
    assert crc32c(data) == value


BAD = {
    "HTTP": (b"GET / HTTP/1.1\r\n", Rule.MISSING),
    "nearly the signature": (SIGNATURE[:11] + b"x", Rule.MISSING),
    "lower case": (b"proxy TCP4 ", Rule.MISSING),
    "no end": (b"PROXY TCP4 " + b"1" * 200, Rule.LINE_TOO_LONG),
    "one byte too long": (b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n", Rule.LINE_TOO_LONG),
    "a bare LF": (b"PROXY UNKNOWN\n", Rule.LINE),
    "a bare CR": (b"PROXY UNKNOWN\rx", Rule.LINE),
    "two spaces": (b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n", Rule.LINE),
    "a tab": (b"PROXY TCP4\t192.0.2.1 192.0.2.2 1 2\r\n", Rule.LINE),
    "a space at the end": (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n", Rule.LINE),
    "no family": (b"PROXY \r\n", Rule.LINE),
    "UDP": (b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n", Rule.LINE),
    "a port missing": (b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n", Rule.LINE),
    "IPv6 in TCP4": (b"PROXY TCP4 2001:db8::1 192.0.2.2 1 2\r\n", Rule.ADDRESS),
    "IPv4 in TCP6": (b"PROXY TCP6 2001:db8::1 192.0.2.2 1 2\r\n", Rule.ADDRESS),
    "a leading zero": (b"PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n", Rule.ADDRESS),
    "a short address": (b"PROXY TCP4 127.1 192.0.2.2 1 2\r\n", Rule.ADDRESS),
    "a zone": (b"PROXY TCP6 fe80::1%lo ::1 1 2\r\n", Rule.ADDRESS),
    "a name": (b"PROXY TCP4 a.example 192.0.2.2 1 2\r\n", Rule.ADDRESS),
    "beyond ASCII": (b"PROXY TCP4 192.0.2.\xb2 192.0.2.2 1 2\r\n", Rule.ADDRESS),
    "a large port": (b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n", Rule.PORT),
    "a port with a zero": (b"PROXY TCP4 192.0.2.1 192.0.2.2 080 2\r\n", Rule.PORT),
    "a signed port": (b"PROXY TCP4 192.0.2.1 192.0.2.2 +80 2\r\n", Rule.PORT),
    "version 1 in binary": (SIGNATURE + b"\x11\x11\x00\x0c" + FOUR, Rule.VERSION),
    "a command": (v2(0x11, FOUR, command=0x22), Rule.COMMAND),
    "a family": (v2(0x41, FOUR), Rule.FAMILY),
    "a protocol": (v2(0x13, FOUR), Rule.FAMILY),
    "huge": (SIGNATURE + b"\x21\x11\xff\xff", Rule.TOO_LARGE),
    "half the addresses": (v2(0x11, FOUR[:11]), Rule.ADDRESS_BLOCK),
    "half of IPv6": (v2(0x21, FOUR), Rule.ADDRESS_BLOCK),
    "half of unix": (v2(0x31, UNIX[:215]), Rule.ADDRESS_BLOCK),
    "a vector that goes beyond": (v2(0x11, FOUR, b"\xe0\x00\x05abcd"), Rule.TLV),
    "half a vector": (v2(0x11, FOUR, b"\xe0\x00"), Rule.TLV),
    "a short checksum": (v2(0x11, FOUR, tlv(Tlv.CRC32C, bytes(3))), Rule.TLV),
    "a wrong checksum": (v2(0x11, FOUR, tlv(Tlv.CRC32C, bytes(4))), Rule.CHECKSUM),
}


@pytest.mark.parametrize("case", BAD)
def test_bad(case: str) -> None:
    sent, rule = BAD[case]
    with pytest.raises(BadProxyHeader) as caught:
        read(sent)
    assert caught.value.rule is rule
    if rule is Rule.MISSING:
        assert read(sent, required=False) == (None, sent)
    else:
        with pytest.raises(BadProxyHeader):
            read(sent, required=False)


def test_every_rule_has_a_case() -> None:
    assert {rule for _, rule in BAD.values()} == set(Rule)


def test_a_large_header_is_read_up_to_the_limit() -> None:
    room = MAX_V2 - 16 - len(FOUR) - 3
    sent = v2(0x11, FOUR, tlv(Tlv.NOOP, bytes(room)))
    assert len(sent) == MAX_V2
    assert read(sent[:-1]) is None
    found = read(sent)
    assert found is not None
    assert found[0] is not None
    assert found[0].tlvs == ((Tlv.NOOP, bytes(room)),)
    with pytest.raises(BadProxyHeader) as caught:
        read(v2(0x11, FOUR, tlv(Tlv.NOOP, bytes(room + 1)))[:16])
    assert caught.value.rule is Rule.TOO_LARGE


@pytest.mark.parametrize("sent", [b"P", b"PROXY", b"\r\n\r\n", SIGNATURE, SIGNATURE + b"\x21\x11"])
def test_what_may_yet_become_one_is_waited_for(sent: bytes) -> None:
    reader = HeaderReader(required=False)
    assert not reader.started
    assert not reader.feed(sent)
    assert reader.started


@pytest.mark.parametrize("sent", [b"POST /", b"PUT", b"\r\nGET", b"\x16\x03", b"SSH-2.0"])
def test_what_is_none_is_the_clients_own(sent: bytes) -> None:
    assert read(sent, required=False) == (None, sent)


@pytest.mark.parametrize(
    ("value", "tls"), [(b"\x01\0\0\0\0", True), (b"\x00\0\0\0\0", False), (b"\x01", False)]
)
def test_the_client_came_over_tls(value: bytes, tls: bool) -> None:
    found = read(v2(0x11, FOUR, tlv(Tlv.SSL, value)))
    assert found is not None
    assert found[0] is not None
    assert found[0].over_tls is tls
    assert not Header(V2).over_tls


# ---- out

OUT = [
    (V1, FROM4, TO4, b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n"),
    (V1, FROM6, TO6, b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n"),
    (V1, FROM4, TO6, b"PROXY TCP6 ::ffff:c000:201 2001:db8::2 56324 443\r\n"),
    (V1, None, TO4, b"PROXY UNKNOWN\r\n"),
    (V1, UnixAddress(""), UnixAddress("/run/a"), b"PROXY UNKNOWN\r\n"),
    (V2, None, None, v2(0, b"")),
    (V2, FROM4, UnixAddress("/run/a"), v2(0, b"")),
    (V2, FROM4, TO4, with_checksum(0x11, FOUR)),
    (V2, FROM6, TO6, with_checksum(0x21, SIX)),
    (V2, UnixAddress("/run/a.sock"), UnixAddress("@name"), with_checksum(0x31, UNIX)),
]


@pytest.mark.parametrize(("version", "source", "destination", "expected"), OUT)
def test_encode(
    version: ProxyVersion,
    source: SocketAddress | None,
    destination: SocketAddress | None,
    expected: bytes,
) -> None:
    assert encode(version, source, destination) == expected


def test_encode_with_name_and_protocol() -> None:
    front = tlv(Tlv.ALPN, b"h2") + tlv(Tlv.AUTHORITY, b"a.example")
    sent = encode(V2, FROM4, TO4, authority="a.example", alpn="h2")
    assert sent == with_checksum(0x11, FOUR, front)
    assert encode(V1, FROM4, TO4, authority="a", alpn="b") == encode(V1, FROM4, TO4)


fours = st.builds(Address, st.ip_addresses(v=4).map(str), st.integers(0, 65535))
sixes = st.builds(
    Address, st.ip_addresses(v=6).map(lambda ip: ip.compressed), st.integers(0, 65535)
)
pairs = st.one_of(st.tuples(fours, fours), st.tuples(sixes, sixes))


@given(st.sampled_from(ProxyVersion), pairs, st.binary(max_size=20))
def test_what_was_encoded_is_read(
    version: ProxyVersion, pair: tuple[Address, Address], more: bytes
) -> None:
    sent = encode(version, *pair, authority="a.example")
    assert version is V2 or len(sent) <= MAX_V1
    found = read(sent + more)
    assert found is not None
    header, surplus = found
    assert header is not None
    assert (header.version, header.source, header.destination) == (version, *pair)
    assert surplus == more


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from([sent for sent, _ in GOOD.values()] + [sent for sent, _ in BAD.values()]),
    st.lists(st.tuples(st.integers(0, 150), st.binary(max_size=2)), max_size=3),
    st.sets(st.integers(1, 250), max_size=6),
    st.booleans(),
)
def test_the_cut_makes_no_difference_and_nothing_else_is_raised(
    sent: bytes, changes: list[tuple[int, bytes]], cuts: set[int], required: bool
) -> None:
    data = bytearray(sent)
    for at, new in changes:
        data[at : at + 1] = new

    def answer(edges: list[int]) -> object:
        reader = HeaderReader(required=required)
        for a, b in pairwise(edges):
            try:
                if reader.feed(bytes(data[a:b])):
                    return reader.header, reader.surplus + bytes(data[b:])
            except BadProxyHeader as error:
                return error.rule
        return None

    whole = answer([0, len(data)])
    assert answer([0, *sorted(c for c in cuts if c < len(data)), len(data)]) == whole
    assert answer(list(range(len(data) + 1))) == whole
