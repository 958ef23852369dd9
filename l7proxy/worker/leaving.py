"""A worker makes room for another l7proxy: what is spliced flows on, the rest ends soon.

No connection is taken any more. What is about to be spliced, or over, has `GRACE` for it; a pair
that is kept needs nobody here. Then the worker leaves, and resets what is left.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from l7proxy.errors import Reason
from l7proxy.worker.spliced import SplicedPair
from l7proxy.worker.timers import TICK

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection
    from l7proxy.worker.loop import Worker

GRACE = 1.0  # seconds


class Leaving:
    """Looks, at each tick, whether anybody still needs this worker."""

    def __init__(self, worker: Worker) -> None:
        self.tick = -1
        self._worker = worker
        self._until = worker.now + GRACE

    def begin(self) -> None:
        """Accept no more."""
        self._worker.stop_keeping()
        self.on_deadline()

    def on_deadline(self) -> None:
        """Leave, or look again."""
        worker = self._worker
        told = worker.keeping.settle()
        left = [one for one in worker.connections() if not _is_kept(one)]
        if worker.now < self._until and (left or not told):
            worker.calendar.set(self, worker.now + TICK / 2)
            return
        for connection in left:
            worker.guard(connection, partial(connection.abort, Reason.UPGRADED))
        worker.keeping.settle()
        worker.gone()


def _is_kept(connection: Connection) -> bool:
    return isinstance(connection.pair, SplicedPair) and connection.pair.is_kept
