"""Whose turn it is: endpoints in a backend group, backend groups in a route. Pure.

Two questions, two answers, both without chance, so that a test can say what comes next and a short
run is as fair as a long one:

- Which endpoint of a group? Round robin: each connection starts one endpoint further, and when a
  dial fails it goes on around the ring.
- Which group of a route with several `backendRefs`? Smooth weighted round robin: of any `sum of
  weights` choices in a row each group gets exactly its weight, spread out instead of in bursts
  (weights 5, 1, 1 give a a b a c a a, not a a a a a b c).

The state belongs to one worker, and no two workers know of each other. Started alike they would all
send their first connections to the same endpoint, so both take a `start`: pass the worker's slot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from l7proxy.model import Address, Backend


class GroupBalancer:
    """Round robin over the endpoints of one backend group, for one worker."""

    __slots__ = ("_endpoints", "_next")

    def __init__(self, backend: Backend, start: int = 0) -> None:
        self._endpoints = tuple(
            one.address for one in backend.endpoints if isinstance(one.address, Address)
        )
        self._next = start % len(self._endpoints)

    def order(self) -> Iterator[Address]:
        """The endpoints to dial for one connection: each once, the next in turn first.

        The turn moves with the call, not with the first item taken, so that a connection whose
        iterator is never used costs a turn and nothing else.
        """
        first = self._next
        self._next = (first + 1) % len(self._endpoints)
        return self._around(first)

    def _around(self, first: int) -> Iterator[Address]:
        endpoints = self._endpoints
        for at in range(first, first + len(endpoints)):
            yield endpoints[at % len(endpoints)]


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
