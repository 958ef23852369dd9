"""What the kernel tells of a TCP socket that is found by its addresses: `NETLINK_SOCK_DIAG`.

- How many bytes it holds that nobody has read. ioctl(SIOCINQ) says that of a plain socket. Of one
  in a SOCKMAP it says only what recv(2) would give now, or nonsense on older kernels.
  `tcp_diag_get_info()` computes `rcv_nxt - copied_seq`, and `copied_seq` is moved by every byte
  that was read or redirected, so the difference is what was passed to user space and not taken
  yet. It counts the FIN of the other end, as `TCP_INFO` does.
- Whose it is. The other end of a connection is the socket with the same addresses the other way
  round, if it is in this network namespace, whatever user asks.

Source of the layout: `struct inet_diag_req_v2`, `inet_diag_msg`, in include/uapi/linux/inet_diag.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from l7proxy.model import Address

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR = 2
_NLM_F_REQUEST = 1
_ANY_COOKIE = b"\xff" * 8
_ANY_STATE = 0xFFFF_FFFF

_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBxI")
_ID = struct.Struct("!HH16s16s")  # ports and addresses, in network order
# from the beginning of `inet_diag_msg`: family, state, two bytes, the id (48 bytes), expires,
# rqueue, wqueue, uid
_STATE_AT = _HEADER.size + 1
_RQUEUE_AT = _HEADER.size + 4 + 48 + 4
_UID_AT = _HEADER.size + 4 + 48 + 12
_LISTEN = 10  # include/net/tcp_states.h
_LONGEST = 8192


class SockDiag:
    """Asks the kernel about sockets of this network namespace. OSError: it cannot be asked here."""

    def __init__(self, seconds: float | None = None) -> None:
        """`seconds`: how long to wait for an answer. It comes at once, or it is lost."""
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG)
        self._sock.settimeout(seconds)

    def unread(self, sock: socket.socket) -> int:
        """Bytes received in order and not read. Raises OSError: there is no such connection."""
        ends = [
            Address(name[0].partition("%")[0], name[1])
            for name in (sock.getsockname(), sock.getpeername())
        ]
        found: int = struct.unpack_from("=I", self._look(sock.family, *ends), _RQUEUE_AT)[0]
        return found

    def owner(self, near: Address, far: Address) -> int | None:
        """The user of the TCP socket here that is connected from `near` to `far`.

        None where there is none: the connection is from elsewhere, or over. Raises OSError when the
        kernel does not answer.
        """
        family = socket.AF_INET6 if near.is_ipv6 else socket.AF_INET
        try:
            answer = self._look(family, near, far)
        except FileNotFoundError:
            return None
        if answer[_STATE_AT] == _LISTEN:
            return None
        uid: int = struct.unpack_from("=I", answer, _UID_AT)[0]
        return uid

    def _look(self, family: int, near: Address, far: Address) -> bytes:
        """The answer about the socket with these ends. Raises OSError; ENOENT: there is none."""
        ends = (socket.inet_pton(family, one.host).ljust(16, b"\0") for one in (near, far))
        request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _ANY_STATE)
        request += _ID.pack(near.port, far.port, *ends) + bytes(4) + _ANY_COOKIE
        size = _HEADER.size + len(request)
        self._sock.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0) + request)
        answer = self._sock.recv(_LONGEST)
        _, kind, *_ = _HEADER.unpack_from(answer)
        if kind == _NLMSG_ERROR:
            code = -struct.unpack_from("=i", answer, _HEADER.size)[0] or errno.EPROTO
            raise OSError(code, os.strerror(code))
        return answer

    def close(self) -> None:
        """Ask nothing more."""
        self._sock.close()
