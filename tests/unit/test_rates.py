"""Request rates in memory that all workers share."""

from __future__ import annotations

import os
import time

import pytest

from l7proxy.ratelimit import SECOND, Rate
from l7proxy.telemetry.counters import SharedCounters
from l7proxy.telemetry.rates import WAYS, SharedRates

EACH_SECOND = Rate(SECOND, 0)
NOW = 7 * SECOND


@pytest.fixture
def rates() -> SharedRates:
    return SharedRates(1 << 10)


def test_one_for_a_route_and_one_for_each_client(rates: SharedRates) -> None:
    assert rates.take("a", None, EACH_SECOND, NOW) == 0
    assert rates.take("a", None, EACH_SECOND, NOW) == SECOND
    assert rates.take("b", None, EACH_SECOND, NOW) == 0
    assert rates.take("a", "192.0.2.1", EACH_SECOND, NOW) == 0
    assert rates.take("a", "192.0.2.1", EACH_SECOND, NOW + 1) == SECOND - 1
    assert rates.take("a", "192.0.2.2", EACH_SECOND, NOW) == 0
    assert rates.take("b", "192.0.2.1", EACH_SECOND, NOW) == 0
    assert rates.take("a", "192.0.2.1", EACH_SECOND, NOW + SECOND) == 0


def test_an_ipv6_client_is_its_64(rates: SharedRates) -> None:
    assert rates.take("a", "2001:db8::1", EACH_SECOND, NOW) == 0
    assert rates.take("a", "2001:db8::ffff:1", EACH_SECOND, NOW) == SECOND
    assert rates.take("a", "2001:db8:0:1::1", EACH_SECOND, NOW) == 0


def test_a_crowd_pushes_out_who_owes_least_and_no_route() -> None:
    rates = SharedRates(WAYS)  # one bucket
    slow = Rate(1000 * SECOND, 0)
    assert rates.take("route", None, slow, NOW) == 0
    for n in range(WAYS):
        assert rates.take("a", f"10.0.0.{n}", slow, NOW + n) == 0
    assert rates.take("a", "10.0.1.1", slow, NOW + WAYS) == 0  # in the place of 10.0.0.0
    assert all(rates.take("a", f"10.0.0.{n}", slow, NOW + 10) for n in range(1, WAYS))
    assert rates.take("a", "10.0.1.1", slow, NOW + 10)
    assert rates.take("route", None, slow, NOW + 10)
    assert rates.take("a", "10.0.0.0", slow, NOW + 10) == 0  # forgotten, and so anew


def test_what_is_due_in_the_past_makes_room_first() -> None:
    rates = SharedRates(WAYS)
    for n in range(WAYS):
        wait = EACH_SECOND if n == 3 else Rate(1000 * SECOND, 0)
        rates.take("a", f"10.0.0.{n}", wait, NOW)
    rates.take("a", "10.0.1.1", EACH_SECOND, NOW + 2 * SECOND)
    others = (n for n in range(WAYS) if n != 3)
    assert all(rates.take("a", f"10.0.0.{n}", EACH_SECOND, NOW + 2 * SECOND) for n in others)


def test_places_cannot_be_known_beforehand() -> None:
    def used() -> tuple[int, ...]:
        rates = SharedRates(64 * WAYS)
        rates.take("a", "192.0.2.1", EACH_SECOND, NOW)
        return tuple(at for at, word in enumerate(rates._words) if word)

    assert len({used() for _ in range(20)}) > 10


def test_the_limit_is_exact_over_processes() -> None:
    """Four of them ask as fast as they can; a limit that is only nearly one lets more through."""
    shared = SharedCounters(4)
    rates, few = shared.slot(0).rates, 2000
    rate = Rate(1000 * SECOND, 1000 * SECOND * (few - 1))
    now, ends = time.monotonic_ns(), []
    for slot in range(4):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            mine = shared.slot(slot).rates
            through = sum(mine.take("a", "192.0.2.1", rate, now) == 0 for _ in range(few))
            os.write(write, f"{through}".encode())
            os._exit(0)
        os.close(write)
        ends.append((pid, read))
    counts = []
    for pid, read in ends:
        counts.append(int(os.read(read, 20)))
        os.close(read)
        os.waitpid(pid, 0)
    assert sum(counts) == few
    assert rates.take("a", "192.0.2.1", rate, now)
    shared.close()
