"""What `splice: auto` comes to, and the sentence that says why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from l7proxy.model import (
    Access,
    Address,
    Backend,
    BackendRef,
    Balance,
    BalanceType,
    Endpoint,
    Filters,
    Forward,
    HashOn,
    HeaderChanges,
    Hello,
    Listener,
    Match,
    Mirror,
    Policy,
    Protocol,
    RateLimit,
    Request,
    Retry,
    Route,
    RouteTimeouts,
    Splice,
    StaticResponse,
    Sticky,
    UnixAddress,
)
from l7proxy.routing import SpliceChoice, chosen, compile_routers
from tests.routes import route

WEB = Listener("web", Address("127.0.0.1", 80))
APP = Backend("app", (Endpoint(Address("127.0.0.1", 1)),))
TRUSTING = replace(WEB, trusted_proxies=("10.0.0.0/8",))


def choices(
    *routes: Route, listener: Listener = WEB, backend: Backend = APP
) -> dict[str, SpliceChoice]:
    found = chosen(Policy({listener.name: listener}, routes, {"app": backend}), listener)
    return dict(found)


def said(*routes: Route, listener: Listener = WEB, backend: Backend = APP) -> tuple[Splice, str]:
    (one,) = set(choices(*routes, listener=listener, backend=backend).values())
    return one.mode, one.why


ALL = route("all > /")
OTHER = replace(ALL, name="other", backend_refs=(BackendRef("app", 2),))
SAME = (Splice.CONNECTION, "every request of listener `web` has the same answer")


def hashed(on: HashOn) -> Backend:
    return replace(APP, balance=Balance(BalanceType.HASH, on, "x"))


def test_one_route_for_everything() -> None:
    assert said(ALL) == SAME


def test_several_routes_that_do_the_same() -> None:
    assert said(route("api > /api | x:1"), route("host a.test >"), ALL) == SAME


def test_what_is_hidden_does_not_count() -> None:
    assert said(ALL, replace(OTHER, name="later")) == SAME
    urgent = replace(ALL, priority=1)
    assert said(replace(route("api > /api"), backend_refs=OTHER.backend_refs), urgent) == SAME
    low = replace(ALL, name="low", priority=-1)
    assert said(low, ALL, replace(OTHER, priority=-2)) == SAME


def test_of_two_that_tie_the_first_one_counts() -> None:
    changing = replace(ALL, name="later", filters=Filters(HeaderChanges(remove=("x",))))
    assert said(ALL, changing) == SAME
    assert said(changing, ALL)[0] is Splice.REQUEST


@pytest.mark.parametrize(
    ("routes", "why"),
    [
        (["api > /api"], "may match `api` or no route (404)"),
        (["a > /a", "b > /b", "c > /c", "d@1 > /d"], "may match `a` or no route (404)"),
        (["host a.test > /"], "may match `host` or no route (404)"),
        (["one > /a x:1 | ?a=1"], "may match `one` or no route (404)"),
    ],
)
def test_no_route_is_an_answer_too(routes: list[str], why: str) -> None:
    mode, sentence = said(*map(route, routes))
    assert (mode, sentence) == (Splice.REQUEST, f"later requests of a connection {why}")


def test_other_hosts_of_the_listener_are_404_as_well() -> None:
    listener = replace(WEB, hostnames=("a.test",))
    why = "later requests of a connection may match `all` or no route (404)"
    assert said(ALL, listener=listener) == (Splice.REQUEST, why)


@pytest.mark.parametrize(
    "change",
    [
        {"backend_refs": (BackendRef("app", 2),)},
        {"timeouts": RouteTimeouts(dial=1)},
        {"retry": Retry()},
        {"rate_limit": RateLimit(1, 1)},
        {"access": Access(deny_clients=("10.0.0.0/8",))},
        {"filters": Filters(HeaderChanges(remove=("x",)))},
    ],
)
def test_routes_that_do_different_things(change: dict[str, object]) -> None:
    other = replace(route("api > /api"), **change)
    why = "later requests of a connection may match another route: `api`, `all`"
    found = choices(other, ALL)
    assert {(one.mode, one.why) for one in found.values()} == {(Splice.REQUEST, why)}
    assert found["api"].per_request == ("api", "all")


def test_a_route_that_answers_by_itself() -> None:
    down = Route("down", (Match(method="POST"),), respond=StaticResponse(503))
    found = choices(ALL, down)
    assert list(found) == ["all"]  # nothing is forwarded by the other one
    assert found["all"].why == (
        "later requests of a connection may match another route: `all`, `down`"
    )


def test_a_long_list_is_cut() -> None:
    routes = [
        replace(route(f"r{n} > /{n}"), backend_refs=(BackendRef("app", n + 1),)) for n in range(6)
    ]
    why = choices(*routes)["r0"].why
    assert why == (
        "later requests of a connection may match `r0`, `r1`, `r2`, one of 3 more or no route (404)"
    )


@pytest.mark.parametrize(
    ("one", "listener", "backend", "why"),
    [
        (
            replace(ALL, filters=Filters(HeaderChanges(remove=("x",)))),
            WEB,
            APP,
            "the filters of route `all` change each request",
        ),
        (
            replace(ALL, filters=Filters(response_headers=HeaderChanges(remove=("x",)))),
            WEB,
            APP,
            "the filters of route `all` change each response",
        ),
        (
            replace(ALL, timeouts=RouteTimeouts(idle=1, request=1)),
            WEB,
            APP,
            "route `all` limits the time of each request",
        ),
        (replace(ALL, timeouts=RouteTimeouts(request=0)), WEB, APP, None),
        (
            replace(ALL, filters=Filters(mirror=Mirror("app"))),
            WEB,
            APP,
            "route `all` copies requests",
        ),
        (replace(ALL, retry=Retry()), WEB, APP, "route `all` sends requests once more"),
        (replace(ALL, rate_limit=RateLimit(1, 1)), WEB, APP, "route `all` counts its requests"),
        (ALL, WEB, hashed(HashOn.HEADER), "backend `app` picks an endpoint by a header"),
        (ALL, WEB, hashed(HashOn.COOKIE), "backend `app` picks an endpoint by a cookie"),
        (ALL, WEB, hashed(HashOn.PATH), "backend `app` picks an endpoint by the path"),
        (ALL, WEB, hashed(HashOn.CLIENT), None),
        (
            ALL,
            TRUSTING,
            hashed(HashOn.CLIENT),
            "a trusted proxy brings several clients, and backend `app` picks an endpoint by the"
            " client",
        ),
        (
            ALL,
            WEB,
            replace(APP, sticky=Sticky("id")),
            "backend `app` brings each client back to its endpoint by a cookie",
        ),
        (replace(ALL, access=Access(allow_clients=("10.0.0.0/8",))), WEB, APP, None),
        (
            replace(ALL, access=Access(deny_clients=("10.0.0.0/8",))),
            TRUSTING,
            APP,
            "a trusted proxy brings several clients, and route `all` does not let everyone in",
        ),
        (ALL, TRUSTING, APP, None),
        (ALL, replace(WEB, deny=("10.9.9.9/32",)), APP, None),
        *(
            (
                ALL,
                replace(TRUSTING, **rule),
                APP,
                f"a trusted proxy brings several clients, and listener `{TRUSTING.name}` does not"
                " let everyone in",
            )
            for rule in ({"deny": ("10.9.9.9/32",)}, {"allow": ("10.0.0.0/8",)})
        ),
        (  # everybody who may connect to a file is believed
            replace(ALL, access=Access(deny_clients=("10.0.0.0/8",))),
            replace(WEB, address=UnixAddress("/run/web.sock")),
            APP,
            "a trusted proxy brings several clients, and route `all` does not let everyone in",
        ),
        (
            ALL,
            replace(WEB, address=UnixAddress("/run/web.sock")),
            hashed(HashOn.CLIENT),
            "a trusted proxy brings several clients, and backend `app` picks an endpoint by the"
            " client",
        ),
        (ALL, replace(WEB, address=UnixAddress("/run/web.sock")), APP, None),
        (
            replace(ALL, access=Access(deny_clients=("10.0.0.0/8",))),
            replace(WEB, address=UnixAddress("@web")),  # nobody is believed
            APP,
            None,
        ),
        (
            replace(ALL, backend_refs=(BackendRef("app"), BackendRef("gone", 2, True))),
            WEB,
            APP,
            None,
        ),
        (
            replace(ALL, backend_refs=(BackendRef("x"), BackendRef("app", 0))),
            WEB,
            replace(APP, sticky=Sticky("id")),
            None,
        ),
    ],
)
def test_what_has_to_be_done_to_each_request(
    one: Route, listener: Listener, backend: Backend, why: str | None
) -> None:
    expected = SAME if why is None else (Splice.REQUEST, why)
    assert said(one, listener=listener, backend=backend) == expected


def test_the_route_says_so() -> None:
    found = choices(replace(ALL, splice=Splice.NEVER), route("api > /api"))
    assert found["all"] == SpliceChoice(Splice.NEVER, "the route says so", chosen=False)
    assert found["api"].mode is Splice.CONNECTION


@pytest.mark.parametrize("protocol", [Protocol.TLS, Protocol.TCP])
def test_streams(protocol: Protocol) -> None:
    listener = replace(WEB, protocol=protocol)
    deny = Route("no", (Match(),), deny=True)
    found = choices(deny, ALL, OTHER, route("path > /x"), listener=listener)
    assert list(found) == ["all", "other"]
    why = f"what comes over {protocol} has no requests to tell apart"
    assert {(one.mode, one.why) for one in found.values()} == {(Splice.CONNECTION, why)}


def test_decisions_carry_it() -> None:
    tls = replace(WEB, name="tls", protocol=Protocol.TLS)
    kept = replace(route("kept > /kept"), splice=Splice.UPGRADE)
    policy = Policy({"web": WEB, "tls": tls}, (route("all > /a"), kept, ALL), {"app": APP})
    routers = compile_routers(replace(policy, routes=(route("api > /api"), kept)))
    modes = []
    for path in ("/api", "/kept"):
        decision = routers["web"].decide(Request(path=path))
        assert isinstance(decision, Forward)
        modes.append(decision.splice)
    assert modes == [Splice.REQUEST, Splice.UPGRADE]
    stream = compile_routers(policy)["tls"].decide_stream(Hello("a"))
    assert isinstance(stream, Forward)
    assert stream.splice is Splice.CONNECTION
