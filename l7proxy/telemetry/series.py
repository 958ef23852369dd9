"""Counters by labels: who needs a series claims it, in memory that all processes share.

The facts behind the layout:

- As in `counters`, an anonymous mapping made before the fork is the same memory everywhere, and
  memory that nobody has touched costs nothing. Each row has words of its own for each process, so
  to count takes neither a lock nor an atomic operation.
- Which labels come together only the traffic tells, so a worker claims a row where it first needs
  one, by its key: the name of a family and the values of its labels. The key stands in the row, so
  that the supervisor can tell of it without knowing a policy, present or past. A row outlives
  reloads and workers, and its counts with it: they only grow.
- The table has a fixed size. When it is full, a row that no process uses any more is claimed anew,
  from 0; a process uses what it has counted in for `HOLD` to twice as long. Where there is no such
  row, what comes is counted in a spare row: the caller says which.
- Rows are claimed under a record lock on an anonymous file, which the kernel gives back when its
  holder dies. Readers take none: a worker that stands still must not stop the supervisor. They see
  by the digest of the key whether a row was claimed anew, or is not whole yet, and leave it out.
- Workers are another user's, and write here: what is read is cut, never believed to be a text.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from l7proxy.maglev import digest

Key: TypeAlias = tuple[str, ...]
"""The name of a family, and the values of its labels."""

OTHER = "_other"
"""The value of labels in spare rows. No name of a policy begins like this."""

HOLD = 300.0  # seconds
SPARE = 128  # rows beside the table
LOOKS = 64  # rows that are looked at for one to claim anew

_WORD = 8
_LINE = 8  # words
_USED, _SPARE_USED, _HAND, _CLAIMED_ANEW = range(4)  # of the first line
_KEY_WORDS = 64
_KEY_BYTES = (_KEY_WORDS - 1) * _WORD  # a word before them is the length
_BETWEEN = b"\0"


class SeriesBoard:
    """The table. Make it before the first fork; `words` is how many counts a series has."""

    def __init__(self, processes: int, rows: int, words: int) -> None:
        self.processes = processes
        self.rows = rows
        self.counts = words
        self.width = -(-(words + 1) // _LINE) * _LINE  # the last word: the process uses the row
        self.stride = _KEY_WORDS + processes * self.width
        total = rows + SPARE
        self.first = _LINE + -(-total // _LINE) * _LINE  # word of the first row, behind the digests
        self._map = mmap.mmap(-1, (self.first + total * self.stride) * _WORD)
        self.bytes = memoryview(self._map)
        self.words = self.bytes.cast("Q")
        self.lock_fd = os.memfd_create("l7proxy-series", os.MFD_CLOEXEC)
        self._keys: dict[int, tuple[int, Key]] = {}  # of rows that were read, with their digests

    @property
    def used(self) -> int:
        """Rows of the table that were ever claimed. No child can make it more than there are."""
        return min(self.words[_USED], self.rows)

    @property
    def spare_used(self) -> int:
        """Spare rows that were ever claimed."""
        return min(self.words[_SPARE_USED], SPARE)

    def slot(
        self, process: int, spare: Callable[[Key], Key], on_full: Callable[[], None] = lambda: None
    ) -> SeriesSlot:
        """The view of one process.

        `spare` says by which key to count what finds no row; there may be `SPARE` different ones.
        `on_full` is called for each key that finds none.
        """
        if not 0 <= process < self.processes:
            raise IndexError(f"slot {process} of {self.processes}")
        return SeriesSlot(self, process, spare, on_full)

    def read(self) -> Iterator[tuple[Key, Sequence[int]]]:
        """All series, and the sums of their counts over all processes, as they are now."""
        yield from self._read(0, self.used)
        yield from self._read(self.rows, self.rows + self.spare_used)

    def _read(self, begin: int, end: int) -> Iterator[tuple[Key, Sequence[int]]]:
        before = self._digests(begin, end)
        keys = [self._known_key(row, wanted) for row, wanted in enumerate(before, begin)]
        # by columns: a row at a time would take ten times as long
        sums = [self._column(begin, end, count) for count in range(self.counts)]
        after = self._digests(begin, end)
        for key, counts, old, new in zip(keys, zip(*sums, strict=True), before, after, strict=True):
            if key is not None and old == new:
                yield key, counts

    def _digests(self, begin: int, end: int) -> list[int]:
        return self.words[_LINE + begin : _LINE + end].tolist()

    def _column(self, begin: int, end: int, count: int) -> list[int]:
        """One count of all these rows, over all processes."""
        first = self.first + _KEY_WORDS + count
        columns = [
            self.words[first + begin * self.stride : first + end * self.stride : self.stride]
            for first in range(first, first + self.processes * self.width, self.width)
        ]
        return list(map(sum, zip(*columns, strict=True)))

    def _known_key(self, row: int, wanted: int) -> Key | None:
        """The key of a row; None if it is not the one with this digest."""
        known = self._keys.get(row)
        if known is None or known[0] != wanted:
            text = self.key(row)
            if not text or _digest(text) != wanted:
                return None
            key = tuple(sys.intern(part) for part in text.decode(errors="replace").split("\0"))
            known = self._keys[row] = (wanted, key)
        return known[1]

    def key(self, row: int) -> bytes:
        """The key that stands in a row."""
        base = self.first + row * self.stride
        length = min(self.words[base], _KEY_BYTES)
        return bytes(self.bytes[(base + 1) * _WORD : (base + 1) * _WORD + length])

    def reconcile(self, process: int) -> None:
        """A process that was waited for uses nothing any more. What it counted stays."""
        own = self.first + _KEY_WORDS + process * self.width + self.width - 1
        for row in range(self.used):
            self.words[own + row * self.stride] = 0

    def close(self) -> None:
        """Unmap. Slots are unusable afterwards."""
        self.words.release()
        self.bytes.release()
        self._map.close()
        os.close(self.lock_fd)


class SeriesSlot:
    """The table as one process sees it.

    Whoever counts asks `at` for the place each time; what it answers may be another one after the
    next `turn`.
    """

    def __init__(
        self,
        board: SeriesBoard,
        process: int,
        spare: Callable[[Key], Key],
        on_full: Callable[[], None],
    ) -> None:
        self._board = board
        self._spare = spare
        self._on_full = on_full
        self._own = board.first + _KEY_WORDS + process * board.width  # of the first row
        self.young: dict[Key, int] = {}
        """Places that were asked for since the last turn, to be looked at before `at` is asked."""
        self._old: dict[Key, int] = {}
        self._known: dict[int, int] = {}  # digest -> row, of the first `_looked` rows
        self._looked = 0
        self._claimed_anew = 0
        self.words = board.words

    def at(self, key: Key) -> int:
        """The index into `words` of this process's counts of a series. It is never 0."""
        place = self.young.get(key)
        if place is None:
            place = self._old.pop(key, None)
            if place is None:
                place = self._find_place(key)
            self.young[key] = place
        return place

    def turn(self) -> None:
        """Use no more what was not asked for since the last turn. Call it each `HOLD` seconds."""
        board = self._board
        table = self._own + board.rows * board.stride
        for place in self._old.values():
            if place < table:
                self.words[place + board.width - 1] = 0
        # keys that found no row are to look again
        self._old = {key: place for key, place in self.young.items() if place < table}
        self.young.clear()

    def _find_place(self, key: Key) -> int:
        board = self._board
        fcntl.lockf(board.lock_fd, fcntl.LOCK_EX)
        try:
            row = self._claim(_pack(key))
            if row is None:
                row = self._claim_spare(_pack(self._spare(key)))
                self._on_full()
            place = self._own + row * board.stride
            self.words[place + board.width - 1] = 1
        finally:
            fcntl.lockf(board.lock_fd, fcntl.LOCK_UN)
        return place

    def _claim(self, text: bytes) -> int | None:
        board, words = self._board, self.words
        wanted = _digest(text)
        row = self._look_up().get(wanted)
        if row is not None and board.key(row) == text:
            return row
        row = board.used
        if row < board.rows:
            self._write(row, text)
            words[_USED] = row + 1
            return row
        row = self._unused_row()
        if row is not None:
            words[_LINE + row] = 0
            base = board.first + row * board.stride
            for word in range(base, base + board.stride):
                words[word] = 0
            self._write(row, text)
            words[_CLAIMED_ANEW] += 1
        return row

    def _look_up(self) -> Mapping[int, int]:
        words, used = self.words, self._board.used
        if self._claimed_anew != words[_CLAIMED_ANEW]:
            self._claimed_anew = words[_CLAIMED_ANEW]
            self._known.clear()
            self._looked = 0
        if self._looked < used:
            found = words[_LINE + self._looked : _LINE + used].tolist()
            self._known.update(zip(found, range(self._looked, used), strict=True))
            self._looked = used
        return self._known

    def _unused_row(self) -> int | None:
        """A row that no process uses; only a few are looked at, for the lock is held."""
        board, words = self._board, self.words
        for _ in range(min(LOOKS, board.rows)):
            row = words[_HAND] % board.rows
            words[_HAND] = row + 1
            end = board.first + (row + 1) * board.stride
            begin = end - board.stride + _KEY_WORDS + board.width - 1
            if not any(words[begin : end : board.width]):
                return row
        return None

    def _claim_spare(self, text: bytes) -> int:
        board, words = self._board, self.words
        used = board.spare_used
        wanted = _digest(text)
        for row in range(board.rows, board.rows + used):
            if words[_LINE + row] == wanted:
                return row
        row = board.rows + min(used, SPARE - 1)
        if used < SPARE:
            self._write(row, text)
            words[_SPARE_USED] = used + 1
        return row

    def _write(self, row: int, text: bytes) -> None:
        board = self._board
        base = board.first + row * board.stride
        board.bytes[(base + 1) * _WORD : (base + 1) * _WORD + len(text)] = text
        self.words[base] = len(text)
        self.words[_LINE + row] = _digest(text)


def _pack(key: Key) -> bytes:
    text = _BETWEEN.join(part.replace("\0", "").encode(errors="replace") for part in key)
    return text[:_KEY_BYTES]


def _digest(text: bytes) -> int:
    return digest(b"series", text) or 1
