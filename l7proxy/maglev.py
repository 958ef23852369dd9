"""Consistent hashing: which endpoint a key belongs to, so that a change moves few keys. Pure.

Maglev (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
section 3.4). A table of `SIZE` slots is filled by the endpoints in turns; each walks a permutation
of the slots of its own and takes the next one that is free. So every endpoint has almost exactly
its share of the slots, and when one leaves its slots go to the others, while nearly all of the
rest stay where they are. Weights as Envoy has them: in a round an endpoint takes a slot only as
often as its weight, compared to the heaviest one, entitles it to.

Everybody has to come to the same table: every worker, before and after a restart, in whatever order
the endpoints are told. So the permutations come from the endpoints' names by BLAKE2 (Python's
`hash()` is another one in each process), and names are taken in sorted order.

To fill a table takes some ten milliseconds, too long for a worker's loop: `Filling` goes on in
steps.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

SIZE = 16381
"""Slots, a prime: any step walks through all of them. Good for a share within one percent of 150
endpoints; with more the shares become coarser, never wrong."""

GONE = 0xFFFF
"""In a slot whose endpoint is there no more, or that is free."""


def digest(salt: bytes, *parts: bytes) -> int:
    """64 bits that anybody gets from the same bytes; `salt`, at most 16 bytes, tells uses apart.

    Each part is preceded by its length: ("a", "bc") is not ("ab", "c").
    """
    state = blake2b(digest_size=8, person=salt)
    for part in parts:
        state.update(len(part).to_bytes(4, "little"))
        state.update(part)
    return int.from_bytes(state.digest(), "little")


class Filling:
    """A table in the making, of which each `names[i]` is to have `weights[i]` / sum of weights.

    Raises ValueError when a weight is negative or none is positive, or there are more names than
    slots.
    """

    __slots__ = ("_entries", "_left", "_most", "_round", "_slots", "_turn")

    def __init__(self, names: Sequence[str], weights: Sequence[int], size: int = SIZE) -> None:
        if min(weights, default=0) < 0 or not any(weights):
            raise ValueError("weights must not be negative, and one must be positive")
        if len(names) > min(size, GONE):
            raise ValueError(f"{len(names)} names for {size} slots")
        self._entries: list[_Entry] = []
        for name, at in sorted((name, at) for at, name in enumerate(names)):
            if weights[at]:
                key = name.encode()
                first = digest(b"maglev offset", key) % size
                step = digest(b"maglev skip", key) % (size - 1) + 1
                self._entries.append(_Entry(at, weights[at], first, step))
        self._most = max(weights)
        self._slots = array("H", [GONE]) * size
        self._left = size
        self._round = 1
        self._turn = 0  # whose turn it is in this round

    def go_on(self, probes: int) -> array[int] | None:
        """Look at about `probes` slots more; the table, of indices into `names`, once it is full.

        A million probes take about a tenth of a second.
        """
        slots, size, entries, most = self._slots, len(self._slots), self._entries, self._most
        while self._left:
            if probes <= 0:
                return None
            if self._turn == len(entries):
                self._turn = 0
                self._round += 1
            entry = entries[self._turn]
            self._turn += 1
            probes -= 1
            if self._round * entry.weight < entry.due:
                continue
            entry.due += most
            slot, step = entry.slot, entry.step
            while slots[slot] != GONE:
                slot += step
                if slot >= size:
                    slot -= size
                probes -= 1
            slots[slot] = entry.at
            entry.slot = slot
            self._left -= 1
        return slots


class _Entry:
    """An endpoint that takes part: its walk through the slots, and when it is due again."""

    __slots__ = ("at", "due", "slot", "step", "weight")

    def __init__(self, at: int, weight: int, slot: int, step: int) -> None:
        self.at = at
        self.weight = weight
        self.slot = slot
        self.step = step
        self.due = 0


def table(names: Sequence[str], weights: Sequence[int], size: int = SIZE) -> array[int]:
    """The whole table at once. See `Filling`."""
    filling = Filling(names, weights, size)
    while (slots := filling.go_on(1 << 20)) is None:
        pass
    return slots
