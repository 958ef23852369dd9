"""What a PROXY header is made of."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from l7proxy.model import ProxyVersion, SocketAddress

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
"""What version 2 begins with."""

LOCAL, PROXY = 0, 1
"""Commands of version 2."""

UNSPEC, INET, INET6, UNIX = 0, 1, 2, 3
"""Address families of version 2."""

STREAM, DGRAM = 1, 2
"""Its transport protocols; 0 is UNSPEC here too."""

CHECKSUM_SIZE = 4


class Tlv(IntEnum):
    """Types of the additional vectors that l7proxy knows. Others are kept as they are."""

    ALPN = 0x01
    AUTHORITY = 0x02
    CRC32C = 0x03
    NOOP = 0x04
    UNIQUE_ID = 0x05
    SSL = 0x20
    NETNS = 0x30


@dataclass(frozen=True, slots=True)
class Header:
    """What a header says. `source` and `destination` are None when it names nobody.

    That is so for LOCAL (a health check of the proxy's own), UNKNOWN and UNSPEC: "use the real
    connection's parameters as if there were no PROXY protocol header on the wire". An unnamed
    unix socket has the path "".
    """

    version: ProxyVersion
    source: SocketAddress | None = None
    destination: SocketAddress | None = None
    local: bool = False
    tlvs: tuple[tuple[int, bytes], ...] = ()  # in their order, the checksum among them

    def tlv(self, kind: int) -> bytes | None:
        """The value of the first vector of this type."""
        return next((value for found, value in self.tlvs if found == kind), None)

    @property
    def over_tls(self) -> bool:
        """Whether the client came to the proxy over TLS: PP2_CLIENT_SSL of PP2_TYPE_SSL."""
        value = self.tlv(Tlv.SSL)
        return value is not None and len(value) >= 5 and bool(value[0] & 0x01)
