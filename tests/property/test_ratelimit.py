"""Request rates: GCRA against the bucket of tokens that it stands for."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7proxy.model import RateLimit
from l7proxy.ratelimit import SECOND, Rate, arrive, rate_of, retry_after

LIMITS = st.builds(
    RateLimit,
    requests=st.integers(1, 2000),
    burst=st.integers(1, 50),
    per=st.sampled_from([1.0, 60.0, 86400.0]),
)
# From one request to the next, in intervals of the limit: crowds, and pauses of all lengths.
GAPS = st.lists(
    st.one_of(st.just(0.0), st.floats(0, 2), st.floats(0, 100)), min_size=1, max_size=80
)


def times(gaps: list[float], rate: Rate, start: int) -> list[int]:
    now, found = start, []
    for gap in gaps:
        now += int(gap * rate.interval)
        found.append(now)
    return found


@given(LIMITS, GAPS, st.integers(1, 1 << 60))
def test_it_is_a_bucket_of_tokens(limit: RateLimit, gaps: list[float], start: int) -> None:
    rate, due = rate_of(limit), 0
    tokens, last = Fraction(limit.burst), start
    for now in times(gaps, rate, start):
        tokens = min(Fraction(limit.burst), tokens + Fraction(now - last, rate.interval))
        last = now
        due, wait = arrive(due, now, rate)
        assert (wait == 0) == (tokens >= 1)
        if wait:
            assert tokens + Fraction(wait, rate.interval) == 1  # not a nanosecond too long
        else:
            tokens -= 1


@given(LIMITS, GAPS, st.integers(0, 1 << 60))
def test_no_window_lets_more_through_than_the_burst_and_the_rate(
    limit: RateLimit, gaps: list[float], start: int
) -> None:
    rate, due, through = rate_of(limit), 0, []
    for now in times(gaps, rate, start):
        due, wait = arrive(due, now, rate)
        if not wait:
            through.append(now)
    for first, began in enumerate(through):
        for last in range(first, len(through)):
            most = limit.burst + (through[last] - began) // rate.interval
            assert last - first + 1 <= most


@given(LIMITS, st.integers(1, 1 << 60))
def test_who_comes_evenly_is_never_refused(limit: RateLimit, start: int) -> None:
    rate, due = rate_of(limit), 0
    for n in range(100):
        due, wait = arrive(due, start + n * rate.interval, rate)
        assert wait == 0


@given(LIMITS, GAPS, st.integers(1, 1 << 60))
def test_who_comes_back_as_told_is_let_through(
    limit: RateLimit, gaps: list[float], start: int
) -> None:
    rate, due = rate_of(limit), 0
    for now in times(gaps, rate, start):
        due, wait = arrive(due, now, rate)
        if wait:
            assert arrive(due, now, rate) == (due, wait)  # knocking changes nothing
            assert arrive(due, now + retry_after(wait) * SECOND, rate)[1] == 0


@given(LIMITS)
def test_the_state_fits_into_a_word(limit: RateLimit) -> None:
    rate, due, now = rate_of(limit), 0, 1 << 62  # an uptime of a century
    for _ in range(limit.burst):
        due, wait = arrive(due, now, rate)
        assert wait == 0
    assert due < 1 << 64


@pytest.mark.parametrize(
    ("limit", "interval", "early"),
    [
        (RateLimit(1, 1), SECOND, 0),
        (RateLimit(3, 3), 333_333_333, 666_666_666),
        (RateLimit(600, 20, 60.0), SECOND // 10, 19 * SECOND // 10),
        (RateLimit(1_000_000, 1), 1000, 0),
    ],
)
def test_figures(limit: RateLimit, interval: int, early: int) -> None:
    assert rate_of(limit) == (interval, early)


@pytest.mark.parametrize(
    ("wait", "seconds"),
    [(1, 1), (SECOND, 1), (SECOND + 1, 2), (59 * SECOND + SECOND // 2, 60)],
)
def test_retry_after_is_whole_seconds(wait: int, seconds: int) -> None:
    assert retry_after(wait) == seconds
