"""Counters over processes: one writer for each slot, differences instead of gauges."""

from __future__ import annotations

import os
import signal

import pytest

from l7proxy.errors import Reason
from l7proxy.telemetry.counters import ERRORS, ROWS, Counter, Rows, RowsExhausted, SharedCounters


def test_every_reason_but_done_has_a_counter_of_its_own() -> None:
    assert set(ERRORS) == set(Reason) - {Reason.DONE}
    assert len(set(ERRORS.values())) == len(ERRORS)
    assert sorted(Counter) == list(range(len(Counter)))


def test_totals_sum_over_slots_and_slots_do_not_overlap() -> None:
    shared = SharedCounters(3, rows=2)
    for slot in range(3):
        view = shared.slot(slot).view
        for word in range(len(view)):
            view[word] += 10**slot
    assert shared.total(Counter.ACCEPTED) == 111
    assert shared.total(Counter.ERROR_INTERNAL) == 111
    assert shared.present(0) == 0
    shared.close()


@pytest.mark.parametrize("rows", [0, 1, 7, 50])
def test_slots_are_whole_cache_lines(rows: int) -> None:
    shared = SharedCounters(2, rows)
    assert shared.slot(0).view.nbytes % 64 == 0
    assert len(shared.slot(0).view) >= len(Counter) + 2 * rows
    shared.close()


def test_a_slot_there_is_not() -> None:
    with pytest.raises(ValueError, match="at least one"):
        SharedCounters(0)
    shared = SharedCounters(1)
    with pytest.raises(IndexError):
        shared.slot(1)
    shared.close()


def test_counts_of_forked_workers_are_seen_while_they_live() -> None:
    shared = SharedCounters(2, rows=1)
    told, tell = os.pipe()
    pids = []
    for slot in range(2):
        pid = os.fork()
        if pid == 0:
            counters = shared.slot(slot)
            for _ in range(1000):
                counters.view[Counter.RELAYED_CLIENT] += 1 << 40
            counters.view[Counter.ACCEPTED] += 3
            counters.enter(0)
            counters.fail(Reason.STALLED)
            counters.fail(Reason.DONE)
            os.write(tell, b".")
            signal.pause()
        pids.append(pid)
    seen = b""
    while len(seen) < 2:
        seen += os.read(told, 2)
    assert shared.total(Counter.RELAYED_CLIENT) == 2000 << 40
    assert shared.active() == 6
    assert shared.slot(0).present(0) == 2
    assert shared.errors()["stalled"] == 2
    assert sum(shared.errors().values()) == 2
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os.close(told)
    os.close(tell)
    shared.close()


def test_what_a_dead_worker_held_ends_and_totals_stay() -> None:
    shared = SharedCounters(2, rows=2)
    dead, alive = shared.slot(0), shared.slot(1)
    for counters in (dead, alive):
        counters.view[Counter.ACCEPTED] += 10
        counters.view[Counter.CLOSED] += 4
        counters.view[Counter.SPLICES] += 5
        counters.view[Counter.SPLICES_ENDED] += 2
        counters.view[Counter.RELAYS] += 3
        counters.view[Counter.OVERFLOWS] += 1
        counters.enter(1)
        counters.enter(1)
        counters.leave(1)
    assert shared.reconcile(0) == 6
    assert (shared.active(), shared.spliced(), shared.relayed()) == (6, 3, 3)
    assert (shared.present(0), shared.present(1)) == (0, 1)
    assert shared.total(Counter.ACCEPTED) == 20
    assert shared.total(Counter.OVERFLOWS) == 2
    assert shared.reconcile(0) == 0, "nothing is left to end"
    dead.view[Counter.ACCEPTED] += 1  # its successor goes on in the same slot
    assert shared.active() == 7
    shared.close()


# ---- rows


def test_a_name_keeps_its_row_and_names_do_not_share_one() -> None:
    shared = SharedCounters(1, rows=8)
    rows = Rows(shared)
    first = rows.assign(["listener:a", "backend:b", "listener:a"])
    assert sorted(first) == ["backend:b", "listener:a"]
    assert len(set(first.values())) == 2
    second = rows.assign(["endpoint:b/127.0.0.1:1", "listener:a"])
    assert second["listener:a"] == first["listener:a"] == rows["listener:a"]
    assert len({*first.values(), *second.values()}) == 3
    assert len(rows) == 3
    shared.close()


def test_a_row_is_used_again_only_when_nobody_is_present() -> None:
    shared = SharedCounters(2, rows=2)
    rows = Rows(shared)
    old = rows.assign(["a", "b"])
    held = shared.slot(1)
    held.enter(old["a"])
    rows.keep([])
    assert rows.assign(["c"]) == {"c": old["b"]}, "somebody is still in the row of a"
    with pytest.raises(RowsExhausted, match=r"2 can be counted at once \(1 are in use, 1 belong"):
        rows.assign(["d"])
    held.leave(old["a"])
    assert rows.assign(["d"]) == {"d": old["a"]}
    assert shared.present(old["a"]) == 0
    shared.close()


def test_rows_that_were_never_used_come_first_when_the_free_ones_are_busy() -> None:
    shared = SharedCounters(1, rows=3)
    rows = Rows(shared)
    old = rows.assign(["a"])
    shared.slot(0).enter(old["a"])
    rows.keep([])
    assert old["a"] not in rows.assign(["b", "c"]).values()
    shared.close()


def test_too_many_names_are_refused_whole() -> None:
    shared = SharedCounters(1, rows=3)
    rows = Rows(shared)
    rows.assign(["a"])
    with pytest.raises(RowsExhausted, match="too many listeners, backends and endpoints"):
        rows.assign(["b", "c", "d"])
    assert len(rows) == 1
    assert len(set(rows.assign(["b", "c"]).values())) == 2, "those that were taken are free again"
    shared.close()


def test_what_a_dead_worker_held_leaves_every_row() -> None:
    shared = SharedCounters(2)
    dead, alive = shared.slot(0), shared.slot(1)
    for row in (0, 1, 4711, ROWS - 1):
        dead.enter(row)
        dead.enter(row)
        dead.leave(row)
        alive.enter(row)
    shared.reconcile(0)
    assert [shared.present(row) for row in (0, 1, 2, 4711, ROWS - 1)] == [1, 1, 0, 1, 1]
    shared.close()
