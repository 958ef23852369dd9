"""What `check` says can never win, never does: tried with every request of a small world."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.config import Report, check_text
from l7proxy.model import Forward, Request
from l7proxy.routing import compile_routers

HOSTS = ["", "a.test", "b.test", "x.a.test", "y.x.a.test", "test"]
PATTERNS = ["a.test", "x.a.test", "*.a.test", "*.test", "*.x.a.test"]
PATHS = ["/", "/x", "/x/", "/x/y", "/x/y/z", "/xy"]
HEADERS = [(), ((b"h", b"1"),), ((b"h", b"1"), (b"i", b"1")), ((b"i", b"2"),)]
QUERIES = [None, "q=1", "q=2&r=1"]
REQUESTS = [
    Request(method, host, path, query, headers)
    for method, host, path, query, headers in product(
        ["GET", "POST"], HOSTS, PATHS, QUERIES, HEADERS
    )
]

paths = st.one_of(
    st.sampled_from(PATHS),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["Exact", "PathPrefix"]), "value": st.sampled_from(PATHS)}
    ),
    st.fixed_dictionaries(
        {"type": st.just("RegularExpression"), "value": st.sampled_from(["/.*", "/x.*"])}
    ),
)
matches = st.fixed_dictionaries(
    {"path": paths},
    optional={
        "method": st.sampled_from(["GET", "POST"]),
        "headers": st.sampled_from([{"h": "1"}, {"h": "1", "i": "1"}, {"i": "2"}, {"I": "2"}]),
        "queryParams": st.sampled_from([{"q": "1"}, {"q": "2"}, {"q": "2", "r": "1"}]),
    },
)
routes = st.fixed_dictionaries(
    {"backendRefs": st.just([{"name": "app"}])},
    optional={
        "hostnames": st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=2, unique=True),
        "matches": st.lists(matches, min_size=1, max_size=3),
        "priority": st.integers(0, 2),
        "listeners": st.sampled_from([["web"], ["two"], ["web", "two"]]),
    },
)


def report_on(written: list[dict[str, Any]], hostnames: list[str]) -> Report:
    policy = {
        "listeners": {
            "web": {"address": "127.0.0.1:1"},
            "two": {"address": "127.0.0.1:2", **({"hostnames": hostnames} if hostnames else {})},
        },
        "routes": [{"name": f"r{index}", **one} for index, one in enumerate(written)],
        "backends": {"app": {"endpoints": ["127.0.0.1:9"]}},
    }
    return check_text(json.dumps(policy, indent=1))


def winners(report: Report) -> tuple[set[str], set[str]]:
    """The places of all routes, and of all matches, that win some request."""
    assert report.policy is not None
    won_routes, won_matches = set(), set()
    for router in compile_routers(report.policy).values():
        for request in REQUESTS:
            decision = router.decide(request)
            if isinstance(decision, Forward):
                won_routes.add(str(decision.route.location))
                won_matches.add(str(decision.match.location))
    return won_routes, won_matches


@settings(max_examples=150)
@given(
    st.lists(routes, min_size=2, max_size=6),
    st.lists(st.sampled_from(PATTERNS), max_size=2, unique=True),
)
def test_what_is_said_to_win_nothing_wins_nothing(
    written: list[dict[str, Any]], hostnames: list[str]
) -> None:
    report = report_on(written, hostnames)
    said = [
        (warning.message, str(warning.place.location))
        for warning in report.warnings
        if " can never " in warning.message
    ]
    if not said:
        return
    won_routes, won_matches = winners(report)
    for message, place in said:
        assert place not in (won_routes if "can never match" in message else won_matches)


def test_it_says_something() -> None:
    """Guards the test above: both kinds of warning come up, and the world is not too small."""
    shadowed: list[dict[str, Any]] = [
        {"backendRefs": [{"name": "app"}], "matches": [{"path": "/x"}, {"path": "/x/y"}]},
        {"backendRefs": [{"name": "app"}], "matches": [{"path": "/x/"}, {"path": "/"}]},
        {"backendRefs": [{"name": "app"}], "matches": [{"path": "/x/y/"}]},
    ]
    report = report_on(shadowed, [])
    kinds = [warning.message.partition(" of ")[0] for warning in report.warnings]
    assert any("this match" in kind for kind in kinds)
    assert any("route `r2` can never match" in kind for kind in kinds)
    won_routes, won_matches = winners(report)
    assert (len(won_routes), len(won_matches)) == (2, 3)
