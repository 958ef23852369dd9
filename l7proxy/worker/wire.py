"""One socket on a request's way, and what user space knows of it: what it took and wrote, and more.

Some facts about epoll, and what follows from them:

- Wires are watched edge-triggered for everything, and for as long as they live: no system call is
  spent on what is to be watched next. An edge is told once, so what was told and not followed up
  is remembered: `more`. epoll(7): a read that does not fill its buffer has emptied the socket, and
  whatever comes after it is another edge.
- An end is told once as well (`ended`); a read finds it behind the last byte.
- EPOLLOUT comes along with every edge of the other kinds: it says something only to a wire that
  had no room.

What a socket has no room for is kept in `out`, and who has bytes there is given no more: so user
space holds one buffer for each direction at the most. Both counts are those of TCP's own accounts,
from the connection's begin on: nobody else reads from the socket or writes to it.
"""

from __future__ import annotations

import os
import select
import socket

from l7proxy.datapath.relay import SinkBroken, SourceBroken
from l7proxy.datapath.sockmap import Splicer
from l7proxy.net.tcpinfo import tcp_info

TCP_CLOSE = 7  # include/net/tcp_states.h
LOOKS = 40  # for what was passed, at a socket that is reset; all but eight are a millisecond apart

WATCH = select.EPOLLIN | select.EPOLLPRI | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET

_DONTWAIT = socket.MSG_DONTWAIT
_PEEK = socket.MSG_DONTWAIT | socket.MSG_PEEK
_ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
READABLE = select.EPOLLIN | _ENDED


class Wire:
    """A socket that requests and responses go over, one after the other."""

    __slots__ = (
        *("_base", "_looks", "_splicer", "given", "index", "lent"),
        *("born", "ended", "more", "out", "put_at", "sock", "stuck_at", "stuck_since"),
        *("taken", "uses", "written"),
    )

    def __init__(self, sock: socket.socket, *, taken: int = 0, written: int = 0) -> None:
        self.sock = sock
        self.taken = taken  # bytes that user space has read
        self.written = written  # bytes that it has written
        self.lent = 0  # bytes from it that the kernel has moved
        self.given = 0  # bytes to it that the kernel has moved
        self.index = -1  # its index in the map, once it stands there
        self._splicer: Splicer | None = None
        self._base = 0  # of `taken`, when it went there
        self._looks = 0  # for what was passed, and cannot be read
        self.out = b""  # what is to be written, and found no room
        self.more = True  # there may be something to read: a byte, an end or an error
        self.ended = False  # epoll has told of an end
        self.stuck_since: float | None = None  # when it had no room, and has taken nothing since
        self.stuck_at = 0  # of `written`, then
        self.uses = 0  # requests
        self.born = 0.0  # when it was dialled, in seconds of the worker's clock
        self.put_at = 0.0  # when it was put into the pool

    def note(self, mask: int) -> None:
        """Epoll has reported `mask`."""
        if mask & READABLE:
            self.more = True
            if mask & _ENDED:
                self.ended = True

    def read(self, into: memoryview) -> int:
        """How many bytes were read; 0 at the end, -1 when there is nothing now. SourceBroken."""
        try:
            n = self.sock.recv_into(into, 0, _DONTWAIT)
        except BlockingIOError:
            self.more = False
            return -1
        except OSError as error:
            raise SourceBroken(str(error)) from error
        if not n and self._splicer is not None and self._is_owed(self._splicer):
            self._await_owed()
            return -1
        self.taken += n
        if n < len(into) and not self.ended:
            self.more = False
        return n

    def write(self, data: bytes | memoryview) -> bool:
        """Write, and keep what finds no room; whether all of it found some. Raises SinkBroken."""
        if self.out:
            self.out += data
            return False
        try:
            n = self.sock.send(data, _DONTWAIT)
        except BlockingIOError:
            n = 0
        except OSError as error:
            raise SinkBroken(str(error)) from error
        self.written += n
        if n == len(data):
            return True
        self.out = bytes(data[n:])
        return False

    def flush(self) -> bool:
        """Write what is kept; whether nothing is left of it. Raises SinkBroken."""
        if not self.out:
            return True
        data, self.out = self.out, b""
        return self.write(data)

    # ---- in the map

    def enter(self, splicer: Splicer, side: int) -> None:
        """Put it into the map, for the rest of its life. Raises OSError: it is not taken."""
        self.index = splicer.enter(self.sock.fileno(), side)
        self._splicer, self._base = splicer, self.taken

    @property
    def passed_taken(self) -> int:
        """Of the bytes that were passed to user space, how many it has read."""
        return self.taken - self._base

    def _is_owed(self, splicer: Splicer) -> bool:
        """Whether bytes were passed that recv(2) does not give yet, though it tells of an end.

        They wait behind bytes that are being sent to the same socket.
        """
        return splicer.passed(self.index) != self.passed_taken

    def _await_owed(self) -> None:
        """An edge tells when it can be read, or never does.

        What was passed waits behind what is being sent to the same socket. When that cannot be
        sent any more, since the socket was reset, `sk_psock_backlog` drops all of it: then nothing
        tells, and whoever reads has to look again (`more`). Raises SourceBroken in the end.
        """
        self.more = tcp_info(self.sock).state == TCP_CLOSE
        if self.more:
            self._looks += 1
            if self._looks > LOOKS:
                raise SourceBroken("what it said last is gone with it")

    def check(self) -> None:
        """Raises SourceBroken if the socket has failed."""
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise SourceBroken(os.strerror(code))

    @property
    def is_settled(self) -> bool:
        """Whether every byte that the kernel has moved to it is in its write queue."""
        return tcp_info(self.sock).queued == self.written + self.given

    # ---- in the pool, and out of room

    def note_stuck(self, now: float) -> bool:
        """Keep account of how long it has had no room; whether that has just begun."""
        if not self.out:
            self.stuck_since = None
            return False
        begins = self.stuck_since is None
        if begins or self.stuck_at != self.written:
            self.stuck_since, self.stuck_at = now, self.written
        return begins

    @property
    def is_quiet(self) -> bool:
        """Whether nothing has come, no end either: what has would be taken for a response."""
        if self._splicer is not None and self._is_owed(self._splicer):
            return False
        try:
            self.sock.recv(1, _PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False
