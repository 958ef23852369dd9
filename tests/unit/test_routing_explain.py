"""Why a request goes where it goes, told route by route."""

from __future__ import annotations

from dataclasses import replace

import pytest

from l7proxy.model import (
    Address,
    Backend,
    BackendRef,
    Deny,
    Endpoint,
    Filters,
    Hello,
    Listener,
    Match,
    PathModifier,
    PathModifierType,
    Policy,
    Protocol,
    Redirect,
    RedirectTo,
    Request,
    Respond,
    Route,
    Splice,
    StaticResponse,
    UrlRewrite,
)
from l7proxy.routing import AMBIGUOUS, NO_STREAM_ROUTE, NO_WEIGHT, NOT_FOUND
from l7proxy.routing.explain import Explanation, Reading, Share, explain
from tests.routes import policy, request, route, routes

ADDRESS = Address("127.0.0.1", 1)


def told(text: str, asked: str, hostnames: str = "") -> Explanation:
    whole = policy(*routes(text), hostnames=tuple(hostnames.split()))
    return explain(whole, whole.listeners["web"], request(asked))


def losers(found: Explanation) -> dict[str, tuple[bool, str, str]]:
    return {one.route.name: (one.matched, one.criterion, one.why) for one in found.others}


POLICY = """
winner api.example.com > GET =/v1 x:1 ?a=1
low@-1 api.example.com > GET =/v1 x:1 ?a=1 y:1
wild *.example.com > /v1
none > /
prefix api.example.com > GET /v1 x:1
pattern api.example.com > ~/v[0-9]+
method api.example.com > =/v1 x:1 ?a=1
header api.example.com > GET =/v1
query api.example.com > GET =/v1 x:1
later api.example.com > GET =/v1 x:1 ?a=1
post api.example.com > POST =/v1 x:2 ?b=1
values > z:1 ?v=~[0-9]+ x:~[a-z]
host other.example.com > /
path > /v2 | =/v3
bad > ~/w.*
"""


def test_every_way_to_lose() -> None:
    found = told(POLICY, "api.example.com/v1?a=1&v=x x:1 y:1")
    assert found.route is not None
    assert (found.route.name, found.match, found.hostname) == ("winner", 0, "api.example.com")
    assert found.forwards
    assert found.answer is None
    assert losers(found) == {
        "low": (True, "priority", "its priority is -1, the winner's 0"),
        "wild": (
            True,
            "hostnames",
            "its hostname *.example.com is less specific than api.example.com",
        ),
        "none": (
            True,
            "hostnames",
            "its hostname (every host) is less specific than api.example.com",
        ),
        "prefix": (True, "path", "its path PathPrefix /v1 is less specific than Exact /v1"),
        "pattern": (
            True,
            "path",
            "its path RegularExpression /v[0-9]+ is less specific than Exact /v1",
        ),
        "method": (True, "method", "the winner asks for the method GET too"),
        "header": (True, "headers", "it compares no headers, the winner 1"),
        "query": (True, "queryParams", "it compares no query parameters, the winner 1"),
        "later": (True, "order", "it is as specific as the winner, and stands later"),
        "post": (
            False,
            "method",
            "its method is POST, the request's GET; its header 'x' is '2', the request's '1'; the"
            " request has no query parameter 'b'",
        ),
        "values": (
            False,
            "headers",
            "the request has no header 'z'; the header 'x' is '1', which '[a-z]' does not match;"
            " the query parameter 'v' is 'x', which '[0-9]+' does not match",
        ),
        "host": (False, "hostnames", "its hostname is other.example.com, not api.example.com"),
        "path": (False, "path", "its path is Exact /v3, the request's /v1"),
        "bad": (False, "path", "its path is RegularExpression /w.*, the request's /v1"),
    }


def test_the_match_that_came_nearest_is_told() -> None:
    found = told("one > POST /x | POST /a | /y\nall > /", "/a")
    (other,) = found.others
    assert (other.match, other.criterion) == (1, "method")
    found = told("one > =/a/b x:1 | /a | /a/b\ntwo > =/a/b", "/a/b")
    (other,) = found.others
    assert (other.matched, other.match, other.criterion) == (True, 2, "path")


def test_counts_are_told_in_the_right_number() -> None:
    (other,) = told("more > x:1 y:1\none > x:1", "/ x:1 y:1").others
    assert other.why == "it compares 1 header, the winner 2"


def test_nothing_matches() -> None:
    found = told("a > /a\nh h.test > /", "/b")
    assert (found.answer, found.route, found.shares, found.splice) == (NOT_FOUND, None, (), None)
    assert losers(found)["h"] == (
        False,
        "hostnames",
        "its hostname is h.test, and the request names none",
    )


def test_a_host_that_the_listener_does_not_serve() -> None:
    found = told("a > /", "b.test/", "a.test")
    assert found.answer is NOT_FOUND
    assert losers(found)["a"] == (False, "listener", "listener web serves other hosts only")


def test_routes_of_other_listeners_take_no_part() -> None:
    whole = policy(replace(route("a > /"), listeners=("raw",)), route("b > /"))
    found = explain(whole, whole.listeners["web"], Request())
    assert found.others == ()


def test_shares_and_splice() -> None:
    refs = (BackendRef("app", 3), BackendRef("gone", 1, True), BackendRef("never", 0))
    whole = policy(replace(route("r > /"), backend_refs=refs))
    whole = replace(whole, backends={"app": whole.backends["app"]})
    found = explain(whole, whole.listeners["web"], Request())
    assert found.shares == (Share("app", 75.0), Share("gone", 25.0, there=False))
    assert found.splice is not None
    assert found.splice.mode is Splice.CONNECTION


def test_answers() -> None:
    match = (Match(),)
    respond = Route("r", match, respond=StaticResponse(503))
    redirect = Route("r", match, redirect=RedirectTo("https"))
    deny = Route("r", match, deny=True)
    weightless = Route("r", match, (BackendRef("app", 0),))
    for one, answer in (
        (respond, Respond(503, route=respond)),
        (redirect, Redirect(redirect, match[0])),
        (deny, Deny(deny)),
        (weightless, NO_WEIGHT),
    ):
        whole = policy(one)
        found = explain(whole, whole.listeners["web"], Request())
        assert (found.answer, found.route, found.splice) == (answer, one, None)
        assert not found.forwards


def test_a_path_with_two_readings() -> None:
    found = told("public > /public\nadmin > /admin", "/public/../admin")
    assert found.answer is AMBIGUOUS
    assert found.readings == (
        Reading("equivalent", "/public/../admin", "public"),
        Reading("resolved", "/admin", "admin"),
        Reading("lenient", "/admin", "admin"),
    )
    assert [one.route.name for one in found.others] == ["admin"]


def test_a_path_with_two_readings_and_one_answer() -> None:
    found = told("public > /public\nrest > /x", "/public/a/../b")
    assert found.forwards
    assert [one.route for one in found.readings] == ["public"] * 3
    assert told("a > /a", "/b/..").readings[1] == Reading("resolved", "/", None)


def test_a_rewritten_path_with_two_readings() -> None:
    modifier = PathModifier(PathModifierType.REPLACE_PREFIX_MATCH, "/app")
    moving = replace(route("r > /"), filters=Filters(url_rewrite=UrlRewrite(path=modifier)))
    whole = policy(moving)
    assert explain(whole, whole.listeners["web"], request("/../x")).answer is AMBIGUOUS
    assert explain(whole, whole.listeners["web"], request("/a/../x")).forwards


@pytest.mark.parametrize(
    ("sni", "alpn", "winner"),
    [("a.test", ("h2",), "h2"), ("a.test", ("http/1.1",), "any"), ("b.test", (), None)],
)
def test_streams_of_tls(sni: str, alpn: tuple[str, ...], winner: str | None) -> None:
    tls = Listener("tls", ADDRESS, Protocol.TLS)
    refs = (BackendRef("app"),)
    found = (
        Route("h2", (Match(alpn=("h2",)),), refs, ("a.test",)),
        Route("any", (Match(),), refs, ("a.test",)),
    )
    whole = Policy({"tls": tls}, found, {"app": Backend("app", (Endpoint(ADDRESS),))})
    one = explain(whole, tls, Hello(sni, alpn))
    assert (None if one.route is None else one.route.name) == winner
    reasons = losers(one)
    if winner == "h2":
        assert reasons["any"] == (True, "method", "the winner asks for ALPN h2 too")
    elif winner == "any":
        assert reasons["h2"] == (False, "alpn", "it is for ALPN h2, the client offers http/1.1")
    else:
        assert one.answer is NO_STREAM_ROUTE
        assert reasons["h2"][2] == (
            "its hostname is a.test, not b.test; it is for ALPN h2, the client offers none"
        )


def test_streams_of_tcp() -> None:
    raw = Listener("raw", ADDRESS, Protocol.TCP)
    whole = replace(policy(route("a > /"), route("b > /")), listeners={"raw": raw})
    one = explain(whole, raw, None)
    assert one.route is whole.routes[0]
    assert losers(one)["b"][:2] == (True, "order")
