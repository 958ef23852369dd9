"""How much a socket may receive: the end of backpressure that a proxy decides on.

Source: `__sock_set_rcvbuf`, `tcp_rcv_space_adjust` in Linux.
"""

from __future__ import annotations

import socket


def freeze_receive(sock: socket.socket) -> None:
    """Keep the receive buffer at the size it has now; the kernel makes it no larger any more.

    It measures how fast bytes leave the receive queue, and a reader downstream that takes nothing
    must not find a buffer of tens of megabytes filled for it. One that is already larger than twice
    net.core.rmem_max becomes that; segments beyond are dropped, and sent again. Raises OSError.
    """
    size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size // 2)  # doubled there
