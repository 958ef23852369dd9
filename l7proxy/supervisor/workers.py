"""The process that keeps the workers alive, and the only one that is trusted.

It forks a worker for each slot (net/process.py says what a fork out of an event loop takes),
replaces those that die, and drains. Beside them it keeps one more child of the same kind alive
while it is wanted: the prober. Four facts behind it:

- The other end of a child's channel is here alone, so EOF on it means that the supervisor is gone.
  Children hold what was open before the supervisor was made (maps, logs), and what `inherited`
  names at the time of the fork (listeners, the policy); the loop, the admin server and the other
  children's channels never.
- What a child says is believed as far as `net.channel` reads it. A child that breaks the protocol,
  or does not read what it is told, is killed and replaced.
- A dead child's sockets are closed before its parent can reap it (exit_files comes before
  exit_notify), so its slot is free the moment that waitpid answers.
- The workers are another user's. Root in a container without CAP_KILL may not signal them, so a
  message says the same (`stop_message`); and the last way to send one off is to close its channel.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from l7proxy.net import process
from l7proxy.net.channel import MAX_FDS, ChannelBroken, Received
from l7proxy.net.messages import Leave
from l7proxy.supervisor.child import Child
from l7proxy.supervisor.draining import Drain, Phase
from l7proxy.telemetry.log import event

log = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_FAILED = 1  # workers never came up
EXIT_RESET = 3  # connections had to be reset at the drain's deadline
EXIT_LEFT = 4  # a worker could not be ended, and may still have connections

AWAITED = {signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
HEALTHY = 1.0  # seconds; a worker that lives this long came up
BACKOFF_FIRST = 0.1  # seconds; doubled with each further early death
BACKOFF_MOST = 5.0
HOPELESS = 5  # early deaths of every slot while no worker ever came up: give up
PROGRESS = 5.0  # seconds between two lines about a drain
_INSIST = 0.5  # seconds between two requests to reset: signals of the same number coalesce


class Supervisor:
    """Forks a worker for each slot, replaces those that die, and drains.

    Make it after everything that workers inherit was opened, and before anything that they must
    not hold. `child(slot, control_fd)` runs in the worker and answers with its exit code: 0, or
    `EXIT_RESET`; `control_fd` is its end of a `Channel`, and EOF on it means that the supervisor is
    gone. `prober(control_fd)` is the same for the prober, whose slot is `workers`. Messages that
    children may send are those in `accepts`, and in `prober_accepts`; `on_message(slot, message)`
    gets them, and may raise ChannelBroken. `on_received` is asked first and takes the message, with
    its descriptors, or answers False; only workers may send any. `on_start(slot)` is called for
    each child that was started, `on_exit(slot)` for each that ended; it answers how many
    connections died with it.
    `active()` tells how many live now, `present()` how many on each listener, `resets()` how many
    drains have reset. `on_drain()` is called when listeners are to be closed: those that this
    process holds must be then, or clients would go on to connect to a socket that nobody accepts
    from. `on_hangup()` is what SIGHUP does, `on_rotated()` what SIGUSR1,
    `on_upgrade()` what SIGUSR2; `on_terminated()` is asked at SIGTERM, which drains if it answers
    False. A child inherits what `inherited()` and, of its slot, `bequeathed(slot)` name, and never
    what is `apart`.
    """

    def __init__(
        self,
        workers: int,
        child: Callable[[int, int], int],
        *,
        drain_delay: float = 0.0,
        drain_seconds: float = 30.0,
        reset_seconds: float = 2.0,
        prober: Callable[[int], int] | None = None,
        accepts: Sequence[type] = (),
        prober_accepts: Sequence[type] = (),
        inherited: Callable[[], frozenset[int]] = frozenset,
        apart: frozenset[int] = frozenset(),
        bequeathed: Callable[[int], frozenset[int]] = lambda _slot: frozenset(),
        on_start: Callable[[int], None] = lambda _slot: None,
        on_message: Callable[[int, Any], None] = lambda _slot, _message: None,
        on_received: Callable[[int, Received], bool] = lambda _slot, _received: False,
        on_exit: Callable[[int], int] = lambda _slot: 0,
        on_drain: Callable[[], None] = lambda: None,
        on_hangup: Callable[[], None] = lambda: None,
        on_rotated: Callable[[], None] = lambda: None,
        stop_message: object | None = None,
        on_upgrade: Callable[[], None] = lambda: None,
        on_terminated: Callable[[], bool] = lambda: False,
        active: Callable[[], int] = lambda: 0,
        present: Callable[[], Mapping[str, int]] = dict,
        resets: Callable[[], int] = lambda: 0,
    ) -> None:
        self._drain = Drain(drain_delay, drain_seconds, active, present, resets)
        self._reset_seconds = reset_seconds
        self._inherited = inherited
        self._bequeathed = bequeathed
        self._on_message = on_message
        self._on_received = on_received
        self._on_start = on_start
        self._on_exit = on_exit
        self._on_drain = on_drain
        self._on_hangup = on_hangup
        self._on_rotated = on_rotated
        self._stop_message = stop_message
        self._on_upgrade = on_upgrade
        self._on_terminated = on_terminated
        self._gives_way = False
        self._is_succeeded = False
        self._slots = [
            Child(
                number, "worker", partial(child, number), accepts, self._hear, self._wake, MAX_FDS
            )
            for number in range(workers)
        ]
        self._prober: Child | None = None
        if prober is not None:
            self._prober = Child(workers, "prober", prober, prober_accepts, self._hear, self._wake)
        self._is_probing = False
        self._came_up = False
        self._reset = False
        self._failed = False
        self._changed = asyncio.Event()
        self._keep = process.descriptors() - inherited() - apart
        self.restarts = 0
        self.lost = 0  # connections that died with their worker

    @property
    def configured(self) -> int:
        """How many workers there should be."""
        return len(self._slots)

    @property
    def running(self) -> int:
        """How many workers there are."""
        return sum(slot.pid != 0 for slot in self._slots)

    @property
    def phase(self) -> Phase:
        """Where it is in its life."""
        return self._drain.phase

    @property
    def ready(self) -> bool:
        """Whether new connections are welcome."""
        return self.phase is Phase.SERVING and not self.draining

    @property
    def draining(self) -> bool:
        """Whether it was asked to end. New connections are taken while it is only `LEAVING`."""
        return self._drain.is_asked

    def progress(self) -> dict[str, Any]:
        """How far a drain has come, for `/stats`."""
        return self._drain.as_dict()

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers that live, by slot."""
        return tuple(slot.pid for slot in self._slots if slot.pid)

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """Slot and process id of the workers that live."""
        return tuple((slot.number, slot.pid) for slot in self._slots if slot.pid)

    def drain(self) -> None:
        """Begin to end, unless that has begun: what `POST /drain` does, and a first signal."""
        self._drain.is_asked = True
        self._changed.set()

    def _terminate(self) -> None:
        if self.draining or self._gives_way or not self._on_terminated():
            self.stop()

    def stop(self) -> None:
        """What SIGTERM and SIGINT do: drain; the second one resets what is left.

        One that comes after `drain()` is a first one: Kubernetes sends it behind a preStop hook.
        """
        self._drain.signals += 1
        self.drain()

    async def run(
        self,
        ready: Callable[[], None] = lambda: None,
        first: Callable[[], Awaitable[object]] | None = None,
    ) -> int:
        """Run until drained; the exit code. `ready` is called once all workers are forked.

        `first` is waited for before that: clients wait in the listeners' queues meanwhile.
        """
        loop = asyncio.get_running_loop()
        handled = {
            signal.SIGCHLD: self._reap,
            signal.SIGTERM: self._terminate,
            signal.SIGINT: self.stop,
            signal.SIGHUP: self._on_hangup,
            signal.SIGUSR1: self._on_rotated,
            signal.SIGUSR2: self._on_upgrade,
        }
        for number, handler in handled.items():
            loop.add_signal_handler(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, AWAITED)  # see `launch`
        try:
            if first is not None:
                await first()
            for slot in self._slots:
                self._spawn(slot)
            ready()
            self._drain.enter(Phase.SERVING)
            await self._until(lambda: self.draining or self._failed or self._is_succeeded)
            if self._is_succeeded:
                return EXIT_OK
            if not self._failed:
                await self._leave()
            if not self._failed:
                await self._end()
        finally:
            await self._end_all()
            for number in handled:
                loop.remove_signal_handler(number)
        if self._failed:
            return EXIT_FAILED
        log.info(event("stopped", connections_reset=self._drain.reset))
        if self.running:
            return EXIT_LEFT
        return EXIT_RESET if self._reset else EXIT_OK

    # ---- the prober

    def probe(self, *, wanted: bool) -> None:
        """Keep the prober alive from now on, or send it away."""
        slot = self._prober
        if slot is None or self.draining:
            return
        self._is_probing = wanted
        if wanted and not slot.pid and slot.restart is None:
            self._spawn(slot)
        elif not wanted:
            self._dismiss(slot)

    def _dismiss(self, slot: Child) -> None:
        slot.cancel_restart()
        slot.hang_up()

    # ---- messages

    def send(self, number: int, message: Any, fds: Sequence[int] = ()) -> None:
        """Send a message to the child in this slot; one that is gone is not told."""
        self._slot(number).send(message, fds)

    def send_workers(self, message: Any, fds: Sequence[int] = ()) -> None:
        """Send a message to every worker that there is."""
        for slot in self._slots:
            slot.send(message, fds)

    def replace(self, number: int, why: str) -> None:
        """Kill the child in this slot; another one takes its place."""
        self._slot(number).kill(why)

    def has(self, number: int) -> bool:
        """Whether there is a child in this slot."""
        return self._slot(number).pid != 0

    async def until(self, condition: Callable[[], bool], seconds: float | None = None) -> bool:
        """Wait for what a message or the end of a child brings about; False: the time was up."""
        return await self._until(condition, seconds)

    def _hear(self, number: int, received: Received) -> None:
        if self._on_received(number, received):
            return
        if received.fds:
            for fd in received.fds:
                os.close(fd)
            raise ChannelBroken("descriptors that nobody asked for")
        self._on_message(number, received.message)

    def _slot(self, number: int) -> Child:
        if number == len(self._slots) and self._prober is not None:
            return self._prober
        return self._slots[number]

    def _wake(self) -> None:
        self._changed.set()

    # ---- a child's life

    def _spawn(self, slot: Child) -> None:
        slot.restart = None
        try:
            slot.start(self._keep | self._inherited() | self._bequeathed(slot.number))
        except OSError as error:  # no descriptor or no process is left: that may pass
            log.error(event("fork failed", slot=slot.number, why=error.strerror))
            self._retry(slot)
            return
        self._on_start(slot.number)

    def _children(self) -> Iterator[Child]:
        yield from self._slots
        if self._prober is not None:
            yield self._prober

    def _reap(self) -> None:
        """SIGCHLD. Signals coalesce, so every child is asked for."""
        for slot in self._children():
            if slot.pid:
                pid, status = os.waitpid(slot.pid, os.WNOHANG)
                if pid:
                    self._ended(slot, os.waitstatus_to_exitcode(status))
        self._changed.set()

    def _ended(self, slot: Child, code: int) -> None:
        pid, lived = slot.pid, time.monotonic() - slot.started
        hung_up = not slot.is_connected
        slot.ended()
        lost = self._on_exit(slot.number)
        self.lost += lost
        if slot is self._prober:
            level = logging.ERROR if self._is_probing else logging.DEBUG
        elif self._drain.is_closing:
            self._drain.lost += lost
            self._reset |= lost > 0 or code == EXIT_RESET
            expected = hung_up or code in (0, EXIT_RESET, -process.STOP)
            level = logging.DEBUG if expected else logging.ERROR
        else:
            level = logging.DEBUG if self._gives_way and code == 0 else logging.ERROR
        why = {"signal": _signal_name(-code)} if code < 0 else {"exit_code": code}
        log.log(
            level,
            event(
                f"{slot.name} ended",
                slot=slot.number,
                pid=pid,
                **why,
                lived=f"{lived:.1f}s",
                connections_lost=lost,
            ),
        )
        if self._drain.is_closing or (slot is self._prober and not self._is_probing):
            return
        if self._gives_way and slot is not self._prober:
            return
        if lived >= HEALTHY:
            slot.early_deaths = 0
        else:
            slot.early_deaths += 1
        if slot is self._prober:
            self._retry(slot) if slot.early_deaths > 1 else self._spawn(slot)
            return
        # Killed from outside: that says nothing about whether it could have worked.
        self._came_up |= lived >= HEALTHY or code == -signal.SIGKILL
        self._replace(slot)

    def _replace(self, slot: Child) -> None:
        """At once; later and later for a slot whose workers die early again and again."""
        if not self._came_up and all(other.early_deaths >= HOPELESS for other in self._slots):
            log.error("giving up: no worker ever came up; what ended them is told above")
            self._failed = True
            return
        self.restarts += 1
        if slot.early_deaths < 2:
            self._spawn(slot)
            return
        self._retry(slot)

    def _retry(self, slot: Child) -> None:
        delay = min(BACKOFF_MOST, BACKOFF_FIRST * 2.0 ** max(0, slot.early_deaths - 2))
        log.warning(event(f"{slot.name} restarts later", slot=slot.number, seconds=f"{delay:.1f}"))
        slot.restart = asyncio.get_running_loop().call_later(delay, self._spawn, slot)

    # ---- another l7proxy in the place of this one

    @property
    def is_closing(self) -> bool:
        """Whether workers that end are not replaced any more."""
        return self._drain.is_closing

    async def give_way(self, seconds: float) -> None:
        """Have all workers leave; those that do not within so many seconds are killed."""
        self._gives_way = True
        self._cancel_restarts()
        self.send_workers(Leave())
        if not await self._until(lambda: not self.running, seconds):
            for slot in self._slots:
                slot.kill("it does not leave")
            await self._until(lambda: not self.running, self._reset_seconds)

    def take_back(self) -> None:
        """Nobody took the place: workers start again."""
        self._gives_way = False
        for slot in self._slots:
            if not slot.pid and not self.draining:
                self._spawn(slot)

    def finish(self) -> None:
        """Somebody did: leave at once."""
        self._is_succeeded = True
        self._changed.set()

    # ---- the end

    async def _leave(self) -> None:
        """Not ready any more: let those who send clients here hear of it, before it ends."""
        drain = self._drain
        if not drain.delay:
            return
        drain.enter(Phase.LEAVING, drain.delay)
        drain.tell("not ready any more", seconds=f"{drain.delay:g}")
        await self._until(lambda: drain.insists or self._failed, drain.delay)

    async def _end(self) -> None:
        """Let connections end by themselves until the deadline or a second signal."""
        drain = self._drain
        drain.enter(Phase.DRAINING, drain.seconds)
        self._cancel_restarts()
        drain.tell("draining", workers=self.running, seconds=f"{drain.seconds:g}")
        self._on_drain()
        self._signal_all(process.STOP)
        while self.running and not drain.insists and drain.left:
            done = await self._until(
                lambda: not self.running or drain.insists, min(drain.left, PROGRESS)
            )
            if not done and drain.left:
                drain.tell("draining", workers=self.running, seconds_left=f"{drain.left:.0f}")
        if self.running:
            why = "second signal" if drain.insists else "deadline"
            drain.enter(Phase.RESETTING, self._reset_seconds)
            drain.tell("resetting connections", why=why)
            await self._insist()

    async def _insist(self) -> None:
        """A second `process.STOP` makes a worker reset what it has left; after that, SIGKILL."""
        end = time.monotonic() + self._reset_seconds
        while self.running and time.monotonic() < end:
            self._signal_all(process.STOP)
            await self._until(lambda: not self.running, min(_INSIST, self._reset_seconds))

    async def _end_all(self) -> None:
        """No worker outlives this, whatever brought us here, if this process may kill them."""
        self._drain.is_asked = True
        self._drain.enter(Phase.STOPPED)
        self._cancel_restarts()
        self._is_probing = False
        if self._prober is not None and self._prober.pid:
            self._dismiss(self._prober)
            if not await self._until(lambda: not self.has(self.configured), self._reset_seconds):
                self._prober.kill("it does not end")
        if self.running:
            log.warning(event("killing workers", workers=self.running))
            if self._signal_all(signal.SIGKILL):
                await self._until(lambda: not self.running)
            elif not await self._until(lambda: not self.running, self._reset_seconds):
                log.error(event("workers are left behind", pids=",".join(map(str, self.pids))))

    def _cancel_restarts(self) -> None:
        for slot in self._children():
            slot.cancel_restart()

    def _signal_all(self, number: signal.Signals) -> bool:
        """Signal every worker; False if that is not permitted, and they were told otherwise."""
        permitted = True
        for slot in self._slots:
            if not slot.pid:
                continue
            try:
                os.kill(slot.pid, number)  # not reaped yet, so the number is still its own
            except PermissionError:
                permitted = False
                if number is process.STOP and self._stop_message is not None:
                    slot.send(self._stop_message)
                else:
                    self._hang_up(slot)
        return permitted

    def _hang_up(self, slot: Child) -> None:
        """It may not be signalled: the other way to send a worker off."""
        if not slot.is_connected:
            return
        slot.hang_up()
        log.warning(
            event(
                "not permitted to signal a worker, its connections are reset",
                slot=slot.number,
                pid=slot.pid,
                remedy="grant CAP_KILL (docker: --cap-add KILL) to let them end by themselves",
            )
        )

    async def _until(self, condition: Callable[[], bool], seconds: float | None = None) -> bool:
        """Wait for what a signal brings about; False when the time was up first."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return condition()
        return True


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
