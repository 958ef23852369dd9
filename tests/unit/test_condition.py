"""`condition` of `/stats`: what is wrong, from what else `/stats` says."""

from __future__ import annotations

from typing import Any

import pytest

from l7proxy.telemetry.condition import MOST, condition


def stats(**changes: Any) -> dict[str, Any]:
    """What a healthy l7proxy tells, as far as it matters here."""
    return {
        "datapath": "sockmap",
        "datapath_reason": "the kernel passed the self-test",
        "workers": {"configured": 2, "running": 2, "restarts": 0},
        "draining": False,
        "policy": {"generation": 3, "last_error": None},
        "backends": {"api": group("up", "up")},
        **changes,
    }


def group(*states: str, panic: bool = False, unresolved: tuple[str, ...] = ()) -> dict[str, Any]:
    endpoints = [
        {"address": f"10.0.0.{number}:80", "state": state, "why": "refused"}
        if state == "down"
        else {"address": f"10.0.0.{number}:80", "state": state}
        for number, state in enumerate(states, 1)
    ]
    return {"panic": panic, "unresolved": list(unresolved), "endpoints": endpoints}


CASES = [
    ("all is well", {}, "good", []),
    (
        "new endpoints are no problem",
        {"backends": {"api": group("unchecked", "starting")}},
        "good",
        [],
    ),
    (
        "a drained endpoint is meant to be",
        {"backends": {"api": group("up", "drained")}},
        "good",
        [],
    ),
    (
        "one endpoint of two",
        {"backends": {"api": group("up", "down")}},
        "impaired",
        ["backend api: 1 of 2 endpoints are out (10.0.0.2:80 is down: refused)"],
    ),
    (
        "the last one",
        {"backends": {"api": group("ejected", "down", "drained")}},
        "failing",
        ["backend api: no endpoint is healthy (10.0.0.1:80 is ejected; and 1 more)"],
    ),
    (
        "the last one, and the backend panics",
        {"backends": {"api": group("down", panic=True)}},
        "failing",
        [
            "backend api: no endpoint is healthy, so all of them are tried"
            " (10.0.0.1:80 is down: refused)"
        ],
    ),
    (
        "a name without an address",
        {"backends": {"api": group(unresolved=("api.test:80",))}},
        "failing",
        ["backend api: no address is known of api.test:80 ()"],
    ),
    (
        "a name without an address, beside an endpoint",
        {"backends": {"api": group("up", unresolved=("api.test:80",))}},
        "impaired",
        ["backend api: no address is known of api.test:80 ()"],
    ),
    (
        "a worker",
        {"workers": {"configured": 2, "running": 1, "restarts": 1}},
        "impaired",
        ["1 of 2 workers are not running ()"],
    ),
    (
        "every worker",
        {"workers": {"configured": 2, "running": 0, "restarts": 1}},
        "failing",
        ["2 of 2 workers are not running ()"],
    ),
    (
        "workers that drained",
        {"workers": {"configured": 2, "running": 1, "restarts": 0}, "draining": True},
        "draining",
        [],
    ),
    (
        "a kernel that cannot",
        {"datapath": "splice2", "datapath_reason": "missing CAP_BPF"},
        "impaired",
        ["the kernel does not splice, user space relays (missing CAP_BPF)"],
    ),
    (
        "a kernel that was not asked",
        {"datapath": "copy", "datapath_reason": "asked for with --datapath copy"},
        "good",
        [],
    ),
    (
        "a reload",
        {"policy": {"generation": 3, "last_error": {"text": "p.yaml:1:1: error: no\n 1 | x"}}},
        "impaired",
        ["the last reload was refused, policy 3 goes on (p.yaml:1:1: error: no)"],
    ),
    (
        "the gravest first",
        {
            "backends": {"a": group("up", "down"), "b": group("down")},
            "workers": {"configured": 2, "running": 1, "restarts": 0},
        },
        "failing",
        [
            "backend b: no endpoint is healthy (10.0.0.1:80 is down: refused)",
            "1 of 2 workers are not running ()",
            "backend a: 1 of 2 endpoints are out (10.0.0.2:80 is down: refused)",
        ],
    ),
]


@pytest.mark.parametrize(
    ("changes", "is_now", "problems"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_what_ails_it(changes: dict[str, Any], is_now: str, problems: list[str]) -> None:
    found = condition(stats(**changes))
    assert found["is"] == is_now
    assert [f"{one['what']} ({one['why']})" for one in found["problems"]] == problems
    assert found["more"] == 0


def test_a_problem_says_which_backend_it_is_about() -> None:
    found = condition(stats(backends={"api": group("down")}))["problems"]
    assert [one["about"] for one in found] == ["api"]


def test_a_thousand_ill_backends_are_told_in_short() -> None:
    backends = {f"b{number}": group("down") for number in range(1000)}
    found = condition(stats(backends=backends))
    assert (len(found["problems"]), found["more"]) == (MOST, 1000 - MOST)
