"""The calendar of deadlines, against a dictionary that is searched from end to end."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from l7proxy.worker.timers import TICK, Calendar


@dataclass(eq=False)
class Item:
    """Something with a deadline."""

    tick: int = -1
    fired: list[float] = field(default_factory=list)

    def on_deadline(self) -> None:
        raise AssertionError("the calendar hands out, it does not call")


def kept(calendar: Calendar) -> list[object]:
    """All that the calendar holds on to."""
    return [item for day in calendar._days.values() for item in day]


# Whole and half ticks among them: the edges.
seconds = st.one_of(
    st.integers(-4, 40).map(lambda n: n * TICK / 2), st.floats(-1, 30, allow_nan=False)
)
which = st.integers(0, 5)


class Deadlines(RuleBasedStateMachine):
    """`when` is the model: the one deadline of each item that has one."""

    def __init__(self) -> None:
        super().__init__()
        self.calendar = Calendar()
        self.items = [Item() for _ in range(6)]
        self.when: dict[int, float] = {}
        self.now = 1000.0

    @rule(i=which, after=seconds)
    def set(self, i: int, after: float) -> None:
        self.calendar.set(self.items[i], self.now + after)
        self.when[i] = self.now + after

    @rule(i=which, after=seconds)
    def sooner(self, i: int, after: float) -> None:
        self.calendar.sooner(self.items[i], self.now + after)
        self.when[i] = min(self.now + after, self.when.get(i, self.now + after))

    @rule(i=which)
    def cancel(self, i: int) -> None:
        self.calendar.cancel(self.items[i])
        self.when.pop(i, None)

    @rule(after=seconds.map(abs))
    def time_passes(self, after: float) -> None:
        self.now += after

    @rule()
    def due(self) -> None:
        fired = self.calendar.due(self.now)
        assert len(fired) == len(set(map(id, fired)))
        at = {self.items.index(item) for item in fired}  # type: ignore[arg-type]
        assert at <= {i for i, when in self.when.items() if when < self.now}, "early"
        assert at >= {i for i, when in self.when.items() if when + TICK <= self.now}, "late"
        for i in at:
            del self.when[i]
            assert self.items[i].tick == -1

    @rule()
    def when_to_look_again(self) -> None:
        """Looking at that time, and not before, is enough to be at most one tick late."""
        look = self.calendar.next()
        if not self.when:
            assert look is None
            assert not self.calendar._days
            assert not self.calendar._heap
            return
        first = min(self.when.values())
        assert look is not None
        assert first < look <= first + TICK

    @precondition(lambda self: self.when)
    @rule()
    def sleep_until_then(self) -> None:
        look = self.calendar.next()
        assert look is not None
        if look > self.now:
            self.now = look
        before = len(self.when)
        self.due()
        assert len(self.when) < before, "woken for nothing"

    @invariant()
    def each_item_is_held_once_and_no_other(self) -> None:
        held = kept(self.calendar)
        assert sorted(map(id, held)) == sorted(id(self.items[i]) for i in self.when)
        assert sorted(self.calendar._heap) == sorted(self.calendar._days)
        for i, item in enumerate(self.items):
            assert (item.tick >= 0) == (i in self.when)


Deadlines.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestDeadlines = Deadlines.TestCase


@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.999])
def test_a_deadline_fires_after_its_time_within_one_tick(part: float) -> None:
    calendar, item = Calendar(), Item()
    when = (80 + part) * TICK
    calendar.set(item, when)
    assert calendar.due(when) == []
    assert calendar.due(when + TICK) == [item]
    assert calendar.due(when + 100) == []


def test_a_deadline_of_the_past_fires_at_the_next_look() -> None:
    calendar, item = Calendar(), Item()
    assert calendar.due(500.0) == []
    calendar.set(item, 400.0)
    assert calendar.due(500.0) == [item]


def test_a_deadline_that_fired_can_be_set_again() -> None:
    calendar, item = Calendar(), Item()
    for _ in range(3):
        calendar.set(item, 10.0)
        assert calendar.due(10.0 + TICK) == [item]


def test_cancelled_in_the_middle_of_a_batch() -> None:
    """What one deadline's work cancels is in the batch already: cancelling must do no harm."""
    calendar, one, two = Calendar(), Item(), Item()
    calendar.set(one, 1.0)
    calendar.set(two, 1.0)
    assert set(calendar.due(2.0)) == {one, two}
    calendar.cancel(two)
    assert calendar.next() is None


def test_nothing_that_is_over_is_kept_alive() -> None:
    """A connection that ended long before its idle timeout is collectable at once."""
    calendar, item = Calendar(), Item()
    for after in range(50):
        calendar.set(item, 3600.0 + after)
    calendar.cancel(item)
    gone = weakref.ref(item)
    del item
    gc.collect()
    assert gone() is None
