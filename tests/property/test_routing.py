"""The compiled router against a plain reading of the rules: every match, ranked, the best taken."""

from __future__ import annotations

import re
from collections import Counter

from hypothesis import assume, given
from hypothesis import strategies as st

from l7proxy.balance import WeightedTurns
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
    Request,
    Respond,
    Route,
)
from l7proxy.routing import AMBIGUOUS, NOT_FOUND, claims, compile_routers, readings

# Small alphabets, so that patterns and requests meet.
labels = st.sampled_from(["a", "b", "aa", "com"])
hosts = st.lists(labels, min_size=1, max_size=4).map(".".join)
hostnames = st.one_of(hosts, hosts.map("*.{}".format))
elements = st.sampled_from(["a", "b", "ab", "c"])
paths = st.builds(
    lambda parts, slash: "/" + "/".join(parts) + ("/" if parts and slash else ""),
    st.lists(elements, max_size=4),
    st.booleans(),
)
path_types = st.sampled_from([PathType.EXACT, PathType.PATH_PREFIX])
matches = st.builds(Match, st.builds(PathMatch, path_types, paths))
wild_paths = st.lists(
    st.sampled_from(
        ["/", "a", "b", ".", "..", "%2e", "%2f", "%5C", "\\", ";", "%61", "%", "//", "c"]
    ),
    max_size=12,
).map(lambda parts: "/" + "".join(parts))


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    count = draw(st.integers(1, 8))
    routes = tuple(
        Route(
            name=f"r{index}",
            matches=tuple(draw(st.lists(matches, min_size=1, max_size=3))),
            backend_refs=(BackendRef("app"),),
            hostnames=tuple(draw(st.lists(hostnames, max_size=3))),
        )
        for index in range(count)
    )
    address = Address("127.0.0.1", 1)
    return Policy(
        {"web": Listener("web", address)}, routes, {"app": Backend("app", (Endpoint(address),))}
    )


def host_rank(pattern: str, host: str) -> tuple[int, int] | None:
    """How specific a hostname is that matches, or None: exact, then longest wildcard."""
    if pattern == host:
        return (2, len(pattern))
    if pattern.startswith("*.") and host.endswith(pattern[1:]) and host != pattern[1:]:
        return (1, len(pattern))
    return None


def path_rank(match: PathMatch, path: str) -> tuple[int, int] | None:
    """The same for a path: Exact, then the most elements."""
    if match.type is PathType.EXACT:
        return (1, len(match.value)) if match.value == path else None
    wanted = [element for element in match.value.split("/") if element]
    given = path[1:].split("/")
    return (0, len(wanted)) if given[: len(wanted)] == wanted else None


def best(policy: Policy, host: str, path: str) -> str | None:
    """The rules as they stand in the specification: rank everything that matches."""
    found = []
    for index, route in enumerate(policy.routes):
        ranks = [host_rank(pattern, host) for pattern in route.hostnames] or [(0, 0)]
        for by_host in ranks:
            for match in route.matches:
                by_path = path_rank(match.path, path)
                if by_host is not None and by_path is not None:
                    found.append((by_host, by_path, -index))
    return f"r{-max(found)[2]}" if found else None


@given(policies(), hosts, paths)
def test_the_router_finds_what_the_rules_say(policy: Policy, host: str, path: str) -> None:
    decision = compile_routers(policy)["web"].decide(Request(host=host, path=path))
    found = decision.route.name if isinstance(decision, Forward) else None
    assert found == best(policy, host, path)
    assert isinstance(decision, Forward) or decision is NOT_FOUND


@given(policies(), hosts, wild_paths)
def test_no_reading_of_a_path_leads_elsewhere(policy: Policy, host: str, path: str) -> None:
    """What is forwarded is forwarded by the route of every reading; 400 has a reason."""
    decision = compile_routers(policy)["web"].decide(Request(host=host, path=path))
    routes = {best(policy, host, reading) for reading in readings(path)}
    if decision is AMBIGUOUS:
        assert len(routes) > 1
    else:
        assert routes == {decision.route.name if isinstance(decision, Forward) else None}


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


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_is_decided(host: str, path: str) -> None:
    address = Address("127.0.0.1", 1)
    match = Match(PathMatch(PathType.PATH_PREFIX, "/"))
    route = Route("r", (match,), (BackendRef("app"),), hostnames=("*.a", "b"))
    backends = {"app": Backend("app", (Endpoint(address),))}
    router = compile_routers(Policy({"web": Listener("web", address)}, (route,), backends))["web"]
    assert isinstance(router.decide(Request(host=host, path=path)), Forward | Respond)


@given(policies(), hosts, paths)
def test_order_matters_only_for_ties(policy: Policy, host: str, path: str) -> None:
    owned = Counter(claim for route in policy.routes for claim in {c for c, _ in claims(route)})
    assume(max(owned.values()) == 1)
    turned = Policy(policy.listeners, policy.routes[::-1], policy.backends)
    one, two = (
        compile_routers(each)["web"].decide(Request(host=host, path=path))
        for each in (policy, turned)
    )
    assert one == two


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 500))
def test_shares_are_exact_from_any_turn_on(weights: list[int], start: int) -> None:
    assume(sum(weights) > 0)
    turns = WeightedTurns(weights, start)
    taken = Counter(turns.take() for _ in range(sum(weights)))
    assert taken == {at: weight for at, weight in enumerate(weights) if weight}
