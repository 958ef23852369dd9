"""From the shared tables to families of metrics: what workers count by labels, and their totals.

The order in which related counts are read is such that a scrape never shows more ends than begins.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from l7proxy.telemetry import meter
from l7proxy.telemetry.counters import Counter, SharedCounters
from l7proxy.telemetry.exposition import Distribution, Family, Kind, Labels
from l7proxy.telemetry.series import OTHER, Key, SeriesBoard

LISTENERS = 512
"""Listeners with a gauge of their own."""

_CONNECTION = ("listener", "route", "backend", "endpoint")

_COUNTED: dict[str, tuple[str, str, Labels]] = {
    meter.ACCEPTED: (
        "l7proxy_connections_accepted",
        "Connections that were taken on.",
        ("listener",),
    ),
    meter.REFUSED: (
        "l7proxy_connections_refused",
        "Connections that were reset at once, and never taken on.",
        ("listener", "reason"),
    ),
    meter.ENDED: (
        "l7proxy_connections_ended",
        "Connections that have ended, by where they went and why they ended; done: in order.",
        (*_CONNECTION, "reason"),
    ),
    meter.REQUESTS: (
        "l7proxy_requests",
        "Requests that were routed one by one and are over, by where they went and their status.",
        (*_CONNECTION, "code"),
    ),
}

_TIMES: dict[str, tuple[str, str, str]] = {
    meter.HEAD: (
        "l7proxy_head_duration_seconds",
        "From the accept until the request's head or the ClientHello was complete.",
        "listener",
    ),
    meter.DIAL: (
        "l7proxy_dial_duration_seconds",
        "Until an endpoint of the backend group was connected to, retries included.",
        "backend",
    ),
    meter.FIRST_BYTE: (
        "l7proxy_first_byte_duration_seconds",
        "From the connected endpoint until the first byte of its answer.",
        "backend",
    ),
}

_BYTES_HELP = "Bytes by where they went and what moved them; of live connections up to seconds ago."


def counted(board: SeriesBoard) -> Iterator[Family]:
    """What workers counted by labels."""
    found = _by_family(board)
    for family, (name, text, labels) in _COUNTED.items():
        samples = [
            (values, sums[0]) for values, sums in found[family] if len(values) == len(labels)
        ]
        yield Family(name, Kind.COUNTER, text, labels, samples)
    yield Family(
        "l7proxy_connection_bytes",
        Kind.COUNTER,
        _BYTES_HELP,
        (*_CONNECTION, "direction", "way"),
        [
            ((*values, *which), moved)
            for values, sums in found[meter.BYTES]
            if len(values) == len(_CONNECTION)
            for which, moved in zip(meter.BYTE_COUNTS, sums, strict=True)
            if moved
        ],
    )


def timed(board: SeriesBoard) -> Iterator[Family]:
    """The histograms."""
    found = _by_family(board)
    for family, (name, text, label) in _TIMES.items():
        distributions = [
            (values, Distribution(sums[:-1], sums[-1] / 1e6))
            for values, sums in found[family]
            if len(values) == 1 and any(sums)
        ]
        yield Family(
            name,
            Kind.HISTOGRAM,
            text,
            (label,),
            distributions=distributions,
            bounds=meter.BOUNDS,
        )


def _by_family(board: SeriesBoard) -> dict[str, list[tuple[Labels, Sequence[int]]]]:
    found: dict[str, list[tuple[Labels, Sequence[int]]]] = defaultdict(list)
    seen: set[Key] = set()
    for key, sums in board.read():
        if key not in seen:  # what a worker wrote amiss must not spoil the whole text
            seen.add(key)
            found[key[0]].append((key[1:], sums))
    return found


_TOTALS: tuple[tuple[str, str, Counter], ...] = (
    (
        "l7proxy_overflows",
        "Directions of spliced pairs that user space took over for a while: a slow receiver.",
        Counter.OVERFLOWS,
    ),
    (
        "l7proxy_drains",
        "Directions of spliced pairs whose end was passed on, every byte before it.",
        Counter.DRAINS,
    ),
    ("l7proxy_splices", "Pairs that were put into the kernel.", Counter.SPLICES),
    (
        "l7proxy_adoptions",
        "Spliced pairs of a worker that had died, with which another one went on.",
        Counter.ADOPTED,
    ),
    (
        "l7proxy_backend_reuses",
        "Times that a connection to a backend served another request.",
        Counter.REUSED,
    ),
    (
        "l7proxy_kernel_bodies",
        "Bodies of requests and responses that the kernel was given.",
        Counter.BODIES,
    ),
    (
        "l7proxy_stale_retries",
        "Requests sent once more: the kept connection that they went over had ended.",
        Counter.STALE,
    ),
    (
        "l7proxy_mirrored_requests",
        "Copies of requests that were sent to a second backend (filters.mirror).",
        Counter.MIRRORED,
    ),
    (
        "l7proxy_mirrors_lost",
        "Copies of requests that were not sent: too large, too many, or nobody to take them.",
        Counter.MIRRORS_LOST,
    ),
    (
        "l7proxy_access_log_dropped",
        "Lines of the access log that were lost, its reader being too slow.",
        Counter.LOG_DROPPED,
    ),
    (
        "l7proxy_odd_answers",
        "Responses that got no cookie, for their head is none of HTTP/1.",
        Counter.ODD_ANSWERS,
    ),
    (
        "l7proxy_metrics_series_full",
        f"Sets of labels that found no series of their own and were counted as {OTHER}.",
        Counter.SERIES_FULL,
    ),
)


def totals(shared: SharedCounters) -> Iterator[Family]:
    """What workers counted without labels."""
    # in this order: a pair ends before its connection does
    active, spliced, relayed = shared.active(), shared.spliced(), shared.relayed()
    for name, text, counter in _TOTALS:
        yield Family(name, Kind.COUNTER, text, samples=[((), shared.total(counter))])
    yield Family(
        "l7proxy_connections",
        Kind.GAUGE,
        "Connections that live now, over all listeners.",
        samples=[((), active)],
    )
    yield Family(
        "l7proxy_pooled_connections",
        Kind.GAUGE,
        "Connections to backends that wait for another request.",
        samples=[((), shared.pooled())],
    )
    yield Family(
        "l7proxy_pairs",
        Kind.GAUGE,
        "Open pairs of a client and a backend, by what moves their bytes now.",
        ("way",),
        [(("kernel",), spliced), (("relay",), relayed)],
    )


def listeners(live: Sequence[tuple[Labels, int]]) -> Family:
    """Connections that live now, by listener; those of more than `LISTENERS` together."""
    samples = list(live[:LISTENERS])
    if len(live) > LISTENERS:
        samples.append(((OTHER,), sum(active for _, active in live[LISTENERS:])))
    return Family(
        "l7proxy_listener_connections",
        Kind.GAUGE,
        "Connections that live now.",
        ("listener",),
        samples,
    )


def series_used(counts: SeriesBoard, times: SeriesBoard) -> Iterator[Family]:
    """How full the tables are."""
    boards = (("counts", counts), ("histograms", times))
    yield Family(
        "l7proxy_metrics_series",
        Kind.GAUGE,
        "Series with labels that have been needed so far.",
        ("table",),
        [((name,), board.used) for name, board in boards],
    )
    yield Family(
        "l7proxy_metrics_series_limit",
        Kind.GAUGE,
        "Series with labels that there is room for.",
        ("table",),
        [((name,), board.rows) for name, board in boards],
    )
