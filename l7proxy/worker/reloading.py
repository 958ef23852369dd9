"""The worker's end of the channel to the supervisor: another policy, and news, without a pause.

The steps and their messages are told in `net.messages`. What is to be built, and later what is to
be freed, is a row of generators; the loop asks for a slice of that work between two rounds, so that
connections wait for `SLICE` seconds at the most, and one step more.

A worker whose descriptors are all in use cannot even receive those of another policy, and then says
so: its connections are worth more than a reload.

The garbage collector is off meanwhile: it would walk through everything that is being built, again
and again, in one stroke. What a policy is made of is freed by reference counts.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import socket
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING

from l7proxy.errors import L7ProxyError
from l7proxy.net import bundle
from l7proxy.net.channel import Channel, ChannelBroken, ChannelClosed, Received
from l7proxy.net.messages import (
    TO_WORKER,
    Abandon,
    Commit,
    Committed,
    Connections,
    Dropped,
    Leave,
    ListConnections,
    LogLevel,
    Prepare,
    Prepared,
    ResetConnection,
    Resolved,
    Retire,
    Rotated,
    Sockets,
    Spare,
    Stop,
    Unprepared,
    WasReset,
)
from l7proxy.telemetry import log as operational
from l7proxy.telemetry.counters import Counter
from l7proxy.telemetry.log import event
from l7proxy.worker.generation import Generation, building, freeing
from l7proxy.worker.telling import telling

if TYPE_CHECKING:
    from l7proxy.worker.loop import Worker

SLICE = 0.002  # seconds of work between two rounds of the loop
MAX_FDS = 250  # that come with one message

log = logging.getLogger(__name__)

_WATCHED = select.EPOLLIN | select.EPOLLRDHUP


class Reloading:
    """Hears the supervisor, builds aside, swaps on its word."""

    def __init__(self, worker: Worker, control_fd: int) -> None:
        self._worker = worker
        control = socket.socket(fileno=control_fd)
        self._channel = Channel(control, TO_WORKER, fds=MAX_FDS, may_lose=True)
        self._has_lost = False  # descriptors, of the policy that is on its way
        self._sockets: dict[int, socket.socket] = {}  # that came, and are not in use yet
        self._building: Iterator[None] | None = None
        self._number = 0  # of the generation that is being built
        self._built: Generation | None = None
        self._old: list[Iterator[None]] = []  # of listeners that are still accepted from
        self._freeing: deque[Iterator[None]] = deque()
        self._telling: Iterator[Connections | None] | None = None
        self._longest = 0.0
        worker.register(control_fd, _WATCHED, self)

    @property
    def busy(self) -> bool:
        """Whether there is work for `step`."""
        return self._building is not None or bool(self._freeing) or self._tells

    @property
    def _tells(self) -> bool:
        """Whether more is to be told, and the supervisor has taken what was told before."""
        return self._telling is not None and not self._channel.waiting

    def ready(self, fd: int, _mask: int) -> None:
        """The supervisor said something, or reads again, or is gone."""
        try:
            self._channel.flush()
            for received in self._channel.receive():
                self._hear(received)
        except ChannelClosed:
            self._worker.orphaned()
            return
        self._watch(fd)

    def _watch(self, fd: int) -> None:
        self._worker.modify(fd, _WATCHED | (select.EPOLLOUT if self._channel.waiting else 0))

    def _say(self, message: object, fds: Sequence[int] = (), payload: bytes = b"") -> None:
        """Send a message, and see to it that one which has to wait is sent later."""
        self._channel.send(message, fds, payload)
        if self._channel.waiting:
            self._watch(self._channel.fileno())

    def say(self, message: object, fds: Sequence[int] = (), payload: bytes = b"") -> bool:
        """The same, with descriptors, unless others wait: False. Raises ChannelClosed."""
        if self._channel.waiting:
            return False
        try:
            self._say(message, fds, payload)
        except ChannelBroken:  # no descriptor is left for its copies
            return False
        return True

    def step(self) -> None:
        """A slice of the work."""
        until = time.monotonic() + SLICE
        while self.busy:
            if time.monotonic() >= until:
                return
            if self._tells:
                self._tell()
                continue
            began = time.thread_time()  # not what other processes take of this processor
            self._one_step()
            self._longest = max(self._longest, time.thread_time() - began)

    def _tell(self) -> None:
        assert self._telling is not None
        try:
            part = next(self._telling)
        except Exception:
            log.exception("internal error; what was asked is not told")
            self._telling = None
            return
        if part is not None:
            self._say(part)
            if part.is_last:
                self._telling = None

    def _one_step(self) -> None:
        if self._building is not None:
            try:
                next(self._building, None)
            except (L7ProxyError, OSError, MemoryError) as error:
                self._failed(str(error))
            except Exception as error:
                log.exception("internal error; the policy is not taken")
                self._failed(f"internal error: {error}")
            return
        try:
            next(self._freeing[0])
        except StopIteration:
            self._freeing.popleft()
            if not self._freeing:
                self._rest()

    def _rest(self) -> None:
        """No more work: what there is now stays, and need not be looked at by the collector."""
        self._note_longest()
        gc.freeze()
        gc.enable()

    def _note_longest(self) -> None:
        view, longest = self._worker.view, int(self._longest * 1e6)
        view[Counter.LONGEST_SLICE] = max(view[Counter.LONGEST_SLICE], longest)

    # ---- what the supervisor says

    def _hear(self, received: Received) -> None:
        message, fds = received.message, received.fds
        if isinstance(message, Rotated):
            self._rotate(fds)
            return
        if isinstance(message, Spare):
            self._worker.spares.put(message.ipv6, fds)
            return
        if not received.is_whole:
            self._has_lost = True
            while fds:
                os.close(fds.pop())
        match message:
            case Sockets() if not received.is_whole:
                pass
            case Sockets():
                for number, fd in zip(message.numbers, fds, strict=True):
                    sock = self._sockets[number] = socket.socket(fileno=fd)
                    sock.setblocking(False)
            case Prepare():
                self._prepare(message, fds)
            case Commit():
                self._commit(message.generation)
            case Abandon():
                if self._number == message.generation:
                    self._forget()
                for number in message.sockets:
                    if number in self._sockets:
                        self._sockets.pop(number).close()
            case Leave():
                self._worker.leave()
            case Dropped():
                self._worker.keeping.dropped(message.pairs)
            case Stop():
                self._worker.told_to_stop()
            case Resolved():
                self._worker.resolve(message.names)
            case ListConnections():
                self._telling = telling(self._worker, message)
            case ResetConnection():
                self._say(WasReset(message.inquiry, self._worker.reset(message.number)))
            case LogLevel():
                operational.set_level(message.level)
            case Retire():
                self._worker.accepting.retire(message.sockets)
                self._freeing.extend(self._old)
                self._old.clear()

    def _rotate(self, fds: list[int]) -> None:
        if fds:
            self._worker.reopen_log(fds.pop())
        else:
            log.error("the access log goes on in the file that was moved: no descriptor is left")

    def _prepare(self, message: Prepare, fds: list[int]) -> None:
        self._forget()
        self._number = message.generation
        if self._has_lost:
            self._has_lost = False
            while fds:
                os.close(fds.pop())
            self._failed("all its descriptors are in use")
            return
        gc.disable()
        self._building = self._steps(message, fds[0])
        next(self._building)  # from here on whoever drops it closes the descriptor

    def _steps(self, message: Prepare, policy: int) -> Generator[None, None, None]:
        worker = self._worker
        try:
            yield
            found = yield from bundle.unpacking(policy)
        finally:
            os.close(policy)
        yield
        sockets = worker.accepting.sockets() | self._sockets
        self._built = yield from building(worker, found, message, sockets)
        self._building = None
        self._note_longest()
        self._say(Prepared(message.generation, int(self._longest * 1e6)))

    def _failed(self, why: str) -> None:
        number = self._number
        self._forget()
        self._say(Unprepared(number, why[:1000]))

    def _forget(self) -> None:
        self._building = None
        built, self._built = self._built, None
        if built is not None:
            built.abandon()
            self._freeing.append(freeing(built, built.groups))
        if not self._freeing:
            gc.enable()

    def _commit(self, number: int) -> None:
        built, self._built = self._built, None
        assert built is not None
        assert built.prepare.generation == number
        old = self._worker.accepting.take_over(built, self._sockets)
        self._old.append(freeing(old, built.groups))
        self._say(Committed(number))
        log.debug(event("policy swapped", slot=self._worker.slot, generation=number))
