"""Lines of a workload's open loops: latency distributions, and throughput."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from loadtest.results import SATURATION, WorkloadInfo

from .charts import Axis, Line, Lines, Point, from_zero, logarithmic
from .columns import plural
from .figures import Figure, Group, rounds
from .numbers import MICRO, duration, number
from .statistics import Spread, Statistics, Where
from .style import Style
from .tables import NOTHING, Cell, Row, Table

# The scale of percentiles is that of 1 / (1 - p), as HdrHistogram draws it.
TICKS = (50.0, 90.0, 99.0, 99.9, 99.99)
PERCENTILES = tuple(sorted({*TICKS, *(100 * (1 - 0.5 * 10 ** (-step / 8)) for step in range(30))}))
SHORTFALL = 0.99  # achieved less than this share of what was offered: a ring is around the mark

Curves = list[tuple[str, list[tuple[float, Spread]]]]  # by contender


class OpenLoops:
    """The lines of one run."""

    def __init__(self, statistics: Statistics, styles: Mapping[str, Style]) -> None:
        self._statistics = statistics
        self._styles = styles

    def groups(self, workload: WorkloadInfo) -> Iterator[Group]:
        """Those that a workload has the samples for."""
        for group in (
            Group(
                "latency",
                "Latency distribution",
                "Open loop. Each line is the median of the rounds at each percentile, and ends "
                "where too few requests were slower. Contenders get different rates: shares of "
                "their own knees.",
                self._latency(workload),
            ),
            Group(
                "throughput",
                "Throughput",
                "Open loops at shares of each one's knee, and the knee itself. A ring "
                "before the last mark: less than 99 % of what was offered was achieved.",
                self._throughput(workload),
            ),
        ):
            if group.figures:
                yield group

    def _latency(self, workload: WorkloadInfo) -> list[Figure]:
        """One for each open loop; all have the same scale, so they can be compared."""
        loads = [load for load in self._statistics.loads(workload.name) if load != SATURATION]
        curves = {
            load: self._curves(Where(workload.name, load)) for load in loads if load is not None
        }
        all_us = [s.median for lines in curves.values() for _, c in lines for _, s in c]
        if not all_us:
            return []
        y = logarithmic("latency", max(min(all_us), 1.0), max(all_us), duration)
        return [
            self._distribution(workload, load, lines, y) for load, lines in curves.items() if lines
        ]

    def _curves(self, where: Where) -> Curves:
        found = [
            (name, self._statistics.latency(where, name, PERCENTILES))
            for name in self._statistics.contenders(where)
        ]
        return [(name, curve) for name, curve in found if curve]

    def _distribution(
        self,
        workload: WorkloadInfo,
        load: str,
        curves: Curves,
        y: Axis,
    ) -> Figure:
        x = Axis(
            "percentile",
            _tail(TICKS[0]),
            _tail(TICKS[-1]),
            [(_tail(tick), f"{tick:g}") for tick in TICKS],
            log=True,
        )
        lines, rows = [], []
        for name, curve in curves:
            points = [
                Point(
                    _tail(percentile),
                    found.median,
                    f"p{percentile:g} = {duration(found.median)}, {rounds(found, duration)}"
                    if percentile in TICKS
                    else "",
                )
                for percentile, found in curve
            ]
            lines.append(Line(self._styles[name], points))
            told = {percentile: found.median for percentile, found in curve if percentile in TICKS}
            cells = [
                Cell(number(told[tick]), "", told[tick]) if tick in told else Cell(NOTHING)
                for tick in TICKS
            ]
            rows.append(Row([Cell(name), *cells], name))
        title = f"{workload.title}, at {load} % of each one's knee"
        chart = Lines(
            title,
            "Latency by percentile, one line for each contender, both scales logarithmic. "
            "The numbers are in the table below the chart.",
            x,
            y,
            lines,
        )
        head = ["contender", *(f"p{tick:g}, {MICRO}s" for tick in TICKS)]
        return Figure(chart, f"{load} % of each one's own knee", Table(title, head, rows))

    def _throughput(self, workload: WorkloadInfo) -> list[Figure]:
        """What was achieved of what was offered, and p99 over what was achieved."""
        loads = self._statistics.loads(workload.name)
        opened = [load for load in loads if load not in (SATURATION, None)]
        if not opened:
            return []
        unit = f"{plural(workload.unit)}/s"
        achieved, latency, rows = [], [], []
        for name in self._statistics.names:
            style = self._styles[name]
            steps = [
                step for load in opened if (step := self._step(Where(workload.name, load), name))
            ]
            knee = self._statistics.spread(Where(workload.name, SATURATION), name, "rate")
            if not steps:
                continue
            reached = [_reached(step, unit) for step in steps]
            limit = None
            if knee is not None:
                told = f"{number(knee.median)} {unit} at saturation"
                reached.append(Point(knee.median, knee.median, told, ring=True))
                limit = (knee.median, told)
            achieved.append(Line(style, reached))
            slow = [
                Point(
                    step.rate,
                    step.p99,
                    f"p99 = {duration(step.p99)} at {number(step.rate)} {unit}",
                    step.short,
                )
                for step in steps
                if math.isfinite(step.p99)
            ]
            latency.append(Line(style, slow, limit))
            rows += [step.row(name) for step in steps]
            if knee is not None:
                cells = [name, SATURATION, "closed loop", number(knee.median), NOTHING]
                rows.append(Row([Cell(cell) for cell in cells], name))
        if not achieved:
            return []
        most = max(point.x for line in achieved for point in line.points)
        p99s = [point.y for line in latency for point in line.points]
        head = ["contender", "load", f"offered, {unit}", f"achieved, {unit}", f"p99, {MICRO}s"]
        table = Table(workload.title, head, rows, words=2)
        offered = Lines(
            f"{workload.title}: throughput against offered load",
            "What each contender achieved of what it was offered, and its knee. The numbers are "
            "in the table below the chart.",
            from_zero(f"offered, {unit}", most),
            from_zero(f"achieved, {unit}", most),
            achieved,
            diagonal=True,
        )
        figures = [
            Figure(offered, "Achieved against offered; the last, ringed, is saturation", table)
        ]
        if not p99s:  # all of them were saturated
            return figures
        tail = Lines(
            f"{workload.title}: p99 against throughput",
            "The 99th percentile of latency at shares of each contender's knee, over the "
            "throughput it achieved. The numbers are in the table below the chart.",
            from_zero(f"achieved, {unit}", most),
            logarithmic("p99 latency", max(min(p99s), 1.0), max(p99s), duration),
            latency,
        )
        told = "p99 against throughput; the tick at the top is saturation"
        return [*figures, Figure(tail, told, table)]

    def _step(self, where: Where, name: str) -> _Step | None:
        found = [self._statistics.spread(where, name, k) for k in ("offered", "rate", "p99_us")]
        if None in found or where.load is None:
            return None
        offered, rate, p99 = (spread.median for spread in found if spread is not None)
        return _Step(where.load, offered, rate, p99)


@dataclass(frozen=True, slots=True)
class _Step:
    """An open loop of one contender."""

    load: str
    offered: float
    rate: float
    p99: float

    @property
    def short(self) -> bool:
        return self.rate < SHORTFALL * self.offered

    def row(self, name: str) -> Row:
        values = (self.offered, self.rate, self.p99)
        cells = [Cell(number(value), "", value) for value in values]
        return Row([Cell(name), Cell(f"{self.load} %"), *cells], name)


def _reached(step: _Step, unit: str) -> Point:
    told = f"{number(step.rate)} of {number(step.offered)} {unit}"
    return Point(step.offered, step.rate, told, step.short)


def _tail(percentile: float) -> float:
    return 1 / (1 - percentile / 100)
