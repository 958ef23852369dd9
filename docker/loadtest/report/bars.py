"""Bars: rates relative to direct, CPU, memory of idle connections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from loadtest.results import SATURATION, WorkloadInfo

from .charts import Bar, Bars, from_zero
from .columns import plural
from .figures import Figure, Group, listing, rounds
from .numbers import MICRO, TIMES, number, ratio
from .statistics import DIRECT, Statistics, Where
from .style import Style
from .tables import Cell, Row, Table, factor

# What the parts of a stacked bar are, by the first of their figures.
_LABELS = {
    "cpu_own_gb": ("its own processes", "the rest of the machine"),
    "cpu_own_us": ("its own processes", "the rest of the machine"),
    "pss_each_kib": ("its processes", "sockets", "slabs"),
}


class Overview:
    """The bars of one run."""

    def __init__(self, statistics: Statistics, styles: Mapping[str, Style]) -> None:
        self._statistics = statistics
        self._styles = styles

    def groups(self) -> Iterator[Group]:
        """Those that have bars."""
        for group in (
            Group(
                "speed",
                "Rates relative to a direct connection",
                "Bars: the median of the ratios of each round; whiskers: least and greatest. "
                "The line is direct.",
                list(self._relative()),
            ),
            Group(
                "cpu",
                "CPU per unit of work",
                "The whole bar: all that the machine's processors did. Dark: the contender's own "
                "processes. Light: the rest, which is the client, the origins and the kernel's "
                "work for all of them. Whiskers: the whole bar's least and greatest.",
                list(self._costs()),
            ),
            Group(
                "idle-memory",
                "Memory of an idle connection",
                "Dark: the contender's processes, with whiskers. Light: sockets, then slabs, of "
                "the whole machine and so with the client's and the origins' ends.",
                list(self._idle()),
            ),
        ):
            if group.figures:
                yield group

    def _relative(self) -> Iterator[Figure]:
        """Rates as ratios to `direct`, of each workload that was saturated."""
        for workload, where in self._saturated():
            ratios = [
                (name, found)
                for name in self._statistics.contenders(where)
                if (found := self._statistics.ratio(where, name, "rate", DIRECT)) is not None
            ]
            if len(ratios) < 2:
                continue
            bars = [
                Bar(
                    self._styles[name],
                    [("whole", found.median)],
                    found.low,
                    found.high,
                    ratio(found.median),
                    f"{ratio(found.median)} {TIMES} direct, {rounds(found)}",
                )
                for name, found in ratios
            ]
            rows = [Row([Cell(name), factor(found)], name) for name, found in ratios]
            chart = Bars(
                workload.title,
                f"{plural(workload.unit)} per second of each contender, relative to direct: "
                + listing((name, ratio(found.median)) for name, found in ratios),
                from_zero(f"{plural(workload.unit)}/s, {TIMES} direct", _most(bars)),
                bars,
                reference=1.0,
            )
            table = Table(workload.title, ["contender", f"{TIMES} direct"], rows)
            yield Figure(chart, "", table)

    def _costs(self) -> Iterator[Figure]:
        """CPU per GB where bytes count, else per unit."""
        for workload, where in self._saturated():
            keys = self._statistics.keys(where)
            if "cpu_gb" in keys:
                yield self._stacked(
                    workload, where, ["cpu_own_gb"], "cpu_gb", "CPU seconds per GB", "s"
                )
            elif "cpu_us" in keys:
                title = f"CPU per {workload.unit}, {MICRO}s"
                yield self._stacked(workload, where, ["cpu_own_us"], "cpu_us", title, f"{MICRO}s")

    def _idle(self) -> Iterator[Figure]:
        """Memory of each idle connection."""
        for workload in self._statistics.results.workloads:
            where = Where(workload.name, None)
            if "pss_each_kib" in self._statistics.keys(where):
                parts = ["pss_each_kib", "sockets_each_kib", "slab_each_kib"]
                title = "KiB for each idle connection"
                yield self._stacked(workload, where, parts, None, title, "KiB")

    def _stacked(
        self,
        workload: WorkloadInfo,
        where: Where,
        keys: Sequence[str],
        total: str | None,
        title: str,
        unit: str,
    ) -> Figure:
        """Bars of `keys`, and of what `total` has more than them. The whisker is that of the total,
        or of the first key."""
        bars, rows = [], []
        for name in self._statistics.contenders(where):
            found = [self._statistics.spread(where, name, key) for key in keys]
            whole = self._statistics.spread(where, name, total or keys[0])
            if whole is None or None in found:
                continue
            values = [max(spread.median, 0.0) for spread in found if spread is not None]
            lengths = [*values, max(whole.median - sum(values), 0.0)] if total else values
            text = number(whole.median if total else sum(values))
            told = " + ".join(
                f"{number(length)} {label}"
                for length, label in zip(lengths, _LABELS[keys[0]], strict=False)
            )
            parts = [(f"part{index}", length) for index, length in enumerate(lengths)]
            style = self._styles[name]
            bars.append(Bar(style, parts, whole.low, whole.high, text, f"{told} {unit}"))
            shown = [*lengths, sum(lengths)]
            rows.append(Row([Cell(name), *(Cell(number(v), "", v) for v in shown)], name))
        axis = from_zero(title, _most(bars))
        labels = _LABELS[keys[0]]
        description = f"{title}, {' + '.join(labels)}: " + listing(
            (bar.style.name, bar.text) for bar in bars
        )
        table = Table(workload.title, ["contender", *labels, "sum"], rows)
        return Figure(Bars(workload.title, description, axis, bars), "", table)

    def _saturated(self) -> Iterator[tuple[WorkloadInfo, Where]]:
        for workload in self._statistics.results.workloads:
            where = Where(workload.name, SATURATION)
            if self._statistics.contenders(where):
                yield workload, where


def _most(bars: Sequence[Bar]) -> float:
    return max((max(bar.high, sum(length for _, length in bar.parts)) for bar in bars), default=1.0)
