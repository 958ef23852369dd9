"""Single sockets for tests, and the least worker that sees a body through between two of them.

        far ==== near [index]          near [index] ==== far
           a source                        a sink

A test holds the far ends. `Body.step` does once what a worker does for a body of known length: it
relays what was passed of it, keeps what follows, and halts the direction at its end.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator

from l7proxy.datapath.sockmap import Splicer

from .pairs import BACKEND, CLIENT, Info, connected


class Single:
    """One connection whose near socket is in the map by itself."""

    def __init__(self, splicer: Splicer, side: int, **buffers: int) -> None:
        self.splicer = splicer
        self.side = side
        self.far, self.near = connected(**buffers)
        self.near.setblocking(False)
        self.near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.index = -1
        self.taken = 0  # bytes read by user space since it went in
        self.brought = 0  # bytes written to it by user space, or redirected to it, since then
        self.surplus = b""  # read, and not part of a body

    def enter(self) -> Single:
        self.base = Info(self.near).written
        self.index = self.splicer.enter(self.near.fileno(), self.side)
        return self

    def recv(self, count: int = 1 << 16) -> bytes:
        """What user space can read now, perhaps nothing."""
        try:
            data = self.near.recv(count)
        except BlockingIOError:
            return b""
        self.taken += len(data)
        return data

    def look(self) -> bytes:
        """Read all there is; what has come is in `surplus`."""
        while data := self.recv():
            self.surplus += data
        return self.surplus

    def settled(self) -> bool:
        """Whether everything that was to be written to it is in its write queue."""
        return Info(self.near).written - self.base == self.brought

    def counts(self) -> tuple[int, int]:
        """(redirected, passed) of what arrives on it."""
        return self.splicer.redirected(self.index), self.splicer.passed(self.index)

    def close(self) -> None:
        self.near.close()
        if self.index >= 0:
            self.splicer.leave(self.index)
            self.index = -1

    def close_all(self) -> None:
        self.close()
        self.far.close()


class Body:
    """`count` bytes from one single socket to another, by the kernel as far as it goes."""

    def __init__(self, source: Single, sink: Single, count: int) -> None:
        self.source, self.sink, self.count = source, sink, count
        self.splicer = source.splicer
        early, source.surplus = source.surplus[:count], source.surplus[count:]
        self.pending = bytearray(early)  # read, of the body, not yet written
        self.redirected = source.counts()[0]  # of which the sink knows
        self.begun = self.done = False
        self.end = self.redirected + source.taken - len(source.surplus) - len(early) + count
        self.step()

    def step(self) -> bool:
        """One round of a worker; whether the body is through, to the sink's write queue."""
        source, sink = self.source, self.sink
        while not self.done:
            if not self._write():
                return False
            passed = self.splicer.passed(source.index)  # before redirected: see SplicedPair
            redirected = self.splicer.redirected(source.index)
            sink.brought += redirected - self.redirected
            self.redirected = redirected
            here = redirected + source.taken - len(source.surplus)
            assert here <= self.end, "redirected beyond the end of the body"
            if here == self.end:
                if self.begun:
                    self.splicer.halt(source.index)
                self.done = sink.settled()
                return self.done
            if passed == source.taken:
                if self.begun:
                    self.splicer.resume(source.index, source.taken)
                else:
                    self.begun = True
                    left = self.end - here
                    self.splicer.direct(source.index, sink.index, source.taken, left)
                if self.splicer.passed(source.index) == source.taken:
                    return False
            data = source.recv()
            if not data:
                return False
            self.pending += data[: self.end - here]
            source.surplus += data[self.end - here :]
        return True

    def _write(self) -> bool:
        """Write what waits, if nobody else's bytes are on their way; whether nothing is left."""
        if not self.pending:
            return True
        if not self.sink.settled():
            return False
        with contextlib.suppress(BlockingIOError):
            sent = self.sink.near.send(self.pending)
            self.sink.brought += sent
            del self.pending[:sent]
        return not self.pending


Maker = Callable[..., Single]


@contextlib.contextmanager
def singles(splicer: Splicer) -> Iterator[Maker]:
    """Makes single sockets that are in the map; all are closed afterwards, no event is left."""
    made: list[Single] = []

    def make(side: int = CLIENT, **buffers: int) -> Single:
        made.append(Single(splicer, side, **buffers))
        return made[-1].enter()

    yield make
    for one in made:
        one.close_all()
    splicer.events()


def couple(make: Maker) -> tuple[Single, Single]:
    """A client and a backend."""
    return make(CLIENT), make(BACKEND)
