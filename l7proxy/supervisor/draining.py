"""How far the end of this l7proxy has come, for the log, `/stats` and whoever asks if it is ready.

    serving --> leaving --> draining --> stopped         `l7proxy run --help` tells it to people
                      \\--> resetting --/

*Leaving* is for those who send clients here. Kubernetes takes a pod that is not ready, or is being
deleted, out of the Service's endpoints, and tells the pod at the same moment: the news reaches each
node some seconds later, and connections go on to come until it has. So readiness goes first, and
listeners stay open for a while.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from l7proxy.telemetry.log import event

log = logging.getLogger(__name__)

_MOST_LISTENERS = 8  # that a line of the log tells of


class Phase(StrEnum):
    """Where an l7proxy is in its life."""

    STARTING = "starting"
    SERVING = "serving"  # the only one in which it is ready
    LEAVING = "leaving"  # not ready any more; connections are still taken
    DRAINING = "draining"  # listeners are closed, live connections may end
    RESETTING = "resetting"  # what is left is reset
    STOPPED = "stopped"


class Drain:
    """The phase, since when, until when, and what became of the connections.

    `active()` tells how many connections live, `present()` how many on each listener, `resets()`
    how many have been reset by drains; all are asked again and again, while it goes on.
    """

    def __init__(
        self,
        delay: float,
        seconds: float,
        active: Callable[[], int],
        present: Callable[[], Mapping[str, int]],
        resets: Callable[[], int],
    ) -> None:
        self.delay = delay
        self.seconds = seconds
        self.phase = Phase.STARTING
        self.is_asked = False
        self.signals = 0
        self.lost = 0
        """Connections that went with a worker that died while draining, or had to be killed."""
        self._active = active
        self._present = present
        self._resets = resets
        self._resets_before = 0
        self._at_first = 0
        self._began = 0.0
        self._until = 0.0

    @property
    def insists(self) -> bool:
        """Whether nobody wants to wait any longer: a second signal came."""
        return self.signals > 1

    @property
    def is_closing(self) -> bool:
        """Whether no connection is taken any more, or in the very next moment."""
        if self.phase in (Phase.DRAINING, Phase.RESETTING, Phase.STOPPED):
            return True
        return self.is_asked and (not self.delay or self.insists)

    @property
    def left(self) -> float:
        """Seconds until the phase is over, if nothing ends it before."""
        return max(0.0, self._until - time.monotonic())

    @property
    def reset(self) -> int:
        """Connections that were reset because of the drain, so far."""
        return max(0, self._resets() - self._resets_before) + self.lost

    def enter(self, phase: Phase, seconds: float = 0.0) -> None:
        """Begin a phase, of at most so many seconds, and say so."""
        now = time.monotonic()
        if not self._began and phase in (Phase.LEAVING, Phase.DRAINING):
            self._began, self._at_first = now, self._active()
            self._resets_before = self._resets()
        self.phase = phase
        self._until = now + seconds

    def tell(self, words: str, **more: object) -> None:
        """A line of the log with what there is left to do."""
        present = {name: n for name, n in self._present().items() if n}
        most = sorted(present, key=lambda name: -present[name])[:_MOST_LISTENERS]
        where = {"on": ",".join(f"{name}:{present[name]}" for name in most)} if present else {}
        log.info(event(words, connections=self._active(), **where, **more))

    def as_dict(self) -> dict[str, Any]:
        """For `/stats`: seconds, and numbers of connections."""
        if not self._began:
            return {"phase": str(self.phase)}
        return {
            "phase": str(self.phase),
            "seconds": round(time.monotonic() - self._began, 3),
            "seconds_left": round(self.left, 3),
            "connections_at_first": self._at_first,
            "connections": self._active(),
            "reset": self.reset,
        }
