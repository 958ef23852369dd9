"""Tells the service manager how l7proxy fares, where there is one.

    ready -> reloading -> ready -> ... -> stopping

A reload is over for the manager when none is under way: those that are asked for meanwhile become
one, and a `ready` in between would be taken for the answer to a later question. While l7proxy
drains it asks for more time every few seconds, so that the drain's own deadline is the one that
counts. The sign of life comes from the supervisor's loop: it says that workers would be replaced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from l7proxy.net.systemd import Manager
from l7proxy.supervisor.reload import Outcome

PERIOD = 5.0  # seconds between two lines of status, when it changes
MORE_TIME = 20.0  # seconds that a drain asks for, every period


class Managing:
    """What the manager is told in the life of one l7proxy.

    `state()` is one line about it, `ending()` whether it was asked to end.
    """

    def __init__(
        self, manager: Manager, state: Callable[[], str], ending: Callable[[], bool]
    ) -> None:
        self._manager = manager
        self._state = state
        self._ending = ending
        self._reloads = 0
        self._trouble = ""

    def ready(self) -> None:
        """Connections are taken."""
        self._manager.ready(self._line())

    def reloading(self, outcome: asyncio.Future[Outcome]) -> None:
        """A reload was asked for, and this is how it will have gone."""
        self._reloads += 1
        self._manager.reloading("loading the policy")
        outcome.add_done_callback(self._reloaded)

    def _reloaded(self, outcome: asyncio.Future[Outcome]) -> None:
        self._reloads -= 1
        if not outcome.cancelled():
            told = outcome.result()
            self._trouble = "" if told.ok else f"the last policy was refused ({told.errors} errors)"
        if not self._reloads and not self._ending():
            self.ready()

    def stopping(self) -> None:
        """The drain has begun. Before that, `beat` says that it is asked to end."""
        self._manager.stopping(self._line(), MORE_TIME)

    async def beat(self) -> None:
        """Signs of life, the state when it has changed, and more time to drain; for ever."""
        if not self._manager.is_there:
            return
        watchdog = self._manager.watchdog
        told, waited = "", 0.0
        period = min(PERIOD, watchdog / 2) if watchdog else PERIOD
        while True:
            await asyncio.sleep(period)
            if watchdog:
                self._manager.alive()
            waited += period
            if waited < PERIOD:
                continue
            waited = 0.0
            line = self._line()
            if self._ending():
                self._manager.stopping(line, MORE_TIME)
            elif line != told and not self._reloads:
                self._manager.status(line)
            told = line

    def _line(self) -> str:
        parts = [self._state()] + ([self._trouble] if self._trouble else [])
        return ("draining: " if self._ending() else "") + "; ".join(parts)
