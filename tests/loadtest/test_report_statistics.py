"""Medians, ratios and percentiles against what they are by definition."""

from __future__ import annotations

import math
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.report.statistics import TAIL, Spread, Statistics, Where, quantile
from loadtest.results import ContenderInfo, Head, Results, Sample, WorkloadInfo

HEAD = Head("", "", "", "", 1, "loopback", "", 1, 1, 1.0, 0.0)
NAMES = ("direct", "ours", "a", "b")
HERE = Where("w", "saturation")


def results(samples: list[Sample]) -> Results:
    contenders = [ContenderInfo(name, name, "1", name in ("a", "b"), "") for name in NAMES]
    return Results(HEAD, contenders, [WorkloadInfo("w", "W", "request", "rate")], samples)


def sample(name: str, number: int, rate: float | None, problems: tuple[str, ...] = ()) -> Sample:
    figures = {} if rate is None else {"rate": rate}
    return Sample("w", name, number, "saturation", list(problems), figures)


# A round has, of each contender: nothing, an invalid sample, one without the figure, or a rate.
rates = st.one_of(
    st.none(), st.just("invalid"), st.just("absent"), st.floats(0.0, 1e6), st.integers(1, 5)
)
runs = st.lists(st.fixed_dictionaries(dict.fromkeys(NAMES, rates)), max_size=7)


@given(runs)
def test_medians_and_ratios_are_those_of_valid_samples_of_the_same_round(rounds):
    samples = []
    good: list[dict[str, float]] = []
    for number, rated in enumerate(rounds):
        good.append({})
        for name, rate in rated.items():
            if rate == "invalid":
                samples.append(sample(name, number, 1e9, ("errors: 1 reset",)))
            elif rate == "absent":
                samples.append(sample(name, number, None))
            elif rate is not None:
                samples.append(sample(name, number, float(rate)))
                good[-1][name] = float(rate)
    statistics = Statistics(results(samples))

    mine = [one["ours"] for one in good if "ours" in one]
    to_direct = [o["ours"] / o["direct"] for o in good if "ours" in o and o.get("direct", 0) > 0]
    highest, lowest = [], []
    for one in good:
        peers = [one[peer] for peer in ("a", "b") if peer in one]
        if "ours" in one and peers:
            highest += [one["ours"] / max(peers)] if max(peers) > 0 else []
            lowest += [one["ours"] / min(peers)] if min(peers) > 0 else []
    for found, expected in (
        (statistics.spread(HERE, "ours", "rate"), mine),
        (statistics.ratio(HERE, "ours", "rate", "direct"), to_direct),
        (statistics.ratio_to_best(HERE, "ours", "rate", "higher"), highest),
        (statistics.ratio_to_best(HERE, "ours", "rate", "lower"), lowest),
    ):
        if not expected:
            assert found is None
            continue
        assert found is not None
        assert found.median == pytest.approx(median(expected))
        assert (found.low, found.high) == (min(expected), max(expected))
        assert found.count == len(expected)


def test_a_ratio_is_not_that_of_two_medians():
    samples = [sample("ours", n, rate) for n, rate in enumerate((10.0, 40.0, 90.0))]
    samples += [sample("direct", n, rate) for n, rate in enumerate((100.0, 50.0, 100.0))]
    statistics = Statistics(results(samples))
    assert statistics.ratio(HERE, "ours", "rate", "direct") == Spread(0.8, 0.1, 0.9, 3)


def test_the_best_peer_may_be_another_one_in_each_round():
    samples = [sample("ours", n, 12.0) for n in (1, 2)]
    samples += [sample("a", 1, 10.0), sample("a", 2, 4.0)]
    samples += [sample("b", 1, 6.0), sample("b", 2, 8.0)]
    statistics = Statistics(results(samples))
    assert statistics.best(HERE, "rate", "higher") == {1: 10.0, 2: 8.0}
    assert statistics.ratio_to_best(HERE, "ours", "rate", "higher") == Spread(1.35, 1.2, 1.5, 2)
    assert statistics.ratio_to_best(HERE, "a", "rate", "higher") == Spread(0.75, 0.5, 1.0, 2)


def loop(name: str, number: int, p99: float | None) -> Sample:
    """Of an open loop; None: saturated."""
    one = sample(name, number, 80.0)
    one.figures |= {"offered": 80.0, "unsent": 9} if p99 is None else {"p99_us": p99, "unsent": 0}
    one.histogram = None if p99 is None else [(p99, 100)]
    return one


def test_a_saturated_latency_is_above_every_other():
    few = [loop("ours", n, p99) for n, p99 in enumerate((10.0, None, 30.0, 20.0, None))]
    many = [loop("a", n, p99) for n, p99 in enumerate((10.0, None, None, 20.0, None))]
    statistics = Statistics(results(few + many))
    assert statistics.spread(HERE, "ours", "p99_us") == Spread(30.0, 10.0, math.inf, 5)
    assert statistics.spread(HERE, "ours", "rate") == Spread(80.0, 80.0, 80.0, 5)
    assert statistics.spread(HERE, "a", "p99_us") == Spread(math.inf, 10.0, math.inf, 5)
    told = [(50.0, Spread(30.0, 10.0, math.inf, 5))]
    assert statistics.latency(HERE, "ours", [50.0]) == told
    assert statistics.latency(HERE, "a", [50.0]) == []


def test_who_was_saturated_loses_the_round_and_is_no_base():
    ours = [loop("ours", n, p99) for n, p99 in enumerate((10.0, None, 10.0))]
    base = [loop("a", n, p99) for n, p99 in enumerate((20.0, 20.0, None))]
    statistics = Statistics(results(ours + base))
    assert statistics.ratio(HERE, "ours", "p99_us", "a") == Spread(math.inf, 0.5, math.inf, 2)
    assert statistics.best(HERE, "p99_us", "lower") == {0: 20.0, 1: 20.0, 2: math.inf}


histograms = st.dictionaries(st.integers(1, 10_000), st.integers(1, 40), min_size=1, max_size=40)


@given(histograms, st.sampled_from((50.0, 90.0, 99.0, 99.9)))
def test_a_percentile_is_that_of_all_latencies_laid_in_a_row(histogram, percentile):
    row = [us for us, count in sorted(histogram.items()) for _ in range(count)]
    # The least one such that `percentile` % of all are no greater, by counting.
    expected = next(us for us in row if sum(v <= us for v in row) * 100 >= percentile * len(row))
    beyond = len(row) - math.ceil(len(row) * percentile / 100 - 1e-9)
    found = quantile(sorted(histogram.items()), percentile)
    assert found == (expected if beyond >= TAIL else None)


def test_a_series_has_at_each_time_the_median_of_what_each_round_read_last():
    samples = []
    for number, values in enumerate(((1, 2, 3), (10, 20, 30), (4, 5, 6))):
        one = sample("ours", number, 1.0)
        one.series = [{"t": float(t), "pss_kib": float(v)} for t, v in enumerate(values)]
        samples.append(one)
    told = Statistics(results(samples)).series(HERE, "ours", "pss_kib", points=3)
    assert [(at, found.median, found.high) for at, found in told] == [
        (0.0, 4.0, 10.0),
        (1.0, 5.0, 20.0),
        (2.0, 6.0, 30.0),
    ]


def test_growth_is_within_a_round_too():
    one, two = Where("connect-w1", "saturation"), Where("connect-w2", "saturation")
    samples = [
        Sample(f"connect-w{workers}", "ours", number, "saturation", [], {"rate": rate})
        for workers, rates in ((1, (10.0, 20.0, 40.0)), (2, (15.0, 40.0, 40.0)))
        for number, rate in enumerate(rates)
    ]
    statistics = Statistics(results(samples))
    assert statistics.growth(two, one, "ours", "rate") == Spread(1.5, 1.0, 2.0, 3)
    assert statistics.growth(one, one, "ours", "rate") == Spread(1.0, 1.0, 1.0, 3)
