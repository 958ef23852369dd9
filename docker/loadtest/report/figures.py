"""What a figure of the report is: a chart, what to say of it, and the table of its numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .charts import Chart
from .numbers import ratio
from .statistics import Spread
from .tables import Table


@dataclass(frozen=True, slots=True)
class Figure:
    """`caption` "" where the chart's title says it all."""

    chart: Chart
    caption: str
    table: Table


@dataclass(frozen=True, slots=True)
class Group:
    """Figures that are read together. `key`: unique among the groups of a section."""

    key: str
    title: str
    caption: str
    figures: Sequence[Figure]


def rounds(found: Spread, tell: Callable[[float], str] = ratio) -> str:
    """The spread in words."""
    if found.count == 1:
        return "one round"
    return f"{tell(found.low)} to {tell(found.high)} in {found.count} rounds"


def listing(pairs: Iterable[tuple[str, str]]) -> str:
    """For those who hear a chart."""
    return ", ".join(f"{name} {value}" for name, value in pairs) + "."
