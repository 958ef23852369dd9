"""Connecting to a backend without waiting: `start`, then `progress` until it is connected.

On loopback the handshake is over by the time connect(2) returns, though a non-blocking socket still
answers EINPROGRESS. A second connect(2) tells: EISCONN, EALREADY, or the error of the attempt
(POSIX connect; Linux `inet_stream_connect`). That saves a round through epoll for every
connection to a near backend.

A unix socket is connected at once or not at all: `unix_stream_connect` answers EAGAIN when the
queue of the other side is full, and then nothing is under way and epoll has nothing to tell. So
`must_ask` says which attempts are to be asked for again (`progress` connects anew).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct

from l7proxy.model import Address, SocketAddress, UnixAddress

LINGER_RESET = struct.pack("ii", 1, 0)
_LINGER_OFF = struct.pack("ii", 0, 0)


_UNSPEC = bytes(16)  # a sockaddr of family AF_UNSPEC
_disconnect = ctypes.PyDLL(None).connect  # the module `socket` knows no such address
_disconnect.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]

_OURS = frozenset({errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM, errno.EPERM})


class DialError(OSError):
    """One attempt failed; `errno` and `strerror` say how."""

    def __init__(self, code: int) -> None:
        super().__init__(code, os.strerror(code))

    @property
    def is_ours(self) -> bool:
        """Whether it says nothing of the endpoint: no local port or memory is left, a firewall."""
        return self.errno in _OURS


def start(
    address: SocketAddress, *, speaks: bool = False, sock: socket.socket | None = None
) -> socket.socket:
    """Begin to connect; returns a non-blocking socket with Nagle's algorithm off.

    The socket resets on close (`reset_on_close`): until a stream is known to be complete, nobody
    may see a clean end of it. A unix socket knows no reset; its other side sees an end. `speaks`:
    there are bytes to be sent as soon as it is connected; they carry the ACK that ends the
    handshake, which is one segment less (`tcp_rcv_synsent_state_process`, "pingpong"). `sock`: one
    that is bound already. Raises DialError when it fails at once, OSError (EMFILE, ENFILE) when
    there is no descriptor.
    """
    if isinstance(address, UnixAddress):
        return _start_unix(address)
    if sock is None:
        family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0)
    try:
        if speaks:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        code = sock.connect_ex((address.host, address.port))
        if code not in (0, errno.EINPROGRESS):
            raise DialError(code)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_urgent_inline(sock)
        reset_on_close(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def _start_unix(address: UnixAddress) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        progress(sock, address)
        reset_on_close(sock)  # asks for nothing that a unix socket could do, and harms nothing
    except BaseException:
        sock.close()
        raise
    return sock


def progress(sock: socket.socket, address: SocketAddress) -> bool:
    """Whether the connection stands now; False while it is still being made. Raises DialError."""
    if isinstance(address, UnixAddress) and _is_connected(sock):
        return True
    code = sock.connect_ex(sockaddr(address))
    if code in (0, errno.EISCONN):
        return True
    if code in (errno.EALREADY, errno.EINPROGRESS, errno.EAGAIN):
        return False
    raise DialError(code)


def _is_connected(sock: socket.socket) -> bool:
    """A connected unix socket that connects again is told EAGAIN too when that queue is full."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def must_ask(address: SocketAddress) -> bool:
    """Whether epoll says nothing of an attempt that is not connected: ask `progress` in a while."""
    return isinstance(address, UnixAddress)


def sockaddr(address: SocketAddress) -> tuple[str, int] | bytes:
    """An address as the `socket` module wants it. `@name` is an abstract one."""
    if isinstance(address, Address):
        return address.host, address.port
    path = address.path.encode(errors="surrogateescape")
    return b"\0" + path[1:] if path.startswith(b"@") else path


def reset_on_close(sock: socket.socket) -> None:
    """Make close(2), and the death of the process, send a reset: `SO_LINGER {1, 0}`."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)


def reset_now(sock: socket.socket) -> None:
    """Reset the connection, whoever else has a descriptor of this socket. Never raises OSError.

    connect(2) to AF_UNSPEC disconnects (`tcp_disconnect`): a reset goes out, and what the socket
    held is gone. close(2) with `SO_LINGER {1, 0}` would do that at the last descriptor only.
    """
    _disconnect(sock.fileno(), _UNSPEC, len(_UNSPEC))


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
    if sock.family == socket.AF_UNIX:
        return  # its other end cannot vanish without a word
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
