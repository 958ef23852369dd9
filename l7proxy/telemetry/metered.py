"""What was counted of each spliced pair while it goes on, in memory that outlives a worker.

Bytes by route and endpoint are counted as they move, a round in some seconds, and the rest when a
connection ends. How much of a pair was counted already has to be known to whoever counts the rest:
the next worker, if this one dies. Made before the fork; a worker has its own, by pair.
"""

from __future__ import annotations

import mmap
from typing import TypeAlias

Moved: TypeAlias = tuple[int, int, int, int]
"""Bytes from the client, from the backend, and how many of each the kernel moved."""

NOTHING: Moved = (0, 0, 0, 0)

_WORDS = len(NOTHING)


class Metered:
    """By the client's index of a pair."""

    def __init__(self, pairs: int) -> None:
        self._map = mmap.mmap(-1, max(1, pairs) * _WORDS * 8)
        self._words = memoryview(self._map).cast("Q")

    def store(self, index: int, moved: Moved) -> None:
        """So much was counted of this pair."""
        at = (index >> 1) * _WORDS
        words = self._words
        words[at], words[at + 1], words[at + 2], words[at + 3] = moved

    def of(self, index: int) -> Moved:
        """What was stored last."""
        at = (index >> 1) * _WORDS
        words = self._words
        return words[at], words[at + 1], words[at + 2], words[at + 3]
