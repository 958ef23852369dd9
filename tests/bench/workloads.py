"""What one sample of each workload is.

A workload is a function from a `Bench` (everything running) to figures by name, and a table of
which figures are printed. It raises `BenchError` for a sample that could not be taken, and lists in
`Bench.problems` what makes one void: a void sample is kept in the raw results and enters no median.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from . import cpu
from .clients import Watchdog, blast, close, line_of
from .contenders import Running
from .machine import find
from .origins import Origins, Ports
from .procs import BenchError

WARMUP = 0.5  # seconds of load before anything counts
KEEP_ALIVE = 50  # connections of the `requests` workload
CONCURRENCY = 64  # connections at once of the `connections` workload

Figures = dict[str, float]


@dataclass(slots=True)
class Bench:
    """One sample's surroundings."""

    blast: Path
    origins: Origins
    proxy: Running
    seconds: float
    idle_connections: int
    idle_seconds: float
    baseline: float
    problems: list[str] = field(default_factory=list)

    @property
    def ports(self) -> Ports:
        """Where the client goes."""
        return self.proxy.ports

    @property
    def patience(self) -> float:
        """Seconds after which a client is stuck."""
        return self.seconds + self.idle_seconds + 20

    def usage(
        self, before: cpu.Reading, after: cpu.Reading, client: int | None, ended: float = 0.0
    ) -> cpu.Usage:
        """CPU between two readings, attributed."""
        return cpu.usage(
            before,
            after,
            client=[client] if client else [],
            origin=self.origins.pids,
            proxy=self.proxy.pids,
            ended_client=ended,
            baseline=self.baseline,
        )


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure that is printed. `against`: contenders that a ratio is printed to."""

    key: str
    title: str
    form: str
    against: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Workload:
    """`workers` None: as many as the run says. `rounds` None: all of them."""

    name: str
    title: str
    sample: Callable[[Bench], Figures]
    metrics: tuple[Metric, ...]
    workers: int | None = None
    rounds: int | None = None


def _costs(usage: cpu.Usage, units: float, scale: float) -> Figures:
    """CPU seconds per unit, times `scale`, in every attribution; and the raw seconds."""
    return {
        "cpu": usage.machine / units * scale,
        "cpu_rest": usage.rest / units * scale,
        "cpu_proxy": usage.proxy / units * scale,
        "cpu_client": usage.client / units * scale,
        "cpu_origin": usage.origin / units * scale,
        "cpu_kthreads": usage.kthreads / units * scale,
        "cpu_softirq": usage.softirq / units * scale,
        "switches": usage.switches / units,
        "seconds_wall": usage.wall,
        "seconds_machine": usage.machine,
        "seconds_foreign": usage.foreign,
        "seconds_steal": usage.steal,
        "units": units,
    }


def _timed(bench: Bench, *arguments: object) -> tuple[Figures, cpu.Usage, dict[str, float]]:
    """Run a client that says "begin" and "end": what it did between, at what cost, last line."""
    with blast(bench.blast, bench.patience, *arguments) as client:
        begin = line_of(client, "begin")
        before = cpu.read()
        end = line_of(client, "end")
        after = cpu.read()
        usage = bench.usage(before, after, client.pid)
        latency = line_of(client, "latency") if arguments[0] == "connect" else {}
    done = end["done"] - begin["done"]
    if end["errors"]:
        bench.problems.append(f"{end['errors']:.0f} failed connections")
    if not done:
        raise BenchError("nothing came through")
    seconds = (end["ns"] - begin["ns"]) / 1e9
    return {"done": done, "seconds": seconds, "rate": done / seconds}, usage, latency


def _bulk(bench: Bench, verb: str) -> Figures:
    """One stream for some seconds; GB are 10^9 bytes."""
    host, port = "127.0.0.1", bench.ports.blast
    figures, usage, _ = _timed(bench, verb, host, port, WARMUP, bench.seconds)
    # The clock of the client and that of the readings differ by a wake-up of this driver; the
    # rate is the client's own, the cost is per byte at that rate.
    gigabytes = figures["rate"] * usage.wall / 1e9
    return {"rate": figures["rate"] / 1e9} | _costs(usage, gigabytes, 1.0)


def download(bench: Bench) -> Figures:
    """One endless response."""
    return _bulk(bench, "download")


def upload(bench: Bench) -> Figures:
    """One endless request body."""
    return _bulk(bench, "upload")


def connections(bench: Bench) -> Figures:
    """A connection per request: connect, GET, read to the clean end of the stream, close."""
    host, port = "127.0.0.1", bench.ports.web
    figures, usage, latency = _timed(
        bench, "connect", host, port, CONCURRENCY, WARMUP, bench.seconds
    )
    made = figures["rate"] * usage.wall
    costs = _costs(usage, made, 1e6)
    per_second = {"per_cpu_second": made / usage.machine}
    if usage.rest > 0.05 * usage.machine:  # of `direct` nothing is left but noise
        per_second["per_rest_second"] = made / usage.rest
    return {"rate": figures["rate"]} | latency | costs | per_second


# ---- wrk ----------------------------------------------------------------------------------------

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


def _wrk_milliseconds(output: str, percentile: str) -> float:
    found = re.search(rf"^\s+{percentile}%\s+([\d.]+)(us|ms|s|m)$", output, re.M)
    return float(found[1]) * _UNITS[found[2]] if found else float("nan")


def requests(bench: Bench) -> Figures:
    """Small keep-alive requests, as fast as they are answered (so latencies are at saturation)."""
    wrk = find("wrk")
    if wrk is None:
        raise BenchError("wrk is missing: apt-get install wrk")
    url = f"http://127.0.0.1:{bench.ports.web}/"
    # One thread: wrk must not take both processors of a small machine.
    argv = [wrk, "-t1", f"-c{KEEP_ALIVE}", "--latency", "--timeout", "5s"]
    subprocess.run([*argv, "-d1s", url], capture_output=True, timeout=30, check=True)  # warm
    before = cpu.read()
    client = subprocess.Popen(
        [*argv, f"-d{max(1, round(bench.seconds))}s", url],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert client.stdout is not None
    with Watchdog(client, bench.patience), client.stdout:
        output = client.stdout.read()
    after_wait = os.wait4(client.pid, 0)
    after = cpu.read()
    client.returncode = os.waitstatus_to_exitcode(after_wait[1])
    ended = after_wait[2].ru_utime + after_wait[2].ru_stime
    usage = bench.usage(before, after, None, ended)

    total = re.search(r"(\d+) requests in ", output)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    if client.returncode or not total or not rate or not int(total[1]):
        raise BenchError(f"wrk failed: {output.strip()[-300:]}")
    for complaint in re.findall(r"(Socket errors:.*|Non-2xx.*)", output):
        bench.problems.append(complaint.strip())
    return {
        "rate": float(rate[1]),
        "p50_ms": _wrk_milliseconds(output, "50"),
        "p99_ms": _wrk_milliseconds(output, "99"),
    } | _costs(usage, int(total[1]), 1e6)


# ---- idle ---------------------------------------------------------------------------------------


def idle(bench: Bench) -> Figures:
    """Connections that had one request and then say nothing: memory and CPU that they cost.

    Afterwards each is asked once more: idle, not dead.
    """
    host, port, count = "127.0.0.1", bench.ports.blast, bench.idle_connections
    with blast(
        bench.blast, bench.patience, "hold", host, port, 50
    ) as client:  # what is allocated once
        line_of(client, "held")
    time.sleep(0.3)
    pids = sorted(cpu.tree(bench.proxy.pids, cpu.read().processes))
    memory, kernel = cpu.memory(pids), cpu.kernel_memory()
    with blast(bench.blast, bench.patience, "hold", host, port, count) as client:
        line_of(client, "held")
        time.sleep(1.0)
        held, kernel_held = cpu.memory(pids), cpu.kernel_memory()
        before, used = cpu.read(), cpu.thread_seconds(pids)
        time.sleep(bench.idle_seconds)
        used = cpu.thread_seconds(pids) - used
        usage = bench.usage(before, cpu.read(), client.pid)
        stats = bench.proxy.stats()
        close(client.stdin)
        client.stdin = None
        line_of(client, "alive")
    spliced = stats.get("pairs", {})
    if isinstance(spliced, dict) and "spliced" in spliced:
        wanted = count if stats.get("datapath") == "sockmap" else 0
        if spliced["spliced"] != wanted:
            bench.problems.append(f"{spliced['spliced']} of {count} connections were spliced")
    return {
        "pss": (held.pss - memory.pss) / count / 1024,
        "rss": (held.rss - memory.rss) / count / 1024,
        "pss_before": memory.pss / 2**20,
        "kernel": (kernel_held - kernel) / count / 1024,
        "cpu_ms": used * 1e3 / usage.wall * 10,
        "machine_ms": usage.machine * 1e3 / usage.wall * 10,
        "kthreads_ms": usage.kthreads * 1e3 / usage.wall * 10,
        "seconds_wall": usage.wall,
        "seconds_foreign": usage.foreign,
        "seconds_steal": usage.steal,
    }


PEERS = ("direct", "haproxy")


def _cost_metrics(unit: str, form: str) -> tuple[Metric, ...]:
    return (
        Metric("cpu", f"machine CPU, {unit}", form, PEERS),
        Metric("cpu_added", f"of it added to direct, {unit}", form, ("haproxy",)),
        Metric("cpu_rest", f"machine - client - origin, {unit}", form),
        Metric("cpu_proxy", f"proxy's processes, {unit}", form),
    )


_BULK = (Metric("rate", "GB/s", "{:.2f}", PEERS), *_cost_metrics("s/GB", "{:.3f}"))

WORKLOADS = (
    Workload("download", "One bulk stream, download", download, _BULK),
    Workload("upload", "One bulk stream, upload", upload, _BULK),
    Workload(
        "requests",
        f"{KEEP_ALIVE} keep-alive connections of small requests",
        requests,
        (
            Metric("rate", "requests/s", "{:,.0f}", PEERS),
            Metric("p50_ms", "p50, ms", "{:.2f}"),
            Metric("p99_ms", "p99, ms", "{:.2f}"),
            *_cost_metrics("us/request", "{:.1f}"),
            Metric("switches", "context switches/request", "{:.2f}"),
        ),
    ),
    Workload(
        "connections",
        f"A connection per request, {CONCURRENCY} at once",
        connections,
        (
            Metric("rate", "connections/s", "{:,.0f}", PEERS),
            Metric("p50_us", "p50, us", "{:,.0f}"),
            Metric("p99_us", "p99, us", "{:,.0f}"),
            *_cost_metrics("us/connection", "{:.0f}"),
            Metric("per_cpu_second", "connections per machine CPU second", "{:,.0f}", ("haproxy",)),
            Metric("per_rest_second", "the same, less client and origin", "{:,.0f}", ("haproxy",)),
        ),
    ),
    Workload(
        "idle",
        "Idle connections held by one worker",
        idle,
        (
            Metric("pss", "PSS, KiB/connection", "{:.2f}", ("haproxy",)),
            Metric("rss", "RSS, KiB/connection", "{:.2f}"),
            Metric("kernel", "kernel memory, both ends, KiB/connection", "{:.2f}", ("direct",)),
            Metric("pss_before", "PSS before, MiB", "{:.1f}"),
            Metric("cpu_ms", "CPU of the proxy, ms in 10 s", "{:.1f}"),
            Metric("machine_ms", "CPU of the machine, ms in 10 s", "{:.0f}"),
        ),
        workers=1,
        rounds=2,
    ),
)
