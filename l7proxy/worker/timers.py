"""Deadlines of many connections: a calendar of ticks.

Setting, moving and cancelling a deadline are each one dict or set operation, and a connection that
is gone leaves nothing behind (a heap of deadlines would keep every short connection alive until its
long timeout came). The price is precision: a deadline fires up to one tick late, never early.
"""

from __future__ import annotations

import heapq
from typing import Protocol

TICK = 0.125  # seconds


class Timed(Protocol):
    """Something with a deadline. `tick` belongs to the calendar; -1 means none."""

    tick: int

    def on_deadline(self) -> None:
        """Called once, when the deadline has passed."""


class Calendar:
    """Deadlines by tick. Not thread-safe; times are seconds of a monotonic clock."""

    __slots__ = ("_days", "_heap")

    def __init__(self) -> None:
        self._days: dict[int, set[Timed]] = {}
        self._heap: list[int] = []  # the ticks that have a set in `_days`, each once

    def set(self, item: Timed, when: float) -> None:
        """Set or move the one deadline of `item`."""
        tick = int(when / TICK) + 1
        if tick == item.tick:
            return
        if item.tick >= 0:
            self._days[item.tick].discard(item)
        day = self._days.get(tick)
        if day is None:
            day = self._days[tick] = set()
            heapq.heappush(self._heap, tick)
        day.add(item)
        item.tick = tick

    def sooner(self, item: Timed, when: float) -> None:
        """Set the deadline of `item` unless it has an earlier one."""
        if item.tick < 0 or int(when / TICK) + 1 < item.tick:
            self.set(item, when)

    def cancel(self, item: Timed) -> None:
        """Drop the deadline of `item`, if it has one."""
        if item.tick >= 0:
            self._days[item.tick].discard(item)
            item.tick = -1

    def due(self, now: float) -> list[Timed]:
        """Take out what is due. The items have no deadline afterwards."""
        items: list[Timed] = []
        current = int(now / TICK)
        while self._heap and self._heap[0] <= current:
            for item in self._days.pop(heapq.heappop(self._heap)):
                item.tick = -1
                items.append(item)
        return items

    def next(self) -> float | None:
        """When to look again: the first tick that something may be due at."""
        while self._heap:
            if self._days[self._heap[0]]:
                return self._heap[0] * TICK
            del self._days[heapq.heappop(self._heap)]
        return None
