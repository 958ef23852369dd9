"""What every way to balance promises, for any group."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.balance import Hashed, LeastConnections, Picker, RoundRobin, TwoChoices

WEIGHTS = st.lists(st.integers(0, 5), min_size=1, max_size=8).map(tuple)


def made(kind: type, seed: int, start: int, count: int) -> Picker:
    if kind in (TwoChoices, Hashed):
        one = kind(random.Random(seed))
        if kind is Hashed:
            one.set_members([f"10.0.0.1:{n}" for n in range(count)], [1] * count)
        return one
    return kind(start)


@pytest.mark.parametrize("kind", [RoundRobin, LeastConnections, TwoChoices, Hashed])
@given(WEIGHTS, st.lists(st.integers(0, 9), min_size=8, max_size=8), st.integers(0, 100))
@settings(max_examples=60)
def test_each_order_is_whole(
    kind: type, weights: tuple[int, ...], load: list[int], start: int
) -> None:
    picker = made(kind, start, start, len(weights))
    for key in (b"one", b"two", None):
        order = list(picker.order(weights, load.__getitem__, key))
        assert sorted(order) == [at for at, weight in enumerate(weights) if weight]


@given(WEIGHTS.filter(any), st.integers(0, 100))
def test_turns_are_shared_by_weight(weights: tuple[int, ...], start: int) -> None:
    picker = RoundRobin(start)
    rounds = 3
    found = Counter(
        next(picker.order(weights, lambda _: 0, None)) for _ in range(rounds * sum(weights))
    )
    whole = {at: weight * rounds for at, weight in enumerate(weights) if weight}
    for at, weight in whole.items():
        assert found[at] == weight or len(set(whole.values())) == 1
        assert abs(found[at] - weight) <= 1


@given(WEIGHTS.filter(any), st.data())
@settings(max_examples=60)
def test_connections_that_stay_are_shared_by_weight(
    weights: tuple[int, ...], data: st.DataObject
) -> None:
    """However many end in between, and wherever."""
    picker, load = LeastConnections(), [0] * len(weights)
    for _ in range(60):
        chosen = next(picker.order(weights, load.__getitem__, None))
        others = [(load[at] + 1) / weight for at, weight in enumerate(weights) if weight]
        assert (load[chosen] + 1) / weights[chosen] == min(others)
        load[chosen] += 1
        ended = data.draw(st.integers(0, 3 * len(weights)))
        if ended < len(weights) and load[ended]:
            load[ended] -= 1


@given(st.lists(st.integers(1, 5), min_size=2, max_size=8).map(tuple), st.integers(0, 1000))
@settings(max_examples=30)
def test_two_choices_keep_the_load_even(weights: tuple[int, ...], seed: int) -> None:
    picker, load = TwoChoices(random.Random(seed)), [0] * len(weights)
    total = 40 * sum(weights)
    for _ in range(total):
        load[next(picker.order(weights, load.__getitem__, None))] += 1
    for at, weight in enumerate(weights):
        assert abs(load[at] - 40 * weight) <= 5 + weight * 4
