"""The worker's loop: accept, wait, dispatch, and nothing that could block.

Facts that shape it:

- A descriptor number is used again as soon as it is closed. Events of the same batch may still name
  the old one, so sockets are only closed when the batch is over (`bury`), and an event for a number
  that nobody has registered is dropped.
- All workers share the listening sockets; EPOLLEXCLUSIVE wakes one of them. A worker accepts a
  few at a time and leaves the rest to whoever is idle.
- With no descriptor left accept(2) fails and the connection stays in the queue, so epoll would
  report it for ever. One descriptor is kept in reserve to take such connections and reset them.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import random
import select
import signal
import socket
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Protocol

from l7proxy.datapath.relay import Relays
from l7proxy.errors import Reason
from l7proxy.model import Backend
from l7proxy.net import buffers
from l7proxy.net.process import STOP
from l7proxy.session import State
from l7proxy.telemetry.counters import Counter
from l7proxy.telemetry.log import event
from l7proxy.worker.connection import Connection
from l7proxy.worker.generation import Current, Generation, OpenListener, building
from l7proxy.worker.groups import Group
from l7proxy.worker.reloading import Reloading
from l7proxy.worker.setup import WorkerSetup
from l7proxy.worker.spliced import SplicedPair
from l7proxy.worker.timers import Calendar

ACCEPT_BATCH = 16
EVENT_BATCH = 512
SCRATCH = 8 * 1024 * 1024  # bytes; what a receive buffer holds at the most, usually
FIRST_READ = 64 * 1024  # bytes of one read before the pair is open
SHED_BATCH = 64  # connections reset at a time when descriptors run out
GC_THRESHOLD = 50_000  # objects made and not freed, until cycles are looked for
PAUSE = 0.1  # seconds without accepting when the system has no memory for a socket

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
        self.calendar = Calendar()
        self.relays = Relays(setup.datapath)
        self.scratch = memoryview(bytearray(SCRATCH))
        self.receive_ceiling = buffers.receive_ceiling()
        self.first_scratch = self.scratch[:FIRST_READ]
        self.spliced: dict[int, SplicedPair] = {}  # by pair: index >> 1
        self.clock = time.monotonic
        self.wall = time.time
        self.now = self.clock()
        self._chance = random.Random()
        self._health = setup.health
        self._resolved = dict(setup.resolved)
        self._counters = setup.counters
        self._log = setup.access_log
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._connections: set[Connection] = set()
        self._soon: set[Connection] = set()
        self._graves: list[socket.socket] = []
        self._released: list[int] = []
        self._refusals: set[str] = set()
        self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._stops = 0
        self._dropped = 0
        self._exit: int | None = None
        self._listeners: dict[int, OpenListener] = {}  # by the number of their sockets
        self.generation = Generation(setup.prepare, (), [], {}, {}, {}, [])
        sockets = dict(setup.sockets)
        self.take_over(_built(building(self, setup.policy, setup.prepare, sockets)), sockets)
        self._reloading = Reloading(self, setup.control_fd)
        if self.splicer is not None:
            self.splicer.start()
            self.register(self.splicer.event_fd, select.EPOLLIN, _Ring(self))
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
                    self._guard(handler, fd, mask)
            self.now = self.clock()
            for item in self.calendar.due(self.now):
                if isinstance(item, Connection):
                    self._guard_call(item, item.on_deadline)
                else:
                    item.on_deadline()
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
        return self._exit

    def _count_dropped(self) -> None:
        self.view[Counter.LOG_DROPPED] += self._log.dropped - self._dropped
        self._dropped = self._log.dropped

    def _patience(self) -> float:
        """How long epoll may wait, in seconds; negative: for ever."""
        if self._graves or self._reloading.busy:
            return 0.0
        due = self.calendar.next()
        if self._soon:
            retry = min(connection.retry_at for connection in self._soon)
            due = retry if due is None else min(due, retry)
        return -1.0 if due is None else max(0.0, due - self.clock())

    def _guard(self, handler: Handler, fd: int, mask: int) -> None:
        try:
            handler.ready(fd, mask)
        except Exception:
            if not isinstance(handler, Connection):
                raise
            self._give_up(handler)

    def _guard_call(self, connection: Connection, call: Callable[[], None]) -> None:
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
            if connection.pair is not None and connection.session.is_open:
                self._guard_call(connection, connection.pair.again)

    def look_again(self, connection: Connection, delay: float) -> None:
        """Have the connection's pair looked at again in `delay` seconds, or sooner."""
        when = self.now + delay
        if connection in self._soon:  # its other direction may be in more of a hurry
            when = min(when, connection.retry_at)
        connection.retry_at = when
        self._soon.add(connection)

    # ---- accepting

    def listen(self, listener: OpenListener) -> None:
        """Begin, or go on, to accept."""
        if not self._stops:
            self.register(listener.sock.fileno(), select.EPOLLIN | select.EPOLLEXCLUSIVE, listener)

    def accept(self, listener: OpenListener) -> bool:
        """Take a few connections off the listener's queue; False when it is empty."""
        accept = listener.sock.accept
        for _ in range(ACCEPT_BATCH):
            try:
                client, address = accept()
            except BlockingIOError:
                return False
            except OSError as error:
                return self._accept_failed(listener, error)
            self.now = self.clock()
            if self._counters.present(listener.row) >= listener.limits.connections:
                self._refuse(client, Reason.CONNECTION_LIMIT)
                continue
            connection = Connection(self, listener, client, address)
            self._connections.add(connection)
            self.view[Counter.ACCEPTED] += 1
            self._counters.enter(listener.row)
            self._guard_call(connection, connection.begin)
        return True

    def _refuse(self, client: socket.socket, reason: Reason) -> None:
        client.close()  # a reset: inherited from the listening socket
        self.view[Counter.REFUSED] += 1
        self._counters.fail(reason)

    def _accept_failed(self, listener: OpenListener, error: OSError) -> bool:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            self._shed(listener)
            return False
        if error.errno in (errno.ENOBUFS, errno.ENOMEM):
            self._pause(listener)
            return False
        return True  # an error of that one connection (accept(2): ECONNABORTED, EPROTO, ...)

    def _pause(self, listener: OpenListener) -> None:
        if self._handlers.get(listener.sock.fileno()) is listener:
            self.unregister(listener.sock.fileno())
            self.calendar.set(listener, self.now + PAUSE)

    def _shed(self, listener: OpenListener) -> None:
        """Reset what waits, with the descriptor that is kept in reserve for this."""
        if self._reserve >= 0:
            os.close(self._reserve)
        shed = 0
        try:
            while shed < SHED_BATCH:
                client, _ = listener.sock.accept()
                self._refuse(client, Reason.DESCRIPTORS)
                shed += 1
        except OSError:
            pass
        try:
            self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # ENFILE: another process was quicker
            self._reserve = -1
            self._pause(listener)
        if shed:
            log.warning(event("out of descriptors", listener=listener.name, reset=shed))

    # ---- policies that come and go

    def make_group(self, backend: Backend) -> Group:
        """A backend group for this worker."""
        return Group(
            backend,
            self._resolved,
            self._health,
            self.calendar,
            self._chance,
            self.clock(),
            start=self.slot,
        )

    def sockets(self) -> dict[int, socket.socket]:
        """The listening sockets that are open, by number."""
        return {number: one.sock for number, one in self._listeners.items()}

    def take_over(self, new: Generation, sockets: dict[int, socket.socket]) -> Generation:
        """Let `new` decide from now on, and take its sockets out of `sockets`; the old one.

        A socket that was in use goes on, with what is in its queue. One that `new` has not goes on
        as well, as it was: see `retire`.
        """
        old, self.generation = self.generation, new
        prepare = new.prepare
        for listener, number, row in zip(new.listeners, prepare.sockets, prepare.rows, strict=True):
            before = self._listeners.get(number)
            current = Current(new.routers[listener.name], new.groups)
            if before is not None and before.protocol is listener.protocol:
                before.current.router, before.current.groups = current.router, current.groups
                current = before.current
            opened = self._listeners[number] = OpenListener(
                worker=self,
                row=row,
                name=listener.name,
                protocol=listener.protocol,
                limits=listener.limits,
                timeouts=listener.timeouts,
                current=current,
                front=new.fronts[listener.name],
                sock=before.sock if before is not None else sockets.pop(number),
            )
            if before is None:
                self.listen(opened)
            elif before.tick >= 0:  # it pauses
                self.calendar.cancel(before)
                self.calendar.set(opened, self.now + PAUSE)
            elif not self._stops:
                self._handlers[opened.sock.fileno()] = opened
        for group in new.fresh:  # names may have got other addresses since it was built
            group.update(self._resolved, self.now)
        return old

    def resolve(self, names: Mapping[str, Sequence[str]]) -> None:
        """DNS names have these addresses now."""
        self._resolved.update(names)
        for group in self.generation.groups.values():
            group.update(self._resolved, self.now)

    def retire(self, numbers: Sequence[int]) -> None:
        """Nobody new comes to these sockets: take who waits there, and close them."""
        for number in numbers:
            if number not in self._listeners:
                continue
            listener = self._listeners.pop(number)
            while not self._stops and self.accept(listener):
                pass
            self.calendar.cancel(listener)
            if self._handlers.get(listener.sock.fileno()) is listener:
                self.unregister(listener.sock.fileno())
            self.bury(listener.sock)
            # whose head comes only now is still served by what these groups have become
            listener.current.groups = dict(listener.current.groups)

    # ---- what connections ask of their worker

    def register(self, fd: int, mask: int, handler: Handler) -> None:
        """Watch a descriptor."""
        self._epoll.register(fd, mask)
        self._handlers[fd] = handler

    def modify(self, fd: int, mask: int) -> None:
        """Watch it for something else."""
        self._epoll.modify(fd, mask)

    def unregister(self, fd: int) -> None:
        """Watch it no more."""
        del self._handlers[fd]
        self._epoll.unregister(fd)

    def bury(self, sock: socket.socket) -> None:
        """Close a socket when the batch is over."""
        self._graves.append(sock)

    def release(self, index: int) -> None:
        """Give a SOCKMAP index back when both its sockets are closed."""
        self.spliced.pop(index >> 1, None)
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

    def ended(self, connection: Connection) -> None:
        """A connection is over: count and log it."""
        record = connection.record
        self._connections.discard(connection)
        self._soon.discard(connection)
        self.view[Counter.CLOSED] += 1
        self._counters.leave(connection.listener.row)
        self._counters.fail(record.reason)
        self._log.write(record)

    def note_refused(self, error: OSError) -> None:
        """The kernel did not take a pair: say so once for each kind of refusal."""
        text = error.strerror or str(error)
        if text not in self._refusals:
            self._refusals.add(text)
            log.info(event("pair relayed", why=text))

    # ---- ending

    def _stop(self, *, first: bool) -> None:
        for listener in self._listeners.values():
            if self._handlers.get(listener.sock.fileno()) is listener:
                self.unregister(listener.sock.fileno())
            listener.sock.close()
        for connection in list(self._connections):
            if not first:
                self._guard_call(connection, partial(connection.abort, Reason.DRAIN_DEADLINE))
            elif connection.session.state is State.HEAD and connection.early_in == 0:
                self._guard_call(connection, partial(connection.abort, Reason.CLIENT_CLOSED))
        if not first:
            self._exit = RESET

    def orphaned(self) -> None:
        """The supervisor is gone: leave at once. Every open connection is reset, none cut clean."""
        self._exit = ORPHANED

    def drain_ring(self) -> None:
        """The kernel announced directions that it passed, or gave up."""
        assert self.splicer is not None
        for index in self.splicer.events():
            pair = self.spliced.get(index >> 1)
            if pair is not None:
                self._guard_call(pair.connection, partial(pair.on_event, index & 1))


class _Ring:
    """The verdict program's ring buffer."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def ready(self, _fd: int, _mask: int) -> None:
        self._worker.drain_ring()


class _Wake:
    """A signal arrived; its handler has run by now. Only the byte is to be taken."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def ready(self, _fd: int, _mask: int) -> None:
        try:
            self._sock.recv(64)
        except BlockingIOError:
            pass


def _built(steps: Generator[None, None, Generation]) -> Generation:
    while True:
        try:
            next(steps)
        except StopIteration as done:
            generation: Generation = done.value
            return generation


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
