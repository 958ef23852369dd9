"""`l7proxy upgrade` and SIGUSR2: start the successor, hand everything over, and go (`succession`).

The successor is a child with the same command line, so it is whatever stands in that place now:
another release, another policy. It has to say that it could start before anything is given up.
Where there is a guardian, it gets a channel to it as well (`guarded`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from l7proxy.datapath.sockmap import Splicer
from l7proxy.net import channel
from l7proxy.net.channel import Channel, ChannelBroken, ChannelClosed
from l7proxy.net.messages import FROM_SUCCESSOR, SUCCESSION, Ready, Taken
from l7proxy.net.systemd import Manager
from l7proxy.supervisor import succession
from l7proxy.supervisor.guarded import Guarded
from l7proxy.supervisor.keeper import Keeper
from l7proxy.supervisor.reload import Reloader
from l7proxy.supervisor.workers import Supervisor
from l7proxy.telemetry.log import event

log = logging.getLogger(__name__)

LEAVE_SECONDS = 5.0  # that workers may take to leave
READY_SECONDS = 60.0  # ... the successor to be ready, and later to take what there is
_LOOK = 0.02


class Failed(Exception):
    """Nobody took the place; the argument says why."""


@dataclass(frozen=True, slots=True)
class Upgraded:
    """How it went; `adopts`: the successor has the spliced pairs, else they drain here."""

    ok: bool
    text: str
    pid: int = 0
    pairs: int = 0
    adopts: bool = False

    def as_dict(self) -> dict[str, Any]:
        """As the admin server tells it."""
        return asdict(self)


class Upgrader:
    """Only one upgrade is under way; who asks meanwhile gets its outcome."""

    def __init__(
        self,
        supervisor: Supervisor,
        reloader: Reloader,
        keeper: Keeper,
        splicers: tuple[Splicer, ...],
        pairs: int,
        manager: Manager,
        guarded: Guarded | None = None,
    ) -> None:
        self._supervisor = supervisor
        self._reloader = reloader
        self._keeper = keeper
        self._splicers = splicers
        self._pairs = pairs
        self._manager = manager
        self._guarded = guarded
        self._task: asyncio.Task[Upgraded] | None = None
        self._waiting: asyncio.Task[None] | None = None

    def request(self) -> asyncio.Task[Upgraded]:
        """Ask for it."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return self._task

    async def _work(self) -> Upgraded:
        if self._supervisor.draining:
            return Upgraded(False, "l7proxy is draining")
        if self._reloader.is_busy:
            return Upgraded(False, "a reload is under way")
        ours, theirs = succession.ends()
        end = Channel(ours, FROM_SUCCESSOR)
        process = None
        try:
            with theirs:
                process = self._start(theirs.fileno())
            return await self._hand_over(end, process)
        except (Failed, OSError, ChannelClosed, ChannelBroken) as error:
            log.error(event("upgrade failed, this l7proxy goes on", why=error))
            if process is not None:
                process.kill()
                await asyncio.to_thread(process.wait)
            self._supervisor.take_back()
            return Upgraded(False, str(error))
        finally:
            end.close()

    def _start(self, fd: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, *sys.orig_argv[1:]]
        environment = os.environ | self._manager.environment() | {SUCCESSION: str(fd)}
        log.info(event("upgrading", command=" ".join(sys.orig_argv[1:4])))
        guarded = self._guarded
        if guarded is None or not guarded.is_there:
            return subprocess.Popen(command, env=environment, pass_fds=[fd])
        guardians, theirs = channel.pair()
        with guardians, theirs:
            environment |= guarded.variables(theirs.fileno())
            fds = [fd, theirs.fileno()]
            # a group of its own: by that the guardian tells whom a supervisor has left behind
            process = subprocess.Popen(command, env=environment, pass_fds=fds, process_group=0)
            guarded.announce(process.pid, guardians)
            return process

    async def _hand_over(self, end: Channel, process: subprocess.Popen[bytes]) -> Upgraded:
        supervisor, keeper, slots = self._supervisor, self._keeper, self._supervisor.configured
        named = ((listener.name, one) for listener, one in self._reloader.serving.listeners())
        succession.bequeath(end, named, self._splicers, self._pairs)
        ready = await self._answer(end, process, Ready)
        if not ready.adopts:
            self._say_goodbye(process.pid, adopts=False)
            self._waiting = asyncio.create_task(_wait(process))
            supervisor.drain()
            text = "the new one has another layout: this one drains, its connections end here"
            return Upgraded(True, text, process.pid)
        await supervisor.give_way(LEAVE_SECONDS)
        if supervisor.draining:
            raise Failed("l7proxy is draining")
        for _ in succession.entrust(end, keeper, slots):
            self._check(process)
            await asyncio.sleep(_LOOK)
        taken = await self._answer(end, process, Taken)
        self._say_goodbye(process.pid, adopts=True)
        log.info(event("upgraded", pid=process.pid, pairs=taken.pairs))
        asyncio.get_running_loop().call_later(0.1, supervisor.finish)  # who asked is answered first
        return Upgraded(True, "upgraded", process.pid, taken.pairs, adopts=True)

    def _say_goodbye(self, pid: int, *, adopts: bool) -> None:
        """The place is the successor's: files of sockets are not ours to remove any more."""
        if self._guarded is not None and self._guarded.is_there:
            self._guarded.succeeded(adopts=adopts)
        else:
            self._manager.succeeded(pid)
        for _, one in self._reloader.serving.listeners():
            one.file = None

    async def _answer(self, end: Channel, process: subprocess.Popen[bytes], kind: type[Any]) -> Any:
        loop = asyncio.get_running_loop()
        until = loop.time() + READY_SECONDS
        while loop.time() < until:
            try:
                end.flush()
                for received in end.receive():
                    if isinstance(received.message, kind):
                        return received.message
            except ChannelClosed:
                until = min(until, loop.time() + 2.0)  # its exit code says more
            self._check(process)
            await asyncio.sleep(_LOOK)
        raise Failed(f"the new one has not come up within {READY_SECONDS:g} s")

    def _check(self, process: subprocess.Popen[bytes]) -> None:
        code = process.poll()
        if code is not None:
            raise Failed(f"the new one has ended with exit code {code}; what it said is above")


async def _wait(process: subprocess.Popen[bytes]) -> None:
    """While this one drains it is the new one's parent."""
    while process.poll() is None:
        await asyncio.sleep(1.0)
