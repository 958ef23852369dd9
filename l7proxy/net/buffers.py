"""How full a socket's send buffer is, and how much it may receive: the two ends of backpressure.

Source: `sk_get_meminfo` (SO_MEMINFO), `__sock_set_rcvbuf`, `tcp_set_window_clamp`,
`tcp_rcv_space_adjust` in Linux. Sizes are bytes, with the kernel's overhead where it says so.
"""

from __future__ import annotations

import socket
import struct

SO_MEMINFO = 55  # include/uapi/asm-generic/socket.h
# SK_MEMINFO_RMEM_ALLOC, _RCVBUF, _SNDBUF, _WMEM_QUEUED
_MEMINFO = struct.Struct("=II4xI4xI")
_RMEM_MAX = "/proc/sys/net/core/rmem_max"


def memory(sock: socket.socket) -> tuple[int, int, int, int]:
    """(received and unread, its limit, limit of the send queue, bytes in it), overhead included."""
    received, limit, send_limit, queued = _MEMINFO.unpack_from(
        sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _MEMINFO.size)
    )
    return received, limit, send_limit, queued


def limit_receive(sock: socket.socket, size: int) -> None:
    """Limit what may be received and unread to `size` bytes, overhead included.

    The kernel sizes the buffer no more by itself from then on (SOCK_RCVBUF_LOCK), and it makes it
    no larger than twice net.core.rmem_max. Segments that the other end was allowed to send and
    that do not fit are dropped.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, max(size // 2, 1))  # doubled there


def limit_window(sock: socket.socket, size: int) -> None:
    """Let the other end send at most `size` bytes ahead; what it was offered before stays offered.

    Lasts only with `limit_receive`, and until segments come with another overhead than those before
    (`tcp_measure_rcv_mss` then sets the clamp to what the receive buffer allows).
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, size)


def receive_ceiling() -> int:
    """The largest `size` that `limit_receive` can set in this network namespace."""
    try:
        with open(_RMEM_MAX, encoding="ascii") as file:
            return 2 * int(file.read())
    except (OSError, ValueError):
        return 0
