"""One sample: a load on a contender that runs, and the readings around it.

Figures are by name, their units in `results.Sample`. What is wrong with a sample is told in
`problems`; what could not be measured at all raises LoadTestError.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import blast, memory, meter
from .blast import Hold, Load, Result, Slow
from .hosts import Host, Running
from .results import SATURATION, Sample
from .workloads import Traffic, Workload

# A client that is this busy, or this late with what it could have sent, measures itself.
#
# Late is a p99, so it is asked only of a client that sent enough for one: of 60 uploads it would be
# a single wake-up. And some lateness is a matter of the machine, not of a fault: who computes keeps
# its processor until the timer's next tick (4 ms at 250 Hz), and clients of a mix that are more
# than there are processors wait for each other, too. So it is one tick, and some, for each client
# that shares a processor. What is within the bound is in the latency of every contender alike,
# since it counts from the planned moment.
MOST_BUSY = 0.95
MOST_LAG_US = 5_000.0
ENOUGH = 500  # of a client's sendings, for a p99 of them: five lie beyond it

MOST_FOREIGN = 0.05  # of the machine, for other processes, and for other machines on the host
OLD_HANDS = 50  # connections before an idle workload counts: what is allocated once
# One client process holds at most so many connections, and RLIMIT_NOFILE may be 20,000.
MOST_HELD = 9_000


@dataclass(frozen=True, slots=True)
class Bench:
    """What samples have in common. `seconds` of load after `warmup`; `long` where memory is watched
    over time; `baseline` CPU seconds per second of the idle machine."""

    host: Host
    program: Path
    seconds: float
    warmup: float
    long: float
    baseline: float
    most_foreign: float = MOST_FOREIGN


@dataclass(frozen=True, slots=True)
class Cost:
    """What was used between the begin and the end of a load; memory as it was at its end."""

    usage: meter.Usage
    own_cpu: float
    own_switches: int
    pss_kib: float
    kernel: memory.Kernel


class Sampler:
    """Takes samples of one contender while it runs."""

    def __init__(self, bench: Bench, running: Running) -> None:
        self._bench = bench
        self._running = running

    def take(self, workload: Workload, sample: Sample, knee: float | None, idle: int) -> None:
        """Fill in the figures and problems of `sample`.

        `knee`: what the contender reached at saturation, for an open loop. `idle`: how many
        connections it is to hold, in an idle workload.
        """
        match workload.kind:
            case "rate" | "stream":
                self._rate(workload, sample, knee)
            case "idle":
                self._idle(workload, sample, idle)
            case "memory":
                self._slow(workload, sample)
            case "mix":
                self._mix(workload, sample)

    # ---- workloads ---------------------------------------------------------------------------

    def _rate(self, workload: Workload, sample: Sample, knee: float | None) -> None:
        offered = 0.0
        if sample.load != SATURATION:
            assert sample.load is not None
            assert knee is not None
            offered = knee * int(sample.load) / 100
        before = memory.kernel()
        [result], cost = self._loaded(sample, [self._load(workload.traffic[""], offered)])
        self._kernel_memory(sample, before, cost.kernel)
        self._figures(sample, workload, [result], cost)
        if offered:
            sample.figures["offered"] = offered
            self._latency(sample, result)

    def _idle(self, workload: Workload, sample: Sample, idle: int) -> None:
        bench, traffic = self._bench, workload.traffic[""]
        to = self._to(traffic)
        blast.measure(bench.program, Hold(to, OLD_HANDS))
        time.sleep(0.3)
        before, pss = memory.kernel(), self._running.pss_kib()
        shares = [idle // -(-idle // MOST_HELD)] * -(-idle // MOST_HELD)
        orders = [
            Hold(
                to,
                share,
                on=0 if number else traffic.connections,
                rate=0 if number else traffic.rate,
                warmup=bench.warmup,
                seconds=bench.long,
            )
            for number, share in enumerate(shares)
        ]
        held = sum(shares)
        with memory.Recorder(self._running.pss_kib) as recorder:
            results, cost = self._loaded(sample, orders)
        sample.series = recorder.series
        self._figures(sample, workload, results[:1], cost)
        self._latency(sample, results[0])
        figures = sample.figures
        figures["offered"] = traffic.rate
        figures["connections"] = held
        figures["pss_each_kib"] = (cost.pss_kib - pss) / held
        for key in ("sockets_kib", "slab_kib", "machine_kib"):
            figures[key] = recorder.peak(key)
        for key in ("sockets", "slab", "machine"):
            grew = getattr(cost.kernel, key) - getattr(before, key)
            figures[f"{key}_each_kib"] = grew / held
        sample.notes["before"] = {"pss_kib": pss, "slab_kib": before.slab}
        alive = sum(result.alive for result in results)
        if alive < held:
            sample.problems.append(f"{held - alive} of {held} idle connections did not survive")
        if complaint := _unspliced(sample.notes["stats"], held):
            sample.problems.append(complaint)

    def _slow(self, workload: Workload, sample: Sample) -> None:
        traffic = workload.traffic[""]
        order = Slow(
            self._to(traffic), traffic.connections, int(traffic.rate), seconds=self._bench.long
        )
        pss = self._running.pss_kib()
        with memory.Recorder(self._running.pss_kib) as recorder:
            [result], cost = self._loaded(sample, [order])
        sample.series = recorder.series
        self._figures(sample, workload, [result], cost)
        for key in ("pss_kib", "sockets_kib", "slab_kib", "machine_kib"):
            sample.figures[key] = recorder.peak(key)
        sample.figures["growth_kib"] = max(
            point["pss_kib"] - pss + point["sockets_kib"] + point["slab_kib"]
            for point in recorder.series
        )

    def _mix(self, workload: Workload, sample: Sample) -> None:
        before = memory.kernel()
        orders = [self._load(traffic, traffic.rate) for traffic in workload.traffic.values()]
        results, cost = self._loaded(sample, orders)
        self._kernel_memory(sample, before, cost.kernel)
        self._figures(sample, workload, results, cost)
        sample.figures["offered"] = sum(traffic.rate for traffic in workload.traffic.values())
        for name, result in zip(workload.traffic, results, strict=True):
            sample.figures[f"{name}_rate"] = result.rate
            if result.us is None or sample.saturated:
                continue
            sample.figures[f"{name}_p50_us"] = result.us.p50
            if result.done >= ENOUGH:
                sample.figures[f"{name}_p99_us"] = result.us.p99

    # ---- parts -------------------------------------------------------------------------------

    def _to(self, traffic: Traffic) -> tuple[str, ...]:
        addresses: tuple[str, ...] = getattr(self._running.addresses, traffic.port)
        return addresses

    def _load(self, traffic: Traffic, rate: float) -> Load:
        return Load(
            self._to(traffic),
            kind=traffic.kind,
            connections=traffic.connections,
            path=traffic.path,
            size=traffic.size,
            close=traffic.close,
            rate=rate,
            warmup=self._bench.warmup,
            seconds=self._bench.seconds,
        )

    def _loaded(self, sample: Sample, orders: Sequence[blast.Order]) -> tuple[list[Result], Cost]:
        """Run the clients together; the readings are taken when all have begun, and ended."""
        bench, running = self._bench, self._running
        with ExitStack() as stack:
            clients = [stack.enter_context(blast.client(bench.program, one)) for one in orders]
            for client in clients:
                client.begin()
            before, own = meter.read(), running.own(memory=False)
            for client in clients:
                client.end()
            after, own_after = meter.read(), running.own()
            held = memory.kernel()  # while everything is connected
            sample.notes["stats"] = dict(running.stats())
            results = [client.result() for client in clients]
            usage = meter.usage(
                before,
                after,
                client=[client.pid for client in clients],
                origin=bench.host.origin_pids(),
                proxy=own_after.pids,
                baseline=bench.baseline,
            )
        cost = Cost(
            usage,
            max(own_after.cpu - own.cpu, 0.0),
            max(own_after.switches - own.switches, 0),
            own_after.pss_kib,
            held,
        )
        self._judge(sample, orders, results, usage)
        return results, cost

    def _judge(
        self,
        sample: Sample,
        orders: Sequence[blast.Order],
        results: Sequence[Result],
        usage: meter.Usage,
    ) -> None:
        planned = [
            result
            for order, result in zip(orders, results, strict=True)
            if not isinstance(order, Slow) and order.rate
        ]
        if planned:
            sample.figures["unsent"] = sum(result.unsent for result in planned)
        most_late = MOST_LAG_US * max(1.0, len(planned) / meter.PROCESSORS)
        for order, result in zip(orders, results, strict=True):
            if result.failed:
                kinds = ", ".join(f"{n} {kind}" for kind, n in result.errors.items() if n)
                sample.problems.append(f"errors: {kinds}; the first: {result.complaint}")
            if not isinstance(order, Load) or not order.rate:
                continue
            if result.busy > MOST_BUSY:
                sample.problems.append(f"the client was starved: {result.busy:.0%} busy")
            if result.done >= ENOUGH and result.lag_us > most_late:
                sample.problems.append(
                    f"the client was starved: its p99 was {result.lag_us / 1e3:.1f} ms late"
                )
        # What the hypervisor kept back (steal) is in no figure of cost, but rates and latencies are
        # those of another machine then.
        for who, took in (("other processes", usage.foreign), ("the hypervisor", usage.steal)):
            share = took / (usage.wall * meter.PROCESSORS)
            if share > self._bench.most_foreign:
                sample.problems.append(f"{who} took {share:.0%} of the machine")
                sample.notes["disturbed"] = True
        sample.notes["blast"] = [
            {
                "busy": result.busy,
                "lag_us": result.lag_us,
                "unsent": result.unsent,
                "reopened": result.reopened,
            }
            for result in results
        ]
        sample.notes["seconds"] = {
            "wall": usage.wall,
            "machine": usage.machine,
            "client": usage.client,
            "origins": usage.origin,
            "kthreads": usage.kthreads,
            "foreign": usage.foreign,
            "steal": usage.steal,
        }

    def _figures(
        self, sample: Sample, workload: Workload, results: Sequence[Result], cost: Cost
    ) -> None:
        """Rates, and costs per unit and per GB.

        The clock of the client and that of the readings differ by a wake-up of this driver: the
        rate is the client's own, a cost is per unit at that rate.
        """
        figures, usage = sample.figures, cost.usage
        rate = sum(result.rate for result in results)
        gigabytes = sum(result.bytes / result.seconds for result in results) / 1e9
        if workload.unit == "GB":
            rate = gigabytes
        if not rate:
            sample.problems.append("nothing came through")
            return
        units, volume = rate * usage.wall, gigabytes * usage.wall
        figures["rate"] = rate
        seconds = {
            "cpu": usage.machine,
            "cpu_own": cost.own_cpu,
            "cpu_rest": usage.rest,
            "kthreads": usage.kthreads,
            "softirq": usage.softirq,
        }
        for name, used in seconds.items():
            if workload.unit != "GB":
                figures[f"{name}_us"] = used / units * 1e6
            if workload.moves:
                figures[f"{name}_gb"] = used / volume
        if workload.moves:
            figures["gb_per_s"] = gigabytes
        figures["cpu_share"] = usage.machine / (usage.wall * meter.PROCESSORS)
        figures["cpu_own_share"] = cost.own_cpu / (usage.wall * meter.PROCESSORS)
        figures["switches"] = usage.switches / units
        figures["switches_own"] = cost.own_switches / units
        figures["pss_kib"] = cost.pss_kib

    def _latency(self, sample: Sample, result: Result) -> None:
        if result.us is None or sample.saturated:
            return
        for name in ("p50", "p90", "p99", "p999"):
            sample.figures[f"{name}_us"] = getattr(result.us, name)
        sample.histogram = list(result.histogram)

    def _kernel_memory(self, sample: Sample, before: memory.Kernel, after: memory.Kernel) -> None:
        sample.figures["sockets_kib"] = after.sockets - before.sockets
        sample.figures["slab_kib"] = after.slab - before.slab


def _unspliced(stats: Mapping[str, Any], held: int) -> str | None:
    """What is wrong when l7proxy on sockmap holds idle connections and has not spliced them all."""
    pairs = stats.get("pairs")
    if stats.get("datapath") != "sockmap" or not isinstance(pairs, dict):
        return None
    spliced = pairs.get("spliced", 0)
    return f"{spliced} of {held} connections were spliced" if spliced < held else None
