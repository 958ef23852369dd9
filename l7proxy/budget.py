"""How many dials of a backend group may be retries. Pure: the clock is passed in.

Retries help against an endpoint that fails, and hurt when all of them do: every connection then
costs as many dials as there are attempts, just when the backend has least to give. So the retries
of the last seconds must stay below a percentage of the connections of that time (Envoy's retry
budget, Finagle's `RetryBudget`). A few are always allowed, or a quiet group could never retry.

A budget belongs to one worker. It costs nothing until a dial fails: it is told of connections by a
count that only grows, which the worker keeps anyway.
"""

from __future__ import annotations

WINDOW = 10.0  # seconds that "recent" means
ALWAYS = 10  # retries in a window that need no connections to justify them


class RetryBudget:
    """The retries of one group, in windows of `WINDOW` to twice that many seconds."""

    __slots__ = ("_began", "_connections", "_percent", "_retries")

    def __init__(self, percent: int, now: float, connections: int = 0) -> None:
        self._percent = percent
        self._began = now
        self._connections = connections  # the count when the window began
        self._retries = 0

    def take(self, now: float, connections: int) -> bool:
        """Whether one more retry may be made; it counts as made then.

        `now` in seconds; `connections` is how many the group had ever,
        in this worker.
        """
        passed = now - self._began
        if passed >= 2 * WINDOW:
            # nobody asked for long: only what the average of that time was can be known
            recent = (connections - self._connections) * WINDOW / passed
            self._roll(now, connections - int(recent), 0)
        elif passed >= WINDOW:
            # half of the old window stays in sight, else its end would allow a burst
            half = (connections - self._connections) // 2
            self._roll(now - WINDOW / 2, connections - half, self._retries // 2)
        recent_connections = connections - self._connections
        if self._retries >= max(ALWAYS, recent_connections * self._percent // 100):
            return False
        self._retries += 1
        return True

    def _roll(self, began: float, connections: int, retries: int) -> None:
        self._began, self._connections, self._retries = began, connections, retries
