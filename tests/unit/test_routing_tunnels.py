"""CONNECT: only a match that names it takes it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from routed import WEB, policy, route

from l7proxy.head import HeadReader
from l7proxy.model import Decision, Forward, Limits, PathMatch, PathType, Route
from l7proxy.routing import NO_TUNNEL, compile_routers
from l7proxy.routing.explain import explain


def tunnels(name: str, *paths: str, hosts: tuple[str, ...] = ()) -> Route:
    """A route whose matches ask for the method CONNECT."""
    one = route(name, *paths, hosts=hosts)
    return replace(one, matches=tuple(replace(m, method="CONNECT") for m in one.matches))


def decided(routes: tuple[Route, ...], host: str) -> Decision:
    """What the router does with a CONNECT; `explain` has to agree."""
    head = HeadReader(Limits()).feed(f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert head is not None
    whole = policy(*routes)
    decision = compile_routers(whole)["web"].decide(head)
    told = explain(whole, WEB, head)
    assert told.route is (decision.route if isinstance(decision, Forward) else None)
    assert told.forwards or told.answer is decision
    return decision


EVERY = route("every")
PATTERN = replace(
    EVERY, matches=(replace(EVERY.matches[0], path=PathMatch(PathType.REGULAR_EXPRESSION, ".*")),)
)
GET = replace(EVERY, matches=(replace(EVERY.matches[0], method="GET"),))


@pytest.mark.parametrize(
    "routes",
    [
        (),
        (EVERY,),
        (route("exact", "=/"), PATTERN),
        (GET, replace(EVERY, priority=9)),
        (route("host", hosts=("a.example",)),),
        (tunnels("another", hosts=("b.example",)), EVERY),
        (tunnels("path", "/x", "=/x"),),
    ],
)
def test_without_a_match_for_it(routes: tuple[Route, ...]) -> None:
    assert decided(routes, "a.example:443") is NO_TUNNEL
    assert NO_TUNNEL.status == 501


@pytest.mark.parametrize(
    ("routes", "name"),
    [
        ((tunnels("mine"),), "mine"),
        ((tunnels("mine", "=/"),), "mine"),
        ((EVERY, tunnels("mine")), "mine"),
        ((replace(EVERY, priority=9), tunnels("mine")), "mine"),
        ((route("exact", "=/", hosts=("a.example",)), tunnels("mine")), "mine"),
        ((tunnels("other"), tunnels("mine", hosts=("a.example",))), "mine"),
        ((tunnels("other", hosts=("b.example",)), tunnels("mine")), "mine"),
    ],
)
def test_the_match_that_names_it(routes: tuple[Route, ...], name: str) -> None:
    decision = decided(routes, "a.example:443")
    assert isinstance(decision, Forward)
    assert decision.route.name == name


def test_it_takes_nothing_else() -> None:
    whole = policy(tunnels("tunnel"), EVERY)
    head = HeadReader(Limits()).feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert head is not None
    decision = compile_routers(whole)["web"].decide(head)
    assert isinstance(decision, Forward)
    assert decision.route is EVERY


def test_why_another_route_is_none() -> None:
    head = HeadReader(Limits()).feed(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert head is not None
    (other,) = explain(policy(EVERY), WEB, head).others
    assert (other.matched, other.criterion) == (False, "method")
    assert "CONNECT" in other.why
