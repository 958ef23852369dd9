"""Which route answers: the rules of the Gateway API v1 as tables, and the spellings of a path."""

from __future__ import annotations

import timeit
from collections import Counter
from functools import partial

import pytest

from l7proxy.model import (
    Address,
    Backend,
    BackendRef,
    Endpoint,
    Forward,
    Listener,
    Match,
    PathMatch,
    PathType,
    Policy,
    Protocol,
    Request,
    Respond,
    Route,
)
from l7proxy.routing import (
    AMBIGUOUS,
    EVERYTHING,
    NO_STREAM_ROUTE,
    NO_WEIGHT,
    NOT_FOUND,
    Claim,
    Router,
    applies,
    claims,
    compile_routers,
    readings,
    takes_everything,
)

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
        ("/a/...;x/b", "/a/...;x/b", "/a/...;x/b", "/a/...;x/b"),
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


def seconds(one: Router, host: str, path: str) -> float:
    request = Request(host=host, path=path)
    return min(timeit.repeat(lambda: one.decide(request), number=200, repeat=7)) / 200


def many(count: int) -> Router:
    routes = [route(f"p{i}", f"/v{i}/abc") for i in range(count)]
    routes += [route(f"h{i}", hosts=(f"h{i}.test", f"*.w{i}.test")) for i in range(count)]
    return router(*routes)


def test_cost_does_not_grow_with_the_number_of_routes() -> None:
    few, lots = many(10), many(5_000)
    for host, path in [("h5.test", "/x"), ("a.w5.test", "/x"), ("no", "/v5/abc/d"), ("no", "/")]:
        assert decided(few, host, path) == decided(lots, host, path)
        assert seconds(lots, host, path) < 3 * seconds(few, host, path) + 1e-6


def test_a_client_cannot_buy_time() -> None:
    """Heads are bounded, and the look-ups by the policy; a quadratic search would take seconds."""
    one = many(100)
    for host, path in [
        ("a.w5.test", "/a" * 16_000),
        ("." * 32_000, "/"),
        ("a." * 100_000 + "w5.test", "/"),
        ("h", "/../a" * 6_400),
        ("h", "%41" * 10_000),
        ("h", "/..;" * 8_000),
    ]:
        request = Request(host=host, path=path)
        ask = partial(one.decide, request)
        assert min(timeit.repeat(ask, number=1, repeat=3)) < 0.1
