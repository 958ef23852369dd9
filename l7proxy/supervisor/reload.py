"""From one policy to the next, in every worker at once, or not at all.

    check     in a child (`loading`); the policy comes back sealed
    open      listening sockets for the addresses that are new; all of them or none
    prepare   every worker builds the policy aside (`net.messages` has the messages)
    commit    they swap; from here on there is no way back, and none is needed
    retire    a second later: the sockets that nobody has any more are emptied and closed

Until the commit anything may go wrong, and then the old policy simply goes on. A worker that takes
longer than others, or dies, is replaced and not waited for; its successor starts with the policy of
the moment, and is asked to prepare the next one like all others. Only one reload is under way;
those that are asked for meanwhile become one, which begins afterwards, so that what was in the file
when somebody asked is what he gets.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from l7proxy.errors import StartupError
from l7proxy.net.activation import Activation
from l7proxy.net.channel import ChannelBroken
from l7proxy.net.interception import make_spares
from l7proxy.net.listen import ListeningSocket, is_taken
from l7proxy.net.messages import (
    Abandon,
    Commit,
    Committed,
    Prepared,
    Probe,
    Resolved,
    Retire,
    Sockets,
    Spare,
    Unprepared,
)
from l7proxy.supervisor import loading
from l7proxy.supervisor.loading import Result
from l7proxy.supervisor.serving import Opener, Refused, Serving, changes, deserted, tell
from l7proxy.supervisor.workers import Supervisor
from l7proxy.telemetry.counters import Rows
from l7proxy.telemetry.log import event

log = logging.getLogger(__name__)

MOST_NAMES = 100_000  # that the prober may tell of
GATHER = 0.02  # seconds in which addresses of names become one message to the workers
PREPARE_SECONDS = 60.0  # that a worker may take to build a policy
NAMES_SECONDS = 3.0  # ... and new names to get their first answer
COMMIT_SECONDS = 10.0  # ... to swap it
CLOSE_SECONDS = 10.0  # ... to close sockets that are to go
GRACE = 1.0  # seconds in which handshakes that are under way reach a socket that is to go

_FDS = 200  # sockets in one message
_SPARES = 128  # sockets to dial with that a worker gets at a time


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a reload went: `problems` and `text` say what is wrong when it is not `ok`."""

    ok: bool
    generation: int
    text: str = ""
    errors: int = 0
    warnings: int = 0
    problems: tuple[dict[str, Any], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As the admin server tells it."""
        return {
            "ok": self.ok,
            "generation": self.generation,
            "errors": self.errors,
            "warnings": self.warnings,
            "problems": list(self.problems),
            "text": self.text,
        }


class Reloader:
    """Holds the policy in force and brings the next one. `pairs`: what the BPF maps hold, or 0."""

    def __init__(
        self, path: str, first: Result, rows: Rows, activation: Activation | None = None
    ) -> None:
        """Open the listeners of the policy to start with. Raises StartupError."""
        self.path = path
        self._opener = Opener(rows, activation)
        self._preparing: Serving | None = None
        self._prepared: set[int] = set()
        self._committed: set[int] = set()
        self._failure = ""
        self._next: asyncio.Future[Outcome] | None = None
        self._task: asyncio.Task[None] | None = None
        self._ok = 0
        self._failed = 0
        self._last_error: dict[str, Any] | None = None
        self._leaving: dict[int, ListeningSocket] = {}
        self._changes = ""
        self.supervisor: Supervisor
        self._news: dict[str, tuple[str, ...]] = {}  # of `resolved`, what workers were not told yet
        self.resolved: dict[str, tuple[str, ...]] = {}
        self.on_request: Callable[[asyncio.Future[Outcome]], None] = lambda _outcome: None
        self.on_sockets: Callable[[], None] = lambda: None  # others are listened to now
        self.user: int | None = None  # whom workers run as, if not as we do
        self.pairs: int | None = None  # that the BPF maps hold, if there are any
        self.current: Serving | None = None
        try:
            self.current = self._opener.open(first.policy, None)
        except Refused as error:
            raise StartupError(str(error)) from error

    @property
    def serving(self) -> Serving:
        """The policy in force."""
        assert self.current is not None
        return self.current

    # ---- what the supervisor asks

    def inherited(self) -> frozenset[int]:
        """The descriptors that a worker which starts now needs."""
        return self.serving.fds

    def on_start(self, slot: int) -> None:
        """A worker has started with the policy in force."""
        self._committed.add(slot)
        if self._preparing is None:
            return
        if slot < self.supervisor.configured:
            self._tell(slot, self._preparing)
        else:  # the prober
            self.supervisor.send(slot, Probe(), [self._preparing.policy])

    def on_exit(self, slot: int) -> None:
        """A worker has ended."""
        self._prepared.discard(slot)
        self._committed.discard(slot)

    def on_message(self, slot: int, message: object) -> None:
        """A worker said something. Raises ChannelBroken for what none would say."""
        match message:
            case Resolved():
                self._resolve(message.names)
            case Prepared() | Unprepared() | Committed() if (
                message.generation > self._opener.generations
            ):
                raise ChannelBroken(f"there is no generation {message.generation} yet")
            case Prepared() if self._is_preparing(message.generation):
                self._prepared.add(slot)
            case Unprepared() if self._is_preparing(message.generation):
                self._failure = self._failure or message.why
            case Committed() if message.generation == self.serving.number:
                self._committed.add(slot)
            case Spare():
                self._make_spares(slot, message)
            case _:
                pass  # about a policy that was given up

    def _make_spares(self, slot: int, wanted: Spare) -> None:
        """A worker can dial as whom it likes with these: only where the policy wants it to."""
        keeps = any(
            one.transparent is not None and one.transparent.keep_client_address
            for one in self.serving.manifest.listeners
        )
        made = make_spares(_SPARES, ipv6=wanted.ipv6, user=self.user) if keeps else []
        self.supervisor.send(slot, wanted, [one.fileno() for one in made])
        for one in made:
            one.close()

    def _resolve(self, names: dict[str, tuple[str, ...]]) -> None:
        """The prober talks to DNS servers, so what it says is looked at before it is passed on."""
        for found in names.values():
            for address in found:
                try:
                    ipaddress.ip_address(address)
                except ValueError:
                    raise ChannelBroken(f"{address[:80]!r} is no IP address") from None
        if len(self.resolved.keys() | names.keys()) > MOST_NAMES:
            raise ChannelBroken(f"it tells of more than {MOST_NAMES:,} names")
        self.resolved.update(names)
        if not self._news:
            asyncio.get_running_loop().call_later(GATHER, self._tell_news)
        self._news.update(names)

    def _tell_news(self) -> None:
        while self._news:
            self.supervisor.send_workers(Resolved.take(self._news))

    def _is_preparing(self, number: int) -> bool:
        return self._preparing is not None and self._preparing.number == number

    def stop(self) -> None:
        """The drain begins: nothing is accepted any more."""
        for one in (*self.serving.sockets.values(), *self._leaving.values()):
            one.close()
        if self._task is not None:
            self._task.cancel()

    # ---- a reload

    @property
    def is_busy(self) -> bool:
        """Whether a reload is under way."""
        return self._task is not None

    def request(self) -> asyncio.Future[Outcome]:
        """Ask for a reload; the answer comes when it has happened, or has failed."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
            self.on_request(self._next)
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return self._next

    async def _work(self) -> None:
        asked = None
        try:
            while self._next is not None:
                asked, self._next = self._next, None
                asked.set_result(await self._reload())
                await self._retire()
        finally:
            self._task = None
            for left in (asked, self._next):
                if left is not None and not left.done():
                    left.set_result(self._refuse(loading.failure("l7proxy is draining")))
            self._next = None

    async def _reload(self) -> Outcome:
        if self.supervisor.draining:
            return self._refuse(loading.failure("l7proxy is draining"))
        began = time.monotonic()
        result = await loading.load_aside(self.path)
        if result.policy < 0:
            return self._refuse(result)
        new = None
        try:
            new = self._opener.open(result.policy, self.serving)
            await self._roll_out(new)
        except Refused as error:
            self._give_up(new)
            return self._refuse(loading.failure(str(error)))
        except Exception:
            log.exception("internal error; the policy is not taken")
            self._give_up(new)
            return self._refuse(loading.failure("internal error, the log has it"))
        except BaseException:  # cancelled: the drain has begun
            self._give_up(new)
            raise
        return self._taken(result, time.monotonic() - began)

    def _taken(self, result: Result, seconds: float) -> Outcome:
        self._ok += 1
        self._last_error = None
        manifest = self.serving.manifest
        if result.text:
            print(result.text, file=sys.stderr, flush=True)
        log.info(
            event(
                "policy loaded",
                generation=self.serving.number,
                listeners=self._changes,
                routes=manifest.routes,
                backends=manifest.backends,
                warnings=result.warnings,
                seconds=f"{seconds:.2f}",
            )
        )
        self._check_pairs()
        return Outcome(
            True,
            self.serving.number,
            result.text,
            0,
            result.warnings,
            tuple(result.problems),
        )

    def _check_pairs(self) -> None:
        most = sum(listener.limits.connections for listener in self.serving.manifest.listeners)
        if self.pairs is not None and most > self.pairs:
            log.warning(
                event(
                    "the maps keep the size that they were made with, more pairs are relayed",
                    pairs=self.pairs,
                    limits=most,
                    remedy="restart l7proxy to have them made anew",
                )
            )

    def _refuse(self, result: Result) -> Outcome:
        self._failed += 1
        outcome = Outcome(
            False,
            self.serving.number,
            result.text,
            result.errors,
            result.warnings,
            tuple(result.problems),
        )
        self._last_error = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "errors": result.errors,
            "text": result.text,
        }
        print(result.text, file=sys.stderr, flush=True)
        log.error(
            event(
                "policy refused",
                errors=result.errors,
                generation=self.serving.number,
                source=self.path,
            )
        )
        return outcome

    # ---- prepare, commit

    async def _roll_out(self, new: Serving) -> None:
        """Raises Refused when a worker cannot build it."""
        supervisor = self.supervisor
        self._preparing, self._failure = new, ""
        self._prepared.clear()
        for slot in range(supervisor.configured):
            self._tell(slot, new)
        await supervisor.until(
            lambda: bool(self._failure) or self._all_in(self._prepared), PREPARE_SECONDS
        )
        if not (self._failure or self._prepared) and supervisor.running:
            # to replace all of them would be to reset all connections
            raise Refused(f"no worker has built it within {PREPARE_SECONDS:g} s")
        await self._resolve_names(new)
        if self._failure:
            raise Refused(f"a worker could not build it: {self._failure}")
        if supervisor.draining:
            raise Refused("l7proxy is draining")
        self._commit(new)
        await supervisor.until(lambda: self._all_in(self._committed), COMMIT_SECONDS)
        for slot in range(supervisor.configured):
            if supervisor.has(slot) and slot not in self._committed:
                supervisor.replace(slot, "it did not take the policy in time")

    async def _resolve_names(self, new: Serving) -> None:
        """Give new names a moment: a connection before their first answer would get a 503."""
        self._probe(new)
        names = new.manifest.names
        await self.supervisor.until(
            lambda: (
                names <= self.resolved.keys() or self.supervisor.draining or bool(self._failure)
            ),
            NAMES_SECONDS,
        )

    def _probe(self, serving: Serving) -> None:
        """Have the prober look after the endpoints of this policy."""
        self.supervisor.probe(wanted=serving.manifest.probing)
        self.supervisor.send(self.supervisor.configured, Probe(), [serving.policy])

    def _all_in(self, slots: set[int]) -> bool:
        supervisor = self.supervisor
        return all(
            slot in slots or not supervisor.has(slot) for slot in range(supervisor.configured)
        )

    def _tell(self, slot: int, new: Serving) -> None:
        fresh = [number for number in new.sockets if number not in self.serving.sockets]
        for first in range(0, len(fresh), _FDS):
            some = fresh[first : first + _FDS]
            fds = [new.sockets[number].sock.fileno() for number in some]
            self.supervisor.send(slot, Sockets(tuple(some)), fds)
        self.supervisor.send(slot, new.prepare, [new.policy])

    def _commit(self, new: Serving) -> None:
        """No await in here: a worker starts with the old policy or with the new one."""
        self._tell_news()
        old, self.current, self._preparing = self.serving, new, None
        self._changes = changes(old, new)
        for listener, one in new.listeners():
            if one not in old.sockets.values():
                tell(listener, one)
        self._committed.clear()
        for slot in range(self.supervisor.configured):
            if slot in self._prepared:
                self.supervisor.send(slot, Commit(new.number))
            elif self.supervisor.has(slot):
                self.supervisor.replace(slot, "it did not build the policy in time")
        self._leaving = {
            number: one for number, one in old.sockets.items() if number not in new.sockets
        }
        for one in self._leaving.values():
            one.stop()
        for listener, one in new.listeners():
            one.set_mode(listener.mode)
        os.close(old.policy)
        self.on_sockets()

    def _give_up(self, new: Serving | None) -> None:
        self._preparing = None
        if new is None or new is self.current:  # it has come into force: there is no way back
            return
        self._probe(self.serving)
        fresh = [number for number in new.sockets if number not in self.serving.sockets]
        self.supervisor.send_workers(Abandon(new.number, tuple(fresh)))
        for number in fresh:
            new.sockets[number].close()
        os.close(new.policy)
        self._opener.keep(self.serving)

    # ---- retire

    async def _retire(self) -> None:
        """What is left of the policy before."""
        if self._leaving:
            await asyncio.sleep(GRACE)
        self.supervisor.send_workers(Retire(tuple(self._leaving)))
        leaving, self._leaving = self._leaving, {}
        for one in leaving.values():
            one.close()
        self._opener.keep(self.serving)
        # the next policy may want a port again, and workers have descriptors, too
        gone, until = deserted(leaving.values(), self.serving), time.monotonic() + CLOSE_SECONDS
        while any(map(is_taken, gone)) and time.monotonic() < until:
            await asyncio.sleep(0.01)

    # ---- what it tells

    def stats(self) -> dict[str, Any]:
        """`policy` of `/stats`."""
        serving = self.serving
        return {
            "generation": serving.number,
            "source": self.path,
            "loaded_at": serving.loaded_at,
            "listeners": len(serving.manifest.listeners),
            "routes": serving.manifest.routes,
            "backends": serving.manifest.backends,
            "reloads": {"ok": self._ok, "failed": self._failed},
            "last_error": self._last_error,
        }
