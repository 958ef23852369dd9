"""What l7proxy is to reach, and what a run says of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from loadtest.results import SATURATION, Results

from .numbers import TIMES, number, ratio
from .statistics import Better, Spread, Statistics, Where

SUBJECT = "l7proxy-sockmap"
BEST_PEER = ""
IDLE = 20_000  # connections


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure of `subject` that is to be `at_least` or at most `bound` times that of `base`.

    `base`: a contender, BEST_PEER, or None for a figure that is bounded by itself. `strictly`: the
    bound itself is not enough. `inverse`: it is of what a figure buys (connections per CPU second,
    not CPU seconds per connection). Where a run has several of `workloads`, the first is taken.
    """

    text: str
    workloads: tuple[str, ...]
    load: str | None
    key: str
    base: str | None
    bound: float
    at_least: bool
    strictly: bool = False
    inverse: bool = False
    subject: str = SUBJECT
    unit: str = ""

    @property
    def asked(self) -> str:
        """The bound in words."""
        if self.base is None:
            return f"{number(self.bound)} {self.unit} or less"
        other = self.base or "the best peer"
        if self.strictly:
            return f"{'above' if self.at_least else 'below'} {other}"
        if self.bound == 1 and not self.at_least:
            return f"no more than {other}"
        tail = "or better" if self.at_least else "or less"
        return f"{ratio(self.bound)} {TIMES} {other} {tail}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A goal in a run: the median of its ratios (or of its figure), and whether it is met."""

    goal: Goal
    workload: str
    got: Spread
    met: bool
    note: str = ""


def _table() -> Iterator[Goal]:
    def fast(text: str, workload: str, base: str, bound: float, strictly: bool = False) -> Goal:
        return Goal(text, (workload,), SATURATION, "rate", base, bound, True, strictly)

    bulk, objects = "Bulk stream: GB/s", "1 MiB objects on 8 connections: downloads/s"
    small = "Small requests on 50 connections:"
    yield fast(bulk, "stream", "direct", 0.8)
    yield fast(bulk, "stream", BEST_PEER, 1.3)
    yield fast(objects, "download-1m", "direct", 0.8)
    yield fast(objects, "download-1m", BEST_PEER, 1.0, True)
    yield fast(f"{small} requests/s", "requests-50", "haproxy-tcp", 1.0, True)
    yield Goal(
        f"{small} machine CPU per request",
        ("requests-50",),
        SATURATION,
        "cpu_us",
        "haproxy-tcp",
        0.8,
        False,
    )
    for size, workload in (("1 byte", "echo-1"), ("16 KiB", "echo-16k")):
        for percentile in ("p50", "p99"):
            for base in ("haproxy-tcp", "envoy-tcp"):
                text = f"Echo of {size}, {percentile} at half of its own knee"
                key = f"{percentile}_us"
                yield Goal(text, (workload,), "50", key, base, 1.0, False, strictly=True)
    for key, whose in (
        ("cpu_us", "the machine's CPU"),
        ("cpu_rest_us", "the same, less client and origins"),
    ):
        yield Goal(
            f"A connection per request: connections per second of {whose}",
            ("connect-w1", "connect"),
            SATURATION,
            key,
            "haproxy-tcp",
            0.7,
            True,
            inverse=True,
        )
    for key, what in (
        ("growth_kib", "processes grew + sockets + slabs"),
        ("machine_kib", "the machine's memory, by difference"),
    ):
        for subject, base in ((SUBJECT, "haproxy-http"), ("l7proxy-tcp", "haproxy-tcp")):
            text = f"Slow reader: {what}, of {subject}"
            yield Goal(text, ("slow-reader",), None, key, base, 1.0, False, subject=subject)
    yield Goal(
        f"{IDLE:,} idle spliced connections: user-space memory of each",
        ("idle-20k",),
        None,
        "pss_each_kib",
        None,
        4.0,
        False,
        unit="KiB",
    )


GOALS = tuple(_table())


def goals(results: Results) -> list[Outcome]:
    """Those that the run has the samples for."""
    statistics = Statistics(results)
    return [found for goal in GOALS if (found := _outcome(goal, statistics)) is not None]


def _outcome(goal: Goal, statistics: Statistics) -> Outcome | None:
    for workload in goal.workloads:
        where = Where(workload, goal.load)
        got = _got(goal, statistics, where)
        if got is not None:
            note = _note(goal, where, statistics)
            return Outcome(goal, workload, got, _met(goal, got.median), note)
    return None


def _got(goal: Goal, statistics: Statistics, where: Where) -> Spread | None:
    better: Better = "higher" if goal.at_least != goal.inverse else "lower"
    if goal.base is None:
        return statistics.spread(where, goal.subject, goal.key)
    if goal.base == BEST_PEER:
        got = statistics.ratio_to_best(where, goal.subject, goal.key, better)
    elif goal.inverse:
        got = statistics.ratio(where, goal.base, goal.key, goal.subject)
    else:
        got = statistics.ratio(where, goal.subject, goal.key, goal.base)
    return got


def _met(goal: Goal, got: float) -> bool:
    if goal.strictly:
        return got > goal.bound if goal.at_least else got < goal.bound
    return got >= goal.bound if goal.at_least else got <= goal.bound


def _note(goal: Goal, where: Where, statistics: Statistics) -> str:
    """What this run did not do as the goal asks it."""
    if where.workload != goal.workloads[0]:
        return f"asked with one worker each ({goal.workloads[0]}); this is {where.workload}"
    held = statistics.spread(where, goal.subject, "connections")
    if held is not None and held.low < IDLE:
        return f"held {number(held.low)}"
    return ""
