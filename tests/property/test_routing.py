"""The compiled router against a plain reading of the rules: every match, ranked, the best taken."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from fnmatch import fnmatchcase

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from l7proxy.balance import WeightedTurns
from l7proxy.filters import modified_path
from l7proxy.model import (
    Address,
    Backend,
    BackendRef,
    Decision,
    Deny,
    Endpoint,
    Filters,
    Forward,
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
    ValueType,
)
from l7proxy.routing import (
    AMBIGUOUS,
    NO_STREAM_ROUTE,
    NOT_FOUND,
    claims,
    compile_routers,
    readings,
)
from l7proxy.routing.difference import difference
from l7proxy.routing.explain import explain
from l7proxy.routing.rules import Rule

# Small alphabets, so that patterns and requests meet.
labels = st.sampled_from(["a", "b", "aa", "com"])
hosts = st.lists(labels, min_size=1, max_size=3).map(".".join)
hostnames = st.one_of(hosts, hosts.map("*.{}".format))
elements = st.sampled_from(["a", "b", "ab", "c"])
paths = st.builds(
    lambda parts, slash: "/" + "/".join(parts) + ("/" if parts and slash else ""),
    st.lists(elements, max_size=4),
    st.booleans(),
)
path_matches = st.one_of(
    st.builds(PathMatch, st.sampled_from([PathType.EXACT, PathType.PATH_PREFIX]), paths),
    st.builds(
        PathMatch,
        st.just(PathType.REGULAR_EXPRESSION),
        st.sampled_from(["/.*", "/[ab]+", "/a(/b)?", ".*c", "/a/.*/?", ".*"]),
    ),
)
value_matches = st.one_of(
    st.builds(ValueMatch, st.sampled_from(["x", "y", "X"]), st.sampled_from(["1", "2", "1, 2"])),
    st.builds(
        ValueMatch,
        st.sampled_from(["x", "y"]),
        st.sampled_from(["[12]", ".*", "1.*"]),
        st.just(ValueType.REGULAR_EXPRESSION),
    ),
)
few_values = st.lists(value_matches, max_size=2).map(tuple)
matches = st.builds(
    Match,
    path_matches,
    st.sampled_from([None, None, "GET", "POST"]),
    few_values,
    few_values,
)
plain_matches = st.builds(
    Match,
    st.builds(PathMatch, st.sampled_from([PathType.EXACT, PathType.PATH_PREFIX]), paths),
    st.sampled_from([None, "GET"]),
)
prefixes = st.builds(
    Match,
    st.builds(PathMatch, st.just(PathType.PATH_PREFIX), paths),
    st.sampled_from([None, "GET"]),
)
wild_paths = st.lists(
    st.sampled_from(
        ["/", "a", "b", ".", "..", "%2e", "%2f", "%5C", "\\", ";", "%61", "%", "//", "c"]
    ),
    max_size=12,
).map(lambda parts: "/" + "".join(parts))
requests = st.builds(
    Request,
    st.sampled_from(["GET", "POST", "get"]),
    hosts,
    paths,
    st.sampled_from([None, "", "x=1", "x=2&x=1", "y=1", "x=%31&y=2", "X=1", "y&x=1%2C+2"]),
    st.lists(
        st.tuples(st.sampled_from([b"x", b"y"]), st.sampled_from([b"1", b"2", b""])), max_size=3
    ).map(tuple),
)
hellos = st.builds(
    Hello, hosts | st.just(""), st.lists(st.sampled_from(["h2", "http/1.1"]), max_size=2).map(tuple)
)

ADDRESS = Address("127.0.0.1", 1)
APP = Backend("app", (Endpoint(ADDRESS),))
MOVE = PathModifier(PathModifierType.REPLACE_PREFIX_MATCH, "/b")
ACTIONS: tuple[dict[str, object], ...] = (
    {"backend_refs": (BackendRef("app"),)},
    {"backend_refs": (BackendRef("app"), BackendRef("gone", optional=True))},
    {"respond": StaticResponse(503)},
    {"redirect": RedirectTo("https")},
    {"deny": True},
)


@st.composite
def policies(
    draw: st.DrawFn,
    one_match: st.SearchStrategy[Match] = matches,
    protocol: Protocol = Protocol.HTTP,
    priorities: tuple[int, ...] = (0, 0, 1, -3),
    actions: tuple[dict[str, object], ...] = ACTIONS[:1],
    served: st.SearchStrategy[list[str]] = st.just([]),
) -> Policy:
    routes = tuple(
        replace(
            Route(
                name=f"r{index}",
                matches=tuple(draw(st.lists(one_match, min_size=1, max_size=2))),
                hostnames=tuple(draw(st.lists(hostnames, max_size=2))),
                priority=draw(st.sampled_from(priorities)),
            ),
            **draw(st.sampled_from(actions)),
        )
        for index in range(draw(st.integers(1, 5)))
    )
    listener = Listener("web", ADDRESS, protocol, hostnames=tuple(draw(served)))
    return Policy({"web": listener}, routes, {"app": APP})


# ---- the rules, once more and plainly


def host_rank(pattern: str, host: str) -> tuple[int, int] | None:
    """How specific a hostname is that matches, or None: exact, then longest wildcard."""
    if pattern == host:
        return (2, len(pattern))
    if pattern.startswith("*.") and host.endswith(pattern[1:]) and host != pattern[1:]:
        return (1, len(pattern))
    return None


def path_rank(match: Match, path: str) -> tuple[int, int] | None:
    """The same for a path: Exact, a regular expression, then the most characters."""
    kind, value = match.path.type, match.path.value
    if kind is PathType.EXACT:
        return (2, 0) if value == path else None
    if kind is PathType.REGULAR_EXPRESSION:
        return (1, 0) if re.fullmatch(value, path, re.DOTALL) else None
    wanted = [element for element in value.split("/") if element]
    given = path[1:].split("/")
    return (0, len("/".join(wanted))) if given[: len(wanted)] == wanted else None


def values_match(wanted: tuple[ValueMatch, ...], given: dict[str, str], lower: bool) -> int | None:
    """How many values are compared, None when one of them is another one."""
    first: dict[str, ValueMatch] = {}
    for one in wanted:
        first.setdefault(one.name.lower() if lower else one.name, one)
    for name, one in first.items():
        if name not in given:
            return None
        if one.type is ValueType.EXACT and given[name] != one.value:
            return None
        if one.type is not ValueType.EXACT and not re.fullmatch(one.value, given[name], re.DOTALL):
            return None
    return len(first)


def best(policy: Policy, request: Request, path: str | None = None) -> str | None:
    """The rules as they stand in the specification: rank everything that matches."""
    path = request.path if path is None else path
    headers: dict[str, str] = {}
    for raw, value in request.headers:
        name = raw.decode()
        headers[name] = f"{headers[name]}, {value.decode()}" if name in headers else value.decode()
    query: dict[str, str] = {}
    for part in (request.query or "").split("&"):
        name, _, text = part.partition("=")
        if part:
            text = text.replace("+", " ").replace("%31", "1").replace("%2C", ",")
            query.setdefault(name, text)
    served = policy.listeners["web"].hostnames
    if served and not any(fnmatchcase(request.host, one) for one in served):
        return None
    found = []
    for index, route in enumerate(policy.routes):
        ranks = [host_rank(pattern, request.host) for pattern in route.hostnames] or [(0, 0)]
        for match in route.matches:
            by_path = path_rank(match, path)
            by_headers = values_match(match.headers, headers, lower=True)
            by_query = values_match(match.query, query, lower=False)
            if (
                by_path is None
                or by_headers is None
                or by_query is None
                or match.method not in (None, request.method)
            ):
                continue
            asked = (by_path, match.method is not None, by_headers, by_query, -index)
            found += [(route.priority, by_host, *asked) for by_host in ranks if by_host is not None]
    return f"r{-max(found)[-1]}" if found else None


def route_of(decision: Decision) -> str | None:
    if isinstance(decision, Respond):
        return None if decision.route is None else decision.route.name
    return decision.route.name


@given(policies(served=st.lists(hostnames, max_size=2)), requests)
def test_the_router_finds_what_the_rules_say(policy: Policy, request: Request) -> None:
    decision = compile_routers(policy)["web"].decide(request)
    assert route_of(decision) == best(policy, request)
    assert isinstance(decision, Forward) or decision is NOT_FOUND


@given(policies(priorities=(0, 1, 2, 3, 4, 5)), requests)
def test_many_priorities(policy: Policy, request: Request) -> None:
    assert route_of(compile_routers(policy)["web"].decide(request)) == best(policy, request)


@given(policies(), requests, wild_paths)
def test_no_reading_of_a_path_leads_elsewhere(policy: Policy, request: Request, path: str) -> None:
    """What is forwarded is forwarded by the route of every reading; 400 has a reason."""
    decision = compile_routers(policy)["web"].decide(replace(request, path=path))
    routes = {best(policy, request, reading) for reading in readings(path)}
    if decision is AMBIGUOUS:
        assert len(routes) > 1
    else:
        assert routes == {route_of(decision)}


@given(policies(prefixes), hosts, wild_paths, st.sampled_from(["/b", "/", "/b/c/", ""]))
def test_what_is_rewritten_is_read_as_it_was_meant(
    policy: Policy, host: str, path: str, value: str
) -> None:
    """No backend that resolves the new path finds one outside of what replaced the prefix."""
    modifier = replace(MOVE, value=value)
    filters = Filters(url_rewrite=UrlRewrite(path=modifier))
    moving = tuple(replace(route, filters=filters) for route in policy.routes)
    decision = compile_routers(replace(policy, routes=moving))["web"].decide(
        Request(host=host, path=path)
    )
    if isinstance(decision, Forward):
        new = modified_path(modifier, decision.match, path)
        inside = value.rstrip("/")
        for reading in readings(new):
            assert reading == (inside or "/") or reading.startswith(f"{inside}/")


@given(
    policies(
        st.builds(
            Match, alpn=st.lists(st.sampled_from(["h2", "http/1.1", "x"]), max_size=2).map(tuple)
        ),
        Protocol.TLS,
        served=st.lists(hostnames, max_size=2),
    ),
    hellos,
)
def test_names_and_protocols_of_tls(policy: Policy, hello: Hello) -> None:
    served = policy.listeners["web"].hostnames
    found = []
    for index, route in enumerate(policy.routes):
        ranks = [host_rank(pattern, hello.sni) for pattern in route.hostnames] or [(0, 0)]
        for match in route.matches:
            if not match.alpn or set(match.alpn) & set(hello.alpn):
                found += [(route.priority, r, bool(match.alpn), -index) for r in ranks if r]
    if served and not any(fnmatchcase(hello.sni, one) for one in served):
        found = []
    decision = compile_routers(policy)["web"].decide_stream(hello)
    assert route_of(decision) == (f"r{-max(found)[-1]}" if found else None)
    assert isinstance(decision, Forward) or decision is NO_STREAM_ROUTE


# ---- explain and difference agree with the router


@given(policies(actions=ACTIONS, served=st.lists(hostnames, max_size=1)), requests, wild_paths)
def test_explained_is_what_is_decided(policy: Policy, request: Request, wild: str) -> None:
    for asked in (request, replace(request, path=wild)):
        decision = compile_routers(policy)["web"].decide(asked)
        told = explain(policy, policy.listeners["web"], asked)
        if isinstance(decision, Forward):
            assert told.forwards
            assert told.route is decision.route
            assert told.route.matches[told.match or 0] is decision.match
            assert told.splice is not None
            assert told.splice.mode is decision.splice
        elif isinstance(decision, Respond):
            assert isinstance(told.answer, Respond)
            assert told.answer.status == decision.status
            assert told.answer.route is decision.route
        else:
            assert isinstance(decision, Redirect | Deny)
            assert told.answer == decision
        names = [other.route.name for other in told.others]
        assert len(names) == len(set(names))
        if told.route is not None:
            assert told.route.name not in names
        for other in told.others:
            assert other.matched == bool(
                best(
                    replace(policy, routes=(replace(other.route, name="r0"),)),
                    asked,
                    readings(asked.path)[0],
                )
            )


@given(policies(st.builds(Match, alpn=st.sampled_from([(), ("h2",)])), Protocol.TLS), hellos)
def test_explained_streams(policy: Policy, hello: Hello) -> None:
    decision = compile_routers(policy)["web"].decide_stream(hello)
    told = explain(policy, policy.listeners["web"], hello)
    assert (told.route and told.route.name) == route_of(decision)


def owner(found: Rule | Respond | None) -> str:
    """The first word of what a difference calls it."""
    if isinstance(found, Respond):
        return str(found.status)
    return "no" if found is None else found.route.name


@settings(deadline=None, max_examples=40)
@given(policies(actions=ACTIONS), policies(actions=ACTIONS))
def test_effects_are_true(old: Policy, new: Policy) -> None:
    found = difference(old, new, most=300)
    routers = compile_routers(old)["web"], compile_routers(new)["web"]
    for effect in found.effects:
        assert effect.count >= len(effect.asked) > 0
        for asked in effect.asked:
            assert isinstance(asked, Request)
            assert [owner(router.find(asked)) for router in routers] == [
                effect.old.split(" ")[0],
                effect.new.split(" ")[0],
            ]
        assert effect.old != effect.new


@settings(deadline=None, max_examples=40)
@given(policies(actions=ACTIONS))
def test_a_policy_does_not_differ_from_itself(policy: Policy) -> None:
    assert not difference(policy, policy, most=300)


@settings(deadline=None, max_examples=40)
@given(policies(actions=ACTIONS), policies(actions=ACTIONS))
def test_every_probe_of_one_match_is_asked(old: Policy, new: Policy) -> None:
    """A policy against one without routes: whatever is forwarded is told."""
    empty = replace(new, routes=())
    found = difference(empty, new)
    router = compile_routers(new)["web"]
    told = {effect.new.split(" ")[0] for effect in found.effects}
    for route in new.routes:
        for host in route.hostnames or ("unknown.example",):
            for match in route.matches:
                if match.path.type is PathType.EXACT and not (match.headers or match.query):
                    asked = Request(
                        match.method or "GET", host.replace("*", "any"), match.path.value
                    )
                    winner = owner(router.find(asked))
                    assert winner in told


# ---- what holds for anything


@given(wild_paths)
def test_readings_are_rooted_and_final(path: str) -> None:
    assume(not re.search("%(?![0-9A-Fa-f]{2})", path))  # "%2%65" becomes "%2e", and stays that
    plain, resolved, lenient = readings(path)
    assert readings(plain)[0] == plain
    assert readings(resolved)[1] == resolved
    for reading in (resolved, lenient):
        assert reading.startswith("/")
        assert not {".", ".."} & set(reading.split("/"))
    assert "//" not in lenient
    assert "\\" not in lenient


@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=60), st.binary(max_size=20))
def test_any_text_is_decided(host: str, path: str, query: str, value: bytes) -> None:
    match = Match(headers=(ValueMatch("x", "1"),), query=(ValueMatch("é", "ü"),))
    pattern = Match(PathMatch(PathType.REGULAR_EXPRESSION, "/.*"))
    route = Route("r", (match, pattern), (BackendRef("app"),), hostnames=("*.a", "b"))
    router = compile_routers(Policy({"web": Listener("web", ADDRESS)}, (route,), {"app": APP}))
    request = Request("GET", host, path, query, ((b"x", value),))
    assert isinstance(router["web"].decide(request), Forward | Respond)


@given(policies(plain_matches, priorities=(0,)), requests)
def test_order_matters_only_for_ties(policy: Policy, request: Request) -> None:
    owned = Counter(claim for route in policy.routes for claim in {c for c, _ in claims(route)})
    assume(max(owned.values()) == 1)
    turned = Policy(policy.listeners, policy.routes[::-1], policy.backends)
    one, two = (compile_routers(each)["web"].decide(request) for each in (policy, turned))
    assert route_of(one) == route_of(two)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 500))
def test_shares_are_exact_from_any_turn_on(weights: list[int], start: int) -> None:
    assume(sum(weights) > 0)
    turns = WeightedTurns(weights, start)
    taken = Counter(turns.take() for _ in range(sum(weights)))
    assert taken == {at: weight for at, weight in enumerate(weights) if weight}
