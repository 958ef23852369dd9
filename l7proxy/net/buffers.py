"""How full a socket's send buffer is, and how much it may receive: the two ends of backpressure.

Source: `sk_get_meminfo` (SO_MEMINFO), `__sock_set_rcvbuf` and `tcp_rcv_space_adjust` in Linux.
"""

from __future__ import annotations

import socket
import struct

SO_MEMINFO = 55  # include/uapi/asm-generic/socket.h
_MEMINFO = struct.Struct("=12xI4xI")  # SK_MEMINFO_SNDBUF, SK_MEMINFO_WMEM_QUEUED


def send_queue(sock: socket.socket) -> tuple[int, int]:
    """(bytes in the send queue, its limit), both with the kernel's overhead. One system call."""
    limit, queued = _MEMINFO.unpack_from(
        sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _MEMINFO.size)
    )
    return queued, limit


def bound_receive(sock: socket.socket, size: int) -> None:
    """Fix the receive buffer at `size` bytes of data, and as much again for the kernel's overhead.

    The kernel sizes it no more by itself (SOCK_RCVBUF_LOCK); net.core.rmem_max may make it less.
    Making it smaller than what the other end was already allowed to send drops segments.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
