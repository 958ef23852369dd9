"""What every command that measures has in common: options, the run, the files it leaves."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from . import blast, machine, report, results, run
from .contenders import BY_NAME as CONTENDERS
from .hosts import Host, LoadTestError
from .machine import BUILD
from .progress import progress
from .results import LOADS, ContenderInfo, Head, Results
from .sampling import MOST_FOREIGN, Bench
from .workloads import BY_NAME as WORKLOADS
from .workloads import DEFAULT, QUICK, QUICK_LOADS

OUTPUT = BUILD / "loadtest"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of a run. `plan` reads them."""
    parser.epilog = (
        f"contenders: {', '.join(CONTENDERS)}; "
        f"workloads: {', '.join(WORKLOADS)} (by default {', '.join(DEFAULT)})"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="5 by default")
    parser.add_argument("--seconds", type=float, metavar="S", help="of load in a sample (3)")
    parser.add_argument(
        "--long", type=float, metavar="S", help="where memory is watched over time (10)"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="of each proxy"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME,...",
        help="these contenders, workloads or loads (saturation, 20, 50, 80) only; may be repeated",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one round of short samples: to see it work"
    )
    parser.add_argument(
        "--max-foreign",
        type=float,
        default=MOST_FOREIGN,
        metavar="SHARE",
        help="a sample is invalid if others took more of the machine: other processes, or the "
        "hypervisor (%(default)s)",
    )
    parser.add_argument(
        "--again",
        type=int,
        metavar="N",
        help="how often a sample that others disturbed is taken again at most (2; with --quick 0)",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=20.0,
        metavar="S",
        help="how long to wait for others to end before each contender (%(default)s)",
    )
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="DIR",
        help="`perf record` of each sample goes there (it costs: don't quote the figures)",
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR")


def plan(
    options: argparse.Namespace, default: Sequence[str] = DEFAULT, quick: Sequence[str] = QUICK
) -> run.Plan:
    """What was asked for, of `default` or `quick` where no workload was named.

    Raises LoadTestError for a name that nothing has.
    """
    names = [name for item in options.only for name in item.split(",") if name]
    for name in names:
        if name not in CONTENDERS and name not in WORKLOADS and name not in LOADS:
            raise LoadTestError(f"{name}: neither a contender nor a workload nor a load")
    loads: Sequence[str | None] = QUICK_LOADS if options.quick else (*LOADS, None)
    if asked := [load for load in LOADS if load in names]:
        # An open loop needs the knee, and what has no rate of its own is not meant.
        loads = [load for load in LOADS if load in asked or load == LOADS[0]] + [None]
    workloads = [name for name in WORKLOADS if name in names] or (
        quick if options.quick else default
    )
    contenders = [name for name in CONTENDERS if name in names] or list(CONTENDERS)
    return run.Plan(
        contenders=[CONTENDERS[name] for name in contenders],
        workloads=[WORKLOADS[name] for name in WORKLOADS if name in workloads],
        loads=loads,
        rounds=options.rounds or (1 if options.quick else 5),
        workers=options.workers,
    )


def bench(options: argparse.Namespace, host: Host) -> Bench:
    """The measured times, and the machine's idle baseline (taken now: two seconds)."""
    quick = options.quick
    return Bench(
        host=host,
        program=blast.build(),
        seconds=options.seconds or (1.0 if quick else 3.0),
        warmup=0.3 if quick else 0.5,
        long=options.long or (3.0 if quick else 10.0),
        baseline=run.baseline(),
        most_foreign=options.max_foreign,
    )


def drive(options: argparse.Namespace, host: Host, wanted: run.Plan) -> int:
    """Run it on this host, and leave the results; also when it is interrupted.

    Returns the exit code: 0 when every sample was valid, at the last of its tries; 1 when some were
    not, or it was cut short.
    """
    machine.raise_limits()
    interrupted = False
    with host:
        there = run.present(host, [one.name for one in wanted.contenders], _say)
        if not there:
            raise LoadTestError("no contender is there")
        names = {info.name for info in there}
        wanted = replace(wanted, contenders=[one for one in wanted.contenders if one.name in names])
        there = [replace(info, config=_configuration(host, wanted, info)) for info in there]
        tools = bench(options, host)
        with progress(wanted.total()) as watcher:
            running = run.Run(
                *(wanted, host, tools, watcher),
                profile=options.profile,
                patience=options.patience,
                again=_again(options),
            )
            try:
                running.go()
            except KeyboardInterrupt:
                interrupted = True
        if interrupted:
            _say("interrupted: reporting what there is")
        found = Results(
            head=_head(options, host, wanted, tools),
            contenders=there,
            workloads=[workload.info for workload in wanted.workloads],
            samples=running.samples,
        )
    leave(found, options.output)
    if options.profile:
        _say(f"profiles: {options.profile}/*.data (perf report -i)")
    return 0 if not interrupted and results.complete(found.samples) else 1


def leave(found: Results, output: Path) -> None:
    """Write the raw results, and the reports of them."""
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
    results.write(found, path)
    _say(f"raw results: {path}")
    for written in report.write(found, path):
        _say(f"report: {written}")


def _configuration(host: Host, wanted: run.Plan, info: ContenderInfo) -> str:
    """As it is for the first workload that asks it; another one may have room for more."""
    contender = CONTENDERS[info.name]
    for workload in wanted.workloads:
        if workload.fits(contender):
            capacity = host.capacity(info.name, workload.workers or wanted.workers)
            return host.configuration(wanted.order(workload, contender, capacity))
    return ""


def _head(options: argparse.Namespace, host: Host, wanted: run.Plan, tools: Bench) -> Head:
    facts = machine.facts()
    return Head(
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        command=options.typed,
        kernel=facts.kernel,
        processors=facts.processors,
        memory=facts.memory,
        network=host.network,
        settings=facts.settings,
        workers=wanted.workers,
        rounds=wanted.rounds,
        seconds=tools.seconds,
        baseline=tools.baseline,
    )


def _again(options: argparse.Namespace) -> int:
    if options.again is None:
        return 0 if options.quick else 2
    return int(options.again)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
