"""How many dials may be retries."""

from __future__ import annotations

from l7proxy.budget import ALWAYS, WINDOW, RetryBudget


def taken(budget: RetryBudget, now: float, connections: int, tries: int = 1000) -> int:
    return sum(budget.take(now, connections) for _ in range(tries))


def test_a_quiet_group_may_retry_a_few_times() -> None:
    assert taken(RetryBudget(20, 100.0), 100.0, 1) == ALWAYS


def test_a_busy_group_may_retry_a_part_of_its_connections() -> None:
    budget = RetryBudget(20, 100.0)
    assert taken(budget, 105.0, 500) == 100
    assert taken(budget, 105.0, 1000) == 100


def test_none_at_all_but_the_few() -> None:
    assert taken(RetryBudget(0, 100.0), 101.0, 10_000) == ALWAYS


def test_what_was_before_does_not_count() -> None:
    """The counter goes on from the worker that was here before."""
    assert taken(RetryBudget(20, 100.0, 1_000_000), 101.0, 1_000_100) == 20


def test_retries_are_forgiven_when_their_time_is_over() -> None:
    budget = RetryBudget(20, 100.0)
    assert taken(budget, 100.0, 10) == ALWAYS
    assert taken(budget, 100.0 + WINDOW - 0.1, 20) == 0
    assert taken(budget, 100.0 + WINDOW, 20) == ALWAYS // 2  # half of the window stays in sight
    assert taken(budget, 100.0 + 4 * WINDOW, 20) == ALWAYS


def test_after_a_long_silence_the_average_counts() -> None:
    # 10 per second for 100 seconds: 100 in a window
    assert taken(RetryBudget(50, 100.0), 200.0, 1000) == 50
