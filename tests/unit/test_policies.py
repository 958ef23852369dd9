"""The sample policies: each loads, has the warnings it admits to, and routes as its comments say.

`promises` reads the comments. `tests/socket/test_policies_run.py` tries the same with real traffic.
"""

from __future__ import annotations

import pytest
from promises import FOLDER, SAMPLES, TRANSPARENT, Promise, read

from l7proxy.config import check
from l7proxy.model import (
    Address,
    Decision,
    Deny,
    Forward,
    Hello,
    Policy,
    Redirect,
    Request,
    Respond,
)
from l7proxy.routing import compile_routers

PROMISES = [promise for name in SAMPLES for promise in read(name)]


def sample(name: str) -> tuple[Policy, list[str]]:
    report = check(str(FOLDER / name))
    assert report.policy is not None, report.render()
    return report.policy, [warning.message for warning in report.warnings]


def test_there_are_samples_for_what_people_do() -> None:
    assert set(SAMPLES) >= {
        "quickstart.yaml",
        "sidecar.yaml",
        "canary.yaml",
        "host-and-path.yaml",
        "tls-passthrough.yaml",
        "proxy-protocol.yaml",
        "blue-green.yaml",
        "maintenance.yaml",
        "mesh-egress.yaml",
        "each-request.yaml",
    }


WARNINGS = {
    "maintenance.yaml": [
        "route `app` can never match: route `maintenance` takes its requests first, with"
        " priority 10"
    ]
}


@pytest.mark.parametrize("name", SAMPLES)
def test_no_error_and_exactly_the_warnings_it_admits(name: str) -> None:
    warnings = sample(name)[1]
    assert warnings == WARNINGS.get(name, [])
    assert ("`check` warns" in (FOLDER / name).read_text()) == bool(warnings)


def listener_at(policy: Policy, at: str) -> str:
    (name,) = [one.name for one in policy.listeners.values() if not at or str(one.address) == at]
    return name


def decisions(policy: Policy, promise: Promise) -> list[Decision]:
    router = compile_routers(policy)[listener_at(policy, promise.at)]
    return [
        router.decide(ask) if isinstance(ask, Request) else router.decide_stream(ask)
        for ask in promise.asks
    ]


@pytest.mark.parametrize(
    "promise", PROMISES, ids=[f"{promise.sample}: {promise.what}" for promise in PROMISES]
)
def test_routes_as_its_comments_say(promise: Promise) -> None:
    policy, _ = sample(promise.sample)
    for decision in decisions(policy, promise):
        match decision:
            case Forward(route=route):
                assert (route.name, promise.denied) == (promise.route, False)
                assert promise.status is None
            case Deny(route=route):
                assert route.name == promise.route
                assert promise.denied or promise.status == 403
            case Redirect(route=route):
                assert route.redirect
                assert (route.name, route.redirect.status) == (promise.route, promise.status)
            case Respond(status=status, route=by):
                assert (by.name if by else "", status) == (promise.route, promise.status)


@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in TRANSPARENT])
def test_every_route_of_a_sample_is_promised_something(name: str) -> None:
    policy, _ = sample(name)
    promised = {promise.route for promise in PROMISES if promise.sample == name}
    shadowed = {"app"} if name == "maintenance.yaml" else set()  # that is what maintenance means
    assert {route.name for route in policy.routes} - promised == shadowed


def shares(name: str, listener: str, ask: Request | Hello | None, turns: int) -> dict[str, int]:
    router = compile_routers(sample(name)[0])[listener]
    found: dict[str, int] = {}
    for _ in range(turns):
        made = router.decide(ask) if isinstance(ask, Request) else router.decide_stream(ask)
        assert isinstance(made, Forward)
        found[made.backend.name] = found.get(made.backend.name, 0) + 1
    return found


def test_tcp_shares_the_cache_three_to_one() -> None:
    assert shares("tcp.yaml", "redis", None, 8) == {"cache-a": 6, "cache-b": 2}


def test_the_canary_gets_five_of_a_hundred() -> None:
    assert shares("canary.yaml", "web", Request(), 100) == {"stable": 95, "canary": 5}


def test_green_waits() -> None:
    assert shares("blue-green.yaml", "web", Request(), 10) == {"blue": 10}


@pytest.mark.parametrize(
    ("listener", "destination", "backend"),
    [
        ("outbound", Address("10.1.2.3", 5432), "pooler"),
        ("outbound", Address("fd00::7", 5432), "pooler"),
        ("outbound", Address("11.1.2.3", 5432), "passthrough"),
        ("outbound", Address("10.1.2.3", 5433), "passthrough"),
        ("inbound", Address("10.1.2.3", 5432), "passthrough"),
    ],
)
def test_an_interception_goes_by_destination(
    listener: str, destination: Address, backend: str
) -> None:
    router = compile_routers(sample("sidecar-interception.yaml")[0])[listener]
    made = router.decide_stream(None, destination)
    assert isinstance(made, Forward)
    assert made.backend.name == backend


def test_an_interception_tries_one_in_ten_requests() -> None:
    router = compile_routers(sample("sidecar-interception.yaml")[0])["outbound-http"]
    there = Address("10.20.0.1", 80)
    made = [router.decide(Request(host="reviews.internal"), there) for _ in range(10)]
    names = [one.backend.name for one in made if isinstance(one, Forward)]
    assert sorted(names) == ["passthrough"] * 9 + ["reviews-next"]
