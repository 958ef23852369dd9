"""Health and load in memory that processes share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from forking import in_child

from l7proxy.health import Checked, Failure, Marks, Seen
from l7proxy.telemetry.health import HealthBoard, HealthSlot, endpoint_key, group_key


@pytest.fixture
def board() -> Iterator[HealthBoard]:
    one = HealthBoard(3, rows=4)
    yield one
    one.close()


def test_a_child_that_was_taken_over_does_not_stop_the_supervisor(board: HealthBoard) -> None:
    """It may write whatever it likes here; what it held is put right all the same."""
    row = board.slot(1).attach("endpoint:app/127.0.0.1:1")
    row.enter()
    board.words[0] = 1 << 63  # how many rows are used
    board.reconcile(1)
    assert row.present() == 0
    assert board.slot(2).find("endpoint:app/127.0.0.1:2") is None


def test_the_same_key_is_the_same_row_in_every_process(board: HealthBoard) -> None:
    here = board.slot(0).attach("endpoint:app/127.0.0.1:1")

    def there() -> None:
        slot = board.slot(1)
        slot.attach("endpoint:app/127.0.0.1:2").enter()
        row = slot.attach("endpoint:app/127.0.0.1:1")
        row.enter()
        row.enter()
        row.begin_dial()
        row.count_failure()
        row.leave()

    in_child(there)
    here.enter()
    assert (here.present(), here.connections(), here.dialling(), here.failures()) == (2, 3, 1, 1)
    assert here.entered == 1
    other = board.slot(0).find("endpoint:app/127.0.0.1:2")
    assert other is not None
    assert other.present() == 1
    assert board.slot(2).find("endpoint:app/127.0.0.1:3") is None


def test_what_a_dead_process_held_ends_and_its_totals_stay(board: HealthBoard) -> None:
    rows = [board.slot(0).attach(key) for key in ("a", "b")]

    def dies() -> None:
        slot = board.slot(1)
        for key in ("a", "b"):
            row = slot.attach(key)
            for _ in range(3):
                row.enter()
            row.begin_dial()

    in_child(dies)
    rows[0].enter()
    assert [row.present() for row in rows] == [4, 3]
    board.reconcile(1)
    assert [row.present() for row in rows] == [1, 0]
    assert [row.dialling() for row in rows] == [0, 0]
    assert [row.connections() for row in rows] == [4, 3]


MARKS = Marks(2, 3, 4, 1234.5, 1200.25)


def test_health_is_shared(board: HealthBoard) -> None:
    row, seen = board.slot(0).attach("a"), board.slot(1).attach("a")
    version = board.slot(1).version
    assert not seen.is_failing
    assert seen.marks() == Marks()
    slot = board.slot(0)
    with slot.locked():
        row.store(MARKS)
        row.store_check(Checked.DOWN, 7)
        slot.changed()
    assert seen.marks() == MARKS
    assert seen.is_failing
    assert (seen.checked, seen.why) == (Checked.DOWN, 7)
    assert board.slot(1).version != version


def test_what_is_seen_of_an_endpoint(board: HealthBoard) -> None:
    row = board.slot(0).attach("a")
    row.store(MARKS)
    row.store_check(Checked.UP, 0, back_since=1300.0)
    seen = row.seen(5, checks=True, ejects=True)
    assert (seen.weight, seen.checked) == (5, Checked.UP)
    assert (seen.ejected_until, seen.back_since) == (1234.5, 1300.0)
    row.store_check(Checked.DOWN, 0)
    # a group without checks does not care what those of an earlier policy said
    assert row.seen(5, checks=False, ejects=True).checked is Checked.UNKNOWN
    assert row.seen(5, checks=False, ejects=True).back_since == 1200.25
    assert row.seen(5, checks=False, ejects=False) == Seen(5)


def test_an_endpoint_that_was_away_is_still_known(board: HealthBoard) -> None:
    row = board.slot(0).attach("a")
    row.store(MARKS)
    row.detach()
    board.slot(1).attach("b")
    assert board.slot(1).attach("a").marks() == MARKS


def test_a_row_is_claimed_anew_when_none_is_left(board: HealthBoard) -> None:
    one, two = board.slot(0), board.slot(1)
    rows = {key: one.attach(key) for key in "abcd"}
    kept = two.attach("b")
    rows["b"].store(MARKS)
    rows["b"].detach()  # the other process still has it
    rows["c"].store(MARKS)
    rows["c"].detach()
    new = two.attach("e")
    assert new.marks() == Marks()
    new.enter()
    assert one.find("c") is None, "its row is another's now"
    found = one.find("e")
    assert found is not None
    assert found.present() == 1
    assert kept.marks() == MARKS


def test_without_a_row_everything_works_but_is_not_shared(
    board: HealthBoard, caplog: pytest.LogCaptureFixture
) -> None:
    one = board.slot(0)
    for key in "abcd":
        one.attach(key)
    alone, another = one.attach("e"), one.attach("f")
    alone.enter()
    alone.begin_dial()
    alone.store(MARKS)
    assert (alone.present(), alone.dialling()) == (1, 1)
    assert alone.seen(1, checks=True, ejects=True).ejected_until == 1234.5
    assert another.present() == 0
    assert caplog.messages == ["too many endpoints and backends to share the health of all limit=4"]
    alone.detach()


def test_a_lock_is_given_back_by_who_dies_with_it(board: HealthBoard) -> None:
    def dies() -> None:
        with board.slot(1).locked():
            os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        dies()
        os._exit(1)
    os.waitpid(pid, 0)
    with board.slot(0).locked():
        pass


def test_no_failure_is_lost_between_processes(board: HealthBoard) -> None:
    """Each reads, counts and writes: without the lock most of them would overwrite each other."""
    row = board.slot(0).attach("a")
    children, times = 3, 400

    def count() -> None:
        slot = board.slot(1)
        mine = slot.attach("a")
        for _ in range(times):
            with slot.locked():
                marks = mine.marks()
                marks.failed(Failure.DIAL)
                mine.store(marks)

    pids = []
    for _ in range(children):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                count()
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * children
    assert row.marks().dial_failures == children * times


def test_a_slot_there_is_not(board: HealthBoard) -> None:
    for number in (-1, 3):
        with pytest.raises(IndexError, match="of 3"):
            board.slot(number)


def test_keys() -> None:
    assert endpoint_key("app", "127.0.0.1:1") == "endpoint:app/127.0.0.1:1"
    assert group_key("app") == "backend:app"


def test_slots_find_what_others_claim_later(board: HealthBoard) -> None:
    one: HealthSlot = board.slot(0)
    assert one.find("a") is None
    board.slot(1).attach("a").enter()
    found = one.find("a")
    assert found is not None
    assert found.present() == 1
