"""What another policy would change: what was written, and what comes of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest

from l7proxy.model import (
    AccessLogRules,
    Address,
    BackendRef,
    Endpoint,
    Hello,
    Listener,
    Location,
    Match,
    PathMatch,
    PathType,
    Policy,
    Protocol,
    RedirectTo,
    Request,
    Route,
    RouteTimeouts,
    StaticResponse,
)
from l7proxy.patterns import compile_pattern
from l7proxy.routing.difference import Change, FieldChange, difference
from l7proxy.routing.probes import _guess, shown
from tests.routes import ADDRESS, policy, route, routes


def of(*texts: str) -> Policy:
    return policy(*routes("\n".join(texts)))


def effects(old: Policy, new: Policy) -> list[str]:
    return [str(effect) for effect in difference(old, new).effects]


API = "api api.example.com > /v1"
WEB = "web > /"


def test_nothing_changes() -> None:
    moved = replace(route(API), location=Location("p.yaml", 9, 1))
    match = replace(moved.matches[0], location=Location("p.yaml", 10, 3))
    found = difference(of(API, WEB), policy(replace(moved, matches=(match,)), route(WEB)))
    assert not found
    assert (found.changes, found.effects, found.complete) == ((), (), True)
    assert found.probes > 0


def test_what_was_written() -> None:
    old = of("gone > /gone", "a > /a", "b > /b", "c > /c")
    fast = replace(route("a > /a"), timeouts=RouteTimeouts(idle=5))
    new = policy(fast, route("c > /c"), route("b > /b"), route("new > /new"))
    backend = replace(new.backends["app"], endpoints=(Endpoint(Address("127.0.0.1", 2)),))
    listener = replace(new.listeners["web"], address=Address("127.0.0.1", 81))
    extra = Listener("extra", ADDRESS)
    new = replace(
        new,
        listeners={"web": listener, "extra": extra},
        backends={"app": backend, "more": replace(backend, name="more")},
    )
    found = difference(old, new)
    assert found.changes == (
        Change(
            "listener",
            "web",
            "changed",
            (FieldChange("address", Address("127.0.0.1", 80), Address("127.0.0.1", 81)),),
        ),
        Change("listener", "extra", "added"),
        Change("route", "gone", "removed"),
        Change("route", "a", "changed", (FieldChange("timeouts.idle", None, 5),)),
        Change("route", "new", "added"),
        Change("route", "c", "moved"),
        Change(
            "backend",
            "app",
            "changed",
            (FieldChange("endpoints", old.backends["app"].endpoints, backend.endpoints),),
        ),
        Change("backend", "more", "added"),
    )
    assert bool(found)


def test_the_access_log() -> None:
    old = of(WEB)
    new = replace(old, access_log=AccessLogRules("common", live_every=60.0))
    (change,) = difference(old, new).changes
    assert (change.noun, change.name, change.what) == ("policy", "accessLog", "changed")
    assert [one.name for one in change.fields] == ["format", "live_every"]
    assert not difference(new, new)


def test_a_group_of_fields_that_comes_is_one_change() -> None:
    redirect = Route("r", (Match(),), redirect=RedirectTo("https"))
    new = policy(redirect)
    (change,) = difference(of("r > /"), new).changes
    assert change.fields == (
        FieldChange("backend_refs", (BackendRef("app"),), ()),
        FieldChange("redirect", None, RedirectTo("https")),
    )


@pytest.mark.parametrize("order", list(permutations("abcd")))
def test_as_few_as_can_be_are_moved(order: tuple[str, ...]) -> None:
    old, new = of(*(f"{n} > /{n}" for n in "abcd")), of(*(f"{n} > /{n}" for n in order))
    moved = [change.name for change in difference(old, new).changes if change.what == "moved"]
    rest = [name for name in order if name not in moved]
    assert rest == sorted(rest)
    fewest = min(
        4 - len(kept)
        for count in range(5)
        for kept in permutations(order, count)
        if list(kept) == sorted(kept) and list(kept) == [name for name in order if name in kept]
    )
    assert len(moved) == fewest


def test_what_comes_of_it() -> None:
    refs = (BackendRef("app", 3), BackendRef("next", 1))
    canary = policy(replace(route(API), backend_refs=refs), route(WEB))
    assert effects(of(API, WEB), canary) == [
        "GET http://api.example.com/v1 and 1 more on web:"
        " api (backend app) -> api (backend app 3/4, next 1/4)"
    ]


def test_a_route_that_goes_leaves_its_requests_to_others() -> None:
    assert effects(of(API, WEB), of(WEB)) == [
        "GET http://api.example.com/v1 and 1 more on web: api (backend app) -> web (backend app)"
    ]
    assert effects(of(API), of()) == [
        "GET http://api.example.com/v1 and 1 more on web: api (backend app) -> no route"
    ]


def test_order_comes_out_where_routes_tie() -> None:
    assert effects(of("a > /x", "b > /x"), of("b > /x", "a > /x")) == [
        "GET http://unknown.example/x and 1 more on web: a (backend app) -> b (backend app)"
    ]


@pytest.mark.parametrize(
    ("one", "text", "asked"),
    [
        (Route("r", (Match(),), respond=StaticResponse(503)), "r (respond 503)", "/"),
        (Route("r", (Match(),), redirect=RedirectTo("https")), "r (redirect 302)", "/"),
        (Route("r", (Match(),), deny=True), "r (deny)", "/"),
        (Route("r", (Match(),), (BackendRef("app", 0),)), "r (backend none)", "/"),
    ],
)
def test_what_a_route_does_in_few_words(one: Route, text: str, asked: str) -> None:
    (effect,) = difference(of(), policy(one)).effects
    assert (effect.old, effect.new) == ("no route", text)
    assert shown(effect.asked[0]) == f"GET http://unknown.example{asked}"


def test_requests_have_all_that_a_match_asks_for() -> None:
    found = difference(of(), of("r *.a.test > POST =/x%2a v:1 w:~[0-9]+ ?q=a+b ?e=~.*z"))
    (effect,) = found.effects
    assert str(effect) == (
        "POST http://any.a.test/x%2a?q=a%2Bb&e=az (v: 1, w: 1) on web: no route -> r (backend app)"
    )
    assert effect.count == 1


def test_a_path_that_reads_in_two_ways_is_a_400() -> None:
    one = PathMatch(PathType.EXACT, "/a/..")
    old = policy(route("all > /"))
    new = policy(route("all > /"), Route("odd", (Match(one),), (BackendRef("app"),)))
    (effect,) = difference(old, new).effects
    assert (effect.old, effect.new) == ("all (backend app)", "400")


def test_hostnames_of_the_listener() -> None:
    old, new = policy(route(WEB)), policy(route(WEB), hostnames=("*.a.test",))
    (effect,) = difference(old, new).effects
    assert effect.new == "no route"
    assert effect.asked[0] == Request(host="unknown.example", path="/")
    assert not [a for a in effect.asked if isinstance(a, Request) and a.host == "any.a.test"]


def test_streams() -> None:
    def whole(protocol: Protocol, *found: Route) -> Policy:
        listener = Listener("s", ADDRESS, protocol)
        return replace(policy(*found), listeners={"s": listener})

    h2 = Route("h2", (Match(alpn=("h2",)),), (BackendRef("app"),), ("a.test",))
    rest = Route("rest", (Match(),), (BackendRef("app"),))
    assert effects(whole(Protocol.TLS, rest), whole(Protocol.TLS, rest, h2)) == [
        "TLS a.test (ALPN h2) on s: rest (backend app) -> h2 (backend app)"
    ]
    assert effects(whole(Protocol.TLS), whole(Protocol.TLS, rest)) == [
        "TLS unknown.example and 1 more on s: no route -> rest (backend app)"
    ]
    assert effects(whole(Protocol.TCP), whole(Protocol.TCP, rest)) == [
        "a connection on s: no route -> rest (backend app)"
    ]
    assert effects(whole(Protocol.TCP), whole(Protocol.TLS, rest)) == []
    assert shown(Hello()) == "TLS without a name"


def test_listeners_that_only_one_has_are_not_asked() -> None:
    old = of(WEB)
    found = difference(old, replace(old, listeners={}))
    assert (found.effects, found.probes) == ((), 0)


def test_what_changed_is_asked_first() -> None:
    many = [f"r{n} h{n}.test > /{n}" for n in range(100)]
    found = difference(of(*many), of(*many[:-1]), most=10)
    assert [str(effect) for effect in found.effects] == [
        "GET http://h99.test/99 and 1 more on web: r99 (backend app) -> no route"
    ]


def test_the_work_is_bounded() -> None:
    many = of(*(f"r{n} h{n}.test > /{n}" for n in range(100)))
    found = difference(many, of(WEB), most=500)
    assert found.probes == 500
    assert not found.complete
    assert max(len(effect.asked) for effect in found.effects) <= 3
    two = replace(many, listeners={**many.listeners, "two": Listener("two", ADDRESS)})
    assert difference(two, two, most=500).probes == 500


@pytest.mark.parametrize(
    "pattern",
    [
        "/v[0-9]+",
        r"/users/\d{2,3}/?",
        "/(a|b)/c",
        "(?i)/x",
        "/a.*",
        r"/\w+\.html",
        "^/x$",
        "/[^/]+/y",
    ],
)
def test_guesses(pattern: str) -> None:
    guessed = _guess(pattern)
    assert guessed is None or compile_pattern(pattern).matches(guessed.encode())


def test_guesses_that_are_right() -> None:
    assert [_guess(one) for one in ("/v[0-9]+", "/(a|b)/c", "/a.*", r"/\w+\.html")] == [
        "/v1",
        "/a/c",
        "/aa",
        "/a.html",
    ]


def test_what_cannot_be_guessed_is_left_out() -> None:
    assert _guess("[[:punct:]]{3}") is None
    found = difference(of(), of("r > ~/[[:punct:]]{3}", "s > x:~[[:punct:]]{3}"))
    assert found.effects == ()
