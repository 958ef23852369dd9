"""Checks, ejection, slow start, panic: what may be used of a group."""

from __future__ import annotations

import pytest

from l7proxy.health import (
    SCALE,
    ActiveCheck,
    Checked,
    Failure,
    Marks,
    Seen,
    may_eject,
    slow_start_share,
    standing,
)
from l7proxy.model import Backend, Ejection, HealthCheck

UP, DOWN, UNKNOWN = Checked.UP, Checked.DOWN, Checked.UNKNOWN
NOW = 1000.0

# ---- active checks


@pytest.mark.parametrize(
    ("results", "says"),
    [
        # - bad, + good; the first one decides
        ("+", [UP]),
        ("-", [DOWN]),
        ("+---", [UP, None, None, DOWN]),
        ("+--+--+---", [UP, None, None, None, None, None, None, None, None, DOWN]),
        ("-++", [DOWN, None, UP]),
        ("-+-++", [DOWN, None, None, None, UP]),
        ("+---++", [UP, None, None, DOWN, None, UP]),
    ],
)
def test_results_in_a_row_turn_it(results: str, says: list[Checked | None]) -> None:
    check = ActiveCheck(HealthCheck(healthy=2, unhealthy=3))
    assert [check.on(good=one == "+") for one in results] == says


def test_a_check_goes_on_from_a_known_state() -> None:
    """A prober that was started again knows what the one before it found."""
    check = ActiveCheck(HealthCheck(unhealthy=2), UP)
    assert [check.on(good=False) for _ in range(3)] == [None, DOWN, None]
    assert check.state is DOWN


# ---- ejection

RULES = Ejection(failures=3, base=5.0, most=300.0)


@pytest.mark.parametrize("failure", Failure)
def test_failures_in_a_row_are_due(failure: Failure) -> None:
    marks = Marks()
    for _ in range(2):
        marks.failed(failure)
    assert not marks.is_due(RULES)
    marks.worked(failure)
    for _ in range(2):
        marks.failed(failure)
    assert not marks.is_due(RULES)
    marks.failed(failure)
    assert marks.is_due(RULES)


def test_the_kinds_are_counted_apart() -> None:
    """An endpoint that takes every connection and breaks each: the dials do not excuse it."""
    marks = Marks()
    for _ in range(3):
        marks.worked(Failure.DIAL)
        marks.failed(Failure.EARLY)
    assert marks.is_due(RULES)
    marks.worked(Failure.DIAL)
    assert marks.is_due(RULES)


def test_no_failures_turn_it_off() -> None:
    marks = Marks(dial_failures=1000)
    assert not marks.is_due(Ejection(failures=0))


def test_each_ejection_is_twice_as_long() -> None:
    marks, now, seconds = Marks(), NOW, []
    for _ in range(8):
        seconds.append(marks.eject(RULES, now))
        now = marks.ejected_until
        assert marks.come_back(RULES, now)
    assert seconds == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0]


def test_the_doubling_is_forgotten_by_who_stays() -> None:
    marks = Marks()
    marks.eject(RULES, NOW)
    marks.come_back(RULES, NOW + 5)
    assert marks.eject(RULES, NOW + 5 + 299) == 10.0
    back = marks.ejected_until
    marks.come_back(RULES, back)
    assert marks.eject(RULES, back + 300) == 5.0


def test_it_comes_back_once_and_on_probation() -> None:
    marks = Marks(dial_failures=7)
    marks.eject(RULES, NOW)
    assert not marks.come_back(RULES, NOW + 4.9)
    assert marks.come_back(RULES, NOW + 5.5)
    assert not marks.come_back(RULES, NOW + 5.5)
    assert marks.back_since == NOW + 5.5
    assert not marks.is_due(RULES)
    marks.failed(Failure.DIAL)
    assert marks.is_due(RULES)


def test_ejected_for_ever_more_is_no_overflow() -> None:
    assert Marks(ejections=100_000).eject(RULES, NOW) == 300.0


OUT = Seen(1, ejected_until=NOW + 5)
FINE = Seen(1)
ILL = Seen(1, DOWN)
DRAINED = Seen(0)


@pytest.mark.parametrize(
    ("seen", "share", "may"),
    [
        ([FINE], 100, False),
        ([FINE, FINE], 100, True),
        ([FINE, OUT], 100, False),
        ([FINE, ILL], 100, False),
        ([FINE, DRAINED], 100, False),
        ([FINE, FINE, OUT], 100, True),
        ([FINE, FINE, OUT], 50, False),
        ([FINE, FINE, FINE, OUT], 50, True),
        ([FINE, FINE, FINE, FINE], 1, True),  # always one
        ([FINE, FINE, FINE, OUT], 1, False),
        ([FINE, FINE, Seen(1, ejected_until=NOW)], 34, True),  # that one is back
    ],
)
def test_who_may_be_ejected(seen: list[Seen], share: int, may: bool) -> None:
    assert may_eject(seen, 0, Ejection(share=share), NOW) is may


# ---- slow start


@pytest.mark.parametrize(
    ("after", "share"), [(0, 0.1), (0.5, 0.1), (5, 0.5), (9, 0.9), (10, 1.0), (99, 1.0)]
)
def test_the_share_grows(after: float, share: float) -> None:
    assert slow_start_share(NOW, 10.0, NOW + after) == pytest.approx(share)


def test_without_slow_start_and_without_having_been_away() -> None:
    assert slow_start_share(NOW, 0.0, NOW) == 1.0
    assert slow_start_share(NOW, 0.0, NOW - 0.001) == 1.0
    assert slow_start_share(NOW, 10.0, NOW - 0.001) == slow_start_share(NOW, 10.0, NOW)
    assert slow_start_share(0.0, 10.0, 1.0) == 1.0


# ---- the standing of a group


def group(panic: int = 0, slow_start: float = 0.0) -> Backend:
    return Backend("app", (), panic=panic, slow_start=slow_start)


@pytest.mark.parametrize(
    ("seen", "panic", "weights", "usable"),
    [
        ([FINE, FINE], 0, "11", "11"),
        ([FINE, ILL, OUT], 0, "100", "100"),
        ([FINE, DRAINED], 0, "10", "11"),
        ([Seen(3), Seen(2, UP)], 0, "32", "11"),
        # all ejected: a guess; all down: evidence
        ([OUT, OUT], 0, "11", "11"),
        ([OUT, ILL], 0, "10", "10"),
        ([ILL, ILL], 0, "00", "00"),
        # a drained one that is fine is no reason to spare the ejected one
        ([OUT, DRAINED], 0, "10", "11"),
        # fewer than half of them
        ([FINE, ILL, ILL], 50, "111", "111"),
        ([FINE, ILL], 50, "10", "10"),
        ([ILL, ILL], 1, "11", "11"),
        ([FINE, DRAINED, DRAINED], 50, "100", "111"),
        ([DRAINED], 50, "0", "1"),
        ([], 50, "", ""),
    ],
)
def test_standing(seen: list[Seen], panic: int, weights: str, usable: str) -> None:
    found = standing(seen, group(panic), NOW)
    assert found.weights == tuple(int(one) * SCALE for one in weights)
    assert found.usable == tuple(one == "1" for one in usable)


def test_panic_is_told() -> None:
    assert standing([FINE, ILL, ILL], group(50), NOW).panic
    assert not standing([FINE, ILL], group(50), NOW).panic


def test_a_standing_holds_until_an_ejection_ends() -> None:
    ends = Seen(1, ejected_until=NOW + 3)
    assert standing([FINE, OUT, ends], group(), NOW).until == NOW + 3
    assert standing([FINE, FINE], group(), NOW).until == float("inf")


def test_who_came_back_starts_slowly() -> None:
    seen = [Seen(2), Seen(2, back_since=NOW)]
    for after, weight in ((0, 20), (5, 100), (7.5, 150)):
        found = standing(seen, group(slow_start=10.0), NOW + after)
        assert found.weights == (200, weight)
        assert found.until == NOW + after + 0.5
    found = standing(seen, group(slow_start=10.0), NOW + 10)
    assert found.weights == (200, 200)
    assert found.until == float("inf")


def test_a_small_weight_in_slow_start_is_not_nothing() -> None:
    found = standing([Seen(1, back_since=NOW)], group(slow_start=10_000.0), NOW)
    assert found.weights == (SCALE // 10,)
