"""The arithmetic of the bench: attribution of CPU time, medians, ratios, void samples."""

from __future__ import annotations

import pytest

from . import cpu, report
from .report import Sample
from .workloads import WORKLOADS, Metric, Workload


def _reading(
    at: float, idle: float, used: dict[int, tuple[int, bool, float, float]]
) -> cpu.Reading:
    fields = (0.0, 0.0, 0.0, idle, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    return cpu.Reading(at, fields, {pid: cpu.Process(*given) for pid, given in used.items()})


def test_stat_line_with_a_hostile_name() -> None:
    line = "42 (a) b ( c) S 7 42 42 0 -1 2097216 0 0 0 0 150 50 30 20 20 0 1 0 9 0 0"
    found = cpu._process(line)
    assert found == cpu.Process(parent=7, kernel=True, used=200 / cpu.TICK, reaped=50 / cpu.TICK)


def test_attribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "PROCESSORS", 2)
    # pid: parent, kernel thread, used, reaped
    before = _reading(
        100.0,
        50.0,
        {
            10: (1, False, 1.0, 0.0),  # client
            20: (1, False, 2.0, 0.0),  # origin
            30: (1, False, 3.0, 0.0),  # proxy
            2: (0, True, 4.0, 0.0),  # kworker
            50: (1, False, 5.0, 1.0),  # somebody else's shell
            51: (50, False, 0.5, 0.2),  # its compiler, gone at the second reading
        },
    )
    after = _reading(
        102.0,
        50.5,
        {
            10: (1, False, 1.5, 0.0),
            20: (1, False, 2.6, 0.0),
            30: (1, False, 3.4, 0.0),
            31: (30, False, 0.3, 0.0),  # a worker born in between
            2: (0, True, 4.7, 0.0),
            50: (1, False, 5.1, 2.0),  # reaped 1.0: 0.7 of it older than the first reading
        },
    )
    got = cpu.usage(before, after, client=[10], origin=[20], proxy=[30], baseline=0.05)
    assert got.client == pytest.approx(0.5)
    assert got.origin == pytest.approx(0.6)
    assert got.proxy == pytest.approx(0.7)
    assert got.kthreads == pytest.approx(0.7)
    assert got.foreign == pytest.approx(0.1 + 0.3)
    assert got.machine == pytest.approx(2 * 2 - 0.5 - 0.4 - 0.05 * 2)
    assert got.rest == pytest.approx(got.machine - 1.1)


def _samples() -> list[Sample]:
    rates = {
        "direct": [10.0, 20.0, 30.0],
        "haproxy": [5.0, 10.0, 10.0],
        "l7proxy-sockmap": [8.0, 12.0, 27.0],
    }
    return [
        Sample("download", name, number, {"rate": rate, "cpu": 1 / rate})
        for name, series in rates.items()
        for number, rate in enumerate(series, 1)
    ]


def test_ratio_is_the_median_of_the_rounds_ratios() -> None:
    # 0.8, 0.6, 0.9: not the ratio of the medians, which would be 0.6
    assert report.ratio(_samples(), "l7proxy-sockmap", "rate", "direct") == pytest.approx(0.8)


def test_a_void_sample_enters_nothing() -> None:
    samples = _samples()
    samples[0].problems.append("kernel log: nf_conntrack: table full")  # direct, round 1
    assert report.ratio(samples, "l7proxy-sockmap", "rate", "direct") == pytest.approx(0.75)
    load = Workload("download", "title", lambda bench: {}, (Metric("rate", "GB/s", "{:.1f}"),))
    assert "| direct | 25.0 (20.0-30.0) | 2/3 |" in report.table(load, samples, ["direct"])


def test_a_base_without_samples_gives_no_ratio() -> None:
    samples = [sample for sample in _samples() if sample.contender != "haproxy"]
    assert report.ratio(samples, "direct", "rate", "haproxy") is None


def test_overhead_is_against_direct_of_the_same_round() -> None:
    samples = _samples()
    report.add_overheads(samples)
    added = report.values(samples, "haproxy", "cpu_added")
    assert added == pytest.approx({1: 1 / 5 - 1 / 10, 2: 1 / 10 - 1 / 20, 3: 1 / 10 - 1 / 30})
    assert report.values(samples, "direct", "cpu_added") == {}


def test_goals_tell_what_was_met() -> None:
    text = report.goals(_samples())
    assert "| bulk rate, x direct | >= 0.75 | 0.80 | met |" in text
    assert "| bulk rate, x HAProxy | >= 1.50 | 1.60 | met |" in text
    assert "small requests" not in text  # not measured: not told


def test_every_goal_is_of_a_workload_that_exists() -> None:
    names = {load.name for load in WORKLOADS}
    assert {goal.workload for goal in report.GOALS} <= names
