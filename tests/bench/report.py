"""Samples in, Markdown out. Medians of what was valid; ratios are medians of per-round ratios."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

from .workloads import Metric, Workload


@dataclass(slots=True)
class Sample:
    """One contender, one workload, one round. It is valid when nothing is wrong with it."""

    workload: str
    contender: str
    round: int
    figures: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: dict[str, object] = field(default_factory=dict)

    @property
    def valid(self) -> bool:
        """Whether it enters a median."""
        return not self.problems

    def as_json(self) -> dict[str, object]:
        """For the raw results."""
        return asdict(self) | {"valid": self.valid}


def add_overheads(samples: Iterable[Sample]) -> None:
    """`cpu_added`: machine CPU per unit above that of `direct` in the same round."""
    samples = list(samples)
    direct = {(s.workload, s.round): s for s in samples if s.contender == "direct" and s.valid}
    for sample in samples:
        base = direct.get((sample.workload, sample.round))
        if sample.valid and base and sample is not base and "cpu" in sample.figures:
            sample.figures["cpu_added"] = sample.figures["cpu"] - base.figures["cpu"]


def values(samples: Sequence[Sample], contender: str, key: str) -> dict[int, float]:
    """A figure by round, of valid samples."""
    return {
        s.round: s.figures[key]
        for s in samples
        if s.contender == contender and s.valid and math.isfinite(s.figures.get(key, math.nan))
    }


def ratio(samples: Sequence[Sample], contender: str, key: str, base: str) -> float | None:
    """The median over rounds of contender / base; None without a round that has both."""
    ours, theirs = values(samples, contender, key), values(samples, base, key)
    ratios = [ours[n] / theirs[n] for n in ours.keys() & theirs.keys() if theirs[n] > 0]
    return median(ratios) if ratios else None


def _spread(found: Sequence[float], form: str) -> str:
    if not found:
        return "-"
    middle = form.format(median(found))
    if len(found) == 1:
        return middle
    return f"{middle} ({form.format(min(found))}-{form.format(max(found))})"


def _columns(metric: Metric) -> list[str]:
    return [metric.title, *(f"x {base}" for base in metric.against)]


def table(workload: Workload, samples: Sequence[Sample], names: Sequence[str]) -> str:
    """One workload's table."""
    head = ["", *(title for metric in workload.metrics for title in _columns(metric)), "samples"]
    rows = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for name in names:
        mine = [s for s in samples if s.contender == name]
        if not mine:
            continue
        row = [name]
        for metric in workload.metrics:
            row.append(_spread(list(values(samples, name, metric.key).values()), metric.form))
            for base in metric.against:
                factor = ratio(samples, name, metric.key, base) if base != name else None
                row.append("-" if factor is None else f"{factor:.2f}")
        row.append(f"{sum(s.valid for s in mine)}/{len(mine)}")
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio of l7proxy (sockmap) to another that must be reached."""

    workload: str
    key: str
    base: str
    bound: float
    at_least: bool
    text: str


GOALS = (
    Goal("download", "rate", "direct", 0.75, True, "bulk rate, x direct"),
    Goal("download", "rate", "haproxy", 1.5, True, "bulk rate, x HAProxy"),
    Goal("download", "cpu", "haproxy", 1.0, False, "machine CPU per byte, x HAProxy"),
    Goal("requests", "rate", "haproxy", 1.0, True, "small requests/s, x HAProxy"),
    Goal("requests", "cpu", "haproxy", 1.0, False, "machine CPU per request, x HAProxy"),
    Goal("connections", "per_cpu_second", "haproxy", 0.5, True, "connections per CPU s, x HAProxy"),
    Goal(
        "connections",
        "per_rest_second",
        "haproxy",
        0.5,
        True,
        "the same, less client and origin, x HAProxy",
    ),
)


def goals(samples: Sequence[Sample], subject: str = "l7proxy-sockmap") -> str:
    """What was to be reached and what was."""
    rows = [f"| goal for {subject} | bound | got | |", "|---|---:|---:|---|"]
    for goal in GOALS:
        mine = [s for s in samples if s.workload == goal.workload]
        got = ratio(mine, subject, goal.key, goal.base)
        if got is None:
            continue
        met = got >= goal.bound if goal.at_least else got <= goal.bound
        sign = ">=" if goal.at_least else "<="
        verdict = "met" if met else "not met"
        rows.append(f"| {goal.text} | {sign} {goal.bound:.2f} | {got:.2f} | {verdict} |")
    return "\n".join(rows) if len(rows) > 2 else ""


LEGEND = """\
Medians over the rounds (min-max); a ratio is the median of the ratios within each round. Machine \
CPU is everything that the processors did (user, system, interrupts, softirq, kworkers), less the \
idle baseline and less other users' processes. "Added" is that less `direct` in the same round. \
"Machine - client - origin" takes off those two's processes; on loopback they also carry softirq \
work that a contender causes, so compare it with care. Latencies are at saturation. A sample with \
any error is void and counted in the last column only."""


def markdown(
    head: Sequence[tuple[str, str]],
    workloads: Sequence[Workload],
    samples: Sequence[Sample],
    names: Sequence[str],
) -> str:
    """The whole report."""
    parts = ["# Benchmark", "\n".join(f"- {key}: {value}" for key, value in head), LEGEND]
    for workload in workloads:
        mine = [s for s in samples if s.workload == workload.name]
        if mine:
            parts += [f"## {workload.title}", table(workload, mine, names)]
    if reached := goals(samples):
        parts += ["## Goals", reached]
    void = [s for s in samples if not s.valid]
    if void:
        lines = [f"- {s.workload}, {s.contender}, round {s.round}: {s.problems[0]}" for s in void]
        parts += ["## Void samples", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"
