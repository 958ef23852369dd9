"""Moving the bytes of one direction in user space: by splice(2) through a pipe, or by copying.

This is what l7proxy falls back to where the kernel does not take a pair. (When the receiver of a
spliced pair is slower than its sender, `worker.overflow` takes over, without a channel.)

Facts, and what follows:

- splice(2) from a socket that sits in a SOCKMAP answers EAGAIN while passed data waits there
  (`tcp_bpf` has no splice_read of its own): what the kernel took by half is copied.
- A pipe holds bytes between the two calls, so an idle direction must not own one: descriptors are
  the scarce thing. Pipes come from a pool and go back as soon as they are empty.
- Each write would end in a short segment of its own (the sockets are TCP_NODELAY), half of all
  segments on loopback. So while much comes, a write says that more follows; once the source has
  nothing more, what TCP holds back for that is pushed out (`Announcement`).
- Both channels are bounded: one buffer, or one pipe. What does not fit stays in the source socket,
  and TCP's own flow control holds the sender.
- Sockets are watched edge-triggered, so a channel moves until one side says EAGAIN, or until its
  turn is over and it says `Want.TURN`.
"""

from __future__ import annotations

import fcntl
import os
import socket
from enum import Enum
from typing import Protocol

from l7proxy.errors import L7ProxyError
from l7proxy.model import Datapath

BUFFER = 256 * 1024  # bytes moved by one recv or splice
MUCH = 64 * 1024  # bytes; whoever reads that many at once tells the sink's TCP that more follows
TURN = 4  # buffers that one direction may move before the others have their turn
PIPE_POOL = 64  # empty pipes that are kept

_DONTWAIT = socket.MSG_DONTWAIT
_SPLICE_FLAGS = getattr(os, "SPLICE_F_MOVE", 1) | getattr(os, "SPLICE_F_NONBLOCK", 2)
_SPLICE_MORE = _SPLICE_FLAGS | getattr(os, "SPLICE_F_MORE", 4)


class Want(Enum):
    """Why a channel stopped."""

    READ = "read"  # the source has nothing now
    WRITE = "write"  # the sink has no room
    TURN = "turn"  # its turn is over; there is more
    END = "end"  # the source ended and everything is written


class SourceBroken(L7ProxyError):
    """The source socket failed (reset, timed out)."""


class SinkBroken(L7ProxyError):
    """The sink socket failed: the receiver is gone."""


class Channel(Protocol):
    """One direction in user space."""

    taken: int  # bytes read from the source since the channel was made
    written: int  # bytes written to the sink since the channel was made
    by_reference: bool  # no byte is copied to user space

    @property
    def holds(self) -> bool:
        """Whether bytes were taken that are not written."""

    def pump(self) -> Want:
        """Move bytes until one side blocks or the turn is over. Raises SourceBroken, SinkBroken."""

    def close(self) -> None:
        """Give back what the channel holds. The sockets stay open."""


class Announcement:
    """Whether the sink's TCP was told that more follows, so that it may hold bytes back for it."""

    __slots__ = ("_sink", "made")

    def __init__(self, sink: socket.socket) -> None:
        self._sink = sink
        self.made = False

    def note(self, count: int) -> None:
        """So many bytes were read at once for the sink: after much, more is likely."""
        self.made = count >= MUCH and self._sink.family != socket.AF_UNIX

    def push(self) -> None:
        """Nothing more is there: send what is held back. Raises SinkBroken."""
        if self.made:
            self.made = False
            try:
                # __tcp_sock_set_nodelay() pushes pending frames, set or not
                self._sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                raise SinkBroken(str(error)) from error


class CopyChannel:
    """recv into a shared buffer, send from it; what the sink did not take is kept."""

    __slots__ = ("_announced", "_buffer", "_held", "_sink", "_source", "taken", "written")
    by_reference = False

    def __init__(self, source: socket.socket, sink: socket.socket, buffer: memoryview) -> None:
        """`buffer` is scratch space that all channels of a thread may share."""
        self._source = source
        self._sink = sink
        self._buffer = buffer
        self._held = b""  # taken, not yet written; at most one buffer
        self._announced = Announcement(sink)
        self.taken = 0
        self.written = 0

    def hold(self, data: bytes) -> None:
        """Begin with `data`, which somebody else took from the source. At most one buffer."""
        self._held = data

    @property
    def holds(self) -> bool:
        """See `Channel.holds`."""
        return bool(self._held)

    def pump(self) -> Want:
        """See `Channel.pump`."""
        if self._held and not self._send(memoryview(self._held)):
            return Want.WRITE
        self._held = b""
        for _ in range(TURN):
            try:
                n = self._source.recv_into(self._buffer, 0, _DONTWAIT)
            except BlockingIOError:
                self._announced.push()
                return Want.READ
            except OSError as error:
                raise SourceBroken(str(error)) from error
            if n == 0:
                return Want.END
            self.taken += n
            self._announced.note(n)
            if not self._send(self._buffer[:n]):
                return Want.WRITE
        return Want.TURN

    def _send(self, data: memoryview) -> bool:
        """Send all of `data`, or keep what is left. Whether nothing is left."""
        flags = _DONTWAIT | socket.MSG_MORE if self._announced.made else _DONTWAIT
        while data:
            try:
                n = self._sink.send(data, flags)
            except BlockingIOError:
                self._held = bytes(data)
                return False
            except OSError as error:
                raise SinkBroken(str(error)) from error
            self.written += n
            data = data[n:]
        return True

    def close(self) -> None:
        """Forget what is held."""
        self._held = b""


class PipePool:
    """Empty pipes for `Splice2Channel`, each of `BUFFER` bytes where the system allows it."""

    def __init__(self, keep: int = PIPE_POOL) -> None:
        self._keep = keep
        self._free: list[tuple[int, int]] = []

    def take(self) -> tuple[int, int]:
        """A pipe: (read end, write end). Raises OSError (EMFILE, ENFILE)."""
        if self._free:
            return self._free.pop()
        ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, BUFFER)
        except OSError:
            pass  # /proc/sys/fs/pipe-user-pages-soft is used up: the default size works as well
        return ends

    def give(self, ends: tuple[int, int], *, empty: bool) -> None:
        """Take a pipe back. One that still holds bytes must not meet another connection."""
        if empty and len(self._free) < self._keep:
            self._free.append(ends)
        else:
            os.close(ends[0])
            os.close(ends[1])

    def close(self) -> None:
        """Close the pipes that are kept."""
        while self._free:
            for end in self._free.pop():
                os.close(end)


class Splice2Channel:
    """splice(2) socket -> pipe -> socket: pages move by reference, no byte is copied to user space.

    Both sockets must be non-blocking: splice(2) to a socket looks at the file's O_NONBLOCK.
    """

    __slots__ = ("_announced", "_in_pipe", "_pipe", "_pool", "_sink", "_source", "taken", "written")
    by_reference = True

    def __init__(self, source: socket.socket, sink: socket.socket, pool: PipePool) -> None:
        self._source = source
        self._sink = sink
        self._pool = pool
        self._pipe: tuple[int, int] | None = None
        self._in_pipe = 0
        self._announced = Announcement(sink)
        self.taken = 0
        self.written = 0

    @property
    def holds(self) -> bool:
        """See `Channel.holds`."""
        return bool(self._in_pipe)

    def pump(self) -> Want:
        """See `Channel.pump`. Raises OSError as well, when no pipe can be had."""
        try:
            return self._pump()
        finally:
            if self._pipe and not self._in_pipe:
                self._pool.give(self._pipe, empty=True)
                self._pipe = None

    def _pump(self) -> Want:
        if self._in_pipe and not self._drain_pipe():
            return Want.WRITE
        for _ in range(TURN):
            if self._pipe is None:
                self._pipe = self._pool.take()
            try:
                n = os.splice(self._source.fileno(), self._pipe[1], BUFFER, flags=_SPLICE_FLAGS)
            except BlockingIOError:
                self._announced.push()
                return Want.READ
            except OSError as error:
                raise SourceBroken(str(error)) from error
            if n == 0:
                if self._is_at_urgent_data():
                    return Want.READ
                return Want.END
            self.taken += n
            self._in_pipe = n
            self._announced.note(n)
            if not self._drain_pipe():
                return Want.WRITE
        return Want.TURN

    def _is_at_urgent_data(self) -> bool:
        """Whether splice(2) said 0 because urgent data comes next: epoll tells of that (EPOLLPRI).

        `tcp_read_sock` stops there, and `tcp_splice_read` takes having read nothing for the end
        once the FIN has come. A stream that was cut there would look complete.
        """
        try:
            return bool(self._source.recv(1, socket.MSG_PEEK | _DONTWAIT))
        except BlockingIOError:
            return False
        except OSError as error:
            raise SourceBroken(str(error)) from error

    def _drain_pipe(self) -> bool:
        """Write what the pipe holds. Whether it is empty now."""
        assert self._pipe is not None
        flags = _SPLICE_MORE if self._announced.made else _SPLICE_FLAGS
        while self._in_pipe:
            try:
                n = os.splice(self._pipe[0], self._sink.fileno(), self._in_pipe, flags=flags)
            except BlockingIOError:
                return False
            except OSError as error:
                raise SinkBroken(str(error)) from error
            self._in_pipe -= n
            self.written += n
        return True

    def close(self) -> None:
        """Give the pipe back."""
        if self._pipe:
            self._pool.give(self._pipe, empty=not self._in_pipe)
            self._pipe = None


class Relays:
    """Makes the channels of one worker: holds the shared buffer and the pool of pipes."""

    def __init__(self, datapath: Datapath) -> None:
        """`datapath` says how pairs are relayed: COPY, or splice(2) for anything else."""
        self._buffer = memoryview(bytearray(BUFFER))
        self._pool = PipePool()
        self.datapath = Datapath.COPY if datapath is Datapath.COPY else Datapath.SPLICE2

    def copy(
        self, source: socket.socket, sink: socket.socket, after: Channel | None = None
    ) -> CopyChannel:
        """A copying channel from `source` to `sink`; its counts go on where `after` ended."""
        channel = CopyChannel(source, sink, self._buffer)
        if after is not None:
            channel.taken, channel.written = after.taken, after.written
        return channel

    def splice2(self, source: socket.socket, sink: socket.socket) -> Splice2Channel:
        """A splice(2) channel. Both sockets must be non-blocking."""
        return Splice2Channel(source, sink, self._pool)

    def close(self) -> None:
        """Close the pooled pipes."""
        self._pool.close()
