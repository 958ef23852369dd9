"""Looks at connections that go on: without them one that lasts a week is not seen for a week.

A timer for the worker goes round all connections once in a period, a few at a time, so that ten
thousand of them cost no pause; the bytes that the kernel has moved are read from its mapped
counters, without a system call. There is one for the records in the access log, and one for the
bytes by route and endpoint in the metrics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from l7proxy.worker.timers import TICK

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection
    from l7proxy.worker.loop import Worker

METER_EVERY = 5.0  # seconds

_BATCH = 100  # in one turn of the loop; a record takes some 30 us, to count some 5


class Rounds:
    """Goes round the connections of a worker, once in so many seconds; 0: never."""

    def __init__(
        self, worker: Worker, visit: Callable[[Connection], None], *, young: bool = False
    ) -> None:
        """`visit` each open pair; also those that are younger than a period, if `young`."""
        self.tick = -1
        self._worker = worker
        self._visit = visit
        self._young = young
        self._every = 0.0
        self._round = 0.0  # when the next one begins
        self._left: list[Connection] = []

    def set(self, seconds: float) -> None:
        """Begin anew with another period, if it is another one."""
        if seconds == self._every:
            return
        self._every = seconds
        self._left = []
        if seconds:
            self._round = self._worker.now + seconds
            self._worker.calendar.set(self, self._round)
        else:
            self._worker.calendar.cancel(self)

    def on_deadline(self) -> None:
        """Visit the next few."""
        worker = self._worker
        if not self._left:
            old = worker.now - self._every
            self._left = [one for one in worker.connections() if self._young or one.began <= old]
            self._round = worker.now + self._every
        batch, self._left = self._left[:_BATCH], self._left[_BATCH:]
        for connection in batch:
            if connection.pair is not None and connection.session.is_open:
                self._visit(connection)
        worker.calendar.set(self, worker.now + TICK if self._left else self._round)
