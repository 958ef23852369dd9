"""Whose turn it is: endpoints in a backend group, backend groups in a route. Pure.

Which endpoint of a group? A `Picker` gives the order in which to dial them for one connection: all
that have a weight, each once, the best first and what to try after it. It is told the effective
weights (`health.standing`), and where it matters how many connections each endpoint has:

- *Round robin*: in turns, smoothly by weight: of any `sum of weights` connections in a row each
  endpoint gets exactly its weight, spread out instead of in bursts (weights 5, 1, 1 give
  a a b a c a a, not a a a a a b c).
- *Least connections*: who has the fewest for its weight, over all workers; equals take turns.
- *Random*: two by chance, by weight, and of these the less loaded one (Mitzenmacher, "The Power of
  Two Choices"): nearly as even as the fewest of all, at a cost that does not grow with the group,
  and many proxies that see the same few idle endpoints do not all run to one of them.
- *Hash*: Maglev says who a key belongs to (see `maglev`). If that one cannot take it, weighted
  rendezvous hashing says who else: only the keys of the endpoint that is missing move, and they
  come back with it.

Which group of a route with several `backendRefs`? Smooth weighted round robin as well.

State belongs to one worker, and no two workers know of each other. Started alike they would all
send their first connections to the same endpoint, so they take a `start`: pass the worker's slot.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from math import gcd, log
from typing import Protocol

from l7proxy import cookies
from l7proxy.health import SCALE
from l7proxy.maglev import GONE, digest
from l7proxy.model import (
    Address,
    Backend,
    Balance,
    BalanceType,
    HashOn,
    Hello,
    NameAddress,
    Requested,
    SocketAddress,
)

Load = Callable[[int], int]
"""How many connections the endpoint with this index has, over all workers."""


class Chance(Protocol):
    """A source of chance; `random.Random` is one."""

    def random(self) -> float:
        """From 0 to less than 1."""


@dataclass(frozen=True, slots=True)
class Member:
    """An endpoint that can be dialled; `name` is the DNS name that its address came from."""

    address: SocketAddress
    weight: int
    name: NameAddress | None = None


def members(backend: Backend, resolved: Mapping[str, Sequence[str]]) -> tuple[Member, ...]:
    """What the endpoints of a group come to, when names have these addresses.

    Each address is an endpoint of its own with the weight of its name. One that is there twice is
    one endpoint with both weights.
    """
    found: dict[SocketAddress, Member] = {}

    def add(address: SocketAddress, weight: int, name: NameAddress | None) -> None:
        known = found.get(address)
        if known is not None:
            weight, name = weight + known.weight, known.name
        found[address] = Member(address, weight, name)

    for one in backend.endpoints:
        if isinstance(one.address, NameAddress):
            for host in resolved.get(one.address.name, ()):
                add(Address(host, one.address.port), one.weight, one.address)
        else:
            add(one.address, one.weight, None)
    return tuple(found.values())


def affinity(
    balance: Balance, request: Requested | None, client: str, hello: Hello | None
) -> bytes | None:
    """What `hash` looks at, in this connection; None where it has none of it."""
    match balance.hash_on:
        case HashOn.CLIENT:
            return client.encode() or None
        case HashOn.SNI:
            return hello.sni.encode() or None if hello is not None else None
    if request is None:
        return None
    match balance.hash_on:
        case HashOn.PATH:
            return request.path.encode("latin-1", "replace")
        case HashOn.HEADER:
            wanted = balance.key.encode()
            return next((value for name, value in request.headers if name == wanted), None)
        case HashOn.COOKIE:
            return cookies.value(request.headers, balance.key)
    return None


class Picker(Protocol):
    """A way to balance, for one group in one worker."""

    def order(self, weights: tuple[int, ...], load: Load, key: bytes | None) -> Iterator[int]:
        """The indices with a weight in the order in which to dial them, each once.

        A turn moves with the call, not with the first item taken: a connection that never dials
        costs a turn and nothing else. An unchanged tuple of weights is known again by identity.
        """


def picker(balance: Balance, chance: Chance, start: int) -> Picker:
    """The way to balance that the policy says. `Hashed` needs its table to be set."""
    match balance.type:
        case BalanceType.ROUND_ROBIN:
            return RoundRobin(start)
        case BalanceType.LEAST_CONNECTIONS:
            return LeastConnections(start)
        case BalanceType.RANDOM:
            return TwoChoices(chance)
        case BalanceType.HASH:
            return Hashed(chance)


class RoundRobin:
    """Smooth weighted round robin; a plain ring where all weights are the same."""

    __slots__ = ("_ring", "_turn", "_turns", "_weights")

    def __init__(self, start: int = 0) -> None:
        self._turn = start
        self._weights: tuple[int, ...] = ()
        self._ring: tuple[int, ...] = ()
        self._turns: WeightedTurns | None = None

    def order(self, weights: tuple[int, ...], _load: Load, _key: bytes | None) -> Iterator[int]:
        """See `Picker.order`: after the one in turn come those whose turn is nearest."""
        if weights is not self._weights:
            self._take_weights(weights)
        turn = self._turn
        self._turn += 1
        ring = self._ring
        if not ring:
            return iter(())
        if self._turns is None:
            at = turn % len(ring)
            return iter(ring[at:] + ring[:at])
        first = self._turns.take()
        return _then(first, self._turns.ranked)

    def _take_weights(self, weights: tuple[int, ...]) -> None:
        self._weights = weights
        self._ring = tuple(at for at, weight in enumerate(weights) if weight)
        self._turns = None
        if len({weights[at] for at in self._ring}) > 1:
            least = gcd(*weights)
            reduced = [weight // least for weight in weights]
            self._turns = WeightedTurns(reduced, self._turn % len(self._ring))


class LeastConnections:
    """The fewest connections for its weight."""

    __slots__ = ("_turn",)

    def __init__(self, start: int = 0) -> None:
        self._turn = start

    def order(self, weights: tuple[int, ...], load: Load, _key: bytes | None) -> Iterator[int]:
        """See `Picker.order`: by (connections + 1) / weight, the new one counted in."""
        turn = self._turn % len(weights) if weights else 0
        self._turn += 1
        ring = [*range(turn, len(weights)), *range(turn)]
        costs = [((load(at) + 1) / weights[at], at) for at in ring if weights[at]]
        costs.sort(key=lambda cost: cost[0])  # stable: equals stay in the order of the ring
        return iter([at for _, at in costs])


class TwoChoices:
    """Two by chance, the less loaded of them first; what comes after them is the ring."""

    __slots__ = ("_chance", "_sums", "_weights")

    def __init__(self, chance: Chance) -> None:
        self._chance = chance
        self._weights: tuple[int, ...] = ()
        self._sums: list[int] = []

    def order(self, weights: tuple[int, ...], load: Load, _key: bytes | None) -> Iterator[int]:
        """See `Picker.order`."""
        if weights is not self._weights:
            self._weights, self._sums = weights, list(accumulate(weights))
        total = self._sums[-1] if self._sums else 0
        if not total:
            return iter(())
        one = self._draw(int(self._chance.random() * total))
        rest = total - weights[one]
        if not rest:
            return iter((one,))
        drawn = int(self._chance.random() * rest)
        if drawn >= self._sums[one] - weights[one]:  # leave out the stretch of the first one
            drawn += weights[one]
        two = self._draw(drawn)
        if (load(two) + 1) * weights[one] < (load(one) + 1) * weights[two]:
            one, two = two, one
        return _then(one, lambda: [two, *(at for at in _around(one, weights) if at != two)])

    def _draw(self, drawn: int) -> int:
        return bisect_right(self._sums, drawn)


class Hashed:
    """Maglev for the first choice, weighted rendezvous hashing for the others.

    `set_members` tells the endpoints' names and full weights, `set_table` the table over them.
    Until there is a new table the old one goes on for who is still there, and rendezvous hashing
    does the rest: it moves no more keys than it has to either, but looks at every endpoint. Without
    a key chance decides.
    """

    __slots__ = ("_chance", "_full", "_names", "_slots")

    def __init__(self, chance: Chance) -> None:
        self._chance = chance
        self._names: tuple[bytes, ...] = ()
        self._full: tuple[int, ...] = ()
        self._slots: array[int] | None = None

    def set_members(self, names: Sequence[str], full: Sequence[int]) -> None:
        """From now on `weights` of `order` are of these endpoints."""
        before, self._names = self._names, tuple(name.encode() for name in names)
        self._full = tuple(full)
        if self._slots is not None:
            index = {name: at for at, name in enumerate(self._names)}
            now = [*(index.get(name, GONE) for name in before), GONE]
            last = len(before)
            self._slots = array("H", [now[min(at, last)] for at in self._slots])

    def set_table(self, slots: array[int] | None) -> None:
        """The table over the endpoints (`maglev.table`); None: do without."""
        self._slots = slots

    def order(self, weights: tuple[int, ...], _load: Load, key: bytes | None) -> Iterator[int]:
        """See `Picker.order`. The same key has the same order in every worker."""
        if key is None:
            key = int(self._chance.random() * (1 << 53)).to_bytes(8, "little")
        if self._slots is None:
            return iter(_rendezvous(self._names, weights, key))
        drawn = digest(b"key", key)
        first = self._slots[drawn % len(self._slots)]
        if not self._takes(first, weights, drawn):
            return iter(_rendezvous(self._names, weights, key))
        return _then(first, partial(_rendezvous, self._names, weights, key))

    def _takes(self, at: int, weights: tuple[int, ...], drawn: int) -> bool:
        """Whether the owner of a key takes it: not while it is down, and in part in slow start."""
        if at == GONE:
            return False
        whole = self._full[at] * SCALE
        if weights[at] >= whole:
            return True
        return (drawn >> 32) % 1000 * whole < weights[at] * 1000


def _rendezvous(names: Sequence[bytes], weights: Sequence[int], key: bytes) -> list[int]:
    """Highest random weight (Thaler, Ravishankar): -weight / ln(chance) gives the right shares."""
    scores = []
    for at, weight in enumerate(weights):
        if weight:
            drawn = (digest(b"rendezvous", key, names[at]) + 1) / (1 << 64)
            scores.append((-weight / log(drawn) if drawn < 1.0 else float("inf"), at))
    return [at for _, at in sorted(scores, reverse=True)]


def _around(first: int, weights: Sequence[int]) -> list[int]:
    """The others with a weight, in the order of the ring, from the one behind `first`."""
    ring = (*range(first + 1, len(weights)), *range(first))
    return [at for at in ring if weights[at]]


def _then(first: int, others: Callable[[], Sequence[int]]) -> Iterator[int]:
    """The first at once; the others are only looked for when somebody asks."""
    yield first
    yield from (at for at in others() if at != first)


class WeightedTurns:
    """Smooth weighted round robin over the indices of `weights`.

    Every index has a credit. A turn pays each its weight, takes the richest (the first of equals),
    and charges it the sum of all weights. The credits always sum to zero and return to zero after
    `sum of weights` turns, hence the exact shares.

    Raises ValueError when a weight is negative or none is positive.
    """

    __slots__ = ("_credit", "_total", "_weights")

    def __init__(self, weights: Sequence[int], start: int = 0) -> None:
        if min(weights, default=0) < 0 or sum(weights) <= 0:
            raise ValueError(f"weights must not be negative, and one must be positive: {weights}")
        self._weights = tuple(weights)
        self._total = sum(weights)
        self._credit = [0] * len(weights)
        for _ in range(start % self._total):
            self.take()

    def take(self) -> int:
        """The index whose turn it is; an index with weight 0 never comes."""
        credit = self._credit
        best = -1
        for at, weight in enumerate(self._weights):
            if weight:
                credit[at] += weight
                if best < 0 or credit[at] > credit[best]:
                    best = at
        credit[best] -= self._total
        return best

    def ranked(self) -> list[int]:
        """The indices with a weight, by how near their turn is. No turn is taken."""
        credit, weights = self._credit, self._weights
        return sorted(
            (at for at, weight in enumerate(weights) if weight),
            key=lambda at: -credit[at] - weights[at],
        )
