"""The worker's loop: accept, wait, dispatch, and nothing that could block.

Facts that shape it:

- A descriptor number is used again as soon as it is closed. Events of the same batch may still name
  the old one, so sockets are only closed when the batch is over (`bury`), and an event for a number
  that nobody has registered is dropped.
- What a policy needs in order to be replaced is done in slices between two rounds (`reloading`).
"""

from __future__ import annotations

import gc
import logging
import random
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from l7proxy.datapath.relay import Relays
from l7proxy.errors import Reason
from l7proxy.model import AccessLogRules, Backend
from l7proxy.net.process import STOP
from l7proxy.telemetry.accesslog import LIVE, Record
from l7proxy.telemetry.counters import Counter
from l7proxy.telemetry.log import event
from l7proxy.telemetry.meter import Meter
from l7proxy.worker.accepting import Accepting
from l7proxy.worker.adopting import adopt
from l7proxy.worker.connection import Connection
from l7proxy.worker.farewell import Farewell
from l7proxy.worker.first import LITTLE
from l7proxy.worker.groups import Group
from l7proxy.worker.keeping import Keeping
from l7proxy.worker.leaving import Leaving
from l7proxy.worker.longlived import METER_EVERY, Rounds
from l7proxy.worker.mirroring import Mirrors
from l7proxy.worker.pool import Pool
from l7proxy.worker.reloading import Reloading
from l7proxy.worker.setup import WorkerSetup
from l7proxy.worker.spares import Spares
from l7proxy.worker.spliced import SplicedPair
from l7proxy.worker.timers import Calendar
from l7proxy.worker.wire import Wire

EVENT_BATCH = 512
SCRATCH = 8 * 1024 * 1024  # bytes; what a receive buffer holds at the most, usually
FIRST_READ = 64 * 1024  # bytes of one read before the pair is open
BODY_READ = 256 * 1024  # bytes of one read of a body
LOG_RETRY = 0.1  # seconds until lines are tried again that nobody took
GC_THRESHOLD = 50_000  # objects made and not freed, until cycles are looked for

DRAINED = 0
RESET = 3
ORPHANED = 1

log = logging.getLogger(__name__)


class Handler(Protocol):
    """What the loop dispatches to."""

    def ready(self, fd: int, mask: int) -> None:
        """Epoll reported `mask` for `fd`."""


class Worker:
    """One epoll loop and all that hangs on it."""

    def __init__(self, setup: WorkerSetup) -> None:
        self.slot = setup.slot
        self.splicer = setup.splicer
        self.view = setup.counters.view
        self.presence = setup.counters.presence
        self.rates = setup.counters.rates
        self.meter = setup.meter
        self.metered = setup.metered
        self.fellows = setup.counters.workers  # who accept from the same sockets, this one included
        self.calendar = Calendar()
        self.relays = Relays(setup.datapath)
        self.scratch = memoryview(bytearray(SCRATCH))
        self.first_scratch = self.scratch[:FIRST_READ]
        self.little_scratch = self.scratch[:LITTLE]
        self.body_scratch = self.scratch[:BODY_READ]
        self.spliced: dict[int, SplicedPair] = {}  # by pair: index >> 1
        self.clock = time.monotonic
        self.wall = time.time
        self.now = self.clock()
        self._chance = random.Random()
        self.chance = self._chance.random
        self.mirrors = Mirrors(self)
        self._health = setup.health
        self.resolved = dict(setup.resolved)
        self._counters = setup.counters
        self._log = setup.access_log
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._connections: set[Connection] = set()
        self._soon: set[Connection] = set()
        self._graves: list[socket.socket] = []
        self._released: list[int] = []
        self.lent: dict[int, Connection] = {}  # whose bodies go through the kernel, by source
        self._in_map: dict[int, int] = {}  # indices of single sockets, by descriptor
        self._left: list[int] = []  # of those that are being closed
        self._refusals: set[str] = set()
        self.log_headers: frozenset[str] = frozenset()  # that records of requests are to have
        self._long_lived = Rounds(self, self.note_live)
        self._metering = Rounds(self, self.count_live, young=True)
        self._farewell = Farewell(self, setup.drain_idle)
        self.pool = Pool(self)
        self.is_stopping = False  # no connection is taken any more, and none is kept
        self._stops = 0
        self._dropped = 0
        self._exit: int | None = None
        self.accepting = Accepting(self)
        self.accepting.start(setup)
        self._reloading = Reloading(self, setup.control_fd)
        self.keeping = Keeping(self, self._reloading.say)
        self.spares = Spares(self._reloading.say)
        if self.accepting.keeps_clients:
            self.spares.prime()
        if self.splicer is not None:
            self.splicer.start(setup.kept)
            self.register(self.splicer.event_fd, select.EPOLLIN, _Ring(self))
            if setup.kept:
                self._reloading.say(adopt(self, setup.kept))
        self.calendar.set(_Turn(self), self.now + Meter.hold)
        self._metering.set(METER_EVERY)
        self._take_signals()

    def _take_signals(self) -> None:
        wake_in, self._wake_out = socket.socketpair()
        wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        signal.set_wakeup_fd(self._wake_out.fileno(), warn_on_full_buffer=False)
        signal.signal(STOP, self._on_signal)
        self.register(wake_in.fileno(), select.EPOLLIN, _Wake(wake_in))

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._stops += 1

    def told_to_stop(self) -> None:
        """The same, of a supervisor that may not send the signal."""
        self._stops += 1

    # ---- the loop

    def run(self) -> int:
        """Serve until told to stop; returns the exit code."""
        handlers = self._handlers
        seen_stops = 0
        while self._exit is None:
            for fd, mask in self._epoll.poll(self._patience(), EVENT_BATCH):
                handler = handlers.get(fd)
                if handler is not None:
                    self.now = self.clock()
                    try:
                        handler.ready(fd, mask)
                    except Exception:
                        if not isinstance(handler, Connection):
                            raise
                        self._give_up(handler)
            self.now = self.clock()
            for item in self.calendar.due(self.now):
                if isinstance(item, Connection):
                    self.guard(item, item.on_deadline)
                else:
                    item.on_deadline()
            if self._has_unheard:
                self.drain_ring()
            if self._soon:
                self._look_again()
            if self._reloading.busy:
                self._reloading.step()
            self._close_graves()
            if self._log.pending:
                self._log.flush()
                self._count_dropped()
            while seen_stops < self._stops:  # two may have come in one turn
                self._stop(first=seen_stops == 0)
                seen_stops += 1
            if seen_stops and not self._connections and self._exit is None:
                self._exit = DRAINED
        self._close_graves()
        self.relays.close()
        self._log.close()
        self._count_dropped()
        return self._exit

    def _count_dropped(self) -> None:
        self.view[Counter.LOG_DROPPED] += self._log.dropped - self._dropped
        self._dropped = self._log.dropped

    def _patience(self) -> float:
        """How long epoll may wait, in seconds; negative: for ever."""
        if self._graves or self._reloading.busy or self._has_unheard:
            return 0.0
        due = self.calendar.next()
        if self._log.pending:  # its reader is slow
            soon = self.clock() + LOG_RETRY
            due = soon if due is None else min(due, soon)
        if self._soon:
            retry = min(connection.retry_at for connection in self._soon)
            due = retry if due is None else min(due, retry)
        return -1.0 if due is None else max(0.0, due - self.clock())

    @property
    def _has_unheard(self) -> bool:
        """Whether the ring was read ahead: epoll tells nothing of what was in it."""
        return self.splicer is not None and self.splicer.has_unheard

    def guard(self, connection: Connection, call: Callable[[], None]) -> None:
        """Call; a bug of ours costs this connection, not the worker."""
        try:
            call()
        except Exception:
            self._give_up(connection)

    def _give_up(self, connection: Connection) -> None:
        """A bug of ours must cost one connection, not the worker."""
        log.exception("internal error; the connection is reset")
        try:
            connection.abort(Reason.INTERNAL)
        except Exception:
            log.exception("internal error while resetting")

    def _look_again(self) -> None:
        ready = [connection for connection in self._soon if connection.retry_at <= self.now]
        self._soon.difference_update(ready)
        for connection in ready:
            self.guard(connection, connection.look_again_at)

    def look_again(self, connection: Connection, delay: float) -> None:
        """Have the connection looked at again in `delay` seconds, or sooner."""
        when = self.now + delay
        if connection in self._soon:  # its other direction may be in more of a hurry
            when = min(when, connection.retry_at)
        connection.retry_at = when
        self._soon.add(connection)

    def began(self, connection: Connection, row: int) -> None:
        """A connection was accepted."""
        self._connections.add(connection)
        self.view[Counter.ACCEPTED] += 1
        connection.number = self.view[Counter.ACCEPTED]  # grows on through all workers of a slot
        self._counters.enter(row)
        self.meter.accepted(connection.listener.name)
        self.guard(connection, connection.begin)

    def moved(self, old: int, new: int) -> None:
        """A connection is on another listener from now on, by their rows."""
        if old != new:
            self._counters.leave(old)
            self._counters.enter(new)

    def resumed(self, connection: Connection, row: int) -> None:
        """A connection was another worker's until now, and is counted as open already."""
        self._connections.add(connection)
        self.view[Counter.ADOPTED] += 1
        self._counters.stay(row)

    def not_adopted(self, index: int) -> None:
        """One that was counted like that is over, and nobody knows what it was."""
        self.keeping.give_up(index)
        self.view[Counter.SPLICES_ENDED] += 1
        self._counters.fail(Reason.NOT_ADOPTED)
        self.meter.ended_unknown(Reason.NOT_ADOPTED)
        self.view[Counter.CLOSED] += 1

    def is_full(self, row: int, most: int) -> bool:
        """Whether so many connections, or more, live on the listener with this row."""
        return self._counters.present(row) >= most

    def refuse(self, client: socket.socket, listener: str, reason: Reason) -> None:
        """Reset a connection of this listener at once, once it is counted."""
        self.view[Counter.REFUSED] += 1
        self._counters.fail(reason)
        self.meter.refused(listener, reason)
        client.close()  # a reset: inherited from the listening socket

    # ---- what an operator asks

    def connections(self) -> list[Connection]:
        """All that live now."""
        return list(self._connections)

    def reset(self, number: int) -> bool:
        """Reset the connection of this number, if there is one; whether there was."""
        for connection in self._connections:
            if connection.number == number:
                self.guard(connection, partial(connection.abort, Reason.OPERATOR_RESET))
                return True
        return False

    # ---- what policies bring

    def make_group(self, backend: Backend) -> Group:
        """A backend group for this worker."""
        return Group(
            backend,
            self.resolved,
            self._health,
            self.calendar,
            self._chance,
            self.clock(),
            start=self.slot,
        )

    def resolve(self, names: Mapping[str, Sequence[str]]) -> None:
        """DNS names have these addresses now."""
        self.resolved.update(names)
        for group in self.accepting.generation.groups.values():
            group.update(self.resolved, self.now, names)

    # ---- what connections ask of their worker

    def register(self, fd: int, mask: int, handler: Handler) -> None:
        """Watch a descriptor."""
        self._epoll.register(fd, mask)
        self._handlers[fd] = handler

    def hand_over(self, fd: int, old: Handler, new: Handler) -> None:
        """Have events of `fd` go to `new`, if they go to `old` now."""
        if self._handlers.get(fd) is old:
            self._handlers[fd] = new

    def unwatch(self, fd: int, handler: Handler) -> bool:
        """Watch `fd` no more, if its events go to `handler`; whether they did."""
        watched = self._handlers.get(fd) is handler
        if watched:
            self.unregister(fd)
        return watched

    def modify(self, fd: int, mask: int) -> None:
        """Watch it for something else."""
        self._epoll.modify(fd, mask)

    def unregister(self, fd: int) -> None:
        """Watch it no more."""
        del self._handlers[fd]
        self._epoll.unregister(fd)

    def bury(self, sock: socket.socket) -> None:
        """Close a socket when the batch is over, and watch it no more.

        epoll(7): a descriptor that nothing else refers to leaves the interest list as it is closed.
        """
        fd = sock.fileno()
        self._handlers.pop(fd, None)
        self._graves.append(sock)
        if fd in self._in_map:
            self._left.append(self._in_map.pop(fd))

    def release(self, index: int) -> None:
        """Give a SOCKMAP index back when both its sockets are closed."""
        pair = self.spliced.pop(index >> 1, None)
        if pair is None or not self.keeping.ended(pair):
            self._released.append(index)

    def _close_graves(self) -> None:
        if self._graves:
            for sock in self._graves:
                sock.close()
            self._graves.clear()
        if self._released:
            assert self.splicer is not None
            for index in self._released:
                self.splicer.release(index)
            self._released.clear()
        if self._left:
            assert self.splicer is not None
            for index in self._left:
                self.lent.pop(index, None)
                self.splicer.leave(index)
            self._left.clear()

    def stands_in_map(self, wire: Wire) -> None:
        """A socket stands in the map by itself: its index is free when it is closed."""
        self._in_map[wire.sock.fileno()] = wire.index

    def ended(self, connection: Connection) -> None:
        """A connection is over: count and log it."""
        record = connection.record
        self._connections.discard(connection)
        self._soon.discard(connection)
        self._counters.leave(connection.listener.row)
        self._counters.fail(record.reason)
        self.meter.ended(record, connection.metered)
        self.view[Counter.CLOSED] += 1  # last: who finds none open finds all of them counted
        requests = connection.requests
        if requests is not None and requests.rests:
            return  # none of its requests has ended with it
        if requests is not None:
            self.view[Counter.REQUESTS] += 1
            self.meter.requested(record)
        self._log.write(record)

    def exchanged(self, record: Record) -> None:
        """A request is over, and its connection is not: count and log it."""
        self.view[Counter.REQUESTS] += 1
        self._counters.fail(record.reason)
        self.meter.exchanged(record)
        self._log.write(record)

    def switched(self, record: Record) -> None:
        """A request has turned its connection into another protocol's."""
        self.view[Counter.REQUESTS] += 1
        self.meter.requested(record)

    def note_live(self, connection: Connection) -> None:
        """A connection goes on, and has for long: log it as it is."""
        assert connection.pair is not None
        up, down, kernel_up, kernel_down = connection.moved(connection.pair)
        self._log.write(
            replace(
                connection.record,
                state=LIVE,
                total_ms=connection.elapsed(),
                bytes_in=up,
                bytes_out=down,
                kernel_in=kernel_up,
                kernel_out=kernel_down,
            )
        )

    def count_live(self, connection: Connection) -> None:
        """A connection goes on: count by route and endpoint what it has moved since it was."""
        assert connection.pair is not None
        moved = connection.moved(connection.pair)
        if moved != connection.metered:
            self.meter.moved(connection.record, moved, connection.metered)
            connection.metered = moved
            if isinstance(connection.pair, SplicedPair):
                self.metered.store(connection.pair.index, moved)

    def log_as(self, rules: AccessLogRules) -> None:
        """Write the access log as a policy says."""
        self.log_headers = self._log.follow(rules)
        self._long_lived.set(rules.live_every if self._log.is_on else 0.0)

    def reopen_log(self, fd: int) -> None:
        """The access log's file was rotated: this is the new one."""
        self._log.take(fd)

    def note_refused(self, error: OSError) -> None:
        """The kernel did not take a pair: say so once for each kind of refusal."""
        text = error.strerror or str(error)
        if text not in self._refusals:
            self._refusals.add(text)
            log.info(event("pair relayed", why=text))

    # ---- ending

    def _stop(self, *, first: bool) -> None:
        self.stop_keeping()
        if first:
            self._farewell.begin()
            return
        self._exit = RESET if self._connections else DRAINED
        for connection in self.connections():
            self.guard(connection, partial(connection.abort, Reason.DRAIN_DEADLINE))

    def stop_keeping(self) -> None:
        """Take no connection any more, and keep none for another request."""
        self.is_stopping = True
        self.accepting.stop()
        self.pool.clear()
        for connection in self.connections():
            if connection.rests:
                self.guard(connection, connection.hang_up)

    def leave(self) -> None:
        """Another l7proxy takes the place of this one."""
        Leaving(self).begin()

    def gone(self) -> None:
        """Nobody needs this worker any more."""
        self._exit = DRAINED

    def orphaned(self) -> None:
        """The supervisor is gone: leave at once. Every open connection is reset, none cut clean."""
        self._exit = ORPHANED

    def drain_ring(self) -> None:
        """The kernel announced directions that it passed, or gave up."""
        assert self.splicer is not None
        for index in self.splicer.events():
            pair = self.spliced.get(index >> 1)
            if pair is not None:
                self.guard(pair.connection, partial(pair.on_event, index & 1))
                continue
            connection = self.lent.get(index)
            if connection is not None:
                self.guard(connection, connection.look_again_at)


class _Ring:
    """The verdict program's ring buffer."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def ready(self, _fd: int, _mask: int) -> None:
        self._worker.drain_ring()


class _Turn:
    """Has the meter give up, now and then, what it does not use."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.tick = -1

    def on_deadline(self) -> None:
        self._worker.meter.turn()
        self._worker.calendar.set(self, self._worker.now + Meter.hold)


class _Wake:
    """A signal arrived; its handler has run by now. Only the byte is to be taken."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def ready(self, _fd: int, _mask: int) -> None:
        try:
            self._sock.recv(64)
        except BlockingIOError:
            pass


def run(setup: WorkerSetup) -> int:
    """Serve connections until `process.STOP`; returns the process's exit code.

    0: every connection ended by itself. 3: some were reset, on a second signal. 1: the supervisor
    was gone.
    """
    worker = Worker(setup)
    # What a connection is made of is freed by its reference counts; what lives as long as the
    # worker need not be looked at again and again.
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    return worker.run()
