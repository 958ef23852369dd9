"""The process that keeps the workers alive, and the only one that is trusted.

It forks a worker for each slot (net/process.py says what a fork out of an event loop takes),
replaces those that die, and drains. Three facts behind it:

- The other end of a worker's control socket is here alone, so EOF on it means that the supervisor
  is gone. Workers hold only what was open before the supervisor was made: listeners, maps and logs
  come before, the loop, the admin server and the control sockets after.
- A dead child's sockets are closed before its parent can reap it (exit_files comes before
  exit_notify), so its slot is free the moment that waitpid answers.
- The workers are another user's. Root in a container without CAP_KILL may not signal them, so
  there is a second way to send one off: to close its control socket.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from l7proxy.net import process
from l7proxy.telemetry.log import event

log = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_FAILED = 1  # workers never came up
EXIT_RESET = 3  # connections had to be reset at the drain's deadline

HEALTHY = 1.0  # seconds; a worker that lives this long came up
BACKOFF_FIRST = 0.1  # seconds; doubled with each further early death
BACKOFF_MOST = 5.0
HOPELESS = 5  # early deaths of every slot while no worker ever came up: give up
PROGRESS = 5.0  # seconds between two lines about a drain
_INSIST = 0.5  # seconds between two requests to reset: signals of the same number coalesce


@dataclass(slots=True)
class _Slot:
    """A worker's place. `control` is the supervisor's end; closing it sends the worker away."""

    number: int
    pid: int = 0
    control: int = -1
    started: float = 0.0
    early_deaths: int = 0
    restart: asyncio.TimerHandle | None = field(default=None, repr=False)


class Supervisor:
    """Forks a worker for each slot, replaces those that die, and drains.

    Make it after everything that workers inherit was opened, and before anything that they must
    not hold. `child(slot, control_fd)` runs in the worker and answers with its exit code: 0, or
    `EXIT_RESET`; EOF on `control_fd` means that the supervisor is gone. `on_exit(slot)` is called
    for each worker that ended and answers how many connections died with it; `active()` how many
    live now. `on_drain()` is called when the drain begins: listeners that this process holds must
    be closed then, or clients would go on to connect to a socket that nobody accepts from.
    """

    def __init__(
        self,
        workers: int,
        child: Callable[[int, int], int],
        *,
        drain_seconds: float = 30.0,
        reset_seconds: float = 2.0,
        on_exit: Callable[[int], int] = lambda _slot: 0,
        on_drain: Callable[[], None] = lambda: None,
        active: Callable[[], int] = lambda: 0,
    ) -> None:
        self._child = child
        self._drain_seconds = drain_seconds
        self._reset_seconds = reset_seconds
        self._on_exit = on_exit
        self._on_drain = on_drain
        self._active = active
        self._slots = [_Slot(number) for number in range(workers)]
        self._stop_signals = 0
        self._came_up = False
        self._reset = False
        self._failed = False
        self._changed = asyncio.Event()
        self._keep = process.descriptors()
        self.restarts = 0

    @property
    def configured(self) -> int:
        """How many workers there should be."""
        return len(self._slots)

    @property
    def running(self) -> int:
        """How many workers there are."""
        return sum(slot.pid != 0 for slot in self._slots)

    @property
    def draining(self) -> bool:
        """Whether no connection is taken any more."""
        return self._stop_signals > 0

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers that live, by slot."""
        return tuple(slot.pid for slot in self._slots if slot.pid)

    def stop(self) -> None:
        """What SIGTERM and SIGINT do: drain; a second time: reset what is left."""
        self._stop_signals += 1
        self._changed.set()

    async def run(self, ready: Callable[[], None] = lambda: None) -> int:
        """Run until drained; the exit code. `ready` is called once all workers are forked."""
        loop = asyncio.get_running_loop()
        handled = {
            signal.SIGCHLD: self._reap,
            signal.SIGTERM: self.stop,
            signal.SIGINT: self.stop,
        }
        for number, handler in handled.items():
            loop.add_signal_handler(number, handler)
        try:
            for slot in self._slots:
                self._spawn(slot)
            ready()
            await self._until(lambda: self.draining or self._failed)
            if not self._failed:
                await self._drain()
        finally:
            await self._end_all()
            for number in handled:
                loop.remove_signal_handler(number)
        if self._failed:
            return EXIT_FAILED
        return EXIT_RESET if self._reset else EXIT_OK

    # ---- a worker's life

    def _spawn(self, slot: _Slot) -> None:
        slot.restart = None
        try:
            ours, theirs = (end.detach() for end in socket.socketpair())
            try:
                pid = process.fork(partial(self._child, slot.number, theirs), self._keep | {theirs})
            except OSError:
                os.close(ours)
                raise
            finally:
                os.close(theirs)
        except OSError as error:  # no descriptor or no process is left: that may pass
            log.error(event("fork failed", slot=slot.number, why=error.strerror))
            self._retry(slot)
            return
        slot.pid, slot.control, slot.started = pid, ours, time.monotonic()
        log.debug(event("worker started", slot=slot.number, pid=pid))

    def _reap(self) -> None:
        """SIGCHLD. Signals coalesce, so every worker is asked for."""
        for slot in self._slots:
            if slot.pid:
                pid, status = os.waitpid(slot.pid, os.WNOHANG)
                if pid:
                    self._ended(slot, os.waitstatus_to_exitcode(status))
        self._changed.set()

    def _ended(self, slot: _Slot, code: int) -> None:
        pid, lived = slot.pid, time.monotonic() - slot.started
        hung_up = slot.control < 0
        process.close(slot.control)
        slot.pid, slot.control = 0, -1
        lost = self._on_exit(slot.number)
        if self.draining:
            self._reset |= lost > 0 or code == EXIT_RESET
            expected = hung_up or code in (0, EXIT_RESET, -process.STOP)
            level = logging.DEBUG if expected else logging.ERROR
        else:
            level = logging.ERROR
        why = {"signal": _signal_name(-code)} if code < 0 else {"exit_code": code}
        log.log(
            level,
            event(
                "worker ended",
                slot=slot.number,
                pid=pid,
                **why,
                lived=f"{lived:.1f}s",
                connections_lost=lost,
            ),
        )
        if self.draining:
            return
        if lived >= HEALTHY:
            slot.early_deaths = 0
        else:
            slot.early_deaths += 1
        # Killed from outside: that says nothing about whether it could have worked.
        self._came_up |= lived >= HEALTHY or code == -signal.SIGKILL
        self._replace(slot)

    def _replace(self, slot: _Slot) -> None:
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

    def _retry(self, slot: _Slot) -> None:
        delay = min(BACKOFF_MOST, BACKOFF_FIRST * 2.0 ** max(0, slot.early_deaths - 2))
        log.warning(event("worker restarts later", slot=slot.number, seconds=f"{delay:.1f}"))
        slot.restart = asyncio.get_running_loop().call_later(delay, self._spawn, slot)

    # ---- the end

    async def _drain(self) -> None:
        """Let connections end by themselves until the deadline or a second signal."""
        self._cancel_restarts()
        log.info(
            event(
                "draining",
                connections=self._active(),
                workers=self.running,
                seconds=f"{self._drain_seconds:g}",
            )
        )
        self._on_drain()
        self._signal_all(process.STOP)
        deadline = time.monotonic() + self._drain_seconds
        while self.running and self._stop_signals < 2:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            if not await self._until(
                lambda: not self.running or self._stop_signals > 1, min(left, PROGRESS)
            ):
                log.info(
                    event(
                        "draining",
                        connections=self._active(),
                        workers=self.running,
                        seconds_left=f"{max(0.0, deadline - time.monotonic()):.0f}",
                    )
                )
        if self.running:
            why = "second signal" if self._stop_signals > 1 else "deadline"
            log.warning(event("resetting connections", connections=self._active(), why=why))
            await self._insist()
        log.info(event("stopped", connections_reset="yes" if self._reset else "no"))

    async def _insist(self) -> None:
        """A second `process.STOP` makes a worker reset what it has left; after that, SIGKILL."""
        end = time.monotonic() + self._reset_seconds
        while self.running and time.monotonic() < end:
            self._signal_all(process.STOP)
            await self._until(lambda: not self.running, min(_INSIST, self._reset_seconds))

    async def _end_all(self) -> None:
        """No worker outlives this, whatever brought us here, if this process may kill them."""
        self._stop_signals = max(1, self._stop_signals)
        self._cancel_restarts()
        if self.running:
            log.warning(event("killing workers", workers=self.running))
            if self._signal_all(signal.SIGKILL):
                await self._until(lambda: not self.running)
            elif not await self._until(lambda: not self.running, self._reset_seconds):
                log.error(event("workers are left behind", pids=",".join(map(str, self.pids))))

    def _cancel_restarts(self) -> None:
        for slot in self._slots:
            if slot.restart is not None:
                slot.restart.cancel()
                slot.restart = None

    def _signal_all(self, number: signal.Signals) -> bool:
        """Signal every worker; False if that is not permitted, and they were hung up on."""
        permitted = True
        for slot in self._slots:
            if not slot.pid:
                continue
            try:
                os.kill(slot.pid, number)  # not reaped yet, so the number is still its own
            except PermissionError:
                permitted = False
                self._hang_up(slot)
        return permitted

    def _hang_up(self, slot: _Slot) -> None:
        """Close the control socket: the worker resets its connections and leaves at once."""
        if slot.control < 0:
            return
        process.close(slot.control)
        slot.control = -1
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
