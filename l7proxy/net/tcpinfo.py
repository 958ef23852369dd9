"""What TCP itself knows of a connection: `getsockopt(TCP_INFO)`.

Source of the layout: `struct tcp_info` in Linux's `include/uapi/linux/tcp.h`; fields are only ever
appended. `tcp_get_info()` takes the socket's lock, so that after the call everything that the
kernel did to this socket before it is visible: the ledger relies on that.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

_SIZE = 216  # up to and with tcpi_bytes_retrans (Linux 4.19)
# state, last_data_sent, last_data_recv, bytes_received, notsent_bytes, min_rtt, bytes_sent,
# bytes_retrans
_LAYOUT = struct.Struct("=B43xI4xI72xQ8xII48xQQ")
assert _LAYOUT.size == _SIZE


class TcpInfo(NamedTuple):
    """A few fields of `struct tcp_info`. Bytes count from the connection's begin; times are ms."""

    state: int
    last_data_sent: int
    last_data_recv: int
    bytes_received: int  # in order, retransmissions once; the peer's FIN counts one
    notsent_bytes: int
    min_rtt: int  # microseconds
    bytes_sent: int
    bytes_retrans: int

    @property
    def queued(self) -> int:
        """Bytes that this socket's write queue has taken since the connection began.

        Never an over-estimate: `write_seq` is at least what was sent once plus what was not yet.
        """
        return self.bytes_sent - self.bytes_retrans + self.notsent_bytes


def tcp_info(sock: socket.socket) -> TcpInfo:
    """Read `TCP_INFO`. Raises OSError on a socket that is not TCP."""
    return TcpInfo._make(
        _LAYOUT.unpack_from(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE))
    )
