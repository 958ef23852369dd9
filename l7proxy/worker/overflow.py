"""What the kernel passed of one direction: taken from the source, written to the sink.

Bytes are passed where a pair goes into the kernel (what came in that moment), and where the sink's
send queue is full: the receiver is slower than its sender. In the first case all of them are
written at once and the kernel goes on. In the second user space keeps the direction *until it is
calm*, that is, until a few turns in a row have moved little: no more than what comes at once of a
stream that is paced, by TCP or by a network card. Two facts about the kernel say why:

- A fast sender refills its socket as quickly as user space empties it. There is no moment in which
  a direction that is handed back would not be passed again at once.
- While user space is inside a system call on the source, segments wait in its backlog, and
  `__release_sock` counts all of them against the receive buffer until it is through. The sender
  answers the acknowledgements of that very loop, and the loop can end with the window shut. If the
  kernel has the direction by then, the verdict has taken every byte, nobody reads, and nobody tells
  the sender: it is silent until its probe, 200 ms later. A bulk stream that is handed back to the
  kernel while it flows can crawl like that (0.08 GB/s between containers). While user space has the
  direction it reads what comes, and reading tells the sender (`tcp_cleanup_rbuf`).

Nothing lives in user space alone, for a worker may die at any moment (`adopting`). Bytes are looked
at (MSG_PEEK), written, and only then taken out of the source: TCP knows at any time how many are
written, and how many are taken. It is one copy more, while the bytes are in the cache. And what the
sink has no room for stays where TCP's flow control holds the sender.
"""

from __future__ import annotations

import socket
from enum import Enum
from typing import TYPE_CHECKING

from l7proxy.datapath.relay import Announcement, SinkBroken, SourceBroken
from l7proxy.ledger import Ledger
from l7proxy.model import Side
from l7proxy.net import buffers
from l7proxy.worker.relayed import RELAYED

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection

BULK = 64 * 1024  # bytes; an overflow that has moved more is over only when it is calm
SMALL = 128 * 1024  # bytes; a turn that moves no more, and finds room for it, is a calm one
CALM = 8  # calm turns in a row
PIECE = 512 * 1024  # bytes that are looked at at once: they are copied twice, so from the cache
PIECES = 8  # in one turn

_DONTWAIT = socket.MSG_DONTWAIT
_PEEK = socket.MSG_DONTWAIT | socket.MSG_PEEK


class Moved(Enum):
    """What a turn came to."""

    NOTHING = "nothing"  # can be read now
    ALL = "all"  # that there was for this turn
    PART = "part"  # the sink has no room for more


class Overflow:
    """The passed bytes of the direction from `side`, while user space has them."""

    __slots__ = (
        "_announced",
        "_began",
        "_calm",
        "_connection",
        "_frozen",
        "_ledger",
        "_owed",
        "_side",
        "_sink",
        "_source",
    )

    def __init__(self, connection: Connection, side: Side, ledger: Ledger) -> None:
        self._connection = connection
        self._side = side
        self._source = connection.end(side)
        self._sink = connection.end(side.other)
        self._ledger = ledger
        self._owed = 0  # bytes that are written and not taken yet
        self._began = 0  # of the passed bytes, when this overflow began
        self._calm = 0  # turns
        self._frozen = False  # the source's receive buffer grows no more
        self._announced = Announcement(self._sink)

    def begin(self) -> None:
        """The kernel has passed bytes, for the first time since it had the direction."""
        self._began = self._ledger.written
        self._calm = 0

    def resume(self, owed: int) -> None:
        """Another worker has written so many bytes that it did not take. TCP may hold some back."""
        self._owed = owed
        self._announced.made = True

    @property
    def owes(self) -> bool:
        """Whether bytes are written that are not taken yet."""
        return self._owed > 0

    @property
    def is_bulk(self) -> bool:
        """Whether the direction stays in user space when everything is written."""
        return self._ledger.written - self._began > BULK and self._calm < CALM

    def move(self) -> Moved:
        """Write what was passed, and take it out of the source: a few pieces.

        To be called only when every redirected byte is in the sink's write queue. recv(2) says EOF,
        too, while passed bytes still wait to be queued (`tcp_bpf_recvmsg` falls through to TCP,
        which has the FIN): only the ledger knows when a direction is complete. Raises SourceBroken
        and SinkBroken.
        """
        if not self._take():
            return Moved.NOTHING
        ledger, scratch = self._ledger, self._connection.worker.scratch
        before, rest = ledger.written, 0
        for _ in range(PIECES):
            wanted = min(ledger.passed - ledger.written, PIECE, len(scratch))
            n = self._read(wanted, _PEEK) if wanted else 0
            if not n:
                break
            self._announced.note(n)
            rest = self._write(scratch[:n])
            self._owed += n - rest
            if not self._take() or rest:
                break
        moved = ledger.written - before
        if not moved and not rest:
            return Moved.NOTHING
        self._calm = self._calm + 1 if moved <= SMALL and not rest else 0
        return Moved.PART if rest else Moved.ALL

    def _read(self, count: int, flags: int) -> int:
        """Into the worker's scratch; 0: there is nothing now."""
        try:
            return self._source.recv_into(self._connection.worker.scratch, count, flags)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise SourceBroken(str(error)) from error

    def _take(self) -> bool:
        """Take what is owed out of the source; False: not all of it comes now."""
        while self._owed:
            n = self._read(min(self._owed, len(self._connection.worker.scratch)), _DONTWAIT)
            if not n:
                return False
            self._owed -= n
        return True

    def freeze(self) -> None:
        """The sink has no room: what the source may hold for it grows no more. Raises SourceBroken.

        The kernel has made the receive buffer as large as the verdict was fast.
        """
        if not self._frozen:
            self._frozen = True
            try:
                buffers.freeze_receive(self._source)
            except OSError as error:
                raise SourceBroken(str(error)) from error

    def push(self) -> None:
        """Nothing more is there to be written: send what TCP holds back. Raises SinkBroken."""
        self._announced.push()

    def _write(self, data: memoryview) -> int:
        """How many bytes at the end of `data` the sink had no room for."""
        left, flags = data, _DONTWAIT | socket.MSG_MORE if self._announced.made else _DONTWAIT
        while left:
            try:
                n = self._sink.send(left, flags)
            except BlockingIOError:
                break
            except OSError as error:
                raise SinkBroken(str(error)) from error
            left = left[n:]
            self._ledger.written += n
            self._connection.worker.view[RELAYED[self._side]] += n
        return len(left)
