"""Handing pairs to the supervisor, which keeps duplicates of their sockets (`keeper`).

- Many a pair ends soon after its splice. So pairs are handed over at the calendar's next tick, all
  that there are by then in few messages, and what has ended meanwhile costs nothing. A worker that
  dies takes with it what is younger than that.
- What is written of a pair is written then, too, of many in a row: to write it as each is spliced
  takes four times as long, though all of it is at hand (the code is not).
- A pair that was handed over is *kept*: close(2) does not end its connections, and its index is
  free only when the supervisor says that its duplicates are closed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from l7proxy.net.channel import ChannelClosed
from l7proxy.net.kept import LARGE, load
from l7proxy.net.messages import MOST_PAIRS, Ended, Spliced
from l7proxy.worker.handover import pack

if TYPE_CHECKING:
    from l7proxy.worker.loop import Worker
    from l7proxy.worker.spliced import SplicedPair

TURN = 200  # pairs that are handed over in one round of the loop: about a millisecond

Say = Callable[[object, Sequence[int], bytes], bool]
"""Send the supervisor a message; False when it has not read for a while, so that it has to wait."""


class Keeping:
    """The pairs that are to be handed over, and those that ended after it."""

    def __init__(self, worker: Worker, say: Say) -> None:
        self.tick = -1
        self._worker = worker
        self._say = say
        self._fresh: dict[int, SplicedPair] = {}
        self._ended: list[int] = []
        self._lost: set[int] = set()

    def add(self, pair: SplicedPair) -> None:
        """A pair has gone into the kernel."""
        self._fresh[pair.index] = pair
        self._due()

    def ended(self, pair: SplicedPair) -> bool:
        """Its sockets are about to be closed. Whether its index is free only later."""
        self._fresh.pop(pair.index, None)
        if pair.is_kept:
            self._ended.append(pair.index)
            self._due()
        return pair.is_kept

    def give_up(self, index: int) -> None:
        """A pair that was kept is not adopted; its index stays out of use."""
        self._lost.add(index)
        self._ended.append(index)
        self._due()

    def dropped(self, pairs: Sequence[int]) -> None:
        """The supervisor has closed its duplicates."""
        splicer = self._worker.splicer
        assert splicer is not None
        for index in pairs:
            if index not in self._lost:
                splicer.release(index)

    def _due(self) -> None:
        if self.tick < 0:
            self._worker.calendar.set(self, self._worker.now)

    def on_deadline(self) -> None:
        """Tell the supervisor."""
        try:
            goes_on = self._tell_ended() and self._hand_over()
        except ChannelClosed:
            self._worker.orphaned()
            return
        if self._ended or (self._fresh and not goes_on):
            self._due()
        elif self._fresh:  # others have their turn first, but no more than that
            self._worker.calendar.set(self, 0.0)

    def settle(self) -> bool:
        """Tell all that there is to tell; False: the supervisor does not read now."""
        try:
            return self._tell_ended() and self._hand_over() and not self._fresh
        except ChannelClosed:
            return True

    def _tell_ended(self) -> bool:
        while self._ended:
            some = self._ended[:1000]
            if not self._say(Ended(tuple(some)), (), b""):
                return False
            del self._ended[: len(some)]
        return True

    def _hand_over(self) -> bool:
        left = TURN
        while self._fresh and left > 0:
            places: list[int] = []
            records: list[bytes] = []
            fds: list[int] = []
            size = 0
            for index, pair in self._fresh.items():
                connection = pair.connection
                backend = connection.backend
                assert backend is not None
                record = pack(connection)
                size += len(record)
                places += (index, len(record))
                records.append(record)
                fds += (connection.client.fileno(), backend.fileno())
                if len(records) == MOST_PAIRS or size > LARGE:
                    break
            if not self._say(Spliced(), fds, load(places, records)):
                return False
            left -= len(records)
            for index in places[::2]:
                self._fresh.pop(index).is_kept = True
        return True
