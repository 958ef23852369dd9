"""What the kernel passed of one direction: taken from the source, written to the sink.

Bytes are passed where a pair goes into the kernel (what came in that moment), and where the sink's
send queue is full: the receiver is slower than its sender. In the first case all of them are
written at once and the kernel goes on. In the second user space keeps the direction *until it is
calm*, that is, until a few turns in a row have moved little. Two facts about the kernel say why:

- While user space is inside a system call on the source, segments wait in its backlog, and
  `__release_sock` counts all of them against the receive buffer until it is through. The sender
  answers the acknowledgements of that very loop, and the loop can end with the window shut. If the
  kernel has the direction by then, the verdict has taken every byte, nobody reads, and nobody tells
  the sender: it is silent until its probe, 200 ms later. A bulk stream that is handed back to the
  kernel while it flows can crawl like that (0.08 GB/s between containers). While user space has the
  direction it reads what comes, and reading tells the sender (`tcp_cleanup_rbuf`).
- A fast sender refills its socket as quickly as user space empties it. There is no moment in which
  a direction that is handed back would not be passed again at once.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from l7proxy.datapath.relay import Announcement, SinkBroken, SourceBroken
from l7proxy.ledger import Ledger
from l7proxy.model import Side
from l7proxy.net import buffers
from l7proxy.worker.relayed import RELAYED

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection

BULK = 64 * 1024  # bytes; an overflow that has moved more is over only when it is calm
SMALL = 16 * 1024  # bytes; a turn that moves less, and finds room for it, is a calm one
CALM = 8  # calm turns in a row

_DONTWAIT = socket.MSG_DONTWAIT


class Overflow:
    """The passed bytes of the direction from `side`, while user space has them."""

    __slots__ = (
        "_announced",
        "_began",
        "_calm",
        "_connection",
        "_frozen",
        "_held",
        "_ledger",
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
        self._held = b""  # taken and not written; at most one buffer
        self._began = 0  # of the passed bytes, when this overflow began
        self._calm = 0  # turns
        self._frozen = False  # the source's receive buffer grows no more
        self._announced = Announcement(self._sink)

    def begin(self) -> None:
        """The kernel has passed bytes, for the first time since it had the direction."""
        self._began = self._ledger.written
        self._calm = 0

    @property
    def taken(self) -> int:
        """How many of the passed bytes have left the source socket."""
        return self._ledger.written + len(self._held)

    @property
    def is_bulk(self) -> bool:
        """Whether the direction stays in user space when everything is written."""
        return self.taken - self._began > BULK and self._calm < CALM

    def take(self) -> bool:
        """Read and write one buffer of what was passed. False: nothing of it can be read now.

        To be called when nothing is held and, as `write`, only when every redirected byte is in the
        sink's write queue. recv(2) says EOF, too, while passed bytes still wait to be queued
        (`tcp_bpf_recvmsg` falls through to TCP, which has the FIN): only the ledger knows when a
        direction is complete. Raises SourceBroken and SinkBroken.
        """
        scratch = self._connection.worker.scratch
        wanted = min(self._ledger.passed - self.taken, len(scratch))
        try:
            n = self._source.recv_into(scratch, wanted, _DONTWAIT)
        except BlockingIOError:
            return False
        except OSError as error:
            raise SourceBroken(str(error)) from error
        if not n:
            return False
        self._announced.note(n)
        rest = self._write(scratch[:n])
        self._held = bytes(scratch[n - rest : n])
        self._calm = self._calm + 1 if n < SMALL and not rest else 0
        return True

    def write(self) -> bool:
        """Write what is held. Whether nothing is left of it. Raises SinkBroken."""
        if self._held:
            rest = self._write(memoryview(self._held))
            self._held = self._held[len(self._held) - rest :]
        return not self._held

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
