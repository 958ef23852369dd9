"""Whose turn it is."""

from __future__ import annotations

from collections import Counter

import pytest

from l7proxy.balance import GroupBalancer, WeightedTurns
from l7proxy.model import Address, Backend, Endpoint

A, B, C = (Address("127.0.0.1", port) for port in (1, 2, 3))


def group(*addresses: Address) -> Backend:
    return Backend("app", tuple(map(Endpoint, addresses)))


def test_each_connection_starts_one_endpoint_further() -> None:
    balancer = GroupBalancer(group(A, B, C))
    orders = [list(balancer.order()) for _ in range(4)]
    assert orders == [[A, B, C], [B, C, A], [C, A, B], [A, B, C]]


def test_the_turn_moves_with_the_call() -> None:
    """Two connections at once, or one that is given up before its dial."""
    balancer = GroupBalancer(group(A, B, C))
    one, two = balancer.order(), balancer.order()
    balancer.order()
    assert (next(two), next(one)) == (B, A)
    assert (list(two), list(one)) == ([C, A], [B, C])
    assert next(balancer.order()) == A


def test_one_endpoint() -> None:
    balancer = GroupBalancer(group(A))
    assert [list(balancer.order()) for _ in range(3)] == [[A]] * 3


def test_an_endpoint_that_stands_twice_has_two_turns() -> None:
    assert list(GroupBalancer(group(A, A, B)).order()) == [A, A, B]


def test_workers_start_at_different_endpoints() -> None:
    firsts = [next(GroupBalancer(group(A, B, C), start=n).order()) for n in range(5)]
    assert firsts == [A, B, C, A, B]


def turns(weights: list[int], count: int, start: int = 0) -> list[int]:
    one = WeightedTurns(weights, start)
    return [one.take() for _ in range(count)]


def test_weights_are_spread_out() -> None:
    assert turns([5, 1, 1], 14) == [0, 0, 1, 0, 2, 0, 0] * 2
    assert turns([1, 1, 1], 6) == [0, 1, 2, 0, 1, 2]
    assert turns([3, 1], 8) == [0, 0, 1, 0] * 2


def test_weight_zero_never_comes() -> None:
    assert turns([0, 2, 0, 1], 6) == [1, 3, 1, 1, 3, 1]


def test_workers_start_at_different_turns() -> None:
    assert turns([5, 1, 1], 7, start=2) == [1, 0, 2, 0, 0, 0, 0]
    assert turns([5, 1, 1], 7, start=7 * 1_000_000_000) == turns([5, 1, 1], 7)


@pytest.mark.parametrize("weights", [[1], [2, 3], [1, 10, 100], [7, 7, 7, 1], [999, 1, 0, 500]])
def test_shares_are_exact(weights: list[int]) -> None:
    total = sum(weights)
    taken = Counter(turns(weights, total * 2))
    assert taken == {at: weight * 2 for at, weight in enumerate(weights) if weight}


@pytest.mark.parametrize("weights", [[], [0], [0, 0], [1, -1], [-1, 5]])
def test_weights_that_are_none(weights: list[int]) -> None:
    with pytest.raises(ValueError, match="weights must not be negative, and one must be positive"):
        WeightedTurns(weights)
