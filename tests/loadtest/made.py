"""Results as a run would leave them, made from a seed: every contender, every workload.

The numbers are near what small machines give, so that a report of them can be looked at.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator

from loadtest.contenders import CONTENDERS, Contender
from loadtest.results import SATURATION, ContenderInfo, Head, Results, Sample
from loadtest.workloads import WORKLOADS, Workload

# (speed of what direct gives, own CPU of what the machine uses, MiB)
TRAITS = {
    "direct": (1.0, 0.0, 0),
    "l7proxy-sockmap": (0.58, 0.02, 41),
    "l7proxy-splice2": (0.44, 0.25, 42),
    "l7proxy-copy": (0.36, 0.33, 42),
    "l7proxy-tcp": (0.6, 0.02, 40),
    "haproxy-tcp": (0.55, 0.4, 14),
    "haproxy-http": (0.47, 0.45, 15),
    "nginx-stream": (0.5, 0.42, 7),
    "nginx-http": (0.45, 0.46, 8),
    "envoy-tcp": (0.38, 0.5, 38),
    "envoy-http": (0.22, 0.6, 40),
}
RATES = {"request": 75_000, "connection": 14_000, "download": 9_000, "upload": 5_000, "GB": 6.0}


def made(seed: int = 4, rounds: int = 5) -> Results:
    """A run. Some samples are invalid, one contender's all of a workload. Three of five rounds of
    envoy-http's open loop at 80 % are saturated, and one of nginx-http's."""
    chance = random.Random(seed)
    samples = [
        sample
        for number in range(1, rounds + 1)
        for workload in WORKLOADS
        for contender in CONTENDERS
        if workload.fits(contender)
        for sample in _samples(chance, number, workload, contender)
    ]
    for sample in chance.sample(samples, 6):
        sample.problems.append("errors: 3 reset, 1 timeout")
    for sample in samples:
        if (sample.workload, sample.contender) == ("upload-100m", "envoy-http"):
            sample.problems.append("kernel log: <nf_conntrack>: table full, dropping packet")
        often = {"envoy-http": 3, "nginx-http": 1}.get(sample.contender, 0)
        if (sample.workload, sample.load) == ("requests-50", "80") and sample.round <= often:
            _saturate(sample)
    return Results(
        head=Head(
            date="2026-11-24 20:00 UTC",
            command="python3 -m loadtest native --network namespaces",
            kernel="6.18.44",
            processors="2 x AMD EPYC",
            memory=8 * 1024 * 1024,
            network="namespaces",
            settings="tcp_congestion_control = cubic; tcp_rmem = 4096 131072 6291456; "
            "tcp_wmem = 4096 16384 4194304; ip_local_port_range = 10000 65535; somaxconn = 4096",
            workers=2,
            rounds=rounds,
            seconds=3.0,
            baseline=0.004,
        ),
        contenders=[
            ContenderInfo(one.name, one.title, f"1.{n}", one.peer, f"# {one.name} <a> & b\n" * 30)
            for n, one in enumerate(CONTENDERS)
        ],
        workloads=[workload.info for workload in WORKLOADS],
        samples=samples,
    )


def _samples(
    chance: random.Random, number: int, workload: Workload, contender: Contender
) -> Iterator[Sample]:
    speed, own, mib = TRAITS[contender.name]
    knee = RATES.get(workload.unit, 60_000) * speed * chance.gauss(1, 0.03)
    if workload.name.startswith("download-1") and workload.unit != "GB":
        knee /= 16 if workload.name == "download-1m" else 1500
    for load in workload.loads:
        figures: dict[str, float] = {}
        sample = Sample(workload.name, contender.name, number, load, figures=figures)
        share = 1.0 if load in (SATURATION, None) else int(load or 0) / 100
        rate = knee * share * chance.gauss(1, 0.004)
        if workload.kind in ("idle", "mix"):
            rate = figures["offered"] = sum(t.rate for t in workload.traffic.values())
        elif workload.kind == "memory":
            rate = 8 * 65536 / 1e9
        elif load != SATURATION:
            figures["offered"] = knee * share
        figures["rate"] = rate
        cpu = 2e6 / knee * (1 + 0.3 * (1 - share)) * chance.gauss(1, 0.02)
        if workload.unit != "GB":
            figures |= {"cpu_us": cpu, "cpu_own_us": cpu * own, "cpu_rest_us": cpu * (own + 0.2)}
        if workload.moves:
            per_gb = 0.35 / speed * chance.gauss(1, 0.02)
            figures |= {"cpu_gb": per_gb, "cpu_own_gb": per_gb * own, "gb_per_s": 4 * speed}
        figures["cpu_share"] = min(share, 1.0) * chance.uniform(0.9, 1)
        figures["switches"] = chance.uniform(0.1, 4)
        pss = mib * 1024 * chance.gauss(1, 0.01)
        figures |= {"pss_kib": pss, "sockets_kib": chance.gauss(900, 90), "slab_kib": 420.0}
        if share < 1 or workload.kind in ("idle", "mix"):
            _latency(chance, sample, 6e6 / knee * (0.6 + share**3 * 3), rate * 3)
        if workload.kind == "idle":
            figures |= {
                "connections": workload.idle,
                "pss_each_kib": max(mib, 0) / 10 * chance.gauss(1, 0.02),
                "sockets_each_kib": 0.1,
                "slab_each_kib": 9.4 * chance.gauss(1, 0.01),
                "machine_each_kib": 14.0 + mib / 10,
            }
        if workload.kind == "memory":
            _memory(chance, sample, pss, own)
        if workload.kind == "mix":
            for name, traffic in workload.traffic.items():
                figures[f"{name}_rate"] = traffic.rate
                figures[f"{name}_p50_us"] = 300 / speed
                figures[f"{name}_p99_us"] = 2000 / speed * chance.gauss(1, 0.1)
        yield sample


def _saturate(sample: Sample) -> None:
    sample.figures = {
        key: value for key, value in sample.figures.items() if not re.fullmatch(r"p\d+_us", key)
    }
    sample.figures["unsent"] = 812
    sample.histogram = None


def _latency(chance: random.Random, sample: Sample, middle: float, count: float) -> None:
    """Log-normal with a heavy end, in buckets of 3 %."""
    total = int(min(count, 3_000_000))
    shift, width = middle * chance.gauss(1, 0.04), 0.35
    buckets: dict[float, int] = {}
    seen = 0
    for step in range(-60, 200):
        z = math.log(1.03) * step / width
        below = 0.5 * (1 + math.erf(z / math.sqrt(2)))
        below = below * 0.998 + 0.002 * (1 - math.exp(-max(step, 0) / 60))
        upto = round(total * below)
        if upto > seen:
            buckets[round(shift * 1.03**step, 2)] = upto - seen
            seen = upto
    if not buckets:
        return
    sample.histogram = sorted(buckets.items())
    for key, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)):
        rank, passed = math.ceil(share * seen), 0
        for latency, number in sample.histogram:
            passed += number
            if passed >= rank:
                sample.figures[f"{key}_us"] = latency
                break


def _memory(chance: random.Random, sample: Sample, pss: float, own: float) -> None:
    sample.series = [
        {
            "t": t / 4 + chance.uniform(0, 0.05),
            "pss_kib": pss + own * 2000 * (1 - math.exp(-t / 8)),
            "sockets_kib": 20_000 * (1 - math.exp(-t / 5)) * chance.gauss(1, 0.02),
            "slab_kib": 1_500 * (1 - math.exp(-t / 5)),
            "machine_kib": 24_000 * (1 - math.exp(-t / 5)) + chance.gauss(0, 600),
        }
        for t in range(41)
    ]
    for key in ("pss_kib", "sockets_kib", "slab_kib", "machine_kib"):
        sample.figures[key] = max(point[key] for point in sample.series)
    sample.figures["growth_kib"] = max(
        p["pss_kib"] - pss + p["sockets_kib"] + p["slab_kib"] for p in sample.series
    )
