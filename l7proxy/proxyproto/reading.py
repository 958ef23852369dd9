"""In: a header from any cut of the input."""

from __future__ import annotations

import ipaddress
import re
import struct
from enum import StrEnum

from l7proxy.errors import BadProxyHeader
from l7proxy.model import Address, ProxyVersion, SocketAddress, UnixAddress
from l7proxy.proxyproto.checksum import crc32c
from l7proxy.proxyproto.words import (
    CHECKSUM_SIZE,
    DGRAM,
    INET,
    INET6,
    LOCAL,
    PROXY,
    SIGNATURE,
    UNIX,
    UNSPEC,
    Header,
    Tlv,
)

MAX_V1 = 107  # bytes with CR LF; the spec: "a 108-byte buffer is always enough"
MAX_V2 = 16 * 1024  # bytes; the length field could tell four times as many

_V1_START = b"PROXY "
_V2_FIXED = 16


class Rule(StrEnum):
    """Names of the rules; `BadProxyHeader.rule` is one of them. Stable: logs show them."""

    MISSING = "proxy-header-missing"  # required, and the first bytes are something else
    # "If the CRLF sequence is not found in the first 107 characters, the receiver should declare
    # the line invalid."
    LINE_TOO_LONG = "proxy-line-too-long"
    # "The receiver must not tolerate a single CR or LF character to end the line"; exactly one
    # space between the words; TCP4, TCP6 or UNKNOWN.
    LINE = "proxy-line"
    ADDRESS = "proxy-address"  # of version 1: not the canonical form of an address of the family
    PORT = "proxy-port"  # of version 1: not 0 to 65535 in decimal, without leading zeros
    # "The highest four bits contains the version. As of this specification, it must always be sent
    # as \x2 and the receiver must only accept this value."
    VERSION = "proxy-version"
    # "other values are unassigned and must not be emitted by senders. Receivers must drop
    # connections presenting unexpected values here."
    COMMAND = "proxy-command"
    # "other values are unspecified [...] and must be rejected as invalid by receivers", of the
    # family and of the transport protocol.
    FAMILY = "proxy-family"
    TOO_LARGE = "proxy-too-large"  # more than MAX_V2; before a byte of it is waited for
    ADDRESS_BLOCK = "proxy-address-block"  # shorter than the addresses of its family are
    TLV = "proxy-tlv"  # a TLV that goes beyond the header, or a checksum that is not 4 bytes
    # "If it is not, the receiver MUST treat the TCP connection providing the header as invalid."
    CHECKSUM = "proxy-checksum"


class HeaderReader:
    """Collects a header from any cut of the input; bounded.

    When `feed` has returned True, `header` is what was found, None when there was none, and
    `surplus` is what followed it.
    """

    __slots__ = ("_buffer", "_required", "header", "surplus")

    def __init__(self, *, required: bool) -> None:
        """`required`: anything but a header is an error."""
        self._buffer = b""
        self._required = required
        self.header: Header | None = None
        self.surplus = b""

    @property
    def started(self) -> bool:
        """Whether anything came yet."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> bool:
        """Take the next bytes; True when there is an answer. Raises BadProxyHeader."""
        buffer = self._buffer = self._buffer + data
        if _begins(buffer, SIGNATURE):
            end = _v2_end(buffer)
            if end is None or len(buffer) < end:
                return False
            self.header = _parse_v2(buffer[:end])
        elif _begins(buffer, _V1_START):
            end = _v1_end(buffer)
            if end is None:
                return False
            self.header = _parse_v1(buffer[: end - 2])
        elif self._required:
            raise BadProxyHeader(Rule.MISSING, "the connection does not begin with a PROXY header")
        else:
            end = 0
        self.surplus = buffer[end:]
        self._buffer = b""
        return True


def _begins(buffer: bytes, mark: bytes) -> bool:
    """Whether the buffer begins like `mark`, as far as it goes."""
    return buffer.startswith(mark) or mark.startswith(buffer)


# ---- version 1

_V1_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")


def _v1_end(buffer: bytes) -> int | None:
    """Where the line ends, CR LF included; None while that is not known."""
    cr = buffer.find(b"\r", 0, MAX_V1)
    lf = buffer.find(b"\n", 0, MAX_V1)
    if 0 <= lf < cr or (lf >= 0 and cr < 0):
        raise BadProxyHeader(Rule.LINE, "the line ends with LF instead of CR LF")
    if cr >= 0:
        if cr + 1 >= MAX_V1:
            raise BadProxyHeader(Rule.LINE_TOO_LONG, f"a line of more than {MAX_V1} bytes")
        if len(buffer) == cr + 1:
            return None
        if buffer[cr + 1] != 0x0A:
            raise BadProxyHeader(Rule.LINE, "CR without LF")
        return cr + 2
    if len(buffer) >= MAX_V1:
        raise BadProxyHeader(Rule.LINE_TOO_LONG, f"a line of more than {MAX_V1} bytes")
    return None


def _parse_v1(line: bytes) -> Header:
    """Read a line without its end.

    "PROXY UNKNOWN": "the receiver must ignore anything presented before the CRLF is found".
    """
    words = line.split(b" ")
    if words[1] == b"UNKNOWN":
        return Header(ProxyVersion.V1)
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        raise BadProxyHeader(Rule.LINE, "not PROXY, a family, two addresses and two ports")
    hosts = [_v1_host(word, six=words[1] == b"TCP6") for word in words[2:4]]
    ports = [_v1_port(word) for word in words[4:]]
    return Header(ProxyVersion.V1, Address(hosts[0], ports[0]), Address(hosts[1], ports[1]))


def _v1_host(word: bytes, *, six: bool) -> str:
    try:
        text = word.decode("ascii")
        if six:
            if "%" in text:
                raise ValueError
            return ipaddress.IPv6Address(text).compressed
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        family = "IPv6" if six else "IPv4"
        raise BadProxyHeader(Rule.ADDRESS, f"not an {family} address") from None


def _v1_port(word: bytes) -> int:
    if not _V1_PORT.fullmatch(word) or int(word) > 65535:
        raise BadProxyHeader(Rule.PORT, "not a port")
    return int(word)


# ---- version 2

_ADDRESS_SIZE = {UNSPEC: 0, INET: 12, INET6: 36, UNIX: 216}


def _v2_end(buffer: bytes) -> int | None:
    """Where the header ends; None while that is not known. Checks what has come of the first 16."""
    if len(buffer) > 12:
        if buffer[12] >> 4 != 2:
            raise BadProxyHeader(Rule.VERSION, "the signature of version 2 with another version")
        if buffer[12] & 0x0F not in (LOCAL, PROXY):
            raise BadProxyHeader(Rule.COMMAND, "neither LOCAL nor PROXY")
    if len(buffer) > 13 and buffer[12] & 0x0F == PROXY:  # of LOCAL the family "is ignored"
        family, transport = buffer[13] >> 4, buffer[13] & 0x0F
        if family not in _ADDRESS_SIZE or transport > DGRAM:
            raise BadProxyHeader(Rule.FAMILY, "an unknown address family or protocol")
    if len(buffer) < _V2_FIXED:
        return None
    end = _V2_FIXED + int.from_bytes(buffer[14:16])
    if end > MAX_V2:
        raise BadProxyHeader(Rule.TOO_LARGE, f"a header of more than {MAX_V2} bytes")
    return end


def _parse_v2(raw: bytes) -> Header:
    if raw[12] & 0x0F == LOCAL:
        # "must use the real connection endpoints and discard the protocol block including the
        # family which is ignored": what it holds need not make sense
        return Header(ProxyVersion.V2, local=True)
    family, transport = raw[13] >> 4, raw[13] & 0x0F
    size = _ADDRESS_SIZE[family]
    block = raw[_V2_FIXED:]
    if len(block) < size:
        raise BadProxyHeader(Rule.ADDRESS_BLOCK, "shorter than its addresses")
    source, destination = _addresses(family, block)
    if transport == UNSPEC:
        # "The receiver should ignore address information."
        source = destination = None
    # Of an unspecified family the size of the addresses is unknown, so no TLV can be found.
    tlvs = _parse_tlvs(raw, _V2_FIXED + size) if family != UNSPEC else ()
    return Header(ProxyVersion.V2, source, destination, tlvs=tlvs)


def _addresses(family: int, block: bytes) -> tuple[SocketAddress | None, SocketAddress | None]:
    if family == INET:
        a, b, c, d = struct.unpack_from("!4s4sHH", block)
        return (
            Address(str(ipaddress.IPv4Address(a)), c),
            Address(str(ipaddress.IPv4Address(b)), d),
        )
    if family == INET6:
        a, b, c, d = struct.unpack_from("!16s16sHH", block)
        return (
            Address(ipaddress.IPv6Address(a).compressed, c),
            Address(ipaddress.IPv6Address(b).compressed, d),
        )
    if family == UNIX:
        a, b = struct.unpack_from("!108s108s", block)
        return UnixAddress(_unix_path(a)), UnixAddress(_unix_path(b))
    return None, None


def _unix_path(field: bytes) -> str:
    """A path as policies write it: an abstract name has a NUL in front there, an `@` here."""
    if field[:1] == b"\0":
        name = field[1:].rstrip(b"\0")
        return "@" + name.decode("latin-1") if name else ""
    return field.partition(b"\0")[0].decode("latin-1")


def _parse_tlvs(raw: bytes, at: int) -> tuple[tuple[int, bytes], ...]:
    found: list[tuple[int, bytes]] = []
    while at < len(raw):
        length = int.from_bytes(raw[at + 1 : at + 3])
        start, end = at + 3, at + 3 + length
        if end > len(raw):
            raise BadProxyHeader(Rule.TLV, "a TLV goes beyond the header")
        if raw[at] == Tlv.CRC32C:
            _check(raw, start, length)
        found.append((raw[at], raw[start:end]))
        at = end
    return tuple(found)


def _check(raw: bytes, start: int, length: int) -> None:
    """Check the checksum at `start`.

    "replace the 32 bits of the checksum field in the received PROXY header with all '0's and
    calculate a CRC32c checksum value of the whole PROXY header".
    """
    if length != CHECKSUM_SIZE:
        raise BadProxyHeader(Rule.TLV, "a checksum that is not four bytes long")
    end = start + CHECKSUM_SIZE
    if crc32c(raw[:start] + bytes(CHECKSUM_SIZE) + raw[end:]) != int.from_bytes(raw[start:end]):
        raise BadProxyHeader(Rule.CHECKSUM, "the checksum is wrong")
