"""The same with more workers, where a run has workloads named so (connect-w1, -w2, ...)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from loadtest.results import SATURATION, Results, WorkloadInfo

from .columns import PERCENT, plural
from .numbers import MICRO, TIMES
from .statistics import Statistics, Where
from .tables import Cell, Row, Table, cell, count, factor

TITLE = "Scaling with workers"
CAPTION = (
    "At saturation, medians of the rounds. The client and the origins need processors, too: where "
    "all are busy, more workers gain nothing."
)

Steps = list[tuple[int, WorkloadInfo]]


def families(results: Results) -> list[Steps]:
    """Workloads that differ in the number of workers, by that number; of two at least."""
    found: dict[str, Steps] = {}
    for workload in results.workloads:
        if named := re.fullmatch(r"(.+)-w(\d+)", workload.name):
            found.setdefault(named[1], []).append((int(named[2]), workload))
    return [sorted(steps, key=lambda step: step[0]) for steps in found.values() if len(steps) > 1]


def workers(number: int) -> str:
    """So many."""
    return f"{number} workers" if number > 1 else "1 worker"


def scaling_tables(statistics: Statistics) -> Iterator[Table]:
    """Each family, a contender's numbers of workers one below the other."""
    for steps in families(statistics.results):
        (fewest, first), *_ = steps
        unit = first.unit
        head = [
            *("contender", "workers", f"{plural(unit)}/s", f"{TIMES} {workers(fewest)}"),
            *(f"machine CPU, {MICRO}s/{unit}", f"its own CPU, {MICRO}s/{unit}"),
            *("processors busy, %", "valid"),
        ]
        rows = [
            _row(statistics, name, number, Where(workload.name, SATURATION), first)
            for name in statistics.names
            for number, workload in steps
            if name in statistics.contenders(Where(workload.name, SATURATION))
        ]
        if rows:
            caption = first.title.removesuffix(f", {workers(fewest)}")
            yield Table(caption, head, rows, words=2)


def _row(statistics: Statistics, name: str, number: int, where: Where, first: WorkloadInfo) -> Row:
    grown = statistics.growth(where, Where(first.name, SATURATION), name, "rate")
    cells = [
        Cell(name),
        Cell(str(number)),
        cell(statistics.spread(where, name, "rate")),
        factor(grown),
        cell(statistics.spread(where, name, "cpu_us")),
        cell(statistics.spread(where, name, "cpu_own_us")),
        cell(statistics.spread(where, name, "cpu_share"), PERCENT),
        count(statistics, where, name),
    ]
    return Row(cells, name)
