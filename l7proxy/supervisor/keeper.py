"""Duplicates of both sockets of every spliced pair, so that pairs outlive their worker.

The facts, and what follows:

- The kernel moves the bytes of a spliced pair. What ends it with its worker is only that the last
  descriptors of its sockets are closed. While this process has duplicates they are not the last.
- For the same reason close(2) in the worker does not end a connection that is kept: the worker
  shuts it down, or disconnects it (`dial.reset_now`), and then says that it has ended. The place in
  the SOCKMAP is free when the last descriptor is closed, so the worker is told of that.
- A worker reads strangers' bytes. What it hands over is believed to be descriptors, no more, and so
  many as it has pairs.
- Where there is a guardian, it has one more duplicate of each, and is the last to close it
  (`guarded`).
- Descriptors in a message that finds no room in this process's table are lost. Such pairs are not
  kept: they end with their worker, by a reset, as do those beyond `most`.
- A pair that brings down whoever adopts it would bring down worker after worker: after `TRIES`
  successors that never came to the end of it, what they were to adopt is reset.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence

from l7proxy.net.channel import ChannelBroken, Received
from l7proxy.net.kept import DELIVER, RESET, Kept, Pairs, batches, let_go, take
from l7proxy.net.messages import Adopted, Dropped, Ended, Spliced
from l7proxy.supervisor.guarded import Guarded
from l7proxy.telemetry.log import event

log = logging.getLogger(__name__)

TRIES = 3  # successors that may die while they adopt


class Keeper:
    """The kept pairs of all slots, by the index of their client."""

    def __init__(self, slots: int, pairs: int, most: int, guarded: Guarded | None = None) -> None:
        """`pairs`: how many a worker can have; `most`: how many are kept, over all workers."""
        self._pairs = pairs
        self._most = most
        self._kept: list[dict[int, Kept]] = [{} for _ in range(slots)]
        self._deaths = [0] * slots  # since the last adoption that came to its end
        self._guarded = guarded

    # ---- what workers say

    def hear(self, slot: int, received: Received) -> list[Dropped] | None:
        """What is to be answered to a message about pairs; None: it is about something else.

        Raises ChannelBroken for what no worker of ours would say.
        """
        match received.message:
            case Spliced():
                return self._keep(slot, received)
            case Ended():
                return self._end(slot, received.message.pairs)
            case Adopted():
                self._adopted(slot, received.message)
                return []
        return None

    def _keep(self, slot: int, received: Received) -> list[Dropped]:
        kept, pairs = self._kept[slot], take(received)
        sane = pairs is not None and all(
            index % 2 == 0 and index < 2 * self._pairs for index, _ in pairs
        )
        if pairs is None or not sane:
            for fd in received.fds:
                os.close(fd)
            if received.is_whole:
                raise ChannelBroken("pairs that no worker has")
            return []
        room = self._most - self.total
        for index, pair in pairs:
            if index in kept or room <= 0:
                let_go(pair, RESET)  # as it is set already, while it lives
                continue
            kept[index] = pair
            room -= 1
            if self._guarded is not None:
                self._guarded.keep(slot, index, pair)
        return []

    def _end(self, slot: int, pairs: Sequence[int]) -> list[Dropped]:
        kept = self._kept[slot]
        for index in pairs:
            pair = kept.pop(index, None)
            if pair is not None:
                let_go(pair, DELIVER)
        free = pairs if self._guarded is None else self._guarded.end(slot, pairs)
        return [Dropped(tuple(free))] if free else []

    def _adopted(self, slot: int, message: Adopted) -> None:
        self._deaths[slot] = 0
        log.info(event("pairs adopted", slot=slot, pairs=message.pairs, reset=message.refused))

    # ---- what a worker leaves

    @property
    def total(self) -> int:
        """How many pairs are kept."""
        return sum(map(len, self._kept))

    def of(self, slot: int) -> Mapping[int, Kept]:
        """The pairs of a slot, for the worker that is to adopt them."""
        return self._kept[slot]

    def descriptors(self, slot: int) -> frozenset[int]:
        """What that worker inherits for it."""
        if slot >= len(self._kept):
            return frozenset()
        return frozenset(
            fd for one in self._kept[slot].values() for fd in (one.client, one.backend)
        )

    def orphaned(self, slot: int) -> int:
        """The worker in this slot has died; how many pairs its successor is to adopt."""
        if self._guarded is not None:
            self._guarded.forget(slot)
        if not self._kept[slot]:
            return 0
        self._deaths[slot] += 1
        if self._deaths[slot] > TRIES:
            log.error(event("pairs cannot be adopted, they are reset", pairs=len(self._kept[slot])))
            self.drop(slot)
        return len(self._kept[slot])

    # ---- from one l7proxy to another

    def batches(self, slot: int) -> Iterator[Pairs]:
        """All pairs of a slot, as many at a time as a message takes."""
        return batches(self._kept[slot].items())

    def entrust(self, slot: int, index: int, pair: Kept) -> None:
        """Keep a pair that another l7proxy has kept."""
        self._kept[slot][index] = pair

    def drop(self, slot: int) -> None:
        """Reset what is kept of this slot: nobody is going to adopt it."""
        for pair in self._kept[slot].values():
            let_go(pair, RESET)
        if self._guarded is not None:
            self._guarded.end(slot, tuple(self._kept[slot]), resets=True)
            self._guarded.forget(slot)
        self._kept[slot].clear()
        self._deaths[slot] = 0
