"""Counters by labels in a table of a fixed size, which processes share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from forking import in_child

from l7proxy.telemetry import series
from l7proxy.telemetry.series import SPARE, Key, SeriesBoard, SeriesSlot


def other(key: Key) -> Key:
    return (key[0], "_other")


@pytest.fixture
def board() -> Iterator[SeriesBoard]:
    one = SeriesBoard(2, rows=3, words=2)
    yield one
    one.close()


def count(slot: SeriesSlot, *labels: str, times: int = 1) -> None:
    slot.words[slot.at(("ended", *labels))] += times


def read(board: SeriesBoard) -> dict[Key, int]:
    return {key[1:]: sums[0] for key, sums in board.read()}


def test_processes_that_name_the_same_count_in_the_same_series(board: SeriesBoard) -> None:
    ours = board.slot(0, other)
    count(ours, "web", "done", times=2)

    def in_the_other() -> None:
        slot = board.slot(1, other)
        count(slot, "raw", "done")
        count(slot, "web", "done", times=40)

    in_child(in_the_other)
    count(ours, "raw", "done", times=100)
    assert read(board) == {("web", "done"): 42, ("raw", "done"): 101}
    assert board.used == 2


def test_all_counts_of_a_series_are_summed(board: SeriesBoard) -> None:
    slot = board.slot(1, other)
    slot.words[slot.at(("bytes", "a")) + 1] += 7
    assert list(board.read()) == [(("bytes", "a"), (0, 7))]


def test_what_does_not_fit_is_counted_as_other_and_told(board: SeriesBoard) -> None:
    full: list[None] = []
    slot = board.slot(0, other, lambda: full.append(None))
    for name in ("a", "b", "c", "d", "e", "d"):
        count(slot, name)
    assert read(board) == {("a",): 1, ("b",): 1, ("c",): 1, ("_other",): 3}
    assert len(full) == 2, "told once for each set of labels"


def test_a_series_that_nobody_uses_makes_room_for_another(board: SeriesBoard) -> None:
    slot, second = board.slot(0, other), board.slot(1, other)
    for name in ("a", "b", "c"):
        count(slot, name, times=5)
    count(second, "b")
    slot.turn()
    count(slot, "a")
    count(slot, "new")
    assert read(board)["_other",] == 1, "all are in use until the second turn"
    slot.turn()  # c goes, and b is the other process's still
    count(slot, "new", times=10)
    assert read(board) == {("a",): 6, ("b",): 6, ("new",): 10, ("_other",): 1}
    count(second, "new")
    count(second, "a")
    assert read(board) == {("a",): 7, ("b",): 6, ("new",): 11, ("_other",): 1}


def test_a_place_is_found_again_after_any_number_of_turns(board: SeriesBoard) -> None:
    slot = board.slot(0, other)
    for _ in range(5):
        count(slot, "a")
        slot.turn()
    for _ in range(3):
        slot.turn()
    count(slot, "a")
    assert read(board) == {("a",): 6}


def test_what_a_dead_process_used_is_free_and_its_counts_stay(board: SeriesBoard) -> None:
    in_child(lambda: [count(board.slot(1, other), name) for name in ("a", "b", "c")] and None)
    slot = board.slot(0, other)
    count(slot, "d")
    assert read(board)["_other",] == 1
    board.reconcile(1)
    assert read(board)["a",] == 1
    slot.turn()
    slot.turn()
    count(slot, "d")
    assert read(board)["d",] == 1


def test_spare_rows_are_few(board: SeriesBoard) -> None:
    slot = board.slot(0, lambda key: ("spare", *key[1:]))
    for name in ("a", "b", "c"):
        count(slot, name)
    for number in range(SPARE + 10):
        slot.words[slot.at(("x", str(number)))] += 1
    found = read(board)
    assert len(found) == 3 + SPARE
    assert sum(found.values()) == 3 + SPARE + 10


def test_a_worker_that_was_taken_over_does_not_harm_who_reads(board: SeriesBoard) -> None:
    slot = board.slot(0, other)
    count(slot, "a")
    count(slot, "b")
    base = board.first + board.stride
    board.bytes[(base + 1) * 8 : (base + 1) * 8 + 4] = b'\xff\xff\n"'
    assert read(board) == {("a",): 1}, "a key that does not fit its digest"
    board.words[base] = 1 << 63  # a key's length
    board.words[0] = 1 << 63  # rows in use
    board.words[1] = 1 << 63  # spare ones
    assert read(board) == {("a",): 1}
    board.words[board.first] = 5  # it has been read by now, and is not read again
    assert read(board) == {("a",): 1}
    board.reconcile(0)


@pytest.mark.parametrize("labels", [("x" * 5000,), ("a\0b", "c"), ("\udcff", "é")])
def test_odd_labels(board: SeriesBoard, labels: tuple[str, ...]) -> None:
    slot = board.slot(0, other)
    count(slot, *labels)
    count(slot, *labels)
    (found,) = read(board)
    assert len(found) == len(labels)
    assert read(board)[found] == 2


def test_no_count_is_lost_where_many_claim_at_once() -> None:
    board = SeriesBoard(4, rows=30, words=1)
    names = [f"name-{number}" for number in range(50)]
    waiting, go = os.pipe()

    def race(process: int) -> None:
        slot = board.slot(process, other)
        os.close(go)
        os.read(waiting, 1)
        for turn in range(2_000):
            count(slot, names[(turn * 7 + process * 13) % len(names)])

    pids = []
    for process in range(4):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                race(process)
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    os.close(waiting)
    os.close(go)  # all begin
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
    found = read(board)
    assert sum(found.values()) == 8_000
    assert len(found) == 31
    assert all(value == 160 for key, value in found.items() if key != ("_other",))
    board.close()


def test_a_full_table_is_searched_a_little_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "LOOKS", 2)
    board = SeriesBoard(1, rows=5, words=1)
    slot = board.slot(0, other)
    for name in "abcde":
        count(slot, name)
    slot.turn()
    for name in "abcd":
        count(slot, name)
    slot.turn()  # e is free, and the fifth in the row
    for name in ("v", "w", "x"):
        count(slot, name)
    assert read(board) == {(name,): 2 for name in "abcd"} | {("x",): 1, ("_other",): 2}
    board.close()


def test_a_slot_there_is_not(board: SeriesBoard) -> None:
    with pytest.raises(IndexError):
        board.slot(2, other)
