"""A body of known length on its way through the kernel: the twin of `Transfer`, on a byte budget.

Both sockets stand in the SOCKMAP by themselves (`Splicer.enter`), and for as long as they live. In
between two bodies all that arrives is passed, and read as from any socket. For a body the verdict
is given a sink and the number of bytes that are left (`Splicer.direct`): an event says when the
last of them was redirected, or when it has passed something. What is passed is user space's turn:

- It may write only when every byte that was ever redirected to the sink is in its write queue (two
  writers interleave). TCP_INFO says so; and it says so at the end, before anybody writes anything
  else there.
- `redirected` is read after `passed`: it stands still once bytes are passed. Read first it could
  miss some, and user space would overtake them.
- The first of the passed bytes belong to the body, as many as are left; what follows them belongs
  to the next head. All of it is read with the same recv(2).
- A sink that was slow once is likely to be slow again, and to hand a stream back while it flows is
  a trap (`overflow`): user space keeps the rest of the body until a few turns in a row were calm.

While the kernel has the direction its source is watched for its end only: with EPOLLIN, each
segment would wake the worker.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

from l7proxy.datapath.relay import SinkBroken
from l7proxy.datapath.sockmap import URGENT, Splicer
from l7proxy.errors import L7ProxyError, Reason
from l7proxy.net.tcpinfo import tcp_info
from l7proxy.telemetry.counters import Counter
from l7proxy.worker.transfer import Pace, Sized, Transfer
from l7proxy.worker.wire import TCP_CLOSE, Wire

if TYPE_CHECKING:
    from l7proxy.worker.exchange import Exchange

LEAST = 256 * 1024  # bytes that are left of a body; for fewer, copying costs less
BULK = 64 * 1024  # bytes; who has moved more of a body keeps it until it is calm
SMALL = 128 * 1024  # bytes; a turn that moves no more, and finds room for it, is a calm one
CALM = 8  # calm turns in a row
TURN = 8  # buffers that are moved before others have their turn


QUIET = select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
"""What the source is watched for while the kernel has the direction."""


class Fault(L7ProxyError):
    """The verdict gave the direction up: bytes are missing, or urgent data came."""

    def __init__(self, bits: int) -> None:
        super().__init__(f"fault {bits}")
        self.reason = Reason.URGENT_DATA if bits & URGENT else Reason.DATAPATH


def best_way(exchange: Exchange, transfer: Transfer) -> Transfer | KernelTransfer:
    """How the rest of a body goes on: through the kernel, if it is long and may.

    A socket that goes into the map may hold bytes: they are passed, and what was read in part is
    trimmed. It stays there.
    """
    connection, body = exchange.connection, transfer.body
    worker, source, sink = connection.worker, transfer.source, transfer.sink
    if worker.splicer is None or not isinstance(body, Sized) or body.left < LEAST:
        return transfer
    if not exchange.may_lend or not connection.may_splice or sink.out:
        return transfer
    try:
        for wire in (source, sink):
            if wire.index < 0:
                wire.enter(worker.splicer, int(wire is exchange.backend))
                worker.stands_in_map(wire)
    except OSError as error:
        worker.note_refused(error)
        exchange.may_lend = False
        return transfer
    if sink.given and not sink.is_settled:
        return transfer
    worker.lent[source.index] = connection
    worker.view[Counter.BODIES] += 1
    return KernelTransfer(worker.splicer, source, sink, body, worker.body_scratch)


class KernelTransfer:
    """Moves one body from a wire to another one, both of them in the map."""

    __slots__ = (
        "_calm",
        "_counted",
        "_had",
        "_index",
        "_is_open",
        "_mine",
        "_published",
        "_scratch",
        "_sink",
        "_source",
        "_splicer",
        "_turn",
        "_unsettled",
        "body",
        "keeps_reading",
    )

    def __init__(
        self, splicer: Splicer, source: Wire, sink: Wire, body: Sized, scratch: memoryview
    ) -> None:
        """To be made when nothing waits to be written to the sink (`Wire.is_settled`)."""
        self.body = body
        self.keeps_reading = False  # user space has the direction for longer
        self._splicer = splicer
        self._source = source
        self._sink = sink
        self._scratch = scratch
        self._index = source.index
        self._counted = splicer.redirected(source.index)
        self._unsettled = False  # redirected bytes may be on their way to the sink's write queue
        self._is_open = True  # directed, and not halted
        self._had = False  # the kernel, once: what is passed before is only what came meanwhile
        self._mine = 0  # bytes that user space has moved since
        self._turn = 0  # of these, in this turn
        self._calm = 0  # turns
        self._published = source.passed_taken
        splicer.direct(source.index, sink.index, self._published, body.left)

    def pump(self) -> Pace:
        """See `Transfer.pump`. Raises Fault as well."""
        source, sink, body = self._source, self._sink, self.body
        if sink.out:
            if not self._settled():
                return Pace.SOON
            if not sink.flush():
                return Pace.ROOM
        self._turn = 0
        for _ in range(TURN):
            fault = self._splicer.broken(self._index)
            if fault:
                raise Fault(fault)
            owed = self._splicer.passed(self._index) - source.passed_taken
            self._count()
            if not body.left:
                return self._end(owed)
            if not owed and not source.ended:
                if not self._give_back():
                    continue
                return Pace.READ
            if not self._settled():
                return Pace.SOON
            if not owed and not self._is_over():
                return Pace.SOON
            n = source.read(self._scratch)
            if n <= 0:
                if owed:
                    return Pace.SOON
                body.end()
            took = body.left
            data = body.take(self._scratch[:n])
            self._turn += took - body.left
            if not sink.write(data):
                self._end_turn(calm=False)
                return Pace.ROOM
        self._end_turn(calm=False)
        return Pace.TURN

    def _end_turn(self, *, calm: bool) -> None:
        if self._had:
            self._mine += self._turn
        self._calm = self._calm + 1 if calm and self._turn < SMALL else 0

    def look(self) -> bool:
        """Take over what the kernel has redirected; whether that was anything."""
        before = self._counted
        self._count()
        return self._counted != before

    def _count(self) -> None:
        redirected = self._splicer.redirected(self._index)
        moved = redirected - self._counted
        if moved:
            self._counted = redirected
            self.body.left -= moved
            self._source.lent += moved
            self._sink.given += moved
            self._unsettled = True

    def _settled(self) -> bool:
        """Whether every redirected byte is in the sink's write queue. Raises SinkBroken."""
        if self._unsettled and self._sink.is_settled:
            self._unsettled = False
        elif self._unsettled and tcp_info(self._sink.sock).state == TCP_CLOSE:
            raise SinkBroken("what was on its way to it is gone with it")
        return not self._unsettled

    def _give_back(self) -> bool:
        """Nothing that was passed is left: the kernel may go on; False: it passed more just now."""
        taken = self._source.passed_taken
        if self._published == taken:  # it has the direction, or comes to it now
            self.keeps_reading = False
            self._had = True
            return self._splicer.passed(self._index) == taken
        self._end_turn(calm=True)
        self.keeps_reading = self._mine > BULK and self._calm < CALM
        if self.keeps_reading:
            return True
        self._published = taken
        self._mine = self._calm = self._turn = 0
        self._had = self._splicer.resume(self._index, taken)
        return self._had

    def _is_over(self) -> bool:
        """Whether the source has ended, or broke, and the verdict has seen all of it.

        Raises SourceBroken.
        """
        source = self._source
        received = tcp_info(source.sock).bytes_received  # takes the lock: see `ledger`
        if self._splicer.passed(self._index) != source.passed_taken:
            return False  # it is read in the next turn
        self._count()
        source.check()
        # the FIN counts one
        return received - 1 == source.taken + source.lent

    def _end(self, owed: int) -> Pace:
        """The last byte was redirected, or written."""
        self.close()
        self.keeps_reading = True
        self._source.more = owed > 0 or self._source.ended
        return Pace.DONE if self._settled() else Pace.SOON

    def close(self) -> None:
        """Have the kernel pass what comes from now on. Before either socket is closed."""
        if self._is_open:
            self._is_open = False
            self._splicer.halt(self._index)
            self._count()
