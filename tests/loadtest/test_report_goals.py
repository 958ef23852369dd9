"""Goals, the Markdown, and the command."""

from __future__ import annotations

import signal

import made
import pytest

from loadtest import report, results
from loadtest.cli import main
from loadtest.report.goals import GOALS
from loadtest.report.numbers import NBSP, TIMES, duration, number, short
from loadtest.results import ContenderInfo, Head, Results, Sample, WorkloadInfo

HEAD = Head("2026-01-01", "loadtest", "6", "2", 1024, "loopback", "", 1, 2, 1.0, 0.0)
KINDS = {"haproxy-tcp": True, "haproxy-http": True, "direct": False}


def run(workload: str, load: str | None, **figures: dict[str, list[float]]) -> Results:
    """A figure of each contender over the rounds: run("w", "50", rate={"direct": [1, 2]})."""
    samples: dict[tuple[str, int], Sample] = {}
    for key, contenders in figures.items():
        for name, values in contenders.items():
            for turn, value in enumerate(values):
                sample = Sample(workload, name, turn, load)
                samples.setdefault((name, turn), sample).figures[key] = value
    names = dict.fromkeys(name for name, _ in samples)
    return Results(
        HEAD,
        [ContenderInfo(name, name, "1", KINDS.get(name, False), "") for name in names],
        [WorkloadInfo(workload, workload, "thing", "rate")],
        list(samples.values()),
    )


def outcomes(found: Results) -> list[tuple[str, float, bool]]:
    return [(o.goal.asked, pytest.approx(o.got.median), o.met) for o in report.goals(found)]


OURS = "l7proxy-sockmap"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            run(
                "stream",
                "saturation",
                rate={"direct": [10, 10], OURS: [8, 9], "haproxy-tcp": [7, 7]},
            ),
            [
                (f"0.80 {TIMES} direct or better", 0.85, True),
                (f"1.30 {TIMES} the best peer or better", 8.5 / 7, False),
            ],
        ),
        (
            run("download-1m", "saturation", rate={OURS: [5], "haproxy-tcp": [5]}),
            [("above the best peer", 1.0, False)],
        ),
        (
            run(
                "requests-50",
                "saturation",
                rate={OURS: [11], "haproxy-tcp": [10]},
                cpu_us={OURS: [81], "haproxy-tcp": [100]},
            ),
            [("above haproxy-tcp", 1.1, True), (f"0.80 {TIMES} haproxy-tcp or less", 0.81, False)],
        ),
        (
            run("echo-1", "50", p50_us={OURS: [90], "haproxy-tcp": [100]}),
            [("below haproxy-tcp", 0.9, True)],
        ),
        (  # the round in which it was saturated counts as lost, not as not taken
            run(
                "echo-1",
                "50",
                p99_us={OURS: [90, 90], "haproxy-tcp": [100, 100, 100]},
                unsent={OURS: [0, 0, 7], "haproxy-tcp": [0, 0, 0]},
            ),
            [("below haproxy-tcp", 0.9, True)],
        ),
        (
            run(
                "echo-1",
                "50",
                p99_us={OURS: [90], "haproxy-tcp": [100, 100, 100]},
                unsent={OURS: [0, 7, 7], "haproxy-tcp": [0, 0, 0]},
            ),
            [("below haproxy-tcp", float("inf"), False)],
        ),
        (  # 0.7 of the connections per CPU second: 1/0.7 of the CPU per connection
            run("connect", "saturation", cpu_us={OURS: [140], "haproxy-tcp": [100]}),
            [(f"0.70 {TIMES} haproxy-tcp or better", 1 / 1.4, True)],
        ),
        (
            run("slow-reader", None, growth_kib={OURS: [100, 90], "haproxy-http": [100, 0]}),
            [("no more than haproxy-http", 1.0, True)],
        ),
        (
            run("idle-20k", None, pss_each_kib={OURS: [3.9, 4.1, 4.2]}),
            [("4.00 KiB or less", 4.1, False)],
        ),
    ],
)
def test_a_goal_is_met_when_the_median_of_the_ratios_is_within_its_bound(found, expected):
    assert outcomes(found) == expected


def test_one_worker_each_is_taken_before_the_workload_of_the_whole_run():
    more = run("connect", "saturation", cpu_us={OURS: [300], "haproxy-tcp": [100]})
    one = run("connect-w1", "saturation", cpu_us={OURS: [100], "haproxy-tcp": [100]})
    both = Results(
        HEAD, more.contenders, [*more.workloads, *one.workloads], [*more.samples, *one.samples]
    )
    [outcome] = report.goals(both)
    assert (outcome.workload, outcome.met, outcome.note) == ("connect-w1", True, "")
    [outcome] = report.goals(more)
    assert not outcome.met
    assert "one worker" in outcome.note


def test_fewer_idle_connections_than_asked_are_told():
    for held, note in (([20_000, 20_000], ""), ([20_000, 18_900], "held 18,900")):
        found = run("idle-20k", None, pss_each_kib={OURS: [3, 3]}, connections={OURS: held})
        [outcome] = report.goals(found)
        assert outcome.note == note
        assert outcome.met


def test_every_goal_has_its_place_in_a_whole_run():
    told = report.goals(made.made(rounds=1))
    assert [outcome.goal for outcome in told] == list(GOALS)


def test_markdown_says_the_numbers_the_reasons_and_nothing_twice():
    found = made.made(rounds=2)
    text = report.markdown(found)
    for workload in found.workloads:
        assert text.count(f"\n## {workload.title}\n") == 1
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")
    invalid = text.partition("## Invalid samples")[2].partition("##")[0]
    for sample in found.samples:
        if sample.problems:
            assert f"| {sample.workload} | {sample.contender} | {sample.round} |" in invalid
    assert "kernel log: \\<nf\\_conntrack> table full" not in invalid
    assert "kernel log: \\<nf\\_conntrack>: table full, dropping packet" in invalid


def test_scaling_stands_together_by_contender():
    found = made.made(rounds=3)
    text = report.markdown(found).partition("## Scaling with workers")[2].partition("\n## ")[0]
    rows = [[c.strip() for c in line.split("|")] for line in text.splitlines() if "|" in line][2:]
    told = [(row[1], row[2]) for row in rows]
    scaled = ["direct", "l7proxy-sockmap", "l7proxy-tcp", "haproxy-tcp"]
    assert told == [(name, n) for name in scaled for n in ("1", "2", "4")]
    assert {row[4].split()[0] for row in rows if row[2] == "1"} == {"1.00"}
    alone = [workload for workload in found.workloads if workload.name != "connect-w4"]
    alone = [workload for workload in alone if workload.name != "connect-w2"]
    single = Results(found.head, found.contenders, alone, found.samples)
    assert "Scaling" not in report.markdown(single)
    assert report.html(found).count("<h2>Scaling with workers</h2>") == 1


def test_rows_of_a_table_have_as_many_cells_as_its_head():
    for block in report.markdown(made.made(rounds=1)).split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1


@pytest.fixture(autouse=True)
def _terminated():
    """The command takes SIGTERM for itself."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_the_command_writes_what_it_is_asked_for(tmp_path, capsys):
    path = tmp_path / "run.json"
    found = made.made(rounds=1)
    results.write(found, path)
    page, table = tmp_path / "run.html", tmp_path / "run.md"
    assert main(["report", str(path), "--html", str(page), "--markdown", str(table)]) == 0
    assert capsys.readouterr().out == ""
    assert page.read_text() == report.html(found)
    assert main(["report", str(path)]) == 0
    assert capsys.readouterr().out == table.read_text() == report.markdown(found)


@pytest.mark.parametrize("text", ["", "{}", '{"version": 2}', "[1]"])
def test_the_command_says_which_file_is_no_results(tmp_path, capsys, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    assert main(["report", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0"),
        (0.5, "0.500"),
        (1.005, "1.00"),
        (99.94, "99.9"),
        (99.96, "100"),
        (12345.6, "12,346"),
        (float("inf"), "saturated"),
    ],
)
def test_numbers_have_three_digits_that_count(value, said):
    assert number(value) == said


def test_axes_say_units_that_suit_them():
    assert [duration(us) for us in (20, 1500, 2e6)] == [f"20{NBSP}µs", f"1.5{NBSP}ms", f"2{NBSP}s"]
    assert [short(value) for value in (0, 0.5, 2000, 20_000, 3e6)] == [
        "0",
        "0.5",
        "2,000",
        "20k",
        "3M",
    ]
