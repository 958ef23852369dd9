"""Connections of each client, over all workers."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from l7proxy.telemetry.counters import SharedCounters
from l7proxy.telemetry.presence import NOWHERE, PROBES, Presence, SharedPresence


def enter(table: Presence, address: str, limit: int = 1 << 30, listener: str = "web") -> int:
    entry = table.enter(listener, address, limit)
    assert entry is not None
    return entry


def test_a_limit_holds_over_all_workers_and_for_each_client() -> None:
    shared = SharedPresence(3)
    one, two, three = map(shared.slot, range(3))
    first, second = enter(one, "192.0.2.1", 2), enter(two, "192.0.2.1", 2)
    assert three.enter("web", "192.0.2.1", 2) is None
    assert three.enter("web", "192.0.2.2", 2) is not None
    assert three.enter("other", "192.0.2.1", 2) is not None  # a limit is a listener's
    one.leave(first)
    third = enter(three, "192.0.2.1", 2)
    assert one.enter("web", "192.0.2.1", 2) is None
    two.leave(second)
    three.leave(third)
    assert shared.count(shared.client("web", "192.0.2.1")) == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", True),  # one /64
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::1%eth1", True),
        ("unix:", "unix:", True),
        ("unix:", "192.0.2.1", False),
    ],
)
def test_what_one_client_is(one: str, other: str, same: bool) -> None:
    shared = SharedPresence(1)
    assert (shared.client("web", one) == shared.client("web", other)) is same


def test_hashes_cannot_be_known_beforehand() -> None:
    hashes = {SharedPresence(1, 64).client("web", "192.0.2.1") for _ in range(3)}
    assert len(hashes) == 3


def test_what_a_dead_worker_had_is_forgotten() -> None:
    shared = SharedCounters(2)
    dead, alive = shared.slot(0).presence, shared.slot(1).presence
    enter(dead, "192.0.2.1")
    enter(alive, "192.0.2.1")
    shared.reconcile(0)
    assert alive.enter("web", "192.0.2.1", 1) is None
    assert alive.enter("web", "192.0.2.1", 2) is not None
    shared.close()


def test_a_full_table_counts_no_more_and_refuses_nobody() -> None:
    shared = SharedPresence(1, PROBES)
    table = shared.slot(0)
    entries = [enter(table, f"10.0.{n // 256}.{n % 256}") for n in range(PROBES + 1)]
    assert NOWHERE not in entries[:PROBES]
    assert entries[PROBES] == NOWHERE
    table.leave(NOWHERE)
    table.leave(entries[0])
    assert enter(table, "10.9.9.9") != NOWHERE


def test_counts_are_exact_whatever_comes_and_goes() -> None:
    """A small table: chains are long, and entries are used again and again."""
    rng = random.Random(7)
    shared = SharedPresence(2, 64)
    tables = [shared.slot(0), shared.slot(1)]
    living: list[tuple[int, str, int]] = []
    for _ in range(4000):
        if living and rng.random() < 0.5 + (len(living) > 30) * 0.3:
            worker, _, entry = living.pop(rng.randrange(len(living)))
            tables[worker].leave(entry)
        else:
            worker, address = rng.randrange(2), f"10.0.0.{rng.randrange(60)}"
            entry = enter(tables[worker], address)
            if entry == NOWHERE:
                continue
            living.append((worker, address, entry))
        expected = Counter(address for _, address, _ in living)
        address = f"10.0.0.{rng.randrange(60)}"
        assert shared.count(shared.client("web", address)) == expected[address]
    for worker, _, entry in living:
        tables[worker].leave(entry)
    assert not any(any(table[1::2]) for table in shared._tables)


def test_chains_are_emptied_behind_the_last_one() -> None:
    shared = SharedPresence(1, 64)
    table = shared.slot(0)
    for _ in range(50):
        entries = [enter(table, f"10.0.0.{n}") for n in range(40)]
        for entry in reversed(entries):
            table.leave(entry)
    assert sum(map(bool, shared._tables[0][::2])) < 40
