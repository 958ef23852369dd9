"""The process that looks after endpoints: it resolves their names and checks their health.

One unprivileged process beside the workers, so that neither costs a worker's loop anything, and
each name and endpoint is looked at once, however many workers there are. What it finds goes two
ways: the addresses of names to the supervisor, who tells the workers; health into shared memory.

It can be killed at any time. Another one goes on: with the addresses that the supervisor knows, and
the states that stand in shared memory.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field

from l7proxy.balance import Member, members
from l7proxy.health import ActiveCheck, Checked
from l7proxy.model import Backend, HealthCheck, NameAddress, UnixAddress
from l7proxy.net import bundle
from l7proxy.net.channel import Channel, ChannelBroken, ChannelClosed
from l7proxy.net.messages import TO_PROBER, LogLevel, Probe, Resolved
from l7proxy.net.process import EXIT_CRASHED
from l7proxy.prober import checks
from l7proxy.prober.names import Name
from l7proxy.telemetry import log as operational
from l7proxy.telemetry.findings import Finding
from l7proxy.telemetry.health import HealthSlot, endpoint_key
from l7proxy.telemetry.log import event

log = logging.getLogger(__name__)

AT_ONCE = 256  # checks under way: a limit on descriptors
FIRST_WITHIN = 1.0  # seconds in which first checks begin, spread out
GATHER = 0.01  # seconds in which addresses that were found become one message

GONE = 1  # exit code: the supervisor is


@dataclass(slots=True)
class ProberSetup:
    """What a prober is given when it starts."""

    backends: Mapping[str, Backend]
    health: HealthSlot
    control_fd: int
    resolved: Mapping[str, Sequence[str]] = field(default_factory=dict)


def run(setup: ProberSetup) -> int:
    """Look after the endpoints until the supervisor hangs up; the process's exit code."""
    return asyncio.run(Prober(setup).run())


class Prober:
    """All names and all checks."""

    def __init__(self, setup: ProberSetup) -> None:
        self._health = setup.health
        self._channel = Channel(socket.socket(fileno=setup.control_fd), TO_PROBER, fds=1)
        self._backends = dict(setup.backends)
        self._resolved = {name: tuple(found) for name, found in setup.resolved.items()}
        self._names: dict[str, tuple[Name, asyncio.Task[None]]] = {}
        self._checks: dict[tuple[str, Member], tuple[HealthCheck, asyncio.Task[None]]] = {}
        self._news: dict[str, tuple[str, ...]] = {}  # that the supervisor has not been told
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._gone = asyncio.Event()

    async def run(self) -> int:
        """See `run` of this module."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._channel.fileno(), self._hear)
        self._settle()
        await self._gone.wait()
        tasks = [task for _, task in (*self._names.values(), *self._checks.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        loop.remove_reader(self._channel.fileno())
        self._channel.close()
        return GONE

    def _hear(self) -> None:
        try:
            for received in self._channel.receive():
                if isinstance(received.message, LogLevel):
                    operational.set_level(received.message.level)
                    continue
                assert isinstance(received.message, Probe)
                (fd,) = received.fds
                try:
                    self._backends = bundle.backends(fd)
                finally:
                    os.close(fd)
                self._settle()
        except ChannelClosed:
            self._gone.set()
        except ChannelBroken as error:  # no descriptor was left for a policy: another one gets it
            log.error(event("prober leaves", why=error))
            self._gone.set()

    # ---- what is looked after

    def _settle(self) -> None:
        """Begin what the backends ask for and is not under way; end what they no longer do."""
        self._settle_names()
        self._settle_checks()

    def _settle_names(self) -> None:
        wanted: dict[str, float] = {}
        for backend in self._backends.values():
            for one in backend.endpoints:
                if isinstance(one.address, NameAddress):
                    name, interval = one.address.name, backend.resolving.interval
                    wanted[name] = min(interval, wanted.get(name, interval))
        for name in self._names.keys() - wanted.keys():
            self._names.pop(name)[1].cancel()
        for name, interval in wanted.items():
            if name in self._names:
                self._names[name][0].interval = interval
                continue
            watched = Name(name, interval, self._resolved.get(name, ()), self._tell)
            self._names[name] = (watched, _task(watched.watch()))

    def _tell(self, name: str, addresses: tuple[str, ...]) -> None:
        if addresses:
            self._resolved[name] = addresses
        if not self._news:
            asyncio.get_running_loop().call_later(GATHER, self._tell_news)
        self._news[name] = addresses

    def _tell_news(self) -> None:
        """Tell what was gathered, as fast as the supervisor listens."""
        if self._gone.is_set():
            return
        self._settle_checks()
        try:
            while self._news and not self._channel.waiting:
                self._channel.send(Resolved.take(self._news))
        except ChannelClosed:
            self._gone.set()
            return
        if self._channel.waiting:
            asyncio.get_running_loop().add_writer(self._channel.fileno(), self._flush)

    def _flush(self) -> None:
        try:
            self._channel.flush()
        except ChannelClosed:
            self._gone.set()
        if self._gone.is_set() or not self._channel.waiting:
            asyncio.get_running_loop().remove_writer(self._channel.fileno())
            self._tell_news()

    def _settle_checks(self) -> None:
        wanted = {
            (backend.name, member): backend
            for backend in self._backends.values()
            if backend.health is not None
            for member in members(backend, self._resolved)
        }
        for key, (rules, task) in list(self._checks.items()):
            if key not in wanted or wanted[key].health != rules:
                task.cancel()
                del self._checks[key]
        for key, backend in wanted.items():
            if key not in self._checks and backend.health is not None:
                work = self._watch(backend, key[1], backend.health)
                self._checks[key] = (backend.health, _task(work))

    # ---- one endpoint

    async def _watch(self, backend: Backend, member: Member, rules: HealthCheck) -> None:
        text = str(member.address)
        row = self._health.attach(endpoint_key(backend.name, text))
        state = ActiveCheck(rules, row.checked)
        try:
            await asyncio.sleep(random.random() * min(FIRST_WITHIN, rules.interval))
            while True:
                async with self._turns:
                    found = await checks.check(
                        member.address, rules, _host(member), backend.proxy_protocol
                    )
                before, now = state.state, state.on(good=found.good)
                if now is not None or (state.state is Checked.DOWN and row.why != found.word):
                    back = time.monotonic() if before is Checked.DOWN and found.good else 0.0
                    with self._health.locked():
                        why = Finding() if state.state is Checked.UP else found
                        row.store_check(state.state, why.word, back)
                        self._health.changed()
                if now is not None:
                    _log(backend.name, text, before, now, found)
                pause = random.uniform(0.9, 1.1)  # many checks do not stay in step
                await asyncio.sleep(rules.interval * pause)
        finally:
            row.detach()


def _log(backend: str, endpoint: str, before: Checked, now: Checked, found: Finding) -> None:
    if now is Checked.DOWN:
        log.warning(event("endpoint down", backend=backend, endpoint=endpoint, why=found))
    else:
        level = logging.INFO if before is Checked.DOWN else logging.DEBUG
        log.log(level, event("endpoint up", backend=backend, endpoint=endpoint))


def _host(member: Member) -> str:
    """Of the Host header: what the policy calls the endpoint."""
    if member.name is not None:
        return str(member.name)
    return "localhost" if isinstance(member.address, UnixAddress) else str(member.address)


def _task(work: Coroutine[None, None, None]) -> asyncio.Task[None]:
    task = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(_raise)
    return task


def _raise(task: asyncio.Task[None]) -> None:
    """A bug of ours must show, and the supervisor start another prober, not end one check."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("internal error in the prober", exc_info=error)
        os._exit(EXIT_CRASHED)
