"""Lines over something else than load: memory over time, connections over workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from loadtest.results import SATURATION, WorkloadInfo

from .charts import Axis, Line, Lines, Point, from_zero, until
from .columns import MIB, plural
from .curves import Curves
from .figures import Figure, Group, rounds
from .numbers import MICRO, number, short
from .scaling import CAPTION, TITLE, Steps, families, workers
from .statistics import Statistics, Where
from .style import Style
from .tables import NOTHING, Cell, Row, Table


class Courses:
    """The lines of one run."""

    def __init__(self, statistics: Statistics, styles: Mapping[str, Style]) -> None:
        self._statistics = statistics
        self._styles = styles

    def memory(self, workload: WorkloadInfo) -> Iterator[Group]:
        """Over time, where samples have it."""
        if figures := self._memory(workload):
            yield Group(
                "memory",
                "Memory over time",
                "Medians of the rounds at each time. Sockets, slabs and the machine's memory are "
                "told above what they were before the load; they hold the client's and the "
                "origins' ends too.",
                figures,
            )

    def scaling(self) -> Iterator[Group]:
        """See `scaling`."""
        figures = [
            figure
            for steps in families(self._statistics.results)
            for key in ("rate", "cpu_us")
            if (figure := self._scaling(steps, key)) is not None
        ]
        if figures:
            yield Group("scaling", TITLE, CAPTION, figures)

    def _scaling(self, steps: Steps, key: str) -> Figure | None:
        unit = steps[0][1].unit
        title = f"{plural(unit)}/s" if key == "rate" else f"machine CPU, {MICRO}s/{unit}"
        lines, rows = [], []
        for name in self._statistics.names:
            points, cells = [], [Cell(name)]
            for number_of, workload in steps:
                where = Where(workload.name, SATURATION)
                found = self._statistics.spread(where, name, key)
                if found is None:
                    cells.append(Cell(NOTHING))
                    continue
                told = f"{number(found.median)} {title} with {number_of}, {rounds(found, number)}"
                points.append(Point(number_of, found.median, told))
                cells.append(Cell(number(found.median), "", found.median))
            if points:
                lines.append(Line(self._styles[name], points))
                rows.append(Row(cells, name))
        if not lines:
            return None
        counts = [number_of for number_of, _ in steps]
        most = max(point.y for line in lines for point in line.points)
        chart = Lines(
            f"Scaling with workers: {title}",
            f"{title} over the number of workers. The numbers are in the table below the chart.",
            Axis("workers", 0, max(counts), [(0, "0"), *((n, str(n)) for n in counts)]),
            from_zero(title, most),
            lines,
        )
        head = ["contender", *(workers(n) for n in counts)]
        return Figure(chart, title, Table(chart.title, head, rows))

    def _memory(self, workload: WorkloadInfo) -> list[Figure]:
        """Over time: of the processes, of sockets, of slabs, of the whole machine."""
        where = Where(workload.name, None)
        figures = []
        for key, title in (
            ("pss_kib", "Its processes (PSS)"),
            ("sockets_kib", "TCP sockets, above before"),
            ("slab_kib", "Unreclaimable slabs, above before"),
            ("machine_kib", "The whole machine, above before"),
        ):
            curves = [
                (name, curve)
                for name in self._statistics.contenders(where)
                if (curve := self._statistics.series(where, name, key))
            ]
            if curves:
                figures.append(self._over_time(workload, title, curves))
        return figures

    def _over_time(
        self,
        workload: WorkloadInfo,
        title: str,
        curves: Curves,
    ) -> Figure:
        lines, rows = [], []
        for name, curve in curves:
            marked = {0, len(curve) // 2, len(curve) - 1}
            points = [
                Point(
                    at,
                    found.median * MIB,
                    f"{number(found.median * MIB)} MiB at {at:.1f} s" if index in marked else "",
                )
                for index, (at, found) in enumerate(curve)
            ]
            lines.append(Line(self._styles[name], points))
            values = [points[0].y, points[len(points) // 2].y, points[-1].y]
            values.append(max(point.y for point in points))
            rows.append(Row([Cell(name), *(Cell(number(v), "", v) for v in values)], name))
        end = max(point.x for line in lines for point in line.points)
        most = max(point.y for line in lines for point in line.points)
        least = min(point.y for line in lines for point in line.points)
        chart = Lines(
            f"{workload.title}: {title}",
            "MiB over the seconds of the load. The numbers are in the table below the chart.",
            until("seconds", end),
            _around_zero("MiB", least, most),
            lines,
        )
        head = ["contender", "first, MiB", "middle", "last", "most"]
        return Figure(chart, title, Table(chart.title, head, rows))


def _around_zero(title: str, least: float, most: float) -> Axis:
    """From zero, or from as far below it as values go (memory that was given back)."""
    up = from_zero(title, max(most, 0.0))
    if least >= 0:
        return up
    step = up.ticks[1][0]
    low = -step
    while low > least:
        low -= step
    count = round(-low / step)
    below = [(-step * n, short(-step * n)) for n in range(count, 0, -1)]
    return Axis(title, low, up.high, [*below, *up.ticks])
