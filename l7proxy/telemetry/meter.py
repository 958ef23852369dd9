"""What a worker counts by labels, and how long things took. The scrape reads it (`series`).

A worker counts what has happened, with two or three words of memory each: what is spliced costs
nothing here, for its bytes are the kernel's to count.
"""

from __future__ import annotations

from bisect import bisect_left

from l7proxy.errors import Reason
from l7proxy.telemetry.accesslog import Record
from l7proxy.telemetry.counters import Counter
from l7proxy.telemetry.series import HOLD, OTHER, Key, SeriesBoard, SeriesSlot

SERIES = 4_096
"""Series of connections by listener, route, backend, endpoint and reason, and of their bytes."""

HISTOGRAMS = 512
"""Histograms: one for each listener, and two for each backend."""

BOUNDS = (
    *(0.0001, 0.00025, 0.0005),
    *(0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0),
    10.0,
)
"""Seconds, of the buckets of all histograms."""

ACCEPTED = "accepted"  # listener
REFUSED = "refused"  # listener, reason
ENDED = "ended"  # listener, route, backend, endpoint, reason
BYTES = "bytes"  # listener, route, backend, endpoint: four counts, see `BYTE_COUNTS`
HEAD = "head"  # listener
DIAL = "dial"  # backend
FIRST_BYTE = "first_byte"  # backend

BYTE_COUNTS = (
    ("from_client", "kernel"),
    ("from_backend", "kernel"),
    ("from_client", "relay"),
    ("from_backend", "relay"),
)
"""Direction and way of the counts of a `BYTES` series."""

_SPARE: dict[str, Key] = {
    ACCEPTED: (ACCEPTED, OTHER),
    BYTES: (BYTES, OTHER, OTHER, OTHER, OTHER),
    HEAD: (HEAD, OTHER),
    DIAL: (DIAL, OTHER),
    FIRST_BYTE: (FIRST_BYTE, OTHER),
}
_SPARE_ENDED: dict[str, Key] = {
    reason: (ENDED, OTHER, OTHER, OTHER, OTHER, reason) for reason in Reason
}
_SPARE_REFUSED: dict[str, Key] = {reason: (REFUSED, OTHER, reason) for reason in Reason}

_SUM = len(BOUNDS) + 1  # the count behind those of the buckets: microseconds


def counts_board(processes: int, rows: int = SERIES) -> SeriesBoard:
    """The table for what is counted."""
    return SeriesBoard(processes, rows, len(BYTE_COUNTS))


def times_board(processes: int, rows: int = HISTOGRAMS) -> SeriesBoard:
    """The table for histograms."""
    return SeriesBoard(processes, rows, _SUM + 1)


class Meter:
    """One worker's."""

    def __init__(
        self, counts: SeriesBoard, times: SeriesBoard, process: int, view: memoryview
    ) -> None:
        """`view` is the worker's slot of the counters."""

        def on_full() -> None:
            view[Counter.SERIES_FULL] += 1

        self._counts = counts.slot(process, on_full)
        self._times = times.slot(process, on_full)
        self._words = self._counts.words
        self._view = view

    hold = HOLD
    """Seconds between two calls of `turn`."""

    def turn(self) -> None:
        """Give up what was not used for a while: see `SeriesSlot.turn`."""
        self._counts.turn()
        self._times.turn()

    def accepted(self, listener: str) -> None:
        """A connection was taken on."""
        self._words[self._counts.at((ACCEPTED, listener), _SPARE[ACCEPTED])] += 1

    def refused(self, listener: str, reason: Reason) -> None:
        """A connection was reset at once."""
        self._words[self._counts.at((REFUSED, listener, reason), _SPARE_REFUSED[reason])] += 1

    def ended(self, record: Record) -> None:
        """A connection is over, and this is what the log tells of it."""
        r, words, at = record, self._words, self._counts.at
        labels = (r.listener, r.route, r.backend, r.endpoint)
        words[at((ENDED, *labels, r.reason), _SPARE_ENDED[r.reason])] += 1
        if r.bytes_in or r.bytes_out:
            place = at((BYTES, *labels), _SPARE[BYTES])
            words[place] += r.kernel_in
            words[place + 1] += r.kernel_out
            words[place + 2] += max(0, r.bytes_in - r.kernel_in)
            words[place + 3] += max(0, r.bytes_out - r.kernel_out)

    def head(self, listener: str, seconds: float) -> None:
        """A head, or what else routes, was there so long after the accept."""
        self._observe((HEAD, listener), seconds)

    def dialled(self, backend: str, seconds: float) -> None:
        """A backend group was connected to within so long, retries included."""
        self._observe((DIAL, backend), seconds)

    def first_byte(self, backend: str, seconds: float) -> None:
        """The first byte of a backend came so long after it was connected to."""
        self._observe((FIRST_BYTE, backend), seconds)

    def _observe(self, key: Key, seconds: float) -> None:
        slot: SeriesSlot = self._times
        place = slot.at(key, _SPARE[key[0]])
        slot.words[place + bisect_left(BOUNDS, seconds)] += 1
        slot.words[place + _SUM] += max(0, int(seconds * 1e6))
