"""Rounds, knees and what makes a sample invalid, on a host that is made up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from loadtest import contenders, memory, meter, run, sampling, workloads
from loadtest.blast import Latency, Load, Result
from loadtest.hosts import Addresses, LoadTestError, Order, Own
from loadtest.results import Sample
from loadtest.run import Plan, Run
from loadtest.workloads import OPEN, Workload

NOWHERE = Addresses(("127.0.0.1:1",), ("127.0.0.1:1",), ("127.0.0.1:1",))


class FakeRunning:
    addresses = NOWHERE

    def own(self, *, memory: bool = True) -> Own:
        return Own()

    def pss_kib(self) -> float:
        return 0.0

    def stats(self) -> Mapping[str, object]:
        return {}

    def problems(self) -> list[str]:
        return []


@dataclass
class FakeHost:
    """`broken`: contenders that do not start. Remembers what was ordered."""

    network: str = "loopback"
    origins: Addresses = NOWHERE
    broken: Sequence[str] = ()
    holds: int = 100_000
    orders: list[Order] = field(default_factory=list)

    def __enter__(self) -> FakeHost:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def versions(self, names: Sequence[str]) -> dict[str, str]:
        return {name: "" if name == "envoy-tcp" else "1.0" for name in names}

    def configuration(self, order: Order) -> str:
        return ""

    def capacity(self, name: str, workers: int) -> int:
        return self.holds

    @contextmanager
    def running(self, order: Order) -> Iterator[FakeRunning]:
        self.orders.append(order)
        if order.contender in self.broken:
            raise LoadTestError(f"{order.contender} ended at its start")
        yield FakeRunning()

    def origin_pids(self) -> frozenset[int]:
        return frozenset()

    def problems(self) -> list[str]:
        return []


@dataclass
class FakeProgress:
    heard: list[str] = field(default_factory=list)

    def start(self, sample: Sample) -> None:
        pass

    def done(self, sample: Sample) -> None:
        self.heard.append(f"{sample.contender} {sample.load}")

    def again(self) -> None:
        self.heard.append("again")

    def skip(self, count: int) -> None:
        self.heard.append(f"skip {count}")

    def say(self, text: str) -> None:
        self.heard.append(text)


Taken = tuple[str, str | None, float | None, int]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Taken]:
    """What a sampler that reaches 1,000 per second was asked for: contender, load, knee, idle.

    nginx-stream has an error in each sample, and says so.
    """
    asked: list[Taken] = []

    def take(
        self: object, workload: Workload, sample: Sample, knee: float | None, idle: int
    ) -> None:
        asked.append((sample.contender, sample.load, knee, idle))
        sample.figures["rate"] = 1000.0
        if sample.contender == "nginx-stream":
            sample.problems.append("errors: 1 reset")

    monkeypatch.setattr(sampling.Sampler, "take", take)
    monkeypatch.setattr(run, "check", lambda *addresses: None)
    monkeypatch.setattr(run.Run, "_settle", lambda self: None)
    return asked


def _plan(names: str, workload: str = "requests-50", **changes: object) -> Plan:
    plan = Plan(
        contenders=[contenders.by_name(name) for name in names.split()],
        workloads=[workloads.BY_NAME[workload]],
        loads=(*OPEN, None),
        rounds=1,
        workers=2,
    )
    return replace(plan, **changes)  # type: ignore[arg-type]


def _bench(host: FakeHost) -> sampling.Bench:
    return sampling.Bench(host, Path("blast"), 1.0, 0.1, 1.0, 0.0)


def _go(plan: Plan, host: FakeHost) -> tuple[Run, FakeProgress]:
    progress = FakeProgress()
    running = Run(plan, host, _bench(host), progress)
    running.go()
    return running, progress


def test_the_order_moves_on_by_one_in_each_round() -> None:
    plan = _plan("direct haproxy-tcp nginx-stream", rounds=4)
    order = [contender.name for _, _, contender in plan.steps()]
    assert [order[n : n + 3][0] for n in range(0, 12, 3)] == [
        "direct",
        "haproxy-tcp",
        "nginx-stream",
        "direct",
    ]
    assert sorted(order) == sorted(["direct", "haproxy-tcp", "nginx-stream"] * 4)
    assert plan.total() == 4 * 3 * 4


def test_open_loops_have_the_knee_of_their_own_contender(taken: list[Taken]) -> None:
    running, progress = _go(_plan("direct"), FakeHost())
    assert taken == [
        ("direct", "saturation", None, 0),
        ("direct", "20", 1000.0, 0),
        ("direct", "50", 1000.0, 0),
        ("direct", "80", 1000.0, 0),
    ]
    assert all(sample.valid for sample in running.samples)
    assert progress.heard == [f"direct {load}" for load in OPEN]


def test_without_a_valid_knee_there_are_no_open_loops(taken: list[Taken]) -> None:
    running, progress = _go(_plan("nginx-stream direct"), FakeHost())
    assert [sample.contender for sample in running.samples] == ["nginx-stream", *["direct"] * 4]
    assert progress.heard[:2] == ["nginx-stream saturation", "skip 3"]


def test_one_that_does_not_start_has_one_invalid_sample(taken: list[Taken]) -> None:
    running, progress = _go(_plan("haproxy-tcp direct"), FakeHost(broken=["haproxy-tcp"]))
    assert [sample.problems for sample in running.samples] == [
        ["haproxy-tcp ended at its start"],
        [],
        [],
        [],
        [],
    ]
    assert progress.heard[1] == "skip 3"


def test_one_that_answers_otherwise_is_not_measured(
    taken: list[Taken], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(*addresses: Addresses) -> None:
        raise LoadTestError("GET /: 0 bytes")

    monkeypatch.setattr(run, "check", check)
    running, _ = _go(_plan("direct"), FakeHost())
    assert [sample.problems for sample in running.samples] == [["GET /: 0 bytes"]]
    assert taken == []


@pytest.mark.parametrize(
    ("workload", "disturbances", "again", "heard"),
    [
        ("stream", 1, 2, "D again good"),
        ("stream", 9, 2, "D again D again D"),
        ("stream", 1, 0, "D"),
        ("slow-reader", 1, 2, "D"),  # its memory would be there already
    ],
)
def test_a_sample_that_others_disturbed_is_taken_again(
    workload: str, disturbances: int, again: int, heard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter([True] * disturbances)

    def take(self: object, workload: Workload, sample: Sample, *_: object) -> None:
        assert sample.figures == {}
        sample.figures["rate"] = 1000.0
        if next(left, False):
            sample.problems.append("the hypervisor took 30% of the machine")
            sample.notes["disturbed"] = True

    monkeypatch.setattr(sampling.Sampler, "take", take)
    monkeypatch.setattr(run, "check", lambda *addresses: None)
    monkeypatch.setattr(run.Run, "_settle", lambda self: None)
    progress = FakeProgress()
    plan = _plan("direct", workload)
    running = Run(plan, FakeHost(), _bench(FakeHost()), progress, again=again)
    running.go()
    told = iter("D" if sample.problems else "good" for sample in running.samples)
    assert heard.split() == [word if word == "again" else next(told) for word in progress.heard]
    assert len({sample.round for sample in running.samples}) == 1


def test_idle_connections_are_as_many_as_it_can_hold(taken: list[Taken]) -> None:
    host = FakeHost(holds=9_872)
    running, _ = _go(_plan("haproxy-tcp", "idle-20k"), host)
    assert taken == [("haproxy-tcp", None, None, 9_772)]
    assert host.orders == [Order("haproxy-tcp", 4, 9_872)]
    assert "9872 connections" in running.samples[0].notes["idle"]


def test_who_is_not_installed_is_left_out_and_said() -> None:
    said: list[str] = []
    found = run.present(FakeHost(), ["envoy-tcp", "direct", "haproxy-tcp"], said.append)
    assert [info.name for info in found] == ["direct", "haproxy-tcp"]
    assert said[0].startswith("envoy-tcp: left out, not installed (")


@pytest.mark.parametrize(
    ("foreign", "patience", "looks"),
    [([0.0], 9.0, 1), ([1.5, 1.5, 0.0], 9.0, 3), ([1.5] * 3, 0.0, 1)],
)
def test_it_waits_for_the_machine_to_be_left_alone(
    foreign: list[float], patience: float, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "PROCESSORS", 2)
    monkeypatch.setattr(run, "SETTLE", 0.01)
    seen = iter(foreign)
    taken: list[float] = []

    def usage(*readings: meter.Reading, **pids: object) -> meter.Usage:
        taken.append(next(seen))
        return replace(USAGE, foreign=taken[-1], wall=1.0)

    monkeypatch.setattr(meter, "usage", usage)
    host = FakeHost()
    Run(_plan("direct"), host, _bench(host), FakeProgress(), patience=patience)._settle()
    assert len(taken) == looks


@pytest.mark.parametrize(
    ("name", "contender", "fits"),
    [
        ("echo-1", "haproxy-http", False),
        ("echo-1", "haproxy-tcp", True),
        ("ws-echo", "haproxy-http", True),
        ("ws-echo", "haproxy-tcp", True),
        ("idle-20k", "envoy-tcp", False),
        ("requests-50", "nginx-http", True),
    ],
)
def test_who_is_asked_for_what(name: str, contender: str, fits: bool) -> None:
    assert workloads.BY_NAME[name].fits(contenders.by_name(contender)) == fits


# ---- what makes a sample invalid ----------------------------------------------------------------

USAGE = meter.Usage(
    wall=10.0,
    machine=8.0,
    client=2.0,
    origin=2.0,
    proxy=3.0,
    kthreads=0.5,
    softirq=0.2,
    foreign=0.0,
    steal=0.0,
    switches=5000,
)
RESULT = Result(
    done=10_000,
    bytes=30_000,
    seconds=10.0,
    rate=1000.0,
    errors={"connect": 0, "reset": 0},
    complaint="",
    unsent=0,
    reopened=0,
    alive=0,
    us=Latency(90, 95, 99, 110, 120, 91),
    histogram=[(90.0, 10_000)],
    busy=0.3,
    lag_us=20.0,
)
KERNEL = memory.Kernel(sockets=400.0, slab=3000.0, machine=90_000.0)
OPEN_LOOP, CLOSED_LOOP = Load(("x:1",), rate=1000.0), Load(("x:1",))


@pytest.mark.parametrize(
    ("order", "result", "usage", "said"),
    [
        (OPEN_LOOP, RESULT, USAGE, ""),
        (
            OPEN_LOOP,
            replace(RESULT, errors={"reset": 2, "short": 0}, complaint="after 3 bytes"),
            USAGE,
            "errors: 2 reset; the first: after 3 bytes",
        ),
        (OPEN_LOOP, replace(RESULT, busy=0.97), USAGE, "the client was starved: 97% busy"),
        (CLOSED_LOOP, replace(RESULT, busy=0.97), USAGE, ""),
        (OPEN_LOOP, replace(RESULT, lag_us=6e3), USAGE, "the client was starved: its p99 was 6.0"),
        (OPEN_LOOP, replace(RESULT, lag_us=6e3, done=60), USAGE, ""),  # no p99: one wake-up
        (OPEN_LOOP, replace(RESULT, unsent=7), USAGE, ""),  # saturated, not invalid
        (OPEN_LOOP, RESULT, replace(USAGE, foreign=1.2), "other processes took 6% of the machine"),
        (OPEN_LOOP, RESULT, replace(USAGE, foreign=0.8), ""),
        (OPEN_LOOP, RESULT, replace(USAGE, steal=1.2), "the hypervisor took 6% of the machine"),
        (OPEN_LOOP, RESULT, replace(USAGE, steal=0.8), ""),
    ],
)
def test_validity(
    order: Load, result: Result, usage: meter.Usage, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "PROCESSORS", 2)
    sample = Sample("requests-50", "direct", 1, "50")
    sampler = sampling.Sampler(_bench(FakeHost()), FakeRunning())
    sampler._judge(sample, [order], [result], usage)
    assert sample.valid == (not said)
    assert "".join(sample.problems).startswith(said)
    assert ("disturbed" in sample.notes) == ("of the machine" in said)


@pytest.mark.parametrize(
    ("clients", "processors", "starved"), [(1, 2, True), (2, 2, True), (4, 2, False), (4, 8, True)]
)
def test_clients_that_share_a_processor_may_wait_for_each_other(
    clients: int, processors: int, starved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "PROCESSORS", processors)
    sample = Sample("mix", "direct", 1, None)
    sampler = sampling.Sampler(_bench(FakeHost()), FakeRunning())
    late = [replace(RESULT, lag_us=9e3)] * clients
    sampler._judge(sample, [OPEN_LOOP] * clients, late, USAGE)
    assert sample.valid != starved


def test_a_saturated_open_loop_has_no_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "PROCESSORS", 2)
    sampler = sampling.Sampler(_bench(FakeHost()), FakeRunning())
    for unsent, told in ((0, True), (1, False)):
        sample = Sample("requests-50", "direct", 1, "80")
        result = replace(RESULT, unsent=unsent)
        sampler._judge(sample, [OPEN_LOOP], [result], USAGE)
        sampler._latency(sample, result)
        assert sample.valid
        assert sample.saturated != told
        assert ("p99_us" in sample.figures) == (sample.histogram is not None) == told


def test_a_closed_loop_leaves_nothing_unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "PROCESSORS", 2)
    sample = Sample("requests-50", "direct", 1, "saturation")
    sampler = sampling.Sampler(_bench(FakeHost()), FakeRunning())
    sampler._judge(sample, [CLOSED_LOOP], [RESULT], USAGE)
    assert not sample.saturated
    assert "unsent" not in sample.figures


def test_costs_are_per_unit_and_per_gigabyte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "PROCESSORS", 2)
    sampler = sampling.Sampler(_bench(FakeHost()), FakeRunning())
    cost = sampling.Cost(USAGE, own_cpu=3.0, own_switches=1000, pss_kib=2048.0, kernel=KERNEL)
    sample = Sample("download-64k", "direct", 1, "saturation")
    moved = replace(RESULT, bytes=2 * 10**9)
    sampler._figures(sample, workloads.BY_NAME["download-64k"], [moved], cost)
    figures = sample.figures
    assert figures["rate"] == 1000
    assert figures["gb_per_s"] == pytest.approx(0.2)
    assert figures["cpu_us"] == pytest.approx(8.0 / 10_000 * 1e6)
    assert figures["cpu_own_us"] == pytest.approx(300.0)
    assert figures["cpu_rest_us"] == pytest.approx(400.0)
    assert figures["cpu_gb"] == pytest.approx(4.0)
    assert figures["switches"] == pytest.approx(0.5)
    assert figures["cpu_share"] == pytest.approx(0.4)
    assert "p50_us" not in figures


def test_a_stream_is_told_in_gigabytes() -> None:
    sampler = sampling.Sampler(_bench(FakeHost()), FakeRunning())
    cost = sampling.Cost(USAGE, own_cpu=3.0, own_switches=1000, pss_kib=2048.0, kernel=KERNEL)
    sample = Sample("stream", "direct", 1, "saturation")
    sampler._figures(
        sample, workloads.BY_NAME["stream"], [replace(RESULT, done=0, rate=0.0, bytes=10**10)], cost
    )
    assert sample.figures["rate"] == sample.figures["gb_per_s"] == pytest.approx(1.0)
    assert "cpu_us" not in sample.figures


def test_nothing_that_came_through_is_a_problem() -> None:
    sampler = sampling.Sampler(_bench(FakeHost()), FakeRunning())
    sample = Sample("stream", "direct", 1, "saturation")
    cost = sampling.Cost(USAGE, 0.0, 0, 0.0, KERNEL)
    sampler._figures(sample, workloads.BY_NAME["stream"], [replace(RESULT, bytes=0)], cost)
    assert sample.problems == ["nothing came through"]


def test_unspliced_connections_are_told() -> None:
    stats = {"datapath": "sockmap", "pairs": {"spliced": 4990}}
    assert sampling._unspliced(stats, 5000) == "4990 of 5000 connections were spliced"
    assert sampling._unspliced(stats, 4990) is None
    assert sampling._unspliced({"datapath": "copy", "pairs": {"spliced": 0}}, 5000) is None
    assert sampling._unspliced({}, 5000) is None


def test_the_baseline_is_the_least_of_some_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may be at work meanwhile, and the kernel for them."""
    seen = iter([0.4, 0.02, 0.3, 0.1])

    def usage(*_: meter.Reading) -> meter.Usage:
        return replace(USAGE, machine=next(seen), wall=2.0)

    monkeypatch.setattr(meter, "usage", usage)
    assert run.baseline(looks=4, seconds=0.01) == pytest.approx(0.01)
