"""The figures that tables have, in their order, and what each is called.

A column stands in a table when a valid sample of that workload and load has the figure.
"""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass

from loadtest.results import SATURATION, WorkloadInfo

from .numbers import MICRO
from .statistics import Better


@dataclass(frozen=True, slots=True)
class Column:
    """`key`: of the figure. `better`: which way is; ratios to `direct` and to the best peer are
    told in that case, where `ratios` asks for them. `scale`: what it is multiplied with."""

    key: str
    title: str
    better: Better | None = None
    direct: bool = False
    best: bool = False
    scale: float = 1.0


MIB = 1 / 1024
PERCENT = 100.0
_LATENCY = tuple(
    Column(f"{key}_us", f"{title}, {MICRO}s")
    for key, title in (("p50", "p50"), ("p90", "p90"), ("p99", "p99"), ("p999", "p99.9"))
)


def plural(unit: str) -> str:
    """What a rate counts: requests, round trips, GB."""
    return unit if unit == "GB" else f"{unit}s"


def columns(workload: WorkloadInfo, load: str | None, keys: Set[str]) -> list[Column]:
    """The table of one workload under one load, given the figures that samples have."""
    unit = workload.unit
    free = load == SATURATION  # else the rate was given, and its ratios would be those of orders
    speed = Column("rate", f"{plural(unit)}/s", "higher", direct=free, best=free)
    if workload.kind == "memory":
        keys = keys - {"switches", "cpu_share"}  # of next to nothing
        speed = Column("rate", "MB/s", scale=1e3)
    per_gb = "cpu_gb" in keys
    found = [
        *([Column("connections", "idle connections")] if workload.kind == "idle" else []),
        *([] if free else [Column("offered", f"offered, {plural(unit)}/s")]),
        speed,
        *([Column("gb_per_s", "GB/s")] if unit != "GB" and free else []),
        *([] if free else _LATENCY),
        *_mixed(keys),
        Column("growth_kib", "memory grew, MiB", "lower", best=True, scale=MIB),
        Column("pss_each_kib", "process, KiB each", "lower", best=True),
        Column("sockets_each_kib", "sockets, KiB each"),
        Column("slab_each_kib", "slabs, KiB each"),
        Column("machine_each_kib", "machine, KiB each", "lower", best=True),
        Column("cpu_us", f"machine CPU, {MICRO}s/{unit}", "lower", free, not per_gb),
        Column("cpu_own_us", f"its own CPU, {MICRO}s/{unit}"),
        Column("cpu_gb", "machine CPU, s/GB", "lower", free, best=True),
        Column("cpu_own_gb", "its own CPU, s/GB"),
        *([] if free else [Column("cpu_share", "processors busy, %", scale=PERCENT)]),
        Column("switches", f"context switches/{unit}"),
        Column("pss_kib", "processes, MiB", scale=MIB),
        Column("sockets_kib", "sockets, MiB", scale=MIB),
        Column("slab_kib", "slabs, MiB", scale=MIB),
        Column("machine_kib", "machine, MiB", scale=MIB),
    ]
    return [column for column in found if column.key in keys]


def _mixed(keys: Set[str]) -> list[Column]:
    """The parts of a mix have figures with their names in front."""
    parts = sorted(m[1] for key in keys if (m := re.fullmatch(r"(\w+)_rate", key)))
    return [
        column
        for part in parts
        for column in (
            Column(f"{part}_rate", f"{part}/s"),
            Column(f"{part}_p50_us", f"{part} p50, {MICRO}s"),
            Column(f"{part}_p99_us", f"{part} p99, {MICRO}s"),
        )
    ]
