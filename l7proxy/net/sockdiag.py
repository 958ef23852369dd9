"""How many bytes a TCP socket holds that nobody has read: `NETLINK_SOCK_DIAG`.

ioctl(SIOCINQ) says that of a plain socket. Of one in a SOCKMAP it says only what recv(2) would give
now, or nonsense on older kernels. `tcp_diag_get_info()` computes `rcv_nxt - copied_seq`, and
`copied_seq` is moved by every byte that was read or redirected, so the difference is what was
passed to user space and not taken yet. It counts the FIN of the other end, as `TCP_INFO` does.

Source of the layout: `struct inet_diag_req_v2`, `inet_diag_msg`, in include/uapi/linux/inet_diag.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR = 2
_NLM_F_REQUEST = 1
_ANY_COOKIE = b"\xff" * 8

_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBxI")
_ID = struct.Struct("!HH16s16s")  # ports and addresses, in network order
# from the beginning of `inet_diag_msg`: four bytes, the id (48 bytes), expires, rqueue
_RQUEUE_AT = _HEADER.size + 4 + 48 + 4
_LONGEST = 8192


class SockDiag:
    """Asks the kernel about sockets of this network namespace."""

    def __init__(self) -> None:
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
        self._sock = socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG)

    def unread(self, sock: socket.socket) -> int:
        """Bytes received in order and not read. Raises OSError: there is no such connection."""
        ours, theirs = sock.getsockname(), sock.getpeername()
        addresses = (
            socket.inet_pton(sock.family, name[0].partition("%")[0]).ljust(16, b"\0")
            for name in (ours, theirs)
        )
        request = _REQUEST.pack(sock.family, socket.IPPROTO_TCP, 0, 0xFFF)
        request += _ID.pack(ours[1], theirs[1], *addresses) + bytes(4) + _ANY_COOKIE
        size = _HEADER.size + len(request)
        self._sock.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0) + request)
        answer = self._sock.recv(_LONGEST)
        _, kind, *_ = _HEADER.unpack_from(answer)
        if kind == _NLMSG_ERROR:
            code = -struct.unpack_from("=i", answer, _HEADER.size)[0] or errno.EPROTO
            raise OSError(code, os.strerror(code))
        found: int = struct.unpack_from("=I", answer, _RQUEUE_AT)[0]
        return found

    def close(self) -> None:
        """Ask nothing more."""
        self._sock.close()
