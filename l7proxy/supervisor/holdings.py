"""What the guardian has of one supervisor: its words with their descriptors, and its pairs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from l7proxy.net.channel import Received
from l7proxy.net.kept import DELIVER, RESET, Kept, batches, laden, let_go, take
from l7proxy.net.messages import Complete, Entrusted, Listening, Withdrawn

log = logging.getLogger(__name__)

Word = tuple[object, list[int], bytes]


@dataclass(slots=True)
class Holdings:
    """What one supervisor has, once more."""

    words: list[Received] = field(default_factory=list)  # `Estate`, `Listening`, `Maps`
    coming: list[Received] = field(default_factory=list)
    pairs: dict[int, dict[int, Kept]] = field(default_factory=dict)  # by slot, by index

    @property
    def total(self) -> int:
        """How many pairs."""
        return sum(map(len, self.pairs.values()))

    def complete(self) -> None:
        """All of the estate has come."""
        old, self.words, self.coming = self.words, self.coming, []
        close_all(old)
        if not all(one.is_whole for one in self.words):
            log.error("no descriptor is left: the next supervisor would not have all listeners")

    def keep(self, message: Entrusted, received: Received) -> None:
        """Pairs that came without all their descriptors are not kept."""
        pairs = take(received)
        if pairs is None:
            close_all([received])
            return
        mine = self.pairs.setdefault(message.slot, {})
        for index, pair in pairs:
            if index in mine:
                let_go(mine[index], DELIVER)
            mine[index] = pair

    def withdraw(self, message: Withdrawn) -> None:
        """Let go of these."""
        mine = self.pairs.get(message.slot, {})
        for index in message.pairs:
            pair = mine.pop(index, None)
            if pair is not None:
                let_go(pair, RESET if message.resets else DELIVER)

    def stop_listening(self) -> None:
        """Clients that come are refused, once the supervisor has closed its own."""
        close_all([one for one in self.words if isinstance(one.message, Listening)])
        self.words = [one for one in self.words if not isinstance(one.message, Listening)]

    def bequeath(self) -> Iterator[Word]:
        """All but the pairs, as a predecessor says it."""
        for one in self.words:
            yield one.message, one.fds, b""
        yield Complete(), [], b""

    def entrust(self) -> Iterator[Word]:
        """The pairs, likewise."""
        for slot, mine in self.pairs.items():
            for pairs in batches(mine.items()):
                yield Entrusted(slot), *laden(pairs)
        yield Complete(), [], b""

    def close(self) -> None:
        """Let go of everything: a reset, for what nobody else has."""
        close_all([*self.words, *self.coming])
        for mine in self.pairs.values():
            for pair in mine.values():
                let_go(pair, RESET)
        self.words, self.coming, self.pairs = [], [], {}


def close_all(words: list[Received]) -> None:
    """Close the descriptors that came with them."""
    for one in words:
        while one.fds:
            os.close(one.fds.pop())
