"""Which route answers: the rules of the Gateway API v1 as tables, and the spellings of a path."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from l7proxy.model import (
    Address,
    Backend,
    BackendRef,
    Deny,
    Endpoint,
    Filters,
    Forward,
    HeaderChanges,
    Hello,
    Listener,
    Match,
    PathMatch,
    PathModifier,
    PathModifierType,
    PathType,
    Policy,
    Protocol,
    Redirect,
    RedirectTo,
    Request,
    Respond,
    Route,
    StaticResponse,
    UrlRewrite,
    ValueMatch,
)
from l7proxy.patterns import PatternError
from l7proxy.routing import (
    AMBIGUOUS,
    EVERYTHING,
    NO_BACKEND,
    NO_STREAM_ROUTE,
    NO_WEIGHT,
    NOT_FOUND,
    SLICE,
    Claim,
    Router,
    applies,
    claims,
    compile_routers,
    compile_slices,
    readings,
    takes_everything,
)
from l7proxy.routing.rules import Rule
from l7proxy.routing.tables import insert

EXACT, PREFIX = PathType.EXACT, PathType.PATH_PREFIX


def route(
    name: str,
    *paths: str,
    hosts: tuple[str, ...] = (),
    listeners: tuple[str, ...] = (),
    refs: tuple[BackendRef, ...] = (BackendRef("app"),),
) -> Route:
    """A path that begins with `=` is Exact, any other a prefix; none is PathPrefix /."""
    matches = tuple(
        Match(PathMatch(EXACT, path[1:]) if path[0] == "=" else PathMatch(PREFIX, path))
        for path in paths or ("/",)
    )
    return Route(name, matches, refs, hosts, listeners)


def policy(*routes: Route, listeners: tuple[Listener, ...] = ()) -> Policy:
    web = Listener("web", Address("127.0.0.1", 80))
    names = {ref.name for one in routes for ref in one.backend_refs} | {"app"}
    return Policy(
        listeners={one.name: one for one in listeners or (web,)},
        routes=routes,
        backends={name: Backend(name, (Endpoint(Address("127.0.0.1", 9000)),)) for name in names},
    )


def router(*routes: Route) -> Router:
    return compile_routers(policy(*routes))["web"]


def decided(one: Router, host: str, path: str) -> str:
    """The name of the route, or the status."""
    decision = one.decide(Request(host=host, path=path))
    if isinstance(decision, Respond):
        return str(decision.status)
    assert isinstance(decision, Forward)
    return decision.route.name


# The tables of the specification: "host path -> route".

CASES = {
    "prefixes go by path element": (
        [route("abc", "/abc"), route("abcx", "/abc/x/")],
        """
        h /abc        -> abc
        h /abc/       -> abc
        h /abc/d      -> abc
        h /abc/d/e/f  -> abc
        h /abcd       -> 404
        h /ab         -> 404
        h /           -> 404
        h /ABC        -> 404
        h /x/abc      -> 404
        h /abc/x      -> abcx
        h /abc/x/     -> abcx
        h /abc/x/y    -> abcx
        h /abc/xy     -> abc
        """,
    ),
    "a trailing slash in a pattern says nothing": (
        [route("slash", "/abc/")],
        """
        h /abc        -> slash
        h /abc/       -> slash
        h /abc/d      -> slash
        h /abcd       -> 404
        """,
    ),
    "PathPrefix / is everything": (
        [route("all")],
        """
        h /           -> all
        h /a/b        -> all
        h *           -> all
        """,
    ),
    "Exact is exact": (
        [route("one", "=/one"), route("slash", "=/two/"), route("root", "=/")],
        """
        h /one        -> one
        h /one/       -> 404
        h /one/x      -> 404
        h /One        -> 404
        h /two        -> 404
        h /two/       -> slash
        h /           -> root
        """,
    ),
    "Exact before prefix, longer prefix before shorter, in any order": (
        [
            route("root"),
            route("a", "/a"),
            route("abc", "/a/b/c"),
            route("ab", "/a/b"),
            route("exact", "=/a/b"),
            route("exact-root", "=/"),
        ],
        """
        h /           -> exact-root
        h /x          -> root
        h /a          -> a
        h /a/x        -> a
        h /a/b        -> exact
        h /a/b/       -> ab
        h /a/b/x      -> ab
        h /a/b/c      -> abc
        h /a/b/c/d    -> abc
        h /a/b/cd     -> ab
        """,
    ),
    "ties go to the earlier route": (
        [route("one", "/x", "=/y"), route("two", "/x", "=/y", "/x/"), route("three", "/z", "/z")],
        """
        h /x/1        -> one
        h /y          -> one
        h /z          -> three
        """,
    ),
    "matches are ORed": (
        [route("a", "/x", "/y", "=/z")],
        """
        h /x          -> a
        h /y/1        -> a
        h /z          -> a
        h /z/1        -> 404
        """,
    ),
    "exact hostname, then the longest wildcard, then none": (
        [
            route("none"),
            route("com", hosts=("*.com",)),
            route("example", hosts=("*.example.com",)),
            route("deep", hosts=("*.deep.example.com",)),
            route("www", hosts=("www.example.com",)),
        ],
        """
        www.example.com         / -> www
        api.example.com         / -> example
        a.b.c.example.com       / -> example
        a.www.example.com       / -> example
        x.deep.example.com      / -> deep
        deep.example.com        / -> example
        example.com             / -> com
        com                     / -> none
        example.org             / -> none
        notexample.com          / -> com
        127.0.0.1               / -> none
        ::1                     / -> none
        """,
    ),
    "a wildcard is never the bare domain": (
        [route("wild", hosts=("*.example.com",))],
        """
        example.com             / -> 404
        .example.com            / -> 404
        a.example.com           / -> wild
        aexample.com            / -> 404
        a.example.com.evil.test / -> 404
        """,
    ),
    "the hostname comes before the path": (
        [
            route("long", "/a/b/c", "=/a/b/c/d"),
            route("wild", "/a/b", hosts=("*.example.com",)),
            route("host", "/a", hosts=("www.example.com",)),
        ],
        """
        www.example.com /a/b/c/d -> host
        api.example.com /a/b/c/d -> wild
        other.test      /a/b/c/d -> long
        """,
    ),
    "what misses the path falls through to a less specific hostname": (
        [
            route("any", "/any"),
            route("wild", "/wild", hosts=("*.example.com",)),
            route("wilder", "/wilder", hosts=("*.com",)),
            route("host", "/host", hosts=("www.example.com",)),
        ],
        """
        www.example.com /host   -> host
        www.example.com /wild   -> wild
        www.example.com /wilder -> wilder
        www.example.com /any    -> any
        www.example.com /none   -> 404
        api.example.com /host   -> 404
        """,
    ),
    "several hostnames": (
        [route("a", "/x", "/y", hosts=("a.test", "*.b.test")), route("c", hosts=("c.test",))],
        """
        a.test   /y -> a
        x.b.test /x -> a
        b.test   /x -> 404
        a.test   /z -> 404
        c.test   /z -> c
        """,
    ),
    "the host of a policy has no case": (
        [route("a", hosts=("A.Example.COM", "*.B.test"))],
        """
        a.example.com / -> a
        x.b.test      / -> a
        """,
    ),
    "dots, percent signs and semicolons in sane paths": (
        [route("api", "/api"), route("known", "/.well-known"), route("rest")],
        """
        h /.well-known/acme   -> known
        h /.well-knownx       -> rest
        h /api/group%2Fname   -> api
        h /api/a%20b          -> api
        h /api/.hidden        -> api
        h /api/..hidden       -> api
        h /api/a;b=c/d        -> api
        h /api/a..b           -> api
        h /api//double        -> api
        h /x%2Fy              -> rest
        """,
    ),
}


def lines() -> list[object]:
    return [
        pytest.param(routes, *line.split("->")[0].split(), line.split()[-1], id=f"{about}: {line}")
        for about, (routes, table) in CASES.items()
        for line in map(str.strip, table.splitlines())
        if line
    ]


@pytest.mark.parametrize(("routes", "host", "path", "expected"), lines())
def test_precedence(routes: list[Route], host: str, path: str, expected: str) -> None:
    assert decided(router(*routes), host, path) == expected


def test_no_host_at_all() -> None:
    """HTTP/1.0 without Host."""
    routes = [route("any", "/any"), route("wild", hosts=("*.test",))]
    assert decided(router(*routes), "", "/any") == "any"
    assert decided(router(*routes), "", "/") == "404"


# One path, several spellings: nothing reaches a route under the name of another.

PUBLIC = [route("rest"), route("public", "/public"), route("admin", "/admin"), route("e", "=/e")]


@pytest.mark.parametrize(
    "path",
    [
        "/public/../admin",
        "/public/./../admin/x",
        "/public/%2e%2e/admin",
        "/public/.%2E/admin",
        "/public/..%2fadmin",
        "/public/..%2Fadmin/x",
        "/public%2f..%2fadmin",
        "/public/..%5cadmin",
        "/public/..\\admin",
        "/public\\..\\admin",
        "/public/..;/admin",
        "/public/..;a=b/admin",
        "/admin;x=1",
        "/admin;/users",
        "/public;x/../admin",
        "/public/%2e%2e;/admin",
        "/public/x/../../admin",
        "/public//../admin/..%2f..%2fadmin",
        "/public/../admin/..%2fpublic/x",  # the plain and the lenient reading agree
        "/./admin",
        "/x/../admin",
        "//admin",
        "///admin/x",
        "/%2fadmin",
        "/%2Fadmin",
        "/\\admin",
        "/admin/..",
        "/admin/../",
        "/admin/../x",
        "/admin%2fx",
        "/../admin",
        "/.;/admin",
        "/./e",
        "//e",
        "/x/../e",
    ],
)
def test_ambiguous_paths_are_refused(path: str) -> None:
    assert router(*PUBLIC).decide(Request(host="h", path=path)) is AMBIGUOUS
    assert AMBIGUOUS.status == 400


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/public/../public/x", "public"),
        ("/public/a/../b", "public"),
        ("/public/a//b/./c", "public"),
        ("/public/a%2fb", "public"),
        ("/e/.", "rest"),  # by RFC 3986 that is /e/, and /e/ is not /e
        ("/public/..hidden/.x", "public"),
        ("/public/..x;/y", "public"),
        ("/x/..", "rest"),
        ("/..", "rest"),
        ("/.", "rest"),
        ("//", "rest"),
        ("/%2e", "rest"),
        ("/%", "rest"),
        ("/%2", "rest"),
        ("/%zz/..", "rest"),
        ("*", "rest"),
        # RFC 3986, 6.2.2: the same path, spelled otherwise
        ("/%61dmin", "admin"),
        ("/%61%64%6D%69%6e/x", "admin"),
        ("/%70ublic", "public"),
        ("/%65", "e"),
        # and what is not the same
        ("/admin%20", "rest"),
        ("/adm%2569n", "rest"),
        ("/admi%6", "rest"),
    ],
)
def test_spellings_that_cannot_mislead(path: str, expected: str) -> None:
    assert decided(router(*PUBLIC), "h", path) == expected


@pytest.mark.parametrize("path", ["/a/../b", "//", "/..%2f", "/a\\b", "/%2e%2e/x"])
def test_one_route_forwards_whatever_it_gets(path: str) -> None:
    assert decided(router(route("app")), "h", path) == "app"


def test_ambiguous_is_judged_over_all_hostnames_that_match() -> None:
    one = router(route("a", "/a", hosts=("h.test",)), route("b", "/b"))
    assert decided(one, "h.test", "/a/../b") == "400"
    assert decided(one, "h.test", "/a/x/../b") == "a"
    assert decided(one, "other.test", "/a/../b") == "400"  # plainly 404, resolved b
    assert decided(one, "other.test", "/b/x/../b") == "b"


def test_patterns_are_compared_in_their_normal_form() -> None:
    one = router(route("user", "/%7euser"), route("cafe", "=/caf%c3%a9"))
    assert decided(one, "h", "/~user/x") == "user"
    assert decided(one, "h", "/%7Euser/x") == "user"
    assert decided(one, "h", "/caf%C3%A9") == "cafe"
    assert decided(one, "h", "/caf%c3%a9") == "cafe"


@pytest.mark.parametrize(
    ("path", "plain", "resolved", "lenient"),
    [
        ("/a/b", "/a/b", "/a/b", "/a/b"),
        ("/a/b/", "/a/b/", "/a/b/", "/a/b/"),
        ("/", "/", "/", "/"),
        ("*", "*", "*", "*"),
        ("/a/b/c/./../../g", "/a/b/c/./../../g", "/a/g", "/a/g"),  # RFC 3986, 5.2.4
        ("/../../g", "/../../g", "/g", "/g"),
        ("/a/.", "/a/.", "/a/", "/a/"),
        ("/a/..", "/a/..", "/", "/"),
        ("/a/b/..", "/a/b/..", "/a/", "/a/"),
        ("/a//b", "/a//b", "/a//b", "/a/b"),
        ("/a//..", "/a//..", "/a/", "/"),
        ("//", "//", "//", "/"),
        ("/%41%2f%2d%7e%e4", "/A%2F-~%E4", "/A%2F-~%E4", "/A/-~%E4"),
        ("/a%2f%2e%2e%5cb", "/a%2F..%5Cb", "/a%2F..%5Cb", "/b"),
        ("/a/..;x/b", "/a/..;x/b", "/a/..;x/b", "/b"),
        ("/a/.;/b", "/a/.;/b", "/a/.;/b", "/a/b"),
        ("/a/...;x/b", "/a/...;x/b", "/a/...;x/b", "/a/.../b"),
        ("/admin;x=1", "/admin;x=1", "/admin;x=1", "/admin"),
        ("/a;x/b;y", "/a;x/b;y", "/a;x/b;y", "/a/b"),
        ("/a%3Bx/b", "/a%3Bx/b", "/a%3Bx/b", "/a%3Bx/b"),
        ("/%252e", "/%252e", "/%252e", "/%252e"),
    ],
)
def test_readings(path: str, plain: str, resolved: str, lenient: str) -> None:
    assert readings(path) == (plain, resolved, lenient)


# Listeners, streams, weights.


TCP = Listener("raw", Address("127.0.0.1", 9), Protocol.TCP)
WEB = Listener("web", Address("127.0.0.1", 80))


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
    ],
)
def test_where_a_route_can_take_part(one: Route, http: bool, tls: bool, tcp: bool) -> None:
    assert [applies(one, listener) for listener in (WEB, TLS, TCP)] == [http, tls, tcp]


def test_hostnames_of_a_tcp_listener_say_nothing() -> None:
    raw = replace(TCP, hostnames=("a.test",))
    found = compile_routers(policy(route("all"), listeners=(raw,)))["raw"].decide_stream()
    assert isinstance(found, Forward)


# What is rewritten is read as well.


@pytest.mark.parametrize(
    ("prefix", "value", "path", "status"),
    [
        ("/", "/app", "/x", 0),
        ("/", "/app", "/../secret", 400),
        ("/", "/app", "/x/../y", 0),
        ("/", "/app", "/x/../../y", 400),
        ("/", "/app", "/..%2fsecret", 400),
        ("/", "/app", "/..;/secret", 400),
        ("/", "/app", "//x", 0),
        ("/", "/app", "/x%2fy", 0),
        ("/", "/app", "/./x", 0),
        ("/", "/", "/../secret", 0),
        ("/v1", "/v2", "/v1/../v1/x", 400),
        ("/v1", "/v2", "/v1/x/../y", 0),
    ],
)
def test_no_spelling_leaves_what_replaced_the_prefix(
    prefix: str, value: str, path: str, status: int
) -> None:
    modifier = PathModifier(PathModifierType.REPLACE_PREFIX_MATCH, value)
    one = replace(route("r", prefix), filters=Filters(url_rewrite=UrlRewrite(path=modifier)))
    decision = router(one).decide(Request(host="h", path=path))
    assert (decision.status if isinstance(decision, Respond) else 0) == status


def test_a_path_that_is_replaced_whole_can_be_spelled_as_it_likes() -> None:
    modifier = PathModifier(PathModifierType.REPLACE_FULL_PATH, "/app")
    one = replace(route("r"), filters=Filters(url_rewrite=UrlRewrite(path=modifier)))
    assert isinstance(router(one).decide(Request(path="/../x")), Forward)


def test_readings_that_lead_to_patterns_are_judged_too() -> None:
    number = replace(
        route("n"), matches=(Match(PathMatch(PathType.REGULAR_EXPRESSION, "/[0-9]+")),)
    )
    one = router(number, route("rest"))
    assert decided(one, "h", "/12") == "n"
    assert decided(one, "h", "/x/../12") == "400"
    assert decided(one, "h", "/%31%32") == "n"


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
