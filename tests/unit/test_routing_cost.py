"""What a decision may cost, and a policy to compile."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from routed import TCP, WEB, decided, policy, route, router

from l7proxy.model import Filters, HeaderChanges, Match, PathMatch, PathType, Request, Route
from l7proxy.patterns import PatternError
from l7proxy.routing import SLICE, Router, compile_routers, compile_slices
from l7proxy.routing.rules import Rule
from l7proxy.routing.tables import insert

# What a decision may cost.


def calls(one: Router, host: str, path: str) -> int:
    """How many functions a decision calls, those of Python itself (`dict.get`) included."""
    request, count = Request(host=host, path=path), 0

    def note(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        one.decide(request)
    finally:
        sys.setprofile(None)
    return count


def many(count: int) -> Router:
    routes = [route(f"p{i}", f"/v{i}/abc") for i in range(count)]
    routes += [route(f"h{i}", hosts=(f"h{i}.test", f"*.w{i}.test")) for i in range(count)]
    return router(*routes)


def test_work_does_not_grow_with_the_number_of_routes() -> None:
    few, lots = many(10), many(2_000)
    for host, path in [("h5.test", "/x"), ("a.w5.test", "/x"), ("no", "/v5/abc/d"), ("no", "/")]:
        assert decided(few, host, path) == decided(lots, host, path)
        assert calls(lots, host, path) <= calls(few, host, path) + 2  # a longer name of a pattern
        assert calls(lots, host, path) < 50


def test_a_route_that_cannot_win_costs_nothing() -> None:
    one = router(*(route(f"r{i}") for i in range(1_000)))
    assert decided(one, "h", "/") == "r0"
    assert calls(one, "h", "/") < 20


def test_what_can_never_win_is_dropped() -> None:
    def rule(order: int, priority: int = 0, method: str | None = None) -> Rule:
        match = Match(method=method)
        return Rule(Route("r", (match,), priority=priority), match, order, (), None)

    rules: list[Rule] = []
    kept = rule(0), rule(1, method="GET"), rule(2, priority=1, method="PUT")
    for one in kept:
        insert(rules, one)
    insert(rules, rule(3))
    insert(rules, rule(4, priority=-1, method="GET"))
    assert rules == [kept[2], kept[1], kept[0]]
    urgent = rule(5, priority=1)
    insert(rules, urgent)
    assert rules == [kept[2], urgent]


def test_a_table_without_a_higher_priority_is_not_searched() -> None:
    urgent = replace(route("urgent", hosts=("h.test",)), priority=1)
    deep = route("deep", *(f"{'/a' * n}" for n in range(1, 30)))
    assert calls(router(urgent, deep), "h.test", "/a" * 29) < 25
    assert calls(router(urgent, deep), "other", "/b" * 29) > 40


def test_priorities_cost_no_tables() -> None:
    def prioritised(count: int) -> Router:
        found = [replace(route(f"p{i}", f"/v{i}/abc"), priority=i) for i in range(count)]
        return router(*found)

    few, lots = prioritised(10), prioritised(2_000)
    for path in ("/v5/abc/x", "/v9/abc", "/none"):
        assert decided(few, "h", path) == decided(lots, "h", path)
        assert calls(lots, "h", path) < 50  # not the highest, so that shorter prefixes are tried


def test_a_client_cannot_buy_work() -> None:
    """What a path or a host costs is bounded by the policy, or linear where it has to be read."""
    one = many(100)
    for host, path, most in [
        ("a.w5.test", "/a" * 16_000, 50),
        ("." * 32_000, "/", 50),
        ("a." * 100_000 + "w5.test", "/", 50),
        ("h", "/../a" * 6_400, 60_000),
        ("h", "%41" * 10_000, 60_000),
        ("h", "/..;" * 8_000, 60_000),
    ]:
        assert calls(one, host, path) < most


# Compiling a little at a time.


def test_slices() -> None:
    many_routes = [route(f"r{i}", f"/{i}") for i in range(3 * SLICE)]
    whole = policy(*many_routes, listeners=(WEB, TCP))
    slices = compile_slices(whole)
    steps = 0
    while True:
        try:
            next(slices)
        except StopIteration as done:
            routers = done.value
            break
        steps += 1
    # once over all routes, and for each listener twice, with two steps between
    assert steps == 3 * (1 + 2 * 2) + 2 * 2
    assert decided(routers["web"], "h", f"/{3 * SLICE - 1}") == f"r{3 * SLICE - 1}"


def test_what_no_check_would_let_through_is_not_compiled() -> None:
    bad = replace(route("r"), filters=Filters(HeaderChanges(set=(("Host", "x"),))))
    with pytest.raises(ValueError, match="Host"):
        compile_routers(policy(bad))
    pattern = replace(route("r"), matches=(Match(PathMatch(PathType.REGULAR_EXPRESSION, "(")),))
    with pytest.raises(PatternError, match=r"missing \)"):
        compile_routers(policy(pattern))
