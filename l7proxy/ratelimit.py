"""How many requests are let through in a time: a limit's whole state is one number. Pure.

The generic cell rate algorithm (ITU-T I.371, annex A, as virtual scheduling): each request that is
let through moves the time at which the next one is *due* on by one interval, from now at the least.
One that comes before it is due is let through while it is early by no more than the burst allows,
and is refused otherwise; a refused one changes nothing, so whoever keeps knocking is not kept out
for longer. It is the same as a bucket of `burst` tokens that is filled one by one, in a single
number and without a timer.

What is due in the past says nothing any more: such a number can be forgotten, and zero is none.
"""

from __future__ import annotations

from typing import NamedTuple

from l7proxy.model import RateLimit

SECOND = 1_000_000_000


class Rate(NamedTuple):
    """A limit in nanoseconds: from one request to the next, and how early one may come."""

    interval: int
    early: int


def rate_of(limit: RateLimit) -> Rate:
    """The limit as it is computed with. An interval is rounded down, to the client's good."""
    interval = max(1, round(limit.per * SECOND) // limit.requests)
    return Rate(interval, interval * (limit.burst - 1))


def arrive(due: int, now: int, rate: Rate) -> tuple[int, int]:
    """A request comes: when the next one is due, and how long this one should have waited.

    Zero means that it is let through. All times in nanoseconds of one clock that never goes back.
    """
    wait = due - rate.early - now
    if wait > 0:
        return due, wait
    return max(due, now) + rate.interval, 0


def retry_after(wait: int) -> int:
    """The value of Retry-After for a wait in nanoseconds.

    RFC 9110, 10.2.3: "A delay-seconds value is a non-negative decimal integer, representing time
    in seconds." It is rounded up, so that who obeys is let through.
    """
    return max(1, -(-wait // SECOND))
