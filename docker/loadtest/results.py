"""The results file: what was measured, of what, on what. JSON, one file for each run.

A figure that does not apply to a sample is absent. Contenders and workloads stand in the order of
the tables. A sample with a problem stays in the file and enters no median.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

VERSION = 1

# What a workload is like, and so which figures and plots it has.
KINDS = ("rate", "stream", "idle", "memory", "mix")

# The loads of a sample, in per cent of the contender's own knee, or as fast as it goes. A workload
# whose rate is not a question (idle, memory) has None.
SATURATION = "saturation"
LOADS = (SATURATION, "20", "50", "80")


class ResultsError(Exception):
    """A file that is no results file of this version; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Head:
    """What the figures depend on.

    `memory` in KiB, `seconds` of load in a sample, `baseline` CPU seconds per second that the idle
    machine used (subtracted from every figure).
    """

    date: str
    command: str
    kernel: str
    processors: str
    memory: int
    network: str
    settings: str
    workers: int
    rounds: int
    seconds: float
    baseline: float


@dataclass(frozen=True, slots=True)
class ContenderInfo:
    """A contender as it was. `peer`: a proxy of others, which ratios are taken to."""

    name: str
    title: str
    version: str
    peer: bool
    config: str


@dataclass(frozen=True, slots=True)
class WorkloadInfo:
    """A workload. `unit`: what its rate counts, and its costs are per."""

    name: str
    title: str
    unit: str
    kind: str


@dataclass(slots=True)
class Sample:
    """One contender under one load of one workload, in one round.

    Figures, each absent where it does not apply. "Machine" is all that the processors did less the
    idle baseline and other users' processes; "own" the contender's processes; "rest" the machine
    less client and origins.

    - rate            units per second (GB/s where the unit is GB); offered: the open loop's plan,
                      and unsent: how many of its units were due and never sent
    - gb_per_s        10^9 bytes of payload per second
    - p50_us p90_us p99_us p999_us    from the planned moment; never at saturation, and so not in an
                      open loop that left some unsent
    - cpu_us cpu_own_us cpu_rest_us kthreads_us softirq_us    CPU microseconds per unit
    - cpu_gb cpu_own_gb cpu_rest_gb kthreads_gb softirq_gb    CPU seconds per GB
    - cpu_share cpu_own_share         of all processors together
    - switches switches_own           context switches per unit, of the machine and of its own
    - pss_kib                         of its processes under load; the most where there is a series
    - sockets_kib slab_kib machine_kib    above what it was before (see `memory`); the most of a
                                      series
    - growth_kib      memory workloads: the most that PSS, sockets and slabs grew together
    - connections, pss_each_kib sockets_each_kib slab_each_kib machine_each_kib    idle workloads:
                      how many were held, and KiB for each of them
    - requests_rate requests_p50_us requests_p99_us, and so on with connects_, downloads_, uploads_:
                      the parts of the mix

    `histogram`: (latency in us, count). `series`: memory over time, each point with `t` in seconds
    from the beginning, pss_kib, sockets_kib, slab_kib, machine_kib.
    """

    workload: str
    contender: str
    round: int
    load: str | None = None
    problems: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    histogram: list[tuple[float, int]] | None = None
    series: list[dict[str, float]] | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def valid(self) -> bool:
        """Whether it enters a median."""
        return not self.problems

    @property
    def saturated(self) -> bool:
        """Whether an open loop asked for more than could be had. It is no error: rates and costs
        stand. But its latencies grew for as long as it was measured."""
        return self.figures.get("unsent", 0.0) > 0


@dataclass(frozen=True, slots=True)
class Results:
    """One run."""

    head: Head
    contenders: Sequence[ContenderInfo]
    workloads: Sequence[WorkloadInfo]
    samples: Sequence[Sample]


def complete(samples: Sequence[Sample]) -> bool:
    """Whether everything that was taken was valid, if not at its first try."""

    def place(sample: Sample) -> tuple[str, str, int, str | None]:
        return sample.workload, sample.contender, sample.round, sample.load

    return {place(s) for s in samples} == {place(s) for s in samples if s.valid}


def dumps(results: Results) -> str:
    """The text of the file."""
    raw = {
        "version": VERSION,
        "head": asdict(results.head),
        "contenders": [asdict(contender) for contender in results.contenders],
        "workloads": [asdict(workload) for workload in results.workloads],
        "samples": [asdict(sample) | {"valid": sample.valid} for sample in results.samples],
    }
    return json.dumps(raw, allow_nan=False, separators=(",", ":")) + "\n"


def loads(text: str, where: str = "results") -> Results:
    """The run in a text; ResultsError when it is none."""
    try:
        raw = json.loads(text)
        if raw["version"] != VERSION:
            raise ResultsError(f"{where}: version {raw['version']}, this reads {VERSION}")
        return Results(
            head=Head(**raw["head"]),
            contenders=[ContenderInfo(**contender) for contender in raw["contenders"]],
            workloads=[WorkloadInfo(**workload) for workload in raw["workloads"]],
            samples=[_sample(sample) for sample in raw["samples"]],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"{where}: not a results file: {error!r}") from None


def _sample(raw: Mapping[str, Any]) -> Sample:
    fields = {name: value for name, value in raw.items() if name != "valid"}
    if fields.get("histogram") is not None:
        fields["histogram"] = [(latency, count) for latency, count in fields["histogram"]]
    return Sample(**fields)


def merged(runs: Sequence[Results]) -> Results:
    """Several runs of different workloads as one; ResultsError where they are not alike.

    Nothing is compared across runs: a ratio is one within a round, and no workload is in two runs.
    """
    first = runs[0]
    for name in ("kernel", "processors", "network", "settings", "workers", "rounds", "seconds"):
        values = {getattr(run.head, name) for run in runs}
        if len(values) > 1:
            raise ResultsError(f"not one run: {name} is {' and '.join(map(str, values))}")
    contenders: dict[str, ContenderInfo] = {}
    for run in sorted(runs, key=lambda run: -len(run.contenders)):
        for one in run.contenders:
            known = contenders.setdefault(one.name, one)
            if known.version != one.version:
                raise ResultsError(f"not one run: {one.name} is {known.version} and {one.version}")
    workloads: dict[str, WorkloadInfo] = {}
    for run in runs:
        taken = {sample.workload for sample in run.samples}
        for workload in (one for one in run.workloads if one.name in taken):
            if workload.name in workloads:
                raise ResultsError(f"{workload.name} is in two of the runs")
            workloads[workload.name] = workload
    head = replace(
        first.head,
        command="; ".join(run.head.command for run in runs),
        baseline=max(run.head.baseline for run in runs),
    )
    samples = [sample for run in runs for sample in run.samples]
    return Results(head, list(contenders.values()), list(workloads.values()), samples)


def write(results: Results, path: Path) -> None:
    """The file appears whole or not at all."""
    draft = path.with_suffix(".tmp")
    draft.write_text(dumps(results))
    draft.replace(path)


def read(path: Path) -> Results:
    """Raises OSError, or ResultsError that names the file."""
    return loads(path.read_text(), str(path))
