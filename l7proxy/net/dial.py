"""Connecting to a backend without waiting: `start`, then `progress` until it is connected.

On loopback the handshake is over by the time connect(2) returns, though a non-blocking socket still
answers EINPROGRESS. A second connect(2) tells: EISCONN, EALREADY, or the error of the attempt
(POSIX connect; Linux `inet_stream_connect`). That saves a round through epoll for every
connection to a near backend.
"""

from __future__ import annotations

import errno
import socket
import struct

from l7proxy.model import Address

_LINGER_RESET = struct.pack("ii", 1, 0)
_LINGER_OFF = struct.pack("ii", 0, 0)


class DialError(OSError):
    """One attempt failed; `errno` says how."""


def start(address: Address) -> socket.socket:
    """Begin to connect; returns a non-blocking socket with Nagle's algorithm off.

    The socket resets on close (`reset_on_close`): until a stream is known to be complete, nobody
    may see a clean end of it. Raises DialError when it fails at once, OSError (EMFILE, ENFILE)
    when there is no descriptor.
    """
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0)
    try:
        code = sock.connect_ex((address.host, address.port))
        if code not in (0, errno.EINPROGRESS):
            raise DialError(code, "connect")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_urgent_inline(sock)
        reset_on_close(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def progress(sock: socket.socket, address: Address) -> bool:
    """Whether the connection stands now; False while it is still being made. Raises DialError."""
    code = sock.connect_ex((address.host, address.port))
    if code in (0, errno.EISCONN):
        return True
    if code in (errno.EALREADY, errno.EINPROGRESS):
        return False
    raise DialError(code, "connect")


def reset_on_close(sock: socket.socket) -> None:
    """Make close(2), and the death of the process, send a reset: `SO_LINGER {1, 0}`."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)


def deliver_on_close(sock: socket.socket) -> None:
    """Make close(2) deliver what is queued and send a FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_OFF)


def keep_urgent_inline(sock: socket.socket) -> None:
    """Leave a byte that is sent as urgent where it is: `SO_OOBINLINE` (RFC 6093 section 3.4).

    Else TCP takes it out of the stream, but counts it: nobody would read it, and no ledger balance.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


def watch_for_dead_end(sock: socket.socket) -> None:
    """Keepalive: an end that vanished without a word is found after about two minutes."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
