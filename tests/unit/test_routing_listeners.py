"""Routes on the listeners that they are for (HTTP, TLS, TCP), backends by weight, decisions."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from routed import EXACT, PREFIX, TCP, WEB, decided, policy, route, router

from l7proxy.model import (
    Address,
    BackendRef,
    Deny,
    Filters,
    Forward,
    HeaderChanges,
    Hello,
    Listener,
    Match,
    Mirror,
    Policy,
    Protocol,
    RateLimit,
    Redirect,
    RedirectTo,
    Request,
    Respond,
    Retry,
    Route,
    RouteTimeouts,
    StaticResponse,
    ValueMatch,
)
from l7proxy.routing import (
    AMBIGUOUS,
    EVERYTHING,
    NO_BACKEND,
    NO_STREAM_ROUTE,
    NO_WEIGHT,
    NOT_FOUND,
    Claim,
    Router,
    applies,
    claims,
    compile_routers,
    takes_everything,
)

# Listeners, streams, weights.


@pytest.mark.parametrize(
    ("one", "on_web", "on_raw"),
    [
        (route("all"), True, True),
        (route("named", listeners=("raw", "web")), True, True),
        (route("web", listeners=("web",)), True, False),
        (route("raw", listeners=("raw",)), False, True),
        (route("host", hosts=("h.test",)), True, False),
        (route("path", "/x"), True, False),
        (route("exact", "=/"), True, False),
        (route("path-or-all", "/x", "/"), True, True),
        (route("host-on-raw", listeners=("raw",), hosts=("h.test",)), False, False),
    ],
)
def test_applies(one: Route, on_web: bool, on_raw: bool) -> None:
    assert (applies(one, WEB), applies(one, TCP)) == (on_web, on_raw)


def test_listeners_have_their_own_routes() -> None:
    routers = compile_routers(
        policy(
            route("web", listeners=("web",)),
            route("host", hosts=("h.test",)),
            route("all"),
            listeners=(WEB, TCP, Listener("other", Address("127.0.0.1", 81))),
        )
    )
    assert decided(routers["web"], "x", "/") == "web"
    assert decided(routers["web"], "h.test", "/") == "host"
    assert decided(routers["other"], "x", "/") == "all"
    stream = routers["raw"].decide_stream()
    assert isinstance(stream, Forward)
    assert stream.route.name == "all"


def test_the_first_route_that_takes_everything_takes_streams() -> None:
    routers = compile_routers(
        policy(route("h", hosts=("h.test",)), route("one"), route("two"), listeners=(TCP,))
    )
    stream = routers["raw"].decide_stream()
    assert isinstance(stream, Forward)
    assert (stream.route.name, stream.backend.name) == ("one", "app")


def test_no_route_at_all() -> None:
    routers = compile_routers(policy(route("h", hosts=("h.test",)), listeners=(TCP,)))
    assert routers["raw"].decide_stream() is NO_STREAM_ROUTE
    assert routers["raw"].decide(Request(host="h.test", path="/")) is NOT_FOUND
    assert (NOT_FOUND.status, NO_STREAM_ROUTE.status) == (404, 404)


def test_takes_everything() -> None:
    assert takes_everything(route("a"))
    assert takes_everything(route("a", "/x", "/"))
    assert not takes_everything(route("a", "=/"))
    assert not takes_everything(route("a", hosts=("h.test",)))


def test_claims() -> None:
    one = route("a", "/x/", "=/%78/", hosts=("A.test", "*.b.test"))
    assert list(claims(one)) == [
        (Claim("a.test", PREFIX, "/x"), 0),
        (Claim("*.b.test", PREFIX, "/x"), 0),
        (Claim("a.test", EXACT, "/x/"), 1),
        (Claim("*.b.test", EXACT, "/x/"), 1),
    ]
    assert list(claims(route("b"))) == [(EVERYTHING, 0)]


def groups(one: Router, count: int) -> list[str]:
    decisions = [one.decide(Request(host="h", path="/")) for _ in range(count)]
    return [decision.backend.name for decision in decisions if isinstance(decision, Forward)]


SHARED = (BackendRef("a", 3), BackendRef("b", 1), BackendRef("never", 0))


def test_groups_take_turns_by_weight() -> None:
    one = router(route("r", refs=SHARED))
    assert groups(one, 8) == ["a", "a", "b", "a"] * 2
    assert Counter(groups(one, 400)) == {"a": 300, "b": 100}


def test_one_group_is_the_same_decision_every_time() -> None:
    one = router(route("r", refs=(BackendRef("never", 0), BackendRef("a", 7))))
    assert one.decide(Request(host="h", path="/")) is one.decide(Request(host="h", path="/x"))
    assert groups(one, 2) == ["a", "a"]


def test_turns_are_the_route_s_and_not_the_listener_s() -> None:
    routers = compile_routers(policy(route("r", refs=SHARED), listeners=(WEB, TCP)))
    taken = []
    for _ in range(2):
        for decision in (
            routers["web"].decide(Request(host="h", path="/")),
            routers["raw"].decide_stream(),
        ):
            assert isinstance(decision, Forward)
            taken.append(decision.backend.name)
    assert taken == ["a", "a", "b", "a"]


def test_workers_start_at_different_turns() -> None:
    web = compile_routers(policy(route("r", refs=SHARED)), start=2)["web"]
    assert groups(web, 4) == ["b", "a", "a", "a"]


def test_a_refused_path_costs_no_turn() -> None:
    one = router(route("r", refs=SHARED), route("x", "/x"))
    assert one.decide(Request(host="h", path="/x/..")) is AMBIGUOUS
    assert groups(one, 4) == ["a", "a", "b", "a"]


def test_no_weight_at_all() -> None:
    one = router(route("r", refs=(BackendRef("a", 0),)))
    assert one.decide(Request(host="h", path="/")) is NO_WEIGHT
    assert NO_WEIGHT.status == 500


# Conditions, actions, other listeners.


def test_actions_become_decisions() -> None:
    match = (Match(),)
    respond = Route("r", match, respond=StaticResponse(503, body="later"))
    redirect = Route("r", match, redirect=RedirectTo("https"))
    assert router(respond).decide(Request()) == Respond(503, route=respond)
    assert router(redirect).decide(Request()) == Redirect(redirect, match[0])
    deny = Route("r", match, deny=True)
    assert router(deny).decide(Request()) == Deny(deny)


def test_a_backend_that_is_missing_answers_500_for_its_share() -> None:
    refs = (BackendRef("app", 3), BackendRef("gone", 1, optional=True))
    whole = policy(route("r", refs=refs))
    found = compile_routers(Policy(whole.listeners, whole.routes, {"app": whole.backends["app"]}))
    decisions = [found["web"].decide(Request()) for _ in range(8)]
    assert Counter(isinstance(one, Forward) for one in decisions) == {True: 6, False: 2}
    assert [one for one in decisions if not isinstance(one, Forward)] == [NO_BACKEND] * 2
    assert NO_BACKEND.status == 500


def test_the_match_that_won_stands_in_the_decision() -> None:
    one = route("r", "/x", "=/x/y")
    for path, index in [("/x", 0), ("/x/y", 1), ("/x/y/z", 0)]:
        decision = router(one).decide(Request(path=path))
        assert isinstance(decision, Forward)
        assert decision.match is one.matches[index]


def test_finding_takes_no_turn() -> None:
    one = router(route("r", refs=SHARED))
    for _ in range(3):
        assert one.find(Request()) is not None
    assert groups(one, 4) == ["a", "a", "b", "a"]


TLS = Listener("tls", Address("127.0.0.1", 443), Protocol.TLS, hostnames=("*.test", "one.example"))


def on_tls(*routes: Route) -> Router:
    return compile_routers(policy(*routes, listeners=(TLS,)))["tls"]


def taken(one: Router, sni: str, *alpn: str) -> str:
    decision = one.decide_stream(Hello(sni, alpn))
    return decision.route.name if isinstance(decision, Forward) else "none"


def test_names_and_protocols_of_tls() -> None:
    h2 = replace(route("h2", hosts=("*.a.test",)), matches=(Match(alpn=("h2", "h3")),))
    one = on_tls(
        route("exact", hosts=("x.a.test",)),
        route("wild", hosts=("*.a.test",)),
        h2,
        route("every"),
        route("later"),
    )
    for sni, alpn, expected in [
        ("x.a.test", ("h2",), "exact"),
        ("y.a.test", ("h2", "http/1.1"), "h2"),
        ("y.a.test", ("http/1.1",), "wild"),
        ("y.a.test", (), "wild"),
        ("a.test", (), "every"),
        ("one.example", (), "every"),
        ("two.example", (), "none"),
        ("", (), "none"),
    ]:
        assert taken(one, sni, *alpn) == expected


def test_without_a_name_only_routes_for_every_name_on_a_listener_for_every_name() -> None:
    open_tls = replace(TLS, hostnames=())
    one = compile_routers(
        policy(route("named", hosts=("*.test",)), route("every"), listeners=(open_tls,))
    )["tls"]
    assert taken(one, "") == "every"
    assert isinstance(one.decide_stream(), Forward)


def test_a_route_that_denies_denies_streams() -> None:
    deny = Route("no", (Match(),), hostnames=("bad.test",), deny=True)
    assert on_tls(deny, route("rest")).decide_stream(Hello("bad.test")) == Deny(deny)


def asking(**wanted: Any) -> Route:
    return Route("asks", (Match(**wanted),), (BackendRef("app"),))


@pytest.mark.parametrize(
    ("one", "http", "tls", "tcp"),
    [
        (route("all"), True, True, True),
        (route("host", hosts=("a.test",)), True, True, False),
        (route("elsewhere", hosts=("a.example",)), True, True, False),
        (route("path", "/x"), True, False, False),
        (asking(method="GET"), True, False, False),
        (asking(headers=(ValueMatch("a", "1"),)), True, False, False),
        (asking(query=(ValueMatch("a", "1"),)), True, False, False),
        (asking(alpn=("h2",)), False, True, False),
        (Route("either", (Match(alpn=("h2",)), Match()), (BackendRef("app"),)), True, True, True),
        (Route("respond", (Match(),), respond=StaticResponse(200)), True, False, False),
        (Route("redirect", (Match(),), redirect=RedirectTo("https")), True, False, False),
        (Route("deny", (Match(),), deny=True), True, True, True),
        (replace(route("f"), filters=Filters(HeaderChanges(remove=("x",)))), True, False, False),
        (
            replace(route("back"), filters=Filters(None, None, HeaderChanges(remove=("x",)))),
            True,
            False,
            False,
        ),
        (replace(route("time"), timeouts=RouteTimeouts(request=1)), True, False, False),
        (replace(route("copy"), filters=Filters(mirror=Mirror("app"))), True, False, False),
        (replace(route("again"), retry=Retry()), True, False, False),
        (replace(route("dial"), timeouts=RouteTimeouts(dial=1)), True, True, True),
        (replace(route("rate"), rate_limit=RateLimit(1, 1)), True, False, False),
    ],
)
def test_where_a_route_can_take_part(one: Route, http: bool, tls: bool, tcp: bool) -> None:
    assert [applies(one, listener) for listener in (WEB, TLS, TCP)] == [http, tls, tcp]


def test_hostnames_of_a_tcp_listener_say_nothing() -> None:
    raw = replace(TCP, hostnames=("a.test",))
    found = compile_routers(policy(route("all"), listeners=(raw,)))["raw"].decide_stream()
    assert isinstance(found, Forward)
