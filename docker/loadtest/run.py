"""A whole run: rounds over workloads and contenders, and what makes a sample count.

- Rounds are interleaved, and the order of the contenders moves on by one in each, so that what
  drifts (temperature, neighbours, fragmentation) falls on all of them alike.
- A contender is started anew for each workload of each round: no sample inherits the memory, pipes
  or leftovers of another workload. Within it, saturation comes first. What it reached there is its
  knee of this round; the open loops offer shares of that.
- Without a valid knee there are no open loops: their shares would be shares of nothing.
- A sample that others on the machine disturbed is taken again, some times at most; both are told.
  Not where memory is measured: what was allocated for the first is there for the second.
- Whatever goes wrong is told in the sample's `problems`; nothing that happens to one sample ends
  the run.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from . import machine, meter
from .checks import check
from .contenders import CONTENDERS, INSTALL, Contender
from .hosts import Host, LoadTestError, Order, Running
from .procs import child
from .results import SATURATION, ContenderInfo, Sample
from .sampling import Bench, Sampler
from .workloads import Workload

SETTLE = 0.3  # seconds after a contender, for closed sockets and deferred work


class Progress(Protocol):
    """Who is told how the run goes on."""

    def start(self, sample: Sample) -> None:
        """A sample begins; it has no figures yet."""

    def done(self, sample: Sample) -> None:
        """A sample was taken."""

    def again(self) -> None:
        """The one just taken will be taken once more."""

    def skip(self, count: int) -> None:
        """So many of the samples that were planned will not be taken."""

    def say(self, text: str) -> None:
        """A line for the reader."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run consists of. `loads`: those of each workload that are in here."""

    contenders: Sequence[Contender]
    workloads: Sequence[Workload]
    loads: Sequence[str | None]
    rounds: int
    workers: int

    def loads_of(self, workload: Workload) -> list[str | None]:
        """Its samples for each contender and round, saturation first."""
        return [load for load in workload.loads if load in self.loads]

    def steps(self) -> Iterator[tuple[int, Workload, Contender]]:
        """Everything in its order: (round, workload, contender)."""
        for number in range(1, self.rounds + 1):
            turn = (number - 1) % max(len(self.contenders), 1)
            order = [*self.contenders[turn:], *self.contenders[:turn]]
            for workload in self.workloads:
                for contender in order:
                    if workload.fits(contender):
                        yield number, workload, contender

    def total(self) -> int:
        """How many samples that makes."""
        return sum(len(self.loads_of(workload)) for _, workload, _ in self.steps())

    def order(self, workload: Workload, contender: Contender, capacity: int) -> Order:
        """What is to be started."""
        return Order(contender.name, workload.workers or self.workers, min(workload.room, capacity))


def baseline(looks: int = 4, seconds: float = 0.5) -> float:
    """CPU seconds per second that the machine uses while nothing of ours runs.

    The least of some looks: what the kernel does for other people's load is no baseline, and is not
    told apart from it.
    """
    found = []
    for _ in range(looks):
        before = meter.read()
        time.sleep(seconds)
        idle = meter.usage(before, meter.read())
        found.append(idle.machine / idle.wall)
    return max(min(found), 0.0)


def present(host: Host, wanted: Sequence[str], say: Callable[[str], None]) -> list[ContenderInfo]:
    """Those of the contenders that are there, with their versions; says who is left out."""
    versions = host.versions(wanted)
    found = []
    for contender in CONTENDERS:
        if contender.name not in versions:
            continue
        version = versions[contender.name]
        if not version:
            hint = INSTALL.get(contender.program, "")
            say(f"{contender.name}: left out, not installed ({hint})")
            continue
        found.append(
            ContenderInfo(contender.name, contender.title, version, contender.peer, config="")
        )
    return found


class Run:
    """Takes the samples of a plan; `samples` has those taken so far, at any moment."""

    def __init__(
        self,
        plan: Plan,
        host: Host,
        bench: Bench,
        progress: Progress,
        profile: Path | None = None,
        patience: float = 0.0,
        again: int = 0,
    ) -> None:
        """`patience`: seconds that it may wait for the machine to be left alone, each time.
        `again`: how often a sample may be repeated that was not."""
        self.samples: list[Sample] = []
        self._plan = plan
        self._host = host
        self._bench = bench
        self._progress = progress
        self._profile = profile
        self._patience = patience
        self._again = again
        self._log = machine.KernelLog()

    def go(self) -> None:
        """All of them."""
        for number, workload, contender in self._plan.steps():
            self._settle()
            self._visit(number, workload, contender)

    def _settle(self) -> None:
        """Let what was before come to rest; while others work here, wait, but not for ever."""
        deadline = time.monotonic() + self._patience
        while True:
            before = meter.read()
            time.sleep(SETTLE)
            usage = meter.usage(before, meter.read(), origin=self._host.origin_pids())
            share = usage.foreign / (usage.wall * meter.PROCESSORS)
            if share <= self._bench.most_foreign or time.monotonic() > deadline:
                return

    def _visit(self, number: int, workload: Workload, contender: Contender) -> None:
        """Start a contender, take its samples of one workload, end it."""
        loads = self._plan.loads_of(workload)
        workers = workload.workers or self._plan.workers
        capacity = self._host.capacity(contender.name, workers)
        order = self._plan.order(workload, contender, capacity)
        taken: list[Sample] = []
        try:
            with self._host.running(order) as running:
                check(running.addresses, self._host.origins)
                sampler = Sampler(self._bench, running)
                knee: float | None = None
                for load in loads:
                    if knee is None and load not in (SATURATION, None):
                        break
                    sample = Sample(workload.name, contender.name, number, load)
                    idle = min(workload.idle, capacity - 100)
                    if idle < workload.idle:
                        sample.notes["idle"] = f"{capacity} connections are the most it can hold"
                    taken.append(self._undisturbed(sampler, workload, sample, running, knee, idle))
                    if load == SATURATION and taken[-1].valid:
                        knee = taken[-1].figures["rate"]
        except (LoadTestError, OSError, subprocess.SubprocessError) as error:
            # Not up, or other answers than the origins': nothing was measured.
            if taken:
                taken[0].problems.append(str(error))
            else:
                problems = [str(error)]
                taken.append(Sample(workload.name, contender.name, number, loads[0], problems))
                self._finish(taken[0])
        if skipped := len(loads) - len(taken):
            self._progress.skip(skipped)

    def _undisturbed(
        self,
        sampler: Sampler,
        workload: Workload,
        sample: Sample,
        running: Running,
        knee: float | None,
        idle: int,
    ) -> Sample:
        """Take it, and again while others disturb it; the last one."""
        left = self._again if workload.kind in ("rate", "stream", "mix") else 0
        while True:
            next_one = replace(sample, problems=[], figures={}, notes=dict(sample.notes))
            self._progress.start(sample)
            self._sample(sampler, workload, sample, running, knee, idle)
            if not left or "disturbed" not in sample.notes:
                return sample
            left -= 1
            sample = next_one
            self._progress.again()
            self._settle()

    def _sample(
        self,
        sampler: Sampler,
        workload: Workload,
        sample: Sample,
        running: Running,
        knee: float | None,
        idle: int,
    ) -> None:
        counters = machine.tcp_counters()
        self._log.alarms()
        try:
            with self._profiled(sample):
                sampler.take(workload, sample, knee, idle)
        except (LoadTestError, OSError, subprocess.SubprocessError) as error:
            sample.problems.append(str(error))
        sample.problems += running.problems() + self._host.problems()
        sample.problems += [f"kernel log: {line}" for line in self._log.alarms()]
        sample.notes["tcp"] = {
            name: value - counters[name] for name, value in machine.tcp_counters().items()
        }
        self._finish(sample)

    def _finish(self, sample: Sample) -> None:
        self.samples.append(sample)
        self._progress.done(sample)

    def _profiled(self, sample: Sample) -> AbstractContextManager[object]:
        """`perf record` of the whole machine around a sample, where it was asked for."""
        if self._profile is None:
            return nullcontext()
        parts = (sample.workload, sample.contender, str(sample.load or "fixed"), str(sample.round))
        return _perf(self._profile, "-".join(parts))


@contextmanager
def _perf(directory: Path, name: str) -> Iterator[None]:
    perf = machine.find("perf")
    if perf is None:
        raise LoadTestError("perf is missing: apt-get install linux-perf")
    directory.mkdir(parents=True, exist_ok=True)
    # cpu-clock: virtual machines often have no hardware counters.
    argv = [perf, "record", "-a", "-g", "-F", "499", "-e", "cpu-clock"]
    argv += ["-o", str(directory / f"{name}.data")]
    with child(argv, directory / f"{name}.log"):
        yield
