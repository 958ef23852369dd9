"""The driver: round robin over workloads and contenders, results to stdout and build/bench/."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import cpu, machine, report
from .contenders import Contender, contenders
from .origins import Origins, origins
from .procs import BenchError, child
from .report import Sample
from .workloads import WORKLOADS, Bench, Workload

DEFAULT_WORKLOADS = ("download", "requests", "connections", "idle")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    names = [contender.name for contender in contenders()]
    loads = [workload.name for workload in WORKLOADS]
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.bench",
        description="l7proxy against a direct connection, HAProxy and Envoy, on loopback.",
        epilog=f"contenders: {', '.join(names)}; workloads: {', '.join(loads)} "
        f"(by default {', '.join(DEFAULT_WORKLOADS)})",
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--seconds", type=float, default=4.0, help="of load in a sample")
    parser.add_argument("--workers", type=int, default=cpu.PROCESSORS, help="of each proxy")
    parser.add_argument("--idle-connections", type=int, default=5000, metavar="N")
    parser.add_argument("--idle-seconds", type=float, default=10.0, metavar="S")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 2 s: to see it work")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME,...",
        help="these workloads or contenders only; may be repeated",
    )
    parser.add_argument(
        "--max-foreign",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="void a sample in which other processes took more of the machine than this",
    )
    parser.add_argument(
        "--host-sysctls",
        action="store_true",
        help="keep the host's TCP settings in the namespace, not the kernel's defaults",
    )
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="DIRECTORY",
        help="`perf record -a -g` of each sample goes there (it costs: don't quote the figures)",
    )
    parser.add_argument("--output", type=Path, default=machine.OUTPUT, metavar="DIRECTORY")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.seconds = 2, 2.0
        options.idle_connections, options.idle_seconds = 1000, 3.0
    options.only = [name for item in options.only for name in item.split(",") if name]
    for name in options.only:
        if name not in names and name not in loads:
            parser.error(f"{name}: neither a contender nor a workload")
    chosen = [workload.name for workload in WORKLOADS if workload.name in options.only]
    options.workloads = chosen or list(DEFAULT_WORKLOADS)
    options.contenders = [name for name in names if name in options.only] or names
    return options


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _versions(names: Sequence[str]) -> list[tuple[Contender, str]]:
    """The contenders that were asked for, and their versions; "" for one that is not installed."""
    found = [(contender, contender.version()) for contender in contenders()]
    found = [(contender, version) for contender, version in found if contender.name in names]
    for contender, version in found:
        if not version:
            _say(f"{contender.name}: left out, not installed ({contender.missing()})")
    return found


def _baseline(seconds: float = 2.0) -> float:
    """CPU seconds per second that the machine uses while nothing of ours runs."""
    before = cpu.read()
    time.sleep(seconds)
    idle = cpu.usage(before, cpu.read())
    return max(idle.machine / idle.wall, 0.0)


class Run:
    """One whole benchmark."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self._options = options
        self._scratch = scratch
        self._blast = machine.build_blast()
        self._log = machine.KernelLog()
        self.baseline = _baseline()
        self.samples: list[Sample] = []

    def sample(
        self, workload: Workload, contender: Contender, number: int, behind: Origins
    ) -> Sample:
        """Start the contender, take one sample, end it; never raises for what went wrong."""
        options = self._options
        taken = Sample(workload.name, contender.name, number)
        counters = machine.tcp_counters()
        self._log.alarms()
        workers = workload.workers or options.workers
        try:
            with (
                contender.running(behind.ports, workers, self._scratch) as proxy,
                self._profile(f"{workload.name}-{contender.name}-{number}"),
            ):
                bench = Bench(
                    blast=self._blast,
                    origins=behind,
                    proxy=proxy,
                    seconds=options.seconds,
                    idle_connections=options.idle_connections,
                    idle_seconds=options.idle_seconds,
                    baseline=self.baseline,
                )
                try:
                    taken.figures = workload.sample(bench)
                finally:
                    taken.problems += bench.problems + proxy.problems()
                    taken.notes["stats"] = proxy.stats()
        except (BenchError, OSError, subprocess.SubprocessError) as error:
            taken.problems.append(str(error))
        taken.notes["tcp"] = {
            name: value - counters[name] for name, value in machine.tcp_counters().items()
        }
        taken.problems += [f"kernel log: {line}" for line in self._log.alarms()]
        foreign = taken.figures.get("seconds_foreign", 0.0)
        share = foreign / (taken.figures.get("seconds_wall", 1.0) * cpu.PROCESSORS)
        if share > options.max_foreign:
            taken.problems.append(f"other processes took {share:.0%} of the machine")
        return taken

    @contextmanager
    def _profile(self, name: str) -> Iterator[None]:
        """`perf record` of the whole machine around a sample, where it was asked for."""
        directory: Path | None = self._options.profile
        if directory is None:
            yield
            return
        perf = machine.find("perf")
        if perf is None:
            raise BenchError("perf is missing: apt-get install linux-perf")
        directory.mkdir(parents=True, exist_ok=True)
        # cpu-clock: virtual machines often have no hardware counters.
        argv = [perf, "record", "-a", "-g", "-F", "499", "-e", "cpu-clock"]
        argv += ["-o", str(directory / f"{name}.data")]
        with child(argv, self._scratch / "perf.log"):
            yield

    def go(self, present: Sequence[Contender]) -> None:
        """All rounds. The order within a round moves on by one each time."""
        loads = [load for load in WORKLOADS if load.name in self._options.workloads]
        with origins(self._blast, self._scratch) as behind:
            for number in range(1, self._options.rounds + 1):
                turn = (number - 1) % len(present)
                for load in loads:
                    if load.rounds is not None and number > load.rounds:
                        continue
                    for contender in [*present[turn:], *present[:turn]]:
                        if contender.workloads and load.name not in contender.workloads:
                            continue
                        taken = self.sample(load, contender, number, behind)
                        self.samples.append(taken)
                        self._progress(taken)
                        time.sleep(0.3)  # let closed sockets and deferred work settle

    def _progress(self, taken: Sample) -> None:
        rounds = self._options.rounds
        figure = taken.figures.get("rate", taken.figures.get("pss", float("nan")))
        state = "" if taken.valid else f"  VOID: {taken.problems[0]}"
        _say(
            f"round {taken.round}/{rounds}  {taken.workload:<12}{taken.contender:<18}"
            f"{figure:>12,.2f}{state}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: every sample was valid; 1: some were void; 2: it could not run."""
    options = _arguments(argv)
    command = shlex.join(["python3", "-m", "tests.bench", *(argv or sys.argv[1:])])
    try:
        isolated = machine.isolate(set_sysctls=not options.host_sysctls)
        machine.raise_limits()
        versions = _versions(options.contenders)
        present = [contender for contender, version in versions if version]
        if not present:
            raise BenchError("no contender is installed")
        with tempfile.TemporaryDirectory(prefix="l7proxy-bench-") as scratch:
            Path(scratch).chmod(0o755)  # nginx and l7proxy may give up root
            run = Run(options, Path(scratch))
            try:
                run.go(present)
            except KeyboardInterrupt:
                _say("interrupted: reporting what there is")
    except BenchError as error:
        _say(f"bench: {error}")
        return 2

    report.add_overheads(run.samples)
    facts = machine.describe()
    head = [
        ("date", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())),
        ("command", f"`{command}`"),
        ("kernel", facts["kernel"]),
        ("processors", facts["processors"]),
        ("network", "loopback, own namespace" if isolated else "loopback of the host"),
        ("settings", facts["settings"]),
        *((contender.name, version or "not installed") for contender, version in versions),
        ("workers of each proxy", str(options.workers)),
        ("rounds", f"{options.rounds} of {options.seconds:g} s, interleaved"),
        ("idle baseline", f"{run.baseline * 1e3:.0f} ms of CPU per second, subtracted"),
        ("steal", f"{_worst_steal(run.samples):.1%} at worst"),
    ]
    loads = [load for load in WORKLOADS if load.name in options.workloads]
    names = [contender.name for contender in present]
    text = report.markdown(head, loads, run.samples, names)
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    stem.with_suffix(".md").write_text(text)
    raw = {"head": dict(head), "samples": [taken.as_json() for taken in run.samples]}
    stem.with_suffix(".json").write_text(json.dumps(raw, indent=1) + "\n")
    _say(f"raw results: {stem}.json")
    if options.profile:
        _say(f"profiles: {options.profile}/*.data (perf report -i)")
    return 0 if all(taken.valid for taken in run.samples) else 1


def _worst_steal(samples: Sequence[Sample]) -> float:
    shares = [
        taken.figures["seconds_steal"] / taken.figures["seconds_wall"] / cpu.PROCESSORS
        for taken in samples
        if taken.figures.get("seconds_wall")
    ]
    return max(shares, default=0.0)
