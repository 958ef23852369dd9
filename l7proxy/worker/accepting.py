"""The listeners of a worker: who comes to them, and the policies that they come and go with.

- All workers share the listening sockets; EPOLLEXCLUSIVE wakes one of them. A worker accepts a
  few at a time and leaves the rest to whoever is idle.
- With no descriptor left accept(2) fails and the connection stays in the queue, so epoll would
  report it for ever. One descriptor is kept in reserve to take such connections and reset them.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from l7proxy.errors import Reason
from l7proxy.net.listen import prepare_late
from l7proxy.telemetry.log import event
from l7proxy.worker.connection import Connection
from l7proxy.worker.generation import Current, Generation, OpenListener, building
from l7proxy.worker.setup import WorkerSetup

if TYPE_CHECKING:
    from l7proxy.worker.loop import Worker

ACCEPT_BATCH = 16
SHED_BATCH = 64  # connections reset at a time when descriptors run out
PAUSE = 0.1  # seconds without accepting when the system has no memory for a socket

log = logging.getLogger(__name__)


class Accepting:
    """The open listeners, by the number of their sockets, and the policy that they follow."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._listeners: dict[int, OpenListener] = {}
        self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._stopped = False
        self.generation: Generation

    def start(self, setup: WorkerSetup) -> None:
        """Build the first policy, and begin to accept."""
        self.generation = Generation(setup.prepare, (), [], {}, {}, {}, {}, [])
        sockets = dict(setup.sockets)
        steps = building(self._worker, setup.policy, setup.prepare, sockets)
        self.take_over(_built(steps), sockets)

    def stop(self) -> None:
        """Accept no more."""
        self._stopped = True
        for listener in self._listeners.values():
            self._unwatch(listener)
            listener.sock.close()

    def _unwatch(self, listener: OpenListener) -> bool:
        return self._worker.unwatch(listener.sock.fileno(), listener)

    def listen(self, listener: OpenListener) -> None:
        """Begin, or go on, to accept."""
        if not self._stopped:
            self._worker.register(
                listener.sock.fileno(), select.EPOLLIN | select.EPOLLEXCLUSIVE, listener
            )

    def accept(self, listener: OpenListener) -> bool:
        """Take a few connections off the listener's queue; False when it is empty."""
        worker, accept = self._worker, listener.sock.accept
        most = listener.limits.connections
        # to count over all workers costs 1 us: not for each one while the limit is far away
        near = worker.is_full(listener.row, most - ACCEPT_BATCH * worker.fellows)
        for _ in range(ACCEPT_BATCH):
            try:
                client, address = accept()
            except BlockingIOError:
                return False
            except OSError as error:
                return self._accept_failed(listener, error)
            worker.now = worker.clock()
            if listener.passed:
                prepare_late(client)
            if near and worker.is_full(listener.row, most):
                worker.refuse(client, listener.name, Reason.CONNECTION_LIMIT)
                continue
            worker.began(Connection(worker, listener, client, address), listener.row)
        return True

    def _accept_failed(self, listener: OpenListener, error: OSError) -> bool:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            self._shed(listener)
            return False
        if error.errno in (errno.ENOBUFS, errno.ENOMEM):
            self._pause(listener)
            return False
        return True  # an error of that one connection (accept(2): ECONNABORTED, EPROTO, ...)

    def _pause(self, listener: OpenListener) -> None:
        if self._unwatch(listener):
            self._worker.calendar.set(listener, self._worker.now + PAUSE)

    def _shed(self, listener: OpenListener) -> None:
        """Reset what waits, with the descriptor that is kept in reserve for this."""
        if self._reserve >= 0:
            os.close(self._reserve)
        shed = 0
        try:
            while shed < SHED_BATCH:
                client, _ = listener.sock.accept()
                self._worker.refuse(client, listener.name, Reason.DESCRIPTORS)
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

    def listeners(self) -> list[OpenListener]:
        """The open listeners."""
        return list(self._listeners.values())

    @property
    def keeps_clients(self) -> bool:
        """Whether backends are dialled with clients' addresses."""
        fronts = (one.front.intercepted for one in self._listeners.values())
        return any(one is not None and one.keeps_client for one in fronts)

    def sockets(self) -> dict[int, socket.socket]:
        """The listening sockets that are open, by number."""
        return {number: one.sock for number, one in self._listeners.items()}

    def take_over(self, new: Generation, sockets: dict[int, socket.socket]) -> Generation:
        """Let `new` decide from now on, and take its sockets out of `sockets`; the old one.

        A socket that was in use goes on, with what is in its queue. One that `new` has not goes on
        as well, as it was: see `retire`.
        """
        worker = self._worker
        old, self.generation = self.generation, new
        worker.log_as(new.access_log)
        prepare = new.prepare
        for listener, number, row in zip(new.listeners, prepare.sockets, prepare.rows, strict=True):
            before = self._listeners.get(number)
            current = Current(new.routers[listener.name], new.groups, new.accesses)
            if before is not None and before.protocol is listener.protocol:
                before.current.replace(current)
                current = before.current
            elif before is not None:  # heads that are being read are for the routes that it had
                before.current.groups = dict(before.current.groups)
            opened = self._listeners[number] = OpenListener(
                worker=worker,
                row=row,
                name=listener.name,
                protocol=listener.protocol,
                limits=listener.limits,
                timeouts=listener.timeouts,
                current=current,
                front=new.fronts[listener.name],
                sock=before.sock if before is not None else sockets.pop(number),
                passed=number in prepare.passed,
            )
            if before is not None and before.protocol is listener.protocol:
                before.successor = opened
            elif before is not None:
                before.retired = True
            if self._stopped:  # the drain has begun: nobody may wait in a queue of ours
                opened.sock.close()
            elif before is None:
                self.listen(opened)
            elif before.tick >= 0:  # it pauses
                worker.calendar.cancel(before)
                worker.calendar.set(opened, worker.now + PAUSE)
            else:
                worker.hand_over(opened.sock.fileno(), before, opened)
        for group in new.fresh:  # names may have got other addresses since it was built
            group.update(worker.resolved, worker.now)
        return old

    def retire(self, numbers: Sequence[int]) -> None:
        """Nobody new comes to these sockets: take who waits there, and close them."""
        for number in numbers:
            if number not in self._listeners:
                continue
            listener = self._listeners.pop(number)
            listener.retired = True
            # one that was passed goes on to listen: its queue need never be empty
            while not self._stopped and not listener.passed and self.accept(listener):
                pass
            self._worker.calendar.cancel(listener)
            self._unwatch(listener)
            self._worker.bury(listener.sock)
            # whose head comes only now is still served by what these groups have become
            listener.current.groups = dict(listener.current.groups)


def _built(steps: Generator[None, None, Generation]) -> Generation:
    while True:
        try:
            next(steps)
        except StopIteration as done:
            generation: Generation = done.value
            return generation
