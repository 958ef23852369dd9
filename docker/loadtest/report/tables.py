"""The tables of a report as values; `markdown` and `html` only write them down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from loadtest.results import SATURATION, Results, Sample, WorkloadInfo

from .columns import Column, columns
from .goals import Outcome, goals
from .numbers import TIMES, number, ratio, span
from .statistics import DIRECT, Spread, Statistics, Where

LATENCY = ("offered", "rate", "p50_us", "p90_us", "p99_us", "p999_us", "cpu_share")
NOTHING = "-"


@dataclass(frozen=True, slots=True)
class Cell:
    """`text`, of `value` where it is a number; `span`: its least and greatest, where they differ
    from it."""

    text: str
    span: str = ""
    value: float | None = None

    @property
    def flat(self) -> str:
        """Both in one line."""
        return f"{self.text} ({self.span})" if self.span else self.text


@dataclass(frozen=True, slots=True)
class Row:
    """`contender`: whose it is, "" for nobody's."""

    cells: Sequence[Cell]
    contender: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """`words`: how many columns in front are text; the others are numbers."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Row] = field(default_factory=list)
    words: int = 1


@dataclass(frozen=True, slots=True)
class Section:
    """A workload with its tables."""

    workload: WorkloadInfo
    tables: Sequence[Table]


def sections(statistics: Statistics) -> Iterator[Section]:
    """Each workload that has samples."""
    for workload in statistics.results.workloads:
        loads = statistics.loads(workload.name)
        found = [_figures(statistics, workload, load) for load in loads if not _open(load)]
        if opened := [load for load in loads if _open(load)]:
            found.append(_latency(statistics, workload, opened))
        if loads:
            yield Section(workload, found)


def _open(load: str | None) -> bool:
    return load not in (SATURATION, None)


def _figures(statistics: Statistics, workload: WorkloadInfo, load: str | None) -> Table:
    where = Where(workload.name, load)
    shown = columns(workload, load, statistics.keys(where))
    names = statistics.contenders(where)
    direct = DIRECT in names
    head = ["contender"]
    for column in shown:
        head += [column.title, *_bases(column, direct)]
    rows = []
    for name in names:
        cells = [Cell(name)]
        for column in shown:
            cells.append(cell(statistics.spread(where, name, column.key), column.scale))
            cells += _ratios(statistics, where, name, column, direct)
        rows.append(Row([*cells, count(statistics, where, name)], name))
    caption = "At saturation" if load == SATURATION else "At a fixed rate"
    if workload.kind == "memory":
        caption = "Peaks of the memory while readers are slow"
    return Table(caption, [*head, "valid"], rows)


def _bases(column: Column, direct: bool) -> list[str]:
    return [f"{TIMES} direct"] * (column.direct and direct) + [f"{TIMES} best peer"] * column.best


def _ratios(
    statistics: Statistics, where: Where, name: str, column: Column, direct: bool
) -> Iterator[Cell]:
    if column.direct and direct:
        to_direct = statistics.ratio(where, name, column.key, DIRECT) if name != DIRECT else None
        yield factor(to_direct)
    if column.best:
        assert column.better is not None
        yield factor(statistics.ratio_to_best(where, name, column.key, column.better))


def _latency(statistics: Statistics, workload: WorkloadInfo, loads: Sequence[str | None]) -> Table:
    keys = {key for load in loads for key in statistics.keys(Where(workload.name, load))}
    shown = [one for one in columns(workload, loads[0], keys) if one.key in LATENCY]
    rows = []
    for load in loads:  # so that those stand together which are to be compared
        where = Where(workload.name, load)
        for name in statistics.contenders(where):
            cells = [Cell(name), Cell(f"{load} %")]
            cells += [cell(statistics.spread(where, name, c.key), c.scale) for c in shown]
            rows.append(Row([*cells, count(statistics, where, name)], name))
    head = ["contender", "of its knee", *(column.title for column in shown), "valid"]
    return Table("Open loop: latency from the time a request was due", head, rows, words=2)


def cell(spread: Spread | None, scale: float = 1.0) -> Cell:
    """Of a figure."""
    if spread is None:
        return Cell(NOTHING)
    scaled = Spread(spread.median * scale, spread.low * scale, spread.high * scale, spread.count)
    return Cell(number(scaled.median), span(scaled), scaled.median)


def factor(spread: Spread | None) -> Cell:
    """Of a ratio."""
    if spread is None:
        return Cell(NOTHING)
    return Cell(ratio(spread.median), span(spread, factor=True), spread.median)


def count(statistics: Statistics, where: Where, name: str) -> Cell:
    """How many of its samples count, of those that were taken."""
    return Cell(f"{len(statistics.valid(where, name))}/{len(statistics.taken(where, name))}")


def goal_table(results: Results) -> Table | None:
    """None when the run has nothing that a goal is about."""
    outcomes = goals(results)
    if not outcomes:
        return None
    head = ["goal", "asked", "this run", "met"]
    return Table("Goals", head, [Row(list(_goal(outcome))) for outcome in outcomes], words=2)


def _goal(outcome: Outcome) -> Iterator[Cell]:
    goal = outcome.goal
    yield Cell(f"{goal.text} ({outcome.note})" if outcome.note else goal.text)
    yield Cell(goal.asked)
    yield cell(outcome.got) if goal.base is None else factor(outcome.got)
    yield Cell("met" if outcome.met else "not met")


def invalid_table(samples: Sequence[Sample]) -> Table:
    """What does not count, and why."""
    head = ["workload", "contender", "round", "load", "why"]
    rows = [
        Row(
            [
                Cell(sample.workload),
                Cell(sample.contender),
                Cell(str(sample.round)),
                Cell(load_title(sample.load)),
                Cell("; ".join(sample.problems)),
            ],
            sample.contender,
        )
        for sample in samples
    ]
    return Table("Invalid samples", head, rows, words=5)


def load_title(load: str | None) -> str:
    """As a reader says it."""
    if load is None:
        return "fixed"
    return load if load == SATURATION else f"{load} %"


def contender_table(results: Results) -> Table:
    """Who was measured, in which version."""
    rows = [
        Row([Cell(one.name), Cell(one.title), Cell(one.version)], one.name)
        for one in results.contenders
    ]
    return Table("Contenders", ["name", "what it is", "version"], rows, words=3)


def facts(results: Results) -> list[tuple[str, str]]:
    """The head of the run."""
    head = results.head
    return [
        ("date", head.date),
        ("command", head.command),
        ("kernel", head.kernel),
        ("processors", head.processors),
        ("memory", f"{number(head.memory / 1024 / 1024)} GiB"),
        ("network", head.network),
        ("settings", head.settings),
        ("workers of each proxy", f"{head.workers}, where a workload has no number of its own"),
        ("rounds", f"{head.rounds} of {head.seconds:g} s for each sample, interleaved"),
        ("idle baseline", f"{head.baseline * 1e3:.0f} ms of CPU per second, subtracted"),
        ("samples", f"{sum(s.valid for s in results.samples)} of {len(results.samples)} valid"),
    ]


READING = (
    "A figure is the median over the rounds; least and greatest stand beside it. A ratio is taken "
    "within each round and the median of the ratios is told: two medians divided give another "
    "number. The best peer is the best of HAProxy, nginx and Envoy, in any mode, in that round and "
    "for that figure; it may be another one in the next.",
    "Saturation is a closed loop, as fast as it goes: no latency is told of it. What a contender "
    "reached there is its knee. Open loops offer 20, 50 and 80 % of each contender's own knee, of "
    "the same round, so contenders get different rates; latency counts from the time at which a "
    "request was due, not from when it could be sent. Where some of what was due had not been sent "
    "in 1 % more than its time, the open loop was saturated, too: it says so in place of a "
    "latency, and ranks above every latency where a median is taken.",
    "Machine CPU is all that the processors did (user, system, interrupts, softirq, kernel "
    "threads), less the idle baseline and less what foreign processes took; it includes the client "
    "and the origins. A contender's own CPU is that of its processes alone, and flatters those "
    "that let the kernel work.",
    "A sample is invalid when anything failed, when the kernel's log complained, when the client "
    "was starved or when other processes, or other machines on the host, took more than their "
    "share of the machine. It is listed with its reason and enters no median; one that others "
    "disturbed is taken again.",
)
