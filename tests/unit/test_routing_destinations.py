"""Routes by where an intercepted connection was going."""

from __future__ import annotations

from dataclasses import replace

import pytest

from l7proxy.model import (
    PASSTHROUGH,
    Address,
    Backend,
    BackendRef,
    Destination,
    Endpoint,
    Filters,
    Forward,
    HeaderChanges,
    Hello,
    Interception,
    Listener,
    Match,
    PathMatch,
    PathType,
    Policy,
    Protocol,
    Request,
    Route,
    Splice,
    Transparent,
    Unmatched,
)
from l7proxy.routing import chosen, compile_routers
from l7proxy.routing.conditions import GoesTo
from l7proxy.routing.difference import difference
from l7proxy.routing.explain import explain
from l7proxy.routing.probes import shown

APP = Backend("app", (Endpoint(Address("127.0.0.1", 1)),))
ORIGINAL = Backend(PASSTHROUGH, (), original=True)
TAKES = Transparent(Interception.REDIRECT, unmatched=Unmatched.REFUSE)
OUT = Listener("out", Address("0.0.0.0", 15001), Protocol.TCP, transparent=TAKES)
WEB = replace(OUT, protocol=Protocol.HTTP)
REQUEST = Request(host="a.test", path="/")


def to(text: str) -> Destination:
    """ "10.0.0.0/8", "10.0.0.0/8:53", "*:53"."""
    block, _, port = text.partition(":") if text.count(":") == 1 else (text, "", "")
    return Destination(None if block == "*" else block, int(port) if port else None)


def route(name: str, *destinations: str, ref: str = "app") -> Route:
    match = Match(destinations=tuple(map(to, destinations)))
    return Route(name, (match,), (BackendRef(ref),))


def policy(*routes: Route, listener: Listener = OUT) -> Policy:
    return Policy({listener.name: listener}, routes, {"app": APP, PASSTHROUGH: ORIGINAL})


def answer(found: Policy, host: str, port: int = 80) -> str:
    """The route of a connection that was going there; empty where none has it."""
    (router,) = compile_routers(found).values()
    decision = router.decide_stream(None, Address(host, port))
    return decision.route.name if isinstance(decision, Forward) else ""


@pytest.mark.parametrize(
    ("wanted", "host", "port", "matches"),
    [
        ("10.0.0.0/8", "10.9.9.9", 1, True),
        ("10.0.0.0/8", "11.0.0.1", 1, False),
        ("10.0.0.0/8:5432", "10.9.9.9", 5432, True),
        ("10.0.0.0/8:5432", "10.9.9.9", 5433, False),
        ("10.0.0.0/8:5432", "11.9.9.9", 5432, False),
        ("*:53", "2001:db8::1", 53, True),
        ("*:53", "192.0.2.1", 54, False),
        ("2001:db8::/32", "2001:db8::1", 1, True),
        ("2001:db8::/32", "10.0.0.1", 1, False),
    ],
)
def test_one_destination(wanted: str, host: str, port: int, matches: bool) -> None:
    assert answer(policy(route("one", wanted)), host, port) == ("one" if matches else "")


def test_one_of_several_is_enough() -> None:
    found = policy(route("one", "10.0.0.0/8:5432", "192.0.2.0/24:5432", "*:53", "10.1.0.0/16:53"))
    assert answer(found, "192.0.2.7", 5432) == "one"
    assert answer(found, "203.0.113.1", 53) == "one"
    assert answer(found, "203.0.113.1", 5432) == ""


def test_the_more_specific_one_is_asked_first() -> None:
    found = policy(
        route("wide", "10.0.0.0/8"), route("narrow", "10.1.0.0/16"), route("port", "10.0.0.0/8:53")
    )
    assert answer(found, "10.2.0.1") == "wide"
    assert answer(found, "10.1.0.1") == "narrow"
    assert answer(found, "10.1.0.1", 53) == "port"


def test_a_connection_that_came_here_was_going_nowhere_else() -> None:
    (router,) = compile_routers(policy(route("one", "0.0.0.0/0", "::/0"))).values()
    assert not isinstance(router.decide_stream(None), Forward)


def test_on_other_listeners_such_matches_and_the_original_destination_take_no_part() -> None:
    listener = Listener("plain", Address("127.0.0.1", 9), Protocol.TCP)
    routes = route("one", "0.0.0.0/0"), route("two", ref=PASSTHROUGH), route("all")
    assert answer(policy(*routes, listener=listener), "10.0.0.1") == "all"


def test_what_is_said_of_it() -> None:
    condition = GoesTo((to("10.0.0.0/8:53"), to("*:54"), to("192.0.2.0/24")))
    assert condition.criterion == "destinations"
    told: list[str] = []
    for destination in (None, Address("11.0.0.1", 53)):
        found = explain(policy(route("one", "10.0.0.0/8:53")), OUT, None, destination)
        told += [other.why for other in found.others]
    assert told == [
        "it is for connections that were going to 10.0.0.0/8:53, and this one came here",
        "it is for 10.0.0.0/8:53, and the connection was going to 11.0.0.1:53",
    ]


# ---- what is spliced

SAME = "all requests of a connection were going to the same place, and have the same answer"


def choice(*routes: Route) -> tuple[Splice, str]:
    (one,) = set(chosen(policy(*routes, listener=WEB), WEB).values())
    return one.mode, one.why


def test_a_connection_does_not_change_where_it_was_going() -> None:
    routes = route("one", "10.0.0.0/8"), route("rest", ref=PASSTHROUGH)
    assert choice(*routes) == (Splice.CONNECTION, SAME)


def test_a_path_beside_it_may_change_with_each_request() -> None:
    path = replace(route("one", "10.0.0.0/8").matches[0], path=PathMatch(PathType.EXACT, "/a"))
    routes = replace(route("one"), matches=(path,)), route("rest", ref=PASSTHROUGH)
    assert choice(*routes)[0] is Splice.REQUEST


def test_what_is_done_to_each_request_still_is() -> None:
    changes = Filters(request_headers=HeaderChanges(set=(("x-a", "b"),)))
    routes = replace(route("one", "10.0.0.0/8"), filters=changes), route("rest")
    assert choice(*routes) == (Splice.REQUEST, "the filters of route `one` change each request")


# ---- what a change of the policy would change


@pytest.mark.parametrize("listener", [OUT, WEB, replace(OUT, protocol=Protocol.TLS)])
def test_a_difference_is_shown_by_a_destination(listener: Listener) -> None:
    old = policy(route("one", "10.0.0.0/8:53", "*:54", "172.16.0.0/12"), listener=listener)
    new = policy(route("one", "10.0.0.0/8:53", "172.16.0.0/12"), listener=listener)
    (effect,) = difference(old, new).effects
    assert effect.asked
    assert all(shown(asked).endswith(":54") for asked in effect.asked)
    assert not difference(old, old).effects


def test_facts_of_a_hello_and_of_a_request() -> None:
    for listener in (WEB, replace(OUT, protocol=Protocol.TLS)):
        (router,) = compile_routers(policy(route("one", "*:443"), listener=listener)).values()
        for port, matches in ((443, True), (444, False)):
            destination = Address("192.0.2.1", port)
            if listener is WEB:
                decision = router.decide(REQUEST, destination)
            else:
                decision = router.decide_stream(Hello("a.test"), destination)
            assert isinstance(decision, Forward) is matches
