"""The health and the load of endpoints and backend groups, in memory that all processes share.

The facts behind the layout:

- As in `counters`, an anonymous mapping made before the fork is the same memory everywhere. Memory
  that nobody has touched costs nothing, so there is room for many rows.
- Endpoints come and go: a reload brings some, DNS brings some. So whoever needs a row claims it by
  its key (`endpoint:app/127.0.0.1:9001`), and all who name the same key have the same row. A row
  is in use while any process says so, in a word of its own; rows that nobody uses are claimed anew
  only when no other is left, so an endpoint that is away for a while keeps what is known of it.
- What lives now is a difference of two counters with one writer each (see `counters`), so neither
  a count nor its end needs a lock, and what a killed worker leaves is put right by `reconcile`.
- What workers find out about an endpoint together (failures in a row, ejections) is read, judged
  and written under a lock, so that an endpoint is ejected once, however many workers see it fail.
  A connection that goes well never takes it: it reads one word that says there is nothing to mend.
  Such a read may be old by a moment: a success that overlaps a failure elsewhere may be counted
  before it or after it, as if they had come in that order.
- The lock is a record lock on an anonymous file: it is the kernel's, which gives it back when its
  holder dies. It is held for some microseconds, never across anything that waits.
- `version` grows with every transition. Who computed something of the states looks at that one
  word to know whether it still holds.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import sub

from l7proxy.health import Checked, Marks, Seen
from l7proxy.maglev import digest
from l7proxy.telemetry.log import event

log = logging.getLogger(__name__)

ROWS = 32_768
"""Endpoints and backend groups that can be known at once."""

_WORD = 8
_LINE = 8  # words of a cache line
_HEAD = _LINE  # words before the keys
_USED, _VERSION, _CLAIMED_ANEW = range(3)

# The words of a row that all share, and then of each process. One cache line each.
_CHECKED, _WHY, _DIAL_FAILURES, _EARLY_ENDS, _EJECTIONS, _EJECTED_UNTIL, _BACK, _CHECK_BACK = range(
    _LINE
)
_PANIC = _CHECKED  # in the row of a group, of which nothing is checked
_IN_USE, _ENTERED, _LEFT, _DIALS, _DIALS_ENDED, _FAILED, _RETRIES, _REFUSED = range(_LINE)

_MICROSECONDS = 1_000_000


class HealthBoard:
    """All rows. Make it before the first fork; `processes` is how many may have a slot."""

    def __init__(self, processes: int, rows: int = ROWS) -> None:
        self.processes = processes
        self.rows = rows
        self.stride = _LINE * (1 + processes)  # words of a row
        self.first = _HEAD + -(-rows // _LINE) * _LINE  # word of the first row
        self._map = mmap.mmap(-1, (self.first + rows * self.stride) * _WORD)
        self._bytes = memoryview(self._map)
        self.words = self._bytes.cast("Q")
        self.lock_fd = os.memfd_create("l7proxy-health", os.MFD_CLOEXEC)

    @property
    def used(self) -> int:
        """Rows that were ever claimed. No child can make it more than there are."""
        return min(self.words[_USED], self.rows)

    def slot(self, process: int) -> HealthSlot:
        """The view of one process. One that only looks needs one too, but no number of its own."""
        if not 0 <= process < self.processes:
            raise IndexError(f"slot {process} of {self.processes}")
        return HealthSlot(self, process)

    def reconcile(self, process: int) -> None:
        """End, on paper, what a process held that was waited for."""
        words, stride = self.words, self.stride
        own = self.first + _LINE * (1 + process)
        end = own + self.used * stride
        words[own + _LEFT : end + _LEFT : stride] = words[own + _ENTERED : end + _ENTERED : stride]
        words[own + _DIALS_ENDED : end + _DIALS_ENDED : stride] = words[
            own + _DIALS : end + _DIALS : stride
        ]
        for word in range(own + _IN_USE, end + _IN_USE, stride):
            words[word] = 0

    def close(self) -> None:
        """Unmap. Rows and slots are unusable afterwards."""
        self.words.release()
        self._bytes.release()
        self._map.close()
        os.close(self.lock_fd)


State = tuple[int, int, int, int]
"""Checked, and in microseconds: ejected until, back since, back since by a check."""

UNTOUCHED: State = (0, 0, 0, 0)


def seen(weight: int, state: State, *, checks: bool, ejects: bool) -> Seen:
    """A row's state for `health.standing`. The group has active `checks`; it `ejects`.

    If it does not, what was found under an earlier policy that did does not count.
    """
    checked, ejected_until, back, check_back = state
    return Seen(
        weight,
        Checked(checked) if checks else Checked.UNKNOWN,
        ejected_until / _MICROSECONDS if ejects else 0.0,
        max(check_back if checks else 0, back if ejects else 0) / _MICROSECONDS,
    )


@dataclass(frozen=True, slots=True)
class Columns:
    """The same figures of all rows, by their numbers. See `Row` for what they mean.

    To read a column takes a fraction of what it takes to look at one row after the other.
    """

    present: list[int]
    connections: list[int]
    failures: list[int]
    states: list[State]


class HealthSlot:
    """The rows as one process sees them."""

    __slots__ = ("_board", "_claimed_anew", "_known", "_looked", "_told", "process", "words")

    def __init__(self, board: HealthBoard, process: int) -> None:
        self._board = board
        self._known: dict[int, int] = {}  # key -> row, of the first `_looked` rows
        self._looked = 0
        self._claimed_anew = 0
        self._told = False
        self.process = process
        self.words = board.words

    @property
    def version(self) -> int:
        """Another number after each transition of any endpoint."""
        return self.words[_VERSION]

    def changed(self) -> None:
        """A transition was written. Call it with the lock held."""
        self.words[_VERSION] += 1

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else changes a state meanwhile. Not to be nested: the inner end would end both."""
        fd = self._board.lock_fd
        fcntl.lockf(fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(fd, fcntl.LOCK_UN)

    def attach(self, key: str) -> Row:
        """The row of a key; it is in use until `Row.detach`.

        When there is no row left it is one that only this process knows: everything works, but
        limits and health are then not shared.
        """
        wanted = digest(b"row", key.encode()) or 1
        with self.locked():
            number = self._find(wanted)
            if number is None:
                number = self._claim(wanted)
            if number is not None:
                return self._row(number)
        if not self._told:
            self._told = True
            log.warning(
                event(
                    "too many endpoints and backends to share the health of all",
                    limit=self._board.rows,
                )
            )
        alone = memoryview(bytearray(_WORD * 2 * _LINE)).cast("Q")
        alone[_LINE + _IN_USE] = 1
        return Row(alone, 0, 1, _LINE)

    def find(self, key: str) -> Row | None:
        """The row of a key, only to look at it; None if nobody ever claimed it."""
        number = self.number(key)
        if number is None:
            return None
        board = self._board
        base = board.first + number * board.stride
        return Row(self.words, base, board.processes, base + _LINE * (1 + self.process))

    def number(self, key: str) -> int | None:
        """That of a key's row, which holds as long as `claims` is the same; None: nobody's."""
        return self._find(digest(b"row", key.encode()) or 1)

    @property
    def claims(self) -> tuple[int, int]:
        """Another one after each claim of a row."""
        return self._board.used, self.words[_CLAIMED_ANEW]

    def columns(self) -> Columns:
        """Of all rows that were ever claimed."""
        used = self._board.used
        left = self._sums(_LEFT, used)  # first: what begins meanwhile only makes more of it
        entered = self._sums(_ENTERED, used)
        states = (_CHECKED, _EJECTED_UNTIL, _BACK, _CHECK_BACK)
        return Columns(
            present=[max(0, one) for one in map(sub, entered, left)],
            connections=entered,
            failures=self._sums(_FAILED, used),
            states=list(zip(*(self._column(word, used) for word in states), strict=True)),
        )

    def _column(self, word: int, used: int) -> list[int]:
        """This word of each row."""
        start, stride = self._board.first + word, self._board.stride
        return self.words[start : start + used * stride : stride].tolist()

    def _sums(self, word: int, used: int) -> list[int]:
        """This word of each row, over all processes."""
        words = (_LINE * (1 + process) + word for process in range(self._board.processes))
        return list(map(sum, zip(*(self._column(one, used) for one in words), strict=True)))

    def _row(self, number: int) -> Row:
        board = self._board
        base = board.first + number * board.stride
        own = base + _LINE * (1 + self.process)
        self.words[own + _IN_USE] += 1
        return Row(self.words, base, board.processes, own)

    def _find(self, wanted: int) -> int | None:
        words = self.words
        if self._claimed_anew != words[_CLAIMED_ANEW]:
            self._claimed_anew = words[_CLAIMED_ANEW]
            self._known.clear()
            self._looked = 0
        used = self._board.used
        while self._looked < used:
            self._known[words[_HEAD + self._looked]] = self._looked
            self._looked += 1
        return self._known.get(wanted)

    def _claim(self, wanted: int) -> int | None:
        words, board = self.words, self._board
        number = board.used
        if number < board.rows:
            words[_HEAD + number] = wanted
            words[_USED] = number + 1
            return number
        for number in range(board.rows):
            base = board.first + number * board.stride
            if not any(words[base + _LINE + _IN_USE : base + board.stride : _LINE]):
                for word in range(base, base + board.stride):
                    words[word] = 0
                words[_HEAD + number] = wanted
                words[_CLAIMED_ANEW] += 1
                return number
        return None


class Row:
    """One endpoint or one backend group."""

    __slots__ = ("_base", "_end", "_own", "_words")

    def __init__(self, words: memoryview, base: int, processes: int, own: int) -> None:
        self._words = words
        self._base = base
        self._end = base + _LINE * (1 + processes)
        self._own = own

    def detach(self) -> None:
        """Use it no more."""
        self._words[self._own + _IN_USE] -= 1

    # ---- load: each count has this process as its only writer

    def enter(self) -> None:
        """One connection more."""
        self._words[self._own + _ENTERED] += 1

    def leave(self) -> None:
        """One connection fewer."""
        self._words[self._own + _LEFT] += 1

    def stay(self) -> None:
        """One that `reconcile` has ended goes on."""
        if self._words[self._own + _LEFT]:
            self._words[self._own + _LEFT] -= 1
        else:  # it was another l7proxy's
            self.enter()

    def begin_dial(self) -> None:
        """One connection more is being dialled."""
        self._words[self._own + _DIALS] += 1

    def end_dial(self) -> None:
        """It is dialled no more."""
        self._words[self._own + _DIALS_ENDED] += 1

    def count_failure(self) -> None:
        """It failed a connection."""
        self._words[self._own + _FAILED] += 1

    def count_retry(self) -> None:
        """A dial was a retry."""
        self._words[self._own + _RETRIES] += 1

    def count_refused(self) -> None:
        """A connection was beyond the circuit's limits."""
        self._words[self._own + _REFUSED] += 1

    @property
    def entered(self) -> int:
        """Connections ever, of this process."""
        return self._words[self._own + _ENTERED]

    def present(self) -> int:
        """Connections now, over all processes."""
        return self._difference(_ENTERED, _LEFT)

    def dialling(self) -> int:
        """Connections that are being dialled now, over all processes."""
        return self._difference(_DIALS, _DIALS_ENDED)

    def connections(self) -> int:
        """Connections ever, over all processes."""
        return self._sum(_ENTERED)

    def failures(self) -> int:
        """Connections that it failed ever, over all processes."""
        return self._sum(_FAILED)

    def retries(self) -> int:
        """Dials that were retries, over all processes."""
        return self._sum(_RETRIES)

    def refused(self) -> int:
        """Connections beyond the circuit's limits, over all processes."""
        return self._sum(_REFUSED)

    def _sum(self, word: int) -> int:
        return sum(self._words[self._base + _LINE + word : self._end : _LINE])

    def _difference(self, begun: int, ended: int) -> int:
        ends = self._sum(ended)  # read first: what begins meanwhile only makes the answer larger
        return max(0, self._sum(begun) - ends)

    # ---- health

    @property
    def is_failing(self) -> bool:
        """Whether there is a failure that a success would make good."""
        words, base = self._words, self._base
        return bool(words[base + _DIAL_FAILURES] or words[base + _EARLY_ENDS])

    def marks(self) -> Marks:
        """What workers found out."""
        words, base = self._words, self._base
        return Marks(
            dial_failures=words[base + _DIAL_FAILURES],
            early_ends=words[base + _EARLY_ENDS],
            ejections=words[base + _EJECTIONS],
            ejected_until=words[base + _EJECTED_UNTIL] / _MICROSECONDS,
            back_since=words[base + _BACK] / _MICROSECONDS,
        )

    def store(self, marks: Marks) -> None:
        """Write what workers found out; with the lock held, since the marks were read."""
        words, base = self._words, self._base
        words[base + _DIAL_FAILURES] = marks.dial_failures
        words[base + _EARLY_ENDS] = marks.early_ends
        words[base + _EJECTIONS] = marks.ejections
        words[base + _EJECTED_UNTIL] = int(marks.ejected_until * _MICROSECONDS)
        words[base + _BACK] = int(marks.back_since * _MICROSECONDS)

    @property
    def checked(self) -> Checked:
        """What the active checks say."""
        return Checked(self._words[self._base + _CHECKED])

    @property
    def why(self) -> int:
        """Why they say so, as the prober put it into a number."""
        return self._words[self._base + _WHY]

    @property
    def panics(self) -> bool:
        """Whether the group was last found in a panic."""
        return bool(self._words[self._base + _PANIC])

    def store_panic(self, panics: bool) -> None:
        """Write whether the group is in a panic; with the lock held."""
        self._words[self._base + _PANIC] = panics

    def store_check(self, checked: Checked, why: int, back_since: float = 0.0) -> None:
        """Write what the active checks say; with the lock held. `back_since`: up after down."""
        words, base = self._words, self._base
        words[base + _WHY] = why
        words[base + _CHECK_BACK] = int(back_since * _MICROSECONDS)
        words[base + _CHECKED] = checked

    def seen(self, weight: int, *, checks: bool, ejects: bool) -> Seen:
        """All of it: see `seen`."""
        words, base = self._words, self._base
        state = (
            words[base + _CHECKED],
            words[base + _EJECTED_UNTIL],
            words[base + _BACK],
            words[base + _CHECK_BACK],
        )
        return seen(weight, state, checks=checks, ejects=ejects)


def endpoint_key(group: str, address: object) -> str:
    """The key of an endpoint's row. The same address in two groups is two endpoints."""
    return f"endpoint:{group}/{address}"


def group_key(group: str) -> str:
    """The key of a backend group's row."""
    return f"backend:{group}"
