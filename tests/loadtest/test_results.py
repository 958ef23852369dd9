"""The results file: what is written is read again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest import results
from loadtest.results import ContenderInfo, Head, Results, ResultsError, Sample, WorkloadInfo

HEAD = Head(
    date="2026-01-01 00:00 UTC",
    command="python3 -m loadtest native",
    kernel="6.18",
    processors="2 x some",
    memory=1024,
    network="loopback",
    settings="somaxconn = 4096",
    workers=2,
    rounds=5,
    seconds=3.0,
    baseline=0.01,
)


def _results() -> Results:
    return Results(
        HEAD,
        [ContenderInfo("haproxy-tcp", "HAProxy, TCP", "2.6.12", True, "global\n")],
        [WorkloadInfo("requests-50", "Small requests", "request", "rate")],
        [
            Sample("requests-50", "haproxy-tcp", 1, "saturation", figures={"rate": 1e5}),
            Sample(
                "requests-50",
                "haproxy-tcp",
                1,
                "50",
                figures={"rate": 5e4, "p50_us": 90.0},
                histogram=[(80.5, 10), (90.0, 20)],
                notes={"tcp": {"RetransSegs": 0}},
            ),
            Sample(
                "slow-reader",
                "haproxy-tcp",
                1,
                None,
                problems=["kernel log: nf_conntrack: table full, dropping packet"],
                series=[{"t": 0.0, "pss_kib": 10.0}],
            ),
        ],
    )


def test_a_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    results.write(_results(), path)
    assert results.read(path) == _results()
    assert [sample.valid for sample in results.read(path).samples] == [True, True, False]
    assert list(tmp_path.iterdir()) == [path]


def test_valid_stands_in_the_file_for_other_readers() -> None:
    raw = json.loads(results.dumps(_results()))
    assert [sample["valid"] for sample in raw["samples"]] == [True, True, False]
    assert raw["samples"][2]["load"] is None


def test_a_figure_that_is_no_number_is_not_written() -> None:
    broken = _results()
    broken.samples[0].figures["rate"] = float("nan")
    with pytest.raises(ValueError, match="JSON compliant"):
        results.dumps(broken)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "x.json: not a results file"),
        ("[]", "x.json: not a results file"),
        ('{"version": 2}', "x.json: version 2, this reads 1"),
        ('{"version": 1, "head": {}}', "x.json: not a results file"),
    ],
)
def test_what_is_no_results_file(text: str, said: str) -> None:
    with pytest.raises(ResultsError, match=said):
        results.loads(text, "x.json")


def test_a_run_is_complete_when_each_sample_was_valid_at_one_of_its_tries() -> None:
    first = Sample("stream", "direct", 1, "saturation", ["other processes took 9% of the machine"])
    second = Sample("stream", "direct", 1, "saturation")
    assert results.complete([first, second])
    assert not results.complete([first])
    assert not results.complete([first, Sample("stream", "direct", 2, "saturation")])
    assert not results.complete([first, Sample("stream", "haproxy-tcp", 1, "saturation")])
    assert not results.complete([first, Sample("connect", "direct", 1, "saturation")])


def _run(workload: str, *names: str, version: str = "1", **head: object) -> Results:
    one = _results()
    return Results(
        replace(one.head, **head),  # type: ignore[arg-type]
        [ContenderInfo(name, name, version, False, "") for name in names],
        [WorkloadInfo(workload, workload, "request", "rate")],
        [Sample(workload, name, 1, "saturation") for name in names],
    )


def test_runs_of_different_workloads_make_one() -> None:
    few = _run("connect", "direct", command="a", baseline=0.1)
    more = _run("stream", "direct", "haproxy-tcp", command="b", baseline=0.2)
    both = results.merged([few, more])
    assert both.head.command == "a; b"
    assert both.head.baseline == 0.2
    assert [one.name for one in both.contenders] == ["direct", "haproxy-tcp"]
    assert [one.name for one in both.workloads] == ["connect", "stream"]
    assert len(both.samples) == 3
    assert results.merged([few]) == few


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (_run("connect", "direct"), "connect is in two of the runs"),
        (_run("stream", "direct", version="2"), "direct is 1 and 2"),
        (_run("stream", "direct", workers=7), "workers is"),
        (_run("stream", "direct", rounds=9), "rounds is"),
    ],
)
def test_runs_that_are_not_alike_are_not_made_one(other: Results, said: str) -> None:
    with pytest.raises(ResultsError, match=said):
        results.merged([_run("connect", "direct"), other])
