"""Whose turn it is."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from l7proxy import maglev
from l7proxy.balance import (
    Hashed,
    LeastConnections,
    Member,
    Picker,
    RoundRobin,
    TwoChoices,
    WeightedTurns,
    affinity,
    members,
    picker,
)
from l7proxy.model import (
    Address,
    Backend,
    Balance,
    BalanceType,
    Endpoint,
    HashOn,
    Hello,
    NameAddress,
    Request,
    UnixAddress,
)

A, B, C = (Address("127.0.0.1", port) for port in (1, 2, 3))


def idle(_at: int) -> int:
    return 0


def orders(
    one: Picker, weights: tuple[int, ...], count: int, key: bytes | None = None
) -> list[list[int]]:
    return [list(one.order(weights, idle, key)) for _ in range(count)]


def firsts(one: Picker, weights: tuple[int, ...], count: int) -> list[int]:
    return [next(one.order(weights, idle, None)) for _ in range(count)]


# ---- round robin


def test_each_connection_starts_one_endpoint_further() -> None:
    found = orders(RoundRobin(), (1, 1, 1), 4)
    assert found == [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]


def test_the_turn_moves_with_the_call() -> None:
    """Two connections at once, or one that is given up before its dial."""
    one = RoundRobin()
    weights = (1, 1, 1)
    first, second = one.order(weights, idle, None), one.order(weights, idle, None)
    one.order(weights, idle, None)
    assert (next(second), next(first)) == (1, 0)
    assert (list(second), list(first)) == ([2, 0], [1, 2])
    assert next(one.order(weights, idle, None)) == 0


def test_workers_start_at_different_endpoints() -> None:
    assert [firsts(RoundRobin(n), (1, 1, 1), 1)[0] for n in range(5)] == [0, 1, 2, 0, 1]


def test_weighted_turns_are_spread_out() -> None:
    assert firsts(RoundRobin(), (500, 100, 100), 14) == [0, 0, 1, 0, 2, 0, 0] * 2


def test_after_the_one_in_turn_come_those_whose_turn_is_nearest() -> None:
    assert orders(RoundRobin(), (5, 2, 0, 1), 3) == [[0, 1, 3], [1, 0, 3], [0, 3, 1]]


def test_an_endpoint_without_weight_gets_nothing() -> None:
    assert orders(RoundRobin(), (1, 0, 1), 2) == [[0, 2], [2, 0]]
    assert orders(RoundRobin(), (0, 0), 2) == [[], []]
    assert orders(RoundRobin(), (), 1) == [[]]


def test_turns_go_on_when_the_weights_change() -> None:
    """Not from the first endpoint again: a group that changes often would only use that one."""
    one = RoundRobin()
    changing = [tuple(map(int, text.split())) for text in ["1 1 1"] * 6]
    assert [firsts(one, weights, 1)[0] for weights in changing] == [0, 1, 2, 0, 1, 2]
    changing = [tuple(map(int, text.split())) for text in ["100 100 99"] * 6]
    assert {firsts(one, weights, 1)[0] for weights in changing} == {0, 1, 2}


# ---- least connections, two choices


@pytest.mark.parametrize(
    ("weights", "load", "order"),
    [
        ((1, 1, 1), [3, 1, 2], [1, 2, 0]),
        ((1, 1, 1), [0, 0, 0], [0, 1, 2]),
        ((4, 1, 1), [3, 1, 2], [0, 1, 2]),
        ((1, 0, 1), [3, 0, 2], [2, 0]),
        ((100, 1, 100), [9, 0, 50], [0, 2, 1]),
        ((0, 0), [0, 0], []),
        ((), [], []),
    ],
)
def test_the_fewest_connections(
    weights: tuple[int, ...], load: list[int], order: list[int]
) -> None:
    assert list(LeastConnections().order(weights, load.__getitem__, None)) == order


def test_equals_take_turns() -> None:
    assert firsts(LeastConnections(), (1, 1, 1), 4) == [0, 1, 2, 0]
    assert firsts(LeastConnections(2), (1, 1, 1), 2) == [2, 0]


class Drawn:
    """Chance that is told what comes."""

    def __init__(self, *drawn: float) -> None:
        self._drawn = list(drawn)

    def random(self) -> float:
        return self._drawn.pop(0)


@pytest.mark.parametrize(
    ("weights", "drawn", "load", "order"),
    [
        ((1, 1, 1, 1), (0.0, 0.0), [0, 0, 0, 0], [0, 1, 2, 3]),
        ((1, 1, 1, 1), (0.5, 0.99), [0, 0, 0, 0], [2, 3, 0, 1]),
        ((1, 1, 1, 1), (0.5, 0.99), [0, 0, 1, 0], [3, 2, 0, 1]),
        ((1, 1, 1, 1), (0.99, 0.0), [0, 0, 0, 0], [3, 0, 1, 2]),
        ((8, 1, 1), (0.79, 0.0), [0, 0, 0], [0, 1, 2]),
        ((8, 1, 1), (0.8, 0.99), [0, 0, 0], [1, 2, 0]),
        ((8, 1, 1), (0.8, 0.5), [6, 0, 0], [0, 1, 2]),  # 7/8 is less than 1/1
        ((8, 1, 1), (0.8, 0.5), [8, 0, 0], [1, 0, 2]),
        ((0, 1, 0), (0.5,), [0, 9, 0], [1]),
        ((0, 0), (), [0, 0], []),
        ((), (), [], []),
    ],
)
def test_two_choices(
    weights: tuple[int, ...], drawn: tuple[float, ...], load: list[int], order: list[int]
) -> None:
    assert list(TwoChoices(Drawn(*drawn)).order(weights, load.__getitem__, None)) == order


# ---- hash

NAMES = [f"10.0.0.{n}:80" for n in range(5)]
FULL = (1, 1, 1, 1, 2)
EVERYTHING = tuple(weight * 100 for weight in FULL)
KEYS = [f"client {n}".encode() for n in range(2000)]


def hashed() -> Hashed:
    one = Hashed(Drawn())
    one.set_members(NAMES, FULL)
    one.set_table(maglev.table(NAMES, FULL))
    return one


def owner(one: Hashed, key: bytes, weights: tuple[int, ...]) -> int:
    return next(one.order(weights, idle, key))


def test_a_key_has_the_same_order_everywhere() -> None:
    one, two = hashed(), hashed()
    for key in KEYS[:50]:
        found = orders(one, EVERYTHING, 1, key)
        assert found == orders(two, EVERYTHING, 1, key)
        assert sorted(found[0]) == [0, 1, 2, 3, 4]


def test_keys_are_shared_by_weight() -> None:
    one = hashed()
    found = Counter(owner(one, key, EVERYTHING) for key in KEYS)
    for at, weight in enumerate(FULL):
        assert found[at] == pytest.approx(len(KEYS) * weight / 6, rel=0.2)


def test_when_one_is_down_only_its_keys_move_and_to_all_others() -> None:
    one = hashed()
    without = (100, 0, 100, 100, 200)
    moved = Counter()
    for key in KEYS:
        before, after = owner(one, key, EVERYTHING), owner(one, key, without)
        if before == 1:
            moved[after] += 1
        else:
            assert after == before
    assert set(moved) == {0, 2, 3, 4}
    assert moved[4] > max(moved[0], moved[2], moved[3])


def test_who_starts_slowly_has_only_some_of_its_keys() -> None:
    one = hashed()
    mine = [key for key in KEYS if owner(one, key, EVERYTHING) == 1]
    held = {}
    for share in (10, 50, 90):
        slowly = (100, share, 100, 100, 200)
        held[share] = {key for key in mine if owner(one, key, slowly) == 1}
        assert len(held[share]) == pytest.approx(len(mine) * share / 100, rel=0.4)
        others = [key for key in KEYS if key not in mine]
        assert all(owner(one, key, slowly) == owner(one, key, EVERYTHING) for key in others)
    assert held[10] < held[50] < held[90]  # a key that has come back stays


def test_without_a_table_the_shares_are_the_same() -> None:
    one = Hashed(Drawn())
    one.set_members(NAMES, FULL)
    found = Counter(owner(one, key, EVERYTHING) for key in KEYS)
    assert found[4] == pytest.approx(len(KEYS) / 3, rel=0.2)
    assert min(found.values()) > len(KEYS) / 12


def test_until_there_is_a_new_table_the_old_one_goes_on() -> None:
    one = hashed()
    before = {key: NAMES[owner(one, key, EVERYTHING)] for key in KEYS}
    names = ["10.0.0.9:80", *NAMES[3:], *NAMES[:2]]  # one is new, NAMES[2] has gone
    one.set_members(names, [1, 1, 2, 1, 1])
    after = {key: names[owner(one, key, (100, 100, 200, 100, 100))] for key in KEYS}
    for key in KEYS:
        if before[key] != NAMES[2]:
            assert after[key] == before[key]
    assert {after[key] for key in KEYS if before[key] == NAMES[2]} == set(names)
    one.set_members(names[:2], [1, 1])
    for key in KEYS[:100]:  # and once more, before there is a table
        assert owner(one, key, (100, 100)) in (0, 1)


def test_an_order_outlives_a_change() -> None:
    """What comes second is asked for when the first dial has failed, and that may take seconds."""
    one = hashed()
    order = one.order(EVERYTHING, idle, b"key")
    first = next(order)
    one.set_members(NAMES[:1], [1])
    assert sorted([first, *order]) == [0, 1, 2, 3, 4]


def test_without_a_key_chance_decides() -> None:
    one = Hashed(random.Random(1))
    one.set_members(NAMES, FULL)
    one.set_table(maglev.table(NAMES, FULL))
    assert len({next(one.order(EVERYTHING, idle, None)) for _ in range(100)}) == 5


def test_nobody_to_hash_to() -> None:
    assert orders(hashed(), (0, 0, 0, 0, 0), 1, b"key") == [[]]


REQUEST = Request(
    path="/a/b", query="x=1", headers=((b"x-user", b"ann"), (b"cookie", b"sid=7; at=2"))
)


@pytest.mark.parametrize(
    ("on", "key", "found"),
    [
        (HashOn.CLIENT, "", b"10.0.0.9"),
        (HashOn.PATH, "", b"/a/b"),
        (HashOn.HEADER, "x-user", b"ann"),
        (HashOn.HEADER, "x-other", None),
        (HashOn.COOKIE, "sid", b"7"),
        (HashOn.COOKIE, "other", None),
        (HashOn.SNI, "", b"app.test"),
    ],
)
def test_what_hash_looks_at(on: HashOn, key: str, found: bytes | None) -> None:
    balance = Balance(BalanceType.HASH, on, key)
    assert affinity(balance, REQUEST, "10.0.0.9", Hello("app.test")) == found


@pytest.mark.parametrize("on", HashOn)
def test_a_stream_that_tells_nothing_has_no_key(on: HashOn) -> None:
    assert affinity(Balance(BalanceType.HASH, on, "x"), None, "", None) is None
    assert affinity(Balance(BalanceType.HASH, on, "x"), None, "", Hello()) is None


# ---- of a policy


@pytest.mark.parametrize(
    ("way", "made"),
    [
        (BalanceType.ROUND_ROBIN, RoundRobin),
        (BalanceType.LEAST_CONNECTIONS, LeastConnections),
        (BalanceType.RANDOM, TwoChoices),
        (BalanceType.HASH, Hashed),
    ],
)
def test_what_the_policy_says(way: BalanceType, made: type) -> None:
    assert type(picker(Balance(way), random.Random(1), 0)) is made


def test_members_of_a_group() -> None:
    unix, name = UnixAddress("/run/app"), NameAddress("app.test", 80)
    backend = Backend("app", (Endpoint(A), Endpoint(unix, 3), Endpoint(name, 2), Endpoint(A, 4)))
    assert members(backend, {}) == (Member(A, 5), Member(unix, 3))
    assert members(backend, {"app.test": ("10.0.0.1", "::1"), "other": ("10.0.0.2",)}) == (
        Member(A, 5),
        Member(unix, 3),
        Member(Address("10.0.0.1", 80), 2, name),
        Member(Address("::1", 80), 2, name),
    )


def test_two_names_for_one_address() -> None:
    one, two = NameAddress("one.test", 80), NameAddress("two.test", 80)
    backend = Backend("app", (Endpoint(one), Endpoint(two)))
    found = members(backend, {"one.test": ["10.0.0.1"], "two.test": ["10.0.0.1"]})
    assert found == (Member(Address("10.0.0.1", 80), 2, one),)


# ---- the turns of backend groups in a route


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
