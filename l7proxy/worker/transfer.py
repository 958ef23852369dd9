"""One body on its way from a wire to another one, in user space.

A body knows where it ends: by its length, by its chunks, or by the end of the connection. What is
behind its end belongs to the next message and is never written: `surplus`. A source that ends, or
breaks, before is `Cut`: nobody may take the rest for a body.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from l7proxy.chunked import LAST_CHUNK, Chunked, chunk
from l7proxy.errors import L7ProxyError
from l7proxy.worker.wire import Wire

TURN = 8  # buffers that are moved before others have their turn


class Cut(L7ProxyError):
    """A body ended before its end."""


class Body(Protocol):
    """What is known of a body: where it ends, and how it is written to the other side."""

    @property
    def done(self) -> bool:
        """Whether its last byte was taken."""

    @property
    def surplus(self) -> bytes:
        """What was taken beyond that."""

    def take(self, data: memoryview) -> bytes | memoryview:
        """What goes on of the next bytes of the source. Raises BadRequest, BadResponse."""

    def end(self) -> bytes:
        """What goes on when the source has ended. Raises Cut."""


class Sized:
    """A body of a known length; it goes on as it is."""

    __slots__ = ("left", "surplus")

    def __init__(self, length: int) -> None:
        self.left = length
        self.surplus = b""

    @property
    def done(self) -> bool:
        """See `Body.done`."""
        return not self.left

    def take(self, data: memoryview) -> bytes | memoryview:
        """See `Body.take`."""
        left = self.left
        if len(data) > left:
            self.surplus = bytes(data[left:])
            data = data[:left]
        self.left = left - len(data)
        return data

    def end(self) -> bytes:
        """See `Body.end`."""
        raise Cut(f"{self.left} bytes are missing")


class Chunks:
    """A body in chunks; it goes on in chunks of our own, or in none (`Chunked`)."""

    __slots__ = ("_chunked",)

    def __init__(self, chunked: Chunked) -> None:
        self._chunked = chunked

    @property
    def done(self) -> bool:
        """See `Body.done`."""
        return self._chunked.done

    @property
    def surplus(self) -> bytes:
        """See `Body.surplus`."""
        return self._chunked.surplus

    def take(self, data: memoryview) -> bytes | memoryview:
        """See `Body.take`."""
        return self._chunked.feed(bytes(data))

    def end(self) -> bytes:
        """See `Body.end`."""
        raise Cut("the last chunk is missing")


class UntilEnd:
    """A body that ends with its connection; in chunks to whoever has another way to know."""

    __slots__ = ("_frame", "done")
    surplus = b""

    def __init__(self, *, frame: bool) -> None:
        self._frame = frame
        self.done = False

    def take(self, data: memoryview) -> bytes | memoryview:
        """See `Body.take`."""
        return chunk(bytes(data)) if self._frame else data

    def end(self) -> bytes:
        """See `Body.end`."""
        self.done = True
        return LAST_CHUNK if self._frame else b""


class Pace(Enum):
    """Why a transfer stopped."""

    READ = "read"  # the source has nothing now
    ROOM = "room"  # the sink has no room
    TURN = "turn"  # its turn is over; there is more
    SOON = "soon"  # bytes are on their way inside the kernel: a timer looks again
    DONE = "done"  # every byte of the body is in the sink's write queue


class Transfer:
    """Moves one body. `scratch` is space that all transfers of a worker share."""

    __slots__ = ("_scratch", "body", "sink", "source")

    def __init__(self, source: Wire, sink: Wire, body: Body, scratch: memoryview) -> None:
        self.source = source
        self.sink = sink
        self._scratch = scratch
        self.body = body

    def pump(self) -> Pace:
        """Move what is there. Raises SourceBroken, SinkBroken, Cut, BadRequest, BadResponse."""
        source, sink, body = self.source, self.sink, self.body
        if sink.out and not sink.flush():
            return Pace.ROOM
        for _ in range(TURN):
            if body.done:
                return Pace.DONE
            if not source.more:
                return Pace.READ
            n = source.read(self._scratch)
            if n < 0:
                return Pace.SOON if source.more else Pace.READ
            data = body.take(self._scratch[:n]) if n else body.end()
            if data and not sink.write(data):
                return Pace.ROOM
        return Pace.DONE if body.done else Pace.TURN
