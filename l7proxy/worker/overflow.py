"""A receiver is slower than its sender: user space takes one direction over for a while.

The verdict redirects only while the receiver's send queue has room. When it has none the kernel
passes what comes, and nothing more is redirected until user space has written all of it. A fast
sender would refill its socket as quickly as user space empties it, and the direction would stay in
user space for ever. So the way back into the kernel is made in this order:

1. *Wait until the send queue has drained* to a fourth: the kernel needs room to go on with. The
   source fills up meanwhile, its window shuts, and the sender waits.
2. *Peek* at all that was passed and write it. Nothing is consumed, so the window stays shut.
3. *Publish* `relayed`: the kernel is armed.
4. *Consume*. Only now the sender learns that it may send (`tcp_cleanup_rbuf`), and all that it
   sends from then on is redirected.

What is copied in a round is what fits into the source's receive buffer; what the kernel moves is
three fourths of the sink's send buffer or more. So the receive buffer of the faster side is made a
fourth of the send buffer of the slower side, in the one moment when nothing is on its way to it.
"""

from __future__ import annotations

import select
import socket
from enum import Enum
from typing import TYPE_CHECKING

from l7proxy.datapath.relay import SinkBroken, SourceBroken, Want
from l7proxy.datapath.sockmap import Splicer
from l7proxy.ledger import Ledger
from l7proxy.model import Side
from l7proxy.net import buffers
from l7proxy.net.tcpinfo import tcp_info
from l7proxy.worker.relayed import RELAYED

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection

SHARE = 4  # a queue is low when a fourth is used; a receive buffer is a fourth of a send buffer
RECEIVE_MOST = 512 * 1024  # bytes
RECEIVE_LEAST = 32 * 1024
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
    """The takeover of the direction from `side`, from the first pass until it is armed again."""

    __slots__ = (
        "_ahead",
        "_channel",
        "_connection",
        "_index",
        "_ledger",
        "_looks",
        "_side",
        "_splicer",
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
        self._channel = connection.worker.relays.copy(self.source, self.sink)
        self._ahead = 0  # bytes that are written, and still in the source socket
        self._looks = 0

    def step(self) -> Pace:
        """Do the next thing. Raises SourceBroken and SinkBroken.

        Called only while bytes are passed and not written, and every redirected byte is in the
        sink's write queue.
        """
        if not self._looks and not self._drained():
            return self._await_room()
        if self._looks and self._looks < PATIENCE and not self._drained():
            self._looks += 1
            return Pace.SOON
        left = self._ledger.passed - self._ledger.taken
        beyond = left - len(self._connection.worker.scratch)
        if self._channel.holds or beyond > 0:
            self._consume(self._ahead)
            return self._relay(max(beyond, 0))
        return self._relay_peeked(left)

    def _drained(self) -> bool:
        queued, limit = buffers.send_queue(self.sink)
        return queued * SHARE <= limit

    def _await_room(self) -> Pace:
        """The sink's queue is full: come back when epoll says that there is room.

        Asking epoll anew makes the kernel look now, and remember that somebody waits (`tcp_poll`
        sets SOCK_NOSPACE). It says so at two thirds of the limit.
        """
        self._looks = 1
        self._connection.watch(self.sink, _ROOM, anew=True)
        return Pace.ROOM

    def _relay(self, limit: int) -> Pace:
        """Move `limit` bytes: all but what `_relay_peeked` can take at once."""
        channel, ledger = self._channel, self._ledger
        taken, written = channel.taken, channel.written
        # recv(2) may say EOF while passed bytes still wait to be queued (`tcp_bpf_recvmsg` falls
        # through to TCP, which has the FIN): only the ledger knows when a direction is complete
        channel.ended = False
        want = channel.pump(limit)
        ledger.taken += channel.taken - taken
        self._wrote(channel.written - written)
        if want is Want.WRITE:
            self._connection.watch(self.sink, _ROOM, anew=True)
            return Pace.ROOM
        if want is Want.TURN:
            return Pace.TURN
        return Pace.AT_ONCE if channel.taken != taken else Pace.SOON

    def _relay_peeked(self, left: int) -> Pace:
        """All of the `left` bytes that wait: peek, write, publish, consume."""
        scratch, source, ledger = self._connection.worker.scratch, self.source, self._ledger
        try:
            peeked = source.recv_into(scratch, left, _PEEK)
        except BlockingIOError:
            return Pace.SOON
        except OSError as error:
            raise SourceBroken(str(error)) from error
        if peeked <= self._ahead:
            return Pace.SOON
        try:
            n = self.sink.send(scratch[self._ahead : peeked], _DONTWAIT)
        except BlockingIOError:
            n = 0
        except OSError as error:
            raise SinkBroken(str(error)) from error
        self._ahead += n
        self._wrote(n)
        if self._ahead < peeked:
            self._connection.watch(self.sink, _ROOM, anew=True)
            return Pace.ROOM
        if peeked < left:
            return Pace.SOON
        self._splicer.set_relayed(self._index, ledger.written)
        self._fit_receive_buffer()
        self._consume(left)
        return Pace.AT_ONCE

    def _consume(self, size: int) -> None:
        """Take bytes out of the source that were peeked and written before."""
        self._ahead = 0
        self._ledger.taken += size
        while size:
            try:
                n = self.source.recv_into(self._connection.worker.scratch, size, _DONTWAIT)
            except OSError as error:
                raise SourceBroken(str(error)) from error
            if n == 0:
                raise SourceBroken("bytes that were there are gone")
            size -= n

    def _fit_receive_buffer(self) -> None:
        """Make the source's receive buffer fit the sink's send buffer, if its sender is near."""
        if self._looks and tcp_info(self.source).min_rtt < NEAR:
            _, limit = buffers.send_queue(self.sink)
            size = limit // SHARE // 2  # the kernel doubles it
            buffers.bound_receive(self.source, max(RECEIVE_LEAST, min(size, RECEIVE_MOST)))

    def _wrote(self, n: int) -> None:
        if n:
            self._ledger.written += n
            self._connection.worker.view[RELAYED[self._side]] += n

    def close(self) -> None:
        """Forget what is held."""
        self._channel.close()
