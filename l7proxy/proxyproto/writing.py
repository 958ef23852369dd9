"""Out: the header that tells a backend who the client is."""

from __future__ import annotations

import ipaddress
import struct

from l7proxy.model import Address, ProxyVersion, SocketAddress, UnixAddress
from l7proxy.proxyproto.checksum import crc32c
from l7proxy.proxyproto.words import (
    CHECKSUM_SIZE,
    INET,
    INET6,
    PROXY,
    SIGNATURE,
    STREAM,
    UNIX,
    UNSPEC,
    Tlv,
)


def encode(
    version: ProxyVersion,
    source: SocketAddress | None,
    destination: SocketAddress | None,
    *,
    authority: str = "",
    alpn: str = "",
) -> bytes:
    """The header that tells a backend who the client is.

    Where there is no pair of addresses that the version can tell: UNKNOWN, or UNSPEC. Version 2
    also tells the host name that the client asked for and the first protocol that it offered, and
    has a checksum. Addresses of two families become IPv6 ones (`::ffff:192.0.2.1`).
    """
    if version is ProxyVersion.V1:
        return _encode_v1(source, destination)
    family, block = _address_block(source, destination)
    tlvs = b""
    if family != UNSPEC << 4:  # see `_parse_v2`: nobody could find them
        if alpn:
            tlvs += _encode_tlv(Tlv.ALPN, alpn.encode("latin-1"))
        if authority:
            tlvs += _encode_tlv(Tlv.AUTHORITY, authority.encode())
        tlvs += _encode_tlv(Tlv.CRC32C, bytes(CHECKSUM_SIZE))
    head = SIGNATURE + bytes((0x20 | PROXY, family)) + struct.pack("!H", len(block) + len(tlvs))
    raw = head + block + tlvs
    return raw[:-CHECKSUM_SIZE] + struct.pack("!I", crc32c(raw)) if tlvs else raw


def _encode_v1(source: SocketAddress | None, destination: SocketAddress | None) -> bytes:
    if not isinstance(source, Address) or not isinstance(destination, Address):
        return b"PROXY UNKNOWN\r\n"
    one, other = _same_family(source, destination)
    family = "TCP6" if isinstance(one, ipaddress.IPv6Address) else "TCP4"
    return (
        f"PROXY {family} {_text(one)} {_text(other)} {source.port} {destination.port}\r\n"
    ).encode("ascii")


_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


def _text(address: _Ip) -> str:
    """As 2.1 wants it: an IPv6 address of hexadecimal digits and colons only.

    Python writes an IPv4-mapped one with dots since 3.13.
    """
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    if mapped is None:
        return address.compressed
    return f"::ffff:{int(mapped) >> 16:x}:{int(mapped) & 0xFFFF:x}"


def _same_family(source: Address, destination: Address) -> tuple[_Ip, _Ip]:
    one, other = (ipaddress.ip_address(a.host.partition("%")[0]) for a in (source, destination))
    return (one, other) if one.version == other.version else (_as_ipv6(one), _as_ipv6(other))


def _as_ipv6(address: _Ip) -> ipaddress.IPv6Address:
    if isinstance(address, ipaddress.IPv6Address):
        return address
    return ipaddress.IPv6Address(0xFFFF << 32 | int(address))


def _address_block(
    source: SocketAddress | None, destination: SocketAddress | None
) -> tuple[int, bytes]:
    """The byte of family and protocol, and the addresses."""
    if isinstance(source, Address) and isinstance(destination, Address):
        one, other = _same_family(source, destination)
        family = INET if one.version == 4 else INET6
        ports = struct.pack("!HH", source.port, destination.port)
        return family << 4 | STREAM, one.packed + other.packed + ports
    if isinstance(source, UnixAddress) and isinstance(destination, UnixAddress):
        return UNIX << 4 | STREAM, _unix_field(source) + _unix_field(destination)
    return UNSPEC << 4 | UNSPEC, b""


def _unix_field(address: UnixAddress) -> bytes:
    name = address.path.encode("latin-1", "replace")
    if name.startswith(b"@"):
        name = b"\0" + name[1:]
    return name[:108].ljust(108, b"\0")


def _encode_tlv(kind: Tlv, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value
