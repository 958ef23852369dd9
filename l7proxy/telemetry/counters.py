"""Counters that all workers write and the supervisor reads, without a system call or a lock.

The facts behind the layout:

- An anonymous shared mapping made before `fork` is the same memory in the supervisor and in every
  worker; it needs no name, no file and no clean-up.
- Every worker has a slot of its own and is its only writer, so `view[Counter.X] += 1` needs no
  atomic operation. A slot is a whole number of cache lines: no two workers share one.
- A `memoryview` cast to "Q" reads and writes an aligned 8-byte word in one access on the 64-bit
  machines that l7proxy runs on, so the supervisor never sees half of a value.
- There are no gauges. What lives now is a difference of two counters that only grow (ACCEPTED -
  CLOSED), so a worker that is killed between the two leaves a difference that its connections no
  longer justify. The kernel closed them with it; `reconcile` says so in the slot, which the worker
  that replaces the dead one goes on with. Totals never go back.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Iterable
from enum import IntEnum, unique

from l7proxy.errors import L7ProxyError, Reason
from l7proxy.telemetry.presence import Presence, SharedPresence
from l7proxy.telemetry.rates import SharedRates

ROWS = 65_536
"""Names that can be counted at once, those of old policies with live connections included. A row
is 16 bytes in each slot, and memory only once it is used."""

_WORD = 8
_LINE_WORDS = 64 // _WORD
_MASK = (1 << 64) - 1


@unique
class Counter(IntEnum):
    """The words of a slot. Counts of events unless the comment says bytes."""

    ACCEPTED = 0  # connections taken on and served
    CLOSED = 1  # ... and ended; ACCEPTED - CLOSED are alive
    REFUSED = 2  # connections reset at once (limit, descriptors); never part of ACCEPTED
    SPLICES = 3  # pairs put into the kernel
    SPLICES_ENDED = 4
    RELAYS = 5  # pairs that user space moves: all at first, some for their whole life
    RELAYS_ENDED = 6
    RELAYED_CLIENT = 7  # bytes from clients that user space moved, what came with the head too
    RELAYED_BACKEND = 8  # bytes from backends that user space moved
    OVERFLOWS = 9  # directions of spliced pairs that user space had to take over for a while
    LOG_DROPPED = 10  # access-log lines that nobody read in time
    ERROR_LOCAL_REPLY = 11
    ERROR_BAD_REQUEST = 12
    ERROR_HEAD_TIMEOUT = 13
    ERROR_CLIENT_CLOSED = 14
    ERROR_CLIENT_RESET = 15
    ERROR_BACKEND_RESET = 16
    ERROR_DIAL_REFUSED = 17
    ERROR_DIAL_TIMEOUT = 18
    ERROR_BACKEND_CLOSED = 19
    ERROR_IDLE_TIMEOUT = 20
    ERROR_STALLED = 21
    ERROR_URGENT_DATA = 22
    ERROR_CONNECTION_LIMIT = 23
    ERROR_DESCRIPTORS = 24
    ERROR_DATAPATH = 25
    ERROR_DRAIN_DEADLINE = 26
    ERROR_INTERNAL = 27
    ERROR_NO_ENDPOINT = 28
    ERROR_UNRESOLVED = 29
    ERROR_CIRCUIT_OPEN = 30
    ERROR_BAD_HELLO = 31
    ERROR_PROXY_HEADER = 32
    ERROR_DENIED = 33
    ERROR_NO_ROUTE = 34
    ERROR_CLIENT_LIMIT = 35
    ODD_ANSWERS = 36  # responses that got no cookie: their head is none of HTTP/1
    LONGEST_SLICE = 37  # us of processor time that a step towards another policy took at most
    SERIES_FULL = 38  # sets of labels that found no series of their own, and were counted as others
    DRAINS = 39  # directions of spliced pairs whose end was passed on, every byte before it
    ERROR_OPERATOR_RESET = 40
    ERROR_LOOP = 41
    ADOPTED = 42  # spliced pairs of a worker that had died, gone on with
    ERROR_NOT_ADOPTED = 43
    SPLICE2_CLIENT = 44  # bytes of RELAYED_CLIENT that splice(2) moved, by reference
    SPLICE2_BACKEND = 45
    ERROR_UPGRADED = 46
    ERROR_RATE_LIMITED = 47
    ERROR_BAD_RESPONSE = 48
    ERROR_REQUEST_TIMEOUT = 49
    REQUESTS = 50  # requests that were routed by themselves, and are over
    REUSED = 51  # ... of these went over a connection that another one had gone over before
    STALE = 52  # ... were sent once more, as that connection had ended before it got them
    POOLED = 53  # connections to backends that were kept for another request
    POOLED_ENDED = 54  # ... and got one, or were closed
    BODIES = 55  # bodies of requests and responses that the kernel was given
    MIRRORED = 56  # copies of requests that were sent on their way
    MIRRORS_LOST = 57  # ... that were not: too large, too many, or nobody to take them


ERRORS: dict[Reason, Counter] = {
    reason: Counter[f"ERROR_{reason.name}"] for reason in Reason if reason is not Reason.DONE
}
"""The counter of each reason but `Reason.DONE`, which is no error."""

_PAIRED = (
    (Counter.ACCEPTED, Counter.CLOSED),
    (Counter.SPLICES, Counter.SPLICES_ENDED),
    (Counter.RELAYS, Counter.RELAYS_ENDED),
    (Counter.POOLED, Counter.POOLED_ENDED),
)


_OF_PAIRS = (Counter.ACCEPTED, Counter.SPLICES)
"""What a pair that is in the kernel counts in."""


class Counters:
    """One worker's slot, and a look at everybody's for the limits that hold over all workers."""

    __slots__ = ("_first", "_shared", "presence", "rates", "view")

    def __init__(self, shared: SharedCounters, view: memoryview, presence: Presence) -> None:
        self._shared = shared
        self._first = len(Counter)
        self.presence = presence
        self.rates = shared.rates
        self.view = view
        """Indexed by `Counter`; `view[Counter.ACCEPTED] += 1` is the whole protocol."""

    def fail(self, reason: Reason) -> None:
        """Count why a connection ended or was refused; `DONE` is no error and counts nowhere."""
        if reason is not Reason.DONE:
            self.view[ERRORS[reason]] += 1

    def enter(self, row: int) -> None:
        """One connection more lives on what has this row (see `Rows`)."""
        self.view[self._first + 2 * row] += 1

    def stay(self, row: int) -> None:
        """A connection that `reconcile` has ended on it goes on."""
        left = self._first + 2 * row + 1
        if self.view[left]:
            self.view[left] -= 1
        else:  # it was another l7proxy's
            self.enter(row)

    def leave(self, row: int) -> None:
        """One connection fewer lives on it; each `enter` has its `leave` on the same row."""
        self.view[self._first + 2 * row + 1] += 1

    def present(self, row: int) -> int:
        """How many connections live on it, over all workers."""
        return self._shared.present(row)

    @property
    def workers(self) -> int:
        """How many workers there are."""
        return self._shared.workers


class RowsExhausted(L7ProxyError):
    """A policy names more than can be counted."""


class Rows:
    """Which name has which row. In the supervisor only; workers are told the result.

    Names are `listener:web`, `backend:api`, `endpoint:api/127.0.0.1:9001`. A name that no policy
    has any more gives its row back, but another name gets it only when nobody is present there,
    and the row that was free for the longest time first. A dial of an old policy may still enter
    it after that; then a count is too high for as long as that lasts, and right again afterwards,
    for each `enter` has its `leave`.
    """

    def __init__(self, shared: SharedCounters) -> None:
        self._shared = shared
        self._rows: dict[str, int] = {}
        self._retired: deque[int] = deque()
        self._unused = 0  # rows from here on never had a name

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, name: str) -> int:
        return self._rows[name]

    def assign(self, names: Iterable[str]) -> dict[str, int]:
        """The rows of all these names; a name keeps the row that it has.

        Raises RowsExhausted, and then has assigned none.
        """
        wanted = dict.fromkeys(names)
        new = [name for name in wanted if name not in self._rows]
        found: list[int] = []
        try:
            for _ in new:
                found.append(self._take())
        except RowsExhausted:
            self._retired.extendleft(reversed(found))
            raise
        self._rows.update(zip(new, found, strict=True))
        return {name: self._rows[name] for name in wanted}

    def keep(self, names: Iterable[str]) -> None:
        """Give back the rows of all other names. Not before every worker is done with them."""
        kept = set(names)
        for name in [name for name in self._rows if name not in kept]:
            self._retired.append(self._rows.pop(name))

    def _take(self) -> int:
        for _ in range(len(self._retired)):
            row = self._retired.popleft()
            if self._shared.present(row) == 0:
                return row
            self._retired.append(row)
            if self._unused < self._shared.rows:
                break  # there are enough: no need to look at all that are still in use
        if self._unused == self._shared.rows:
            raise RowsExhausted(
                f"too many listeners, backends and endpoints: {self._shared.rows:,} can be counted"
                f" at once ({len(self._rows):,} are in use, {len(self._retired):,} belong to"
                " connections of policies before); split the policy over several l7proxy"
            )
        self._unused += 1
        return self._unused - 1


class SharedCounters:
    """The slots of all workers. Make it before the first fork.

    `rows` is how many names each slot has room for: their live connections are counted there, so
    that a limit can hold over all workers.
    """

    def __init__(self, workers: int, rows: int = ROWS) -> None:
        if workers < 1:
            raise ValueError("a slot for at least one worker is needed")
        used = len(Counter) + 2 * rows
        self.workers = workers
        self.rows = rows
        self._stride = -(-used // _LINE_WORDS) * _LINE_WORDS
        self._presence = SharedPresence(workers)
        self.rates = SharedRates()
        self._map = mmap.mmap(-1, workers * self._stride * _WORD)
        self._bytes = memoryview(self._map)
        self._words = self._bytes.cast("Q")
        self._views = [
            self._words[worker * self._stride : (worker + 1) * self._stride]
            for worker in range(workers)
        ]

    def slot(self, worker: int) -> Counters:
        """The slot of one worker; the same memory each time it is asked for."""
        return Counters(self, self._views[worker], self._presence.slot(worker))

    def total(self, counter: Counter) -> int:
        """The sum of a counter over all workers, live."""
        return sum(self._words[counter :: self._stride])

    def most(self, counter: Counter) -> int:
        """The largest value of any worker, for a counter that is no sum."""
        return max(self._words[counter :: self._stride])

    def present(self, row: int) -> int:
        """How many connections live on what has this row, over all workers.

        A worker that counts an end between the two reads cannot make this negative.
        """
        word = len(Counter) + 2 * row
        left = sum(self._words[word + 1 :: self._stride])
        return max(0, sum(self._words[word :: self._stride]) - left)

    def active(self) -> int:
        """Connections alive, over all workers."""
        return self._difference(Counter.ACCEPTED, Counter.CLOSED)

    def spliced(self) -> int:
        """Pairs in the kernel, over all workers."""
        return self._difference(Counter.SPLICES, Counter.SPLICES_ENDED)

    def relayed(self) -> int:
        """Pairs that user space moves, for now or for their whole life, over all workers."""
        return self._difference(Counter.RELAYS, Counter.RELAYS_ENDED)

    def pooled(self) -> int:
        """Connections to backends that wait for another request, over all workers."""
        return self._difference(Counter.POOLED, Counter.POOLED_ENDED)

    def errors(self) -> dict[str, int]:
        """How often each reason ended a connection; every reason but `done` is there."""
        return {reason.value: self.total(counter) for reason, counter in ERRORS.items()}

    def reconcile(self, worker: int, kept: int = 0) -> int:
        """End, on paper, what a worker took with it when it died; how many connections that was.

        `kept`: so many of its pairs in the kernel live on, for the next worker to adopt. What they
        count on rows it has to say itself (`Counters.stay`). Only for a slot whose worker has been
        waited for: nobody else may be writing to it.
        """
        view = self._views[worker]
        lost = (view[Counter.ACCEPTED] - view[Counter.CLOSED]) & _MASK
        for started, ended in _PAIRED:
            view[ended] = view[started] - (kept if started in _OF_PAIRS else 0)
        entered = len(Counter)
        used = entered + 2 * self.rows
        view[entered + 1 : used : 2] = view[entered:used:2]
        self._presence.clear(worker)
        return max(0, lost - kept)

    def inherit(self, worker: int, pairs: int) -> None:
        """So many pairs of another l7proxy are this slot's, before its worker starts."""
        for counter in _OF_PAIRS:
            self._views[worker][counter] += pairs

    def close(self) -> None:
        """Unmap. Slots handed out before are unusable afterwards."""
        self._presence.close()
        self.rates.close()
        for view in self._views:
            view.release()
        self._views.clear()
        self._words.release()
        self._bytes.release()
        self._map.close()

    def _difference(self, started: Counter, ended: Counter) -> int:
        ends = self.total(ended)  # read first: what starts meanwhile only makes the answer larger
        return max(0, self.total(started) - ends)
