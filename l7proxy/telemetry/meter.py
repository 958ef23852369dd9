"""What a worker counts by labels, and how long things took. The scrape reads it (`series`).

A worker counts what has happened, with two or three words of memory each. What a pair moves costs
nothing here as it moves; a round in some seconds counts it (`worker.longlived`).
"""

from __future__ import annotations

from bisect import bisect_left

from l7proxy.errors import Reason
from l7proxy.telemetry.accesslog import Record
from l7proxy.telemetry.counters import Counter
from l7proxy.telemetry.metered import NOTHING, Moved
from l7proxy.telemetry.series import HOLD, OTHER, Key, SeriesBoard

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

_BOUNDS_MS = tuple(bound * 1000 for bound in BOUNDS)

ACCEPTED = "accepted"  # listener
REFUSED = "refused"  # listener, reason
ENDED = "ended"  # listener, route, backend, endpoint, reason
REQUESTS = "requests"  # listener, route, backend, endpoint, class of the status
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

ENDS = frozenset({REFUSED, ENDED, REQUESTS})
"""Families whose last label, the reason, is kept when there is no series for the others."""

_CLASSES = ("none", *(f"{digit}xx" for digit in range(1, 10)))

_SUM = len(BOUNDS) + 1  # the count behind those of the buckets: microseconds


def counts_board(processes: int, rows: int = SERIES) -> SeriesBoard:
    """The table for what is counted."""
    return SeriesBoard(processes, rows, len(BYTE_COUNTS))


def times_board(processes: int, rows: int = HISTOGRAMS) -> SeriesBoard:
    """The table for histograms."""
    return SeriesBoard(processes, rows, _SUM + 1)


def spare(key: Key) -> Key:
    """By what to count a series that there is no room for."""
    family, *labels = key
    kept = labels[-1:] if family in ENDS else []
    return (family, *[OTHER] * (len(labels) - len(kept)), *kept)


class Meter:
    """One worker's."""

    hold = HOLD
    """Seconds between two calls of `turn`."""

    def __init__(
        self, counts: SeriesBoard, times: SeriesBoard, process: int, view: memoryview
    ) -> None:
        """`view` is the worker's slot of the counters."""

        def on_full() -> None:
            view[Counter.SERIES_FULL] += 1

        self._counts = counts.slot(process, spare, on_full)
        self._times = times.slot(process, spare, on_full)

    def turn(self) -> None:
        """Give up what was not used for a while: see `SeriesSlot.turn`."""
        self._counts.turn()
        self._times.turn()

    def accepted(self, listener: str) -> None:
        """A connection was taken on."""
        self._count((ACCEPTED, listener))

    def refused(self, listener: str, reason: Reason) -> None:
        """A connection was reset at once."""
        self._count((REFUSED, listener, reason._value_))

    def ended(self, record: Record, metered: Moved = NOTHING) -> None:
        """A connection is over, and this is what the log tells of it.

        `metered` of its bytes were counted while it went on: see `moved`.
        """
        r = record
        # `_value_`: a member of an Enum is hashed by its name, in Python
        self._count((ENDED, r.listener, r.route, r.backend, r.endpoint, r.reason._value_))
        if r.bytes_in or r.bytes_out:
            self.moved(r, (r.bytes_in, r.bytes_out, r.kernel_in, r.kernel_out), metered)

    def moved(self, record: Record, moved: Moved, metered: Moved) -> None:
        """A connection's pair has moved so much, of which that was counted before."""
        r = record
        key = (BYTES, r.listener, r.route, r.backend, r.endpoint)
        came, went, kernel_in, kernel_out = moved
        if metered is not NOTHING:
            came, went = came - metered[0], went - metered[1]
            kernel_in, kernel_out = kernel_in - metered[2], kernel_out - metered[3]
        slot = self._counts
        place, words = slot.young.get(key) or slot.at(key), slot.words
        words[place + 2] += max(0, came - kernel_in)
        words[place + 3] += max(0, went - kernel_out)
        if kernel_in or kernel_out:
            words[place] += max(0, kernel_in)
            words[place + 1] += max(0, kernel_out)

    def exchanged(self, record: Record) -> None:
        """A request is over, and its connection goes on: this is what the log tells of it."""
        self.requested(record)
        r = record
        if r.bytes_in or r.bytes_out:
            self.moved(r, (r.bytes_in, r.bytes_out, r.kernel_in, r.kernel_out), NOTHING)

    def requested(self, record: Record) -> None:
        """A request is over, however it went; `ended` counts its bytes if its connection is, too.

        The class of a request that got no response is `none`.
        """
        r = record
        code = _CLASSES[r.status // 100] if r.status is not None else "none"
        self._count((REQUESTS, r.listener, r.route, r.backend, r.endpoint, code))

    def ended_unknown(self, reason: Reason) -> None:
        """A connection is over, and nobody knows what it was."""
        self._count((ENDED, "", "", "", "", reason._value_))

    # ---- how long things took, in milliseconds of a clock that never goes back

    def head(self, listener: str, took: float) -> None:
        """A head, or what else routes, was there so long after the accept."""
        self._observe((HEAD, listener), took)

    def dialled(self, backend: str, took: float) -> None:
        """A backend group was connected to within so long, retries included."""
        self._observe((DIAL, backend), took)

    def first_byte(self, backend: str, took: float) -> None:
        """The first byte of a backend came so long after it was connected to."""
        self._observe((FIRST_BYTE, backend), took)

    def _count(self, key: Key) -> None:
        slot = self._counts
        slot.words[slot.young.get(key) or slot.at(key)] += 1

    def _observe(self, key: Key, took: float) -> None:
        slot = self._times
        place, words = slot.young.get(key) or slot.at(key), slot.words
        words[place + bisect_left(_BOUNDS_MS, took)] += 1
        words[place + _SUM] += int(took * 1000.0)
