"""A receiver is slower than its sender: user space takes one direction over for a while.

The verdict redirects only while the receiver's send queue has room. When it has none the kernel
passes what comes, and nothing more is redirected until user space has written all of it. A fast
sender refills its socket as quickly as user space empties it, and the direction would stay in user
space for ever. So the way back into the kernel is made in this order:

1. *Wait until the send queue has drained* to a fourth: the kernel needs room to go on with. The
   source fills up meanwhile, its window shuts, and the sender waits.
2. *Peek* at all that was passed and write it. Nothing is consumed, so the window stays shut.
3. *Publish* `relayed`: the kernel is armed.
4. *Consume*. Only now the sender learns that it may send (`tcp_cleanup_rbuf`), and all that it
   sends from then on is redirected.

What is copied in a round is what fits into the source's receive buffer; what the kernel moves is
three fourths of the sink's send buffer, and more while that drains. Two facts decide how large
the receive buffer is to be:

- While user space is inside a system call on the source, segments wait in its backlog, and
  `__release_sock` counts all of them against the receive buffer until it is through. On one
  machine the sender answers the acknowledgements of that very loop, and the loop ends with the
  window shut. The verdict has taken every byte, so nobody reads, and nobody tells the sender: it
  is silent until its probe, 200 ms later. => With the kernel armed, the receive buffer is larger
  than the sink's send buffer, so that the sink is full, and the kernel passes, before that.
- A sender fills the receive buffer that it is offered. => While user space has the direction, the
  buffer is no larger than what is in it, and what the window allows to be on its way.
"""

from __future__ import annotations

import select
import socket
from enum import Enum
from typing import TYPE_CHECKING

from l7proxy.datapath.relay import SinkBroken, SourceBroken
from l7proxy.datapath.sockmap import Splicer
from l7proxy.ledger import Ledger
from l7proxy.model import Side
from l7proxy.net import buffers
from l7proxy.net.tcpinfo import tcp_info
from l7proxy.worker.relayed import RELAYED

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection

LOW = 4  # a send queue is low when a fourth of its limit is used
WINDOW = 8  # an eighth of the sink's send buffer is the window of a source that is too fast,
WINDOW_LEAST = 128 * 1024  # bytes; but at least this
AHEAD_MOST = 512 * 1024  # bytes written and not consumed, when the sink has no more room
NEAR = 5000  # microseconds of round trip; a farther sender needs the buffer that TCP finds for it
PATIENCE = 6  # looks at a queue that is draining, before its room is used as it is

_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT
_DONTWAIT = socket.MSG_DONTWAIT
_ROOM = select.EPOLLRDHUP | select.EPOLLOUT | select.EPOLLET


class Pace(Enum):
    """How to go on after a step."""

    AT_ONCE = "at once"
    SOON = "soon"  # bytes are on their way, or a queue is draining: a timer looks again
    TURN = "turn"  # there is more, but others have their turn first
    ROOM = "room"  # when epoll says that the sink has room


class Overflow:
    """The takeover of the direction from `side`; made at the first pass, used again at the next."""

    __slots__ = (
        "_ahead",
        "_connection",
        "_held",
        "_index",
        "_ledger",
        "_looks",
        "_near",
        "_side",
        "_splicer",
        "_window",
        "sink",
        "source",
    )

    def __init__(
        self, connection: Connection, side: Side, splicer: Splicer, index: int, ledger: Ledger
    ) -> None:
        """`index` is the SOCKMAP index that the direction's bytes arrive on."""
        self.source = connection.end(side)
        self.sink = connection.end(side.other)
        self._connection = connection
        self._side = side
        self._splicer = splicer
        self._index = index
        self._ledger = ledger
        self._near: bool | None = None  # whether the source's receive buffer is ours to size
        self._held = False  # the source's receive buffer is smaller than an armed kernel needs
        self._window = 0  # what the source's sender may have under way, once that is limited
        self._ahead = 0  # bytes that are written, and still in the source socket
        self._looks = 0  # at a full queue, in this takeover

    def begin(self) -> None:
        """Bytes were passed: if the sink is full, let the source fill up, but grow no more."""
        _, _, sink_limit, queued = buffers.memory(self.sink)
        if queued * LOW > sink_limit:
            self._hold_source(sink_limit)

    def _hold_source(self, sink_limit: int) -> None:
        if self._held:
            return
        if self._near is None:
            ours = _armed_limit(sink_limit) <= self._connection.worker.receive_ceiling
            self._near = ours and tcp_info(self.source).min_rtt < NEAR
        if self._near:
            received, limit, _, _ = buffers.memory(self.source)
            if self._window:
                limit = min(limit, received + 2 * self._window)
            buffers.limit_receive(self.source, limit)
            self._held = True

    def step(self) -> Pace:
        """Do the next thing. Raises SourceBroken and SinkBroken.

        Called only while bytes are passed and not written, and every redirected byte is in the
        sink's write queue.
        """
        _, _, limit, queued = buffers.memory(self.sink)
        if queued * LOW > limit:
            if not self._looks:
                self._looks = 1
                return self._await_room()
            if self._looks < PATIENCE:
                self._looks += 1
                return Pace.SOON
        return self._relay(limit)

    def _await_room(self) -> Pace:
        """The sink's queue is full: come back when epoll says that there is room.

        Asking epoll anew makes the kernel look now, and remember that somebody waits (`tcp_poll`
        sets SOCK_NOSPACE). It says so at two thirds of the limit.
        """
        self._connection.watch(self.sink, _ROOM, anew=True)
        return Pace.ROOM

    def _relay(self, sink_limit: int) -> Pace:
        """Peek and write; when the kernel is armed, or nothing else helps, consume."""
        scratch, ledger = self._connection.worker.scratch, self._ledger
        wanted = min(self._ahead + ledger.passed - ledger.written, len(scratch))
        peeked = self._peek(scratch[:wanted])
        if peeked > self._ahead:
            self._write(scratch[self._ahead : peeked])
        if self._ahead < peeked:
            self._hold_source(sink_limit)
            if self._ahead >= AHEAD_MOST:
                self._make_way()
            return self._await_room()
        if ledger.written < ledger.passed:
            if peeked == len(scratch):
                self._make_way()
                return Pace.TURN
            return Pace.AT_ONCE if peeked == wanted else Pace.SOON
        self._splicer.set_relayed(self._index, ledger.written)
        tcp_info(self.source)  # takes the lock: what the verdict passed before is visible now
        if self._splicer.passed(self._index) == ledger.written:
            self._free_source(sink_limit)
            self._consume()
        return Pace.AT_ONCE

    def _peek(self, into: memoryview) -> int:
        """How many bytes are readable, as far as `into` reaches; they are in it.

        recv(2) says EOF, too, while passed bytes still wait to be queued (`tcp_bpf_recvmsg` falls
        through to TCP, which has the FIN): only the ledger knows when a direction is complete.
        """
        try:
            return self.source.recv_into(into, 0, _PEEK)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise SourceBroken(str(error)) from error

    def _write(self, data: memoryview) -> None:
        try:
            n = self.sink.send(data, _DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            raise SinkBroken(str(error)) from error
        self._ahead += n
        self._ledger.written += n
        self._connection.worker.view[RELAYED[self._side]] += n

    def _make_way(self) -> None:
        """Consume what is written, and make the buffer as much smaller: the window stays shut."""
        if self._held:
            _, limit, _, _ = buffers.memory(self.source)
            buffers.limit_receive(self.source, limit - self._ahead)
        self._consume()

    def _free_source(self, sink_limit: int) -> None:
        """Make the source's buffer fit the sink's, now that nothing is on its way to it."""
        if self._held:
            self._held = False
            self._window = max(sink_limit // WINDOW, WINDOW_LEAST)
            buffers.limit_receive(self.source, _armed_limit(sink_limit))
            buffers.limit_window(self.source, self._window)

    def _consume(self) -> None:
        """Take the bytes out of the source that were peeked and written."""
        size, self._ahead = self._ahead, 0
        while size:
            try:
                n = self.source.recv_into(self._connection.worker.scratch, size, _DONTWAIT)
            except OSError as error:
                raise SourceBroken(str(error)) from error
            if n == 0:
                raise SourceBroken("bytes that were there are gone")
            size -= n

    def end(self) -> None:
        """The direction is armed again."""
        self._looks = 0


def _armed_limit(sink_limit: int) -> int:
    """The source's receive buffer while the kernel is armed: larger than the sink's send buffer."""
    return sink_limit + sink_limit // 4
