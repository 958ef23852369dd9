"""The rules as they come and go, and what they do to connections that are there already."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pod import OUTSIDE, PAYLOAD, Pod, exchange
from proxy import until

pytestmark = pytest.mark.net

POLICY = """\
listeners:
  out: {address: "*:15201", protocol: TCP, transparent: {mode: MODE, direction: outbound}}
routes: [{name: all, backendRefs: [{name: passthrough}]}]
"""
REDIRECT, TPROXY = POLICY.replace("MODE", "redirect"), POLICY.replace("MODE", "tproxy")


@pytest.fixture(scope="module", autouse=True)
def _server(pod: Pod) -> None:
    pod.serve("web", pod.outside, OUTSIDE[4], 9002)


def test_they_come_twice_change_and_go_without_a_trace(pod: Pod, tmp_path: Path) -> None:
    before = pod.rules()
    redirect, tproxy = tmp_path / "redirect.yaml", tmp_path / "tproxy.yaml"
    redirect.write_text(REDIRECT)
    tproxy.write_text(TPROXY)
    other = "table ip somebody {\n\tchain else {\n\t}\n}\n"
    pod.run("nft", other)
    theirs = pod.rules()
    try:
        assert "nothing is in place" in pod.sidecar("status", code=3)
        for _ in range(2):
            assert "in place, as this policy asks for" in pod.sidecar("enable", str(tproxy))
            found = pod.rules()
            assert found["ruleset"].count("table inet l7proxy") == 1
            assert "fwmark 0x40/0x40 lookup 1764" in found["rules"]
            assert "fwmark 0x40/0x40 lookup 1764" in found["rules of IPv6"]
            assert found["routes"].count("table 1764") == 2
        assert "in place, and differs" in pod.sidecar("status", str(redirect), code=4)
        state = json.loads(pod.sidecar("status", str(tproxy), "--json"))
        assert (state["state"], state["notListening"]) == ("fits", ["out"])
        pod.sidecar("enable", str(tproxy), "--mark", "0x80")
        assert "0x40" not in pod.rules()["rules"]
        assert "fwmark 0x80/0x80" in pod.rules()["rules"]
        said = pod.sidecar("enable", str(redirect))
        assert "nobody listens for out yet" in said
        found = pod.rules()
        assert found["ruleset"].startswith(other)
        assert {name: found[name] for name in found if name != "ruleset"} == {
            name: theirs[name] for name in theirs if name != "ruleset"
        }
    finally:
        assert "taken away" in pod.sidecar("disable")
        assert pod.rules() == theirs
        pod.run("nft", "delete table ip somebody")
    assert "nothing was in place" in pod.sidecar("disable")
    assert pod.rules() == before


def test_what_somebody_changed_is_seen(pod: Pod, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(TPROXY)
    pod.sidecar("enable", str(policy))
    try:
        pod.run("nft", "insert rule inet l7proxy incoming accept")
        assert "changed by hand" in pod.sidecar("status", str(policy), code=4)
        pod.sidecar("enable", str(policy))
        pod.run("ip", "rule", "delete", "priority", "1764")
        pod.run("ip", "-6", "rule", "delete", "priority", "1764")
        said = pod.sidecar("status", str(policy), code=4)
        assert "the routing of marked packets is missing" in said
    finally:
        pod.sidecar("disable")


def test_a_dry_run_needs_no_right_and_changes_nothing(pod: Pod, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(TPROXY)
    before = pod.rules()
    said = pod.sidecar("enable", str(policy), "--dry-run", "--user", "1337", "--except-ports=22,25")
    assert "meta skuid { 1337 } accept" in said
    assert "tcp dport { 22, 25 } accept" in said
    assert "# ip -4 rule add priority 1764 fwmark 0x40/0x40 lookup 1764 protocol 176" in said
    assert pod.rules() == before
    (tmp_path / "ruleset").write_text(said)
    pod.run("nft", "--check", "--file", str(tmp_path / "ruleset"))


@pytest.mark.parametrize("policy", [REDIRECT, TPROXY], ids=["redirect", "tproxy"])
def test_connections_that_are_there_go_on(pod: Pod, policy: str) -> None:
    """Those from before the rules, and, when the rules come again, those that they brought."""
    old = pod.dial(pod.pod, OUTSIDE[4], 9002)
    old.sendall(PAYLOAD[:1000])
    with pod.intercepting(policy) as proxy:
        taken = pod.dial(pod.pod, OUTSIDE[4], 9002)
        port = taken.getsockname()[1]
        taken.sendall(PAYLOAD[:1000])
        pod.sidecar("enable", str(proxy.directory / "policy.yaml"))
        assert exchange(old, sent=1000).whole
        assert exchange(taken, sent=1000).whole
        assert proxy.record(port)["reason"] == "done"
        assert proxy.stats()["connections"]["accepted"] == 1


def test_rules_that_leave_another_user_alone_make_a_loop_that_is_refused(
    pod: Pod, tmp_path: Path
) -> None:
    """What a worker dials comes back to it; without the refusal that would go on without end."""
    with pod.running(REDIRECT, drain_seconds=1) as proxy:
        pod.sidecar("enable", str(proxy.directory / "policy.yaml"), "--user", "1337")
        try:
            pod.cut(pod.pod, OUTSIDE[4], 9002)
            stats = proxy.settled()
            assert stats["errors"]["loop"] == 1
            assert stats["connections"]["accepted"] == 2
            (loop,) = until(
                lambda: [one for one in proxy.records() if one["reason"] == "loop"], "its record"
            )
            assert (loop["rule"], loop["destination"]) == ("own-user", f"{OUTSIDE[4]}:9002")
            until(lambda: "loop refused" in proxy.log(), "it is told")
            assert "sidecar enable --user" in proxy.log()
        finally:
            pod.sidecar("disable")
