"""The sample policies: each loads, has the warnings it admits to, and routes as its comments say.

A comment line such as `#   curl -H 'Host: api.example.com' http://127.0.0.1:8080/v1 -> route api`
or `#   shop.example.com/cart -> route cart` is a promise; every one of them is tried.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from l7proxy.config import check
from l7proxy.model import Decision, Forward, Policy, Protocol, Request, Respond
from l7proxy.routing import Router, compile_routers

FOLDER = Path(__file__).resolve().parents[2] / "policies"
SAMPLES = sorted(path.name for path in FOLDER.glob("*.yaml"))

PROMISE = re.compile(r"^#   (?P<what>\S.*?) +-> (?P<route>route [\w-]+|404)", re.MULTILINE)
CURL = re.compile(r"curl (?:-H 'Host: (?P<host>\S+)' )?http://(?P<at>[^/]+)(?P<path>/\S*)")
NETCAT = re.compile(r"nc (?P<ip>\S+) (?P<port>\d+)")
STREAM = re.compile(r"(?P<at>(?:\[[0-9a-f:]+\]|[0-9.]+):\d+)(?P<any>, any host and path)?")


def sample(name: str) -> tuple[Policy, list[str]]:
    report = check(str(FOLDER / name))
    assert report.policy is not None, report.render()
    return report.policy, [warning.message for warning in report.warnings]


def test_there_are_samples() -> None:
    assert {"quickstart.yaml", "sidecar.yaml", "host-and-path.yaml", "tcp.yaml"} <= set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_no_error_and_no_warning(name: str) -> None:
    _, warnings = sample(name)
    assert warnings == []


def listener_at(policy: Policy, at: str) -> str:
    (name,) = [one.name for one in policy.listeners.values() if str(one.address) == at]
    return name


def ask(policy: Policy, what: str) -> list[Decision]:
    """The decisions that a comment speaks of; several where it says "any"."""
    routers = compile_routers(policy)
    if found := CURL.fullmatch(what):
        router = routers[listener_at(policy, found["at"])]
        return [
            router.decide(
                Request(host=found["host"] or found["at"].split(":")[0], path=found["path"])
            )
        ]
    if found := NETCAT.fullmatch(what):
        at = f"[{found['ip']}]:{found['port']}" if ":" in found["ip"] else ":".join(found.groups())
        return [stream(policy, routers, listener_at(policy, at))]
    if found := STREAM.fullmatch(what):
        name = listener_at(policy, found["at"])
        return anything(routers[name]) if found["any"] else [stream(policy, routers, name)]
    (name,) = policy.listeners
    if what == "any host, any path":
        return anything(routers[name])
    host, slash, path = what.partition("/")
    assert slash, f"a promise that is not understood: {what}"
    return [routers[name].decide(Request(host=host, path=f"/{path}"))]


def stream(policy: Policy, routers: dict[str, Router], name: str) -> Decision:
    assert policy.listeners[name].protocol is Protocol.TCP
    return routers[name].decide_stream()


def anything(router: Router) -> list[Decision]:
    return [
        router.decide(Request(host=host, path=path))
        for host in ("", "a.test", "::1")
        for path in ("/", "/a/b")
    ]


PROMISES = [
    pytest.param(name, found["what"], found["route"], id=f"{name}: {found['what']}")
    for name in SAMPLES
    for found in PROMISE.finditer((FOLDER / name).read_text())
]


@pytest.mark.parametrize(("name", "what", "promised"), PROMISES)
def test_routes_as_its_comments_say(name: str, what: str, promised: str) -> None:
    policy, _ = sample(name)
    for decision in ask(policy, what):
        if isinstance(decision, Respond):
            assert str(decision.status) == promised
        else:
            assert isinstance(decision, Forward)
            assert f"route {decision.route.name}" == promised


@pytest.mark.parametrize("name", SAMPLES)
def test_every_route_of_a_sample_is_promised_something(name: str) -> None:
    policy, _ = sample(name)
    promised = {param.values[2] for param in PROMISES if param.values[0] == name}
    assert {f"route {route.name}" for route in policy.routes} <= promised


def test_tcp_shares_the_cache_three_to_one() -> None:
    policy, _ = sample("tcp.yaml")
    router = compile_routers(policy)["redis"]
    names = [
        d.backend.name for d in (router.decide_stream() for _ in range(8)) if isinstance(d, Forward)
    ]
    assert (names.count("cache-a"), names.count("cache-b")) == (6, 2)
