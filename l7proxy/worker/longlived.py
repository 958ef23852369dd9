"""Records of connections that go on: without them one that lasts a week is not seen for a week.

One timer for the worker. It goes round all connections once in a period, a few at a time, so that
ten thousand of them cost no pause; the bytes that the kernel has moved are read from its mapped
counters, without a system call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from l7proxy.worker.timers import TICK

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection
    from l7proxy.worker.loop import Worker

_BATCH = 100  # records in one turn of the loop; each takes some 30 us


class LongLived:
    """Goes round the connections of a worker, once in so many seconds; 0: never."""

    def __init__(self, worker: Worker) -> None:
        self.tick = -1
        self._worker = worker
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
        """Write the next few records."""
        worker = self._worker
        if not self._left:
            old = worker.now - self._every
            self._left = [one for one in worker.connections() if one.began <= old]
            self._round = worker.now + self._every
        batch, self._left = self._left[:_BATCH], self._left[_BATCH:]
        for connection in batch:
            if connection.pair is not None and connection.session.is_open:
                worker.note_live(connection)
        worker.calendar.set(self, worker.now + TICK if self._left else self._round)
