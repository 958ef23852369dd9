"""connections, policy, loglevel and drain, as an operator runs them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from peers import Backend, Peer, connect
from proxy import Proxy, until

from l7proxy import cli
from l7proxy.commands.connections import size
from l7proxy.config import check_text

pytestmark = pytest.mark.net

POLICY = """\
listeners: {{raw: {{address: "127.0.0.1:0", protocol: TCP}}}}
routes: [{{name: "all", backendRefs: [{{name: app}}]}}]
backends: {{app: {{endpoints: ["127.0.0.1:{port}"]}}}}
"""


@dataclass
class Told:
    code: int
    out: str
    err: str


class Operator:
    """Runs verbs against one l7proxy, in this process."""

    def __init__(self, proxy: Proxy, capsys: pytest.CaptureFixture[str]) -> None:
        self.proxy = proxy
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Told:
        code = cli.main([*arguments, f"--admin=unix:{self.proxy.admin}"])
        out, err = self._capsys.readouterr()
        return Told(code, out, err)


@pytest.fixture
def operator(capsys: pytest.CaptureFixture[str]) -> Iterator[Operator]:
    backend = Backend()

    def script(peer: Peer) -> None:
        peer.send(b"hello")
        peer.ending()

    backend.play(script)
    with Proxy(POLICY.format(port=backend.port), "copy") as proxy:
        yield Operator(proxy, capsys)
    backend.close()


def test_connections_policy_and_loglevel(operator: Operator) -> None:
    proxy = operator.proxy
    with connect(proxy.address("raw")) as client:
        assert client.read(5) == b"hello"
        until(lambda: proxy.connections("state=relayed"), "it is relayed")
        told = operator("connections", "--route", "all", "--sort=-bytes")
        heads, row = (line.split() for line in told.out.splitlines())
        assert heads[:3] == ["id", "state", "way"]
        found = dict(zip(heads, row, strict=True))
        assert found["client"] == f"127.0.0.1:{client.port}"
        assert (found["state"], found["way"], found["route"]) == ("relayed", "relay", "all")
        assert (found["up"], found["down"]) == ("0B", "5B")
        assert operator("connections", "--route", "none").out.count("\n") == 1
        assert operator("connections", "--limit", "0").out.splitlines()[-1].startswith("0 of 1;")
        rows = json.loads(operator("connections", "--json").out)["connections"]
        assert [one["id"] for one in rows] == [found["id"]]

        bad = operator("connections", "--sort", "size")
        assert (bad.code, bad.out) == (1, "")
        assert "answered 400: sort is one of age" in bad.err
        done = operator("connections", "--reset", found["id"])
        assert (done.code, done.out) == (0, f"{found['id']} is reset\n")
        assert client.ending() == "reset"
        gone = operator("connections", "--reset", found["id"])
        assert gone.code == 1
        assert f"there is no connection {found['id']}" in gone.err

    policy = check_text(operator("policy").out).policy
    assert policy is not None
    assert [route.name for route in policy.routes] == ["all"]
    assert json.loads(operator("policy", "--json").out)["routes"][0]["line"] == 2

    assert operator("loglevel").out == "info\n"
    assert operator("loglevel", "debug").out == "debug\n"
    assert operator("loglevel").out == "debug\n"
    proxy.stop()


def test_drain(operator: Operator) -> None:
    proxy = operator.proxy
    client = connect(proxy.address("raw"))
    assert client.read(5) == b"hello"
    assert re.match(r"draining: 1 connections, \d+ s left", operator("drain").out)
    late = operator("drain", "--wait", "--seconds", "0.1")
    assert late.code == 1
    assert "it still drains after 0.1 s" in late.err
    threading.Timer(0.5, client.close).start()
    done = operator("drain", "--wait")
    assert done.code == 0
    assert done.out.splitlines()[-1] == "it has ended"
    assert proxy.wait() == 0


def test_where_nobody_is() -> None:
    for verb in ("connections", "policy", "loglevel", "drain"):
        done = subprocess.run(
            [sys.executable, "-m", "l7proxy", verb, "--admin", "/no/such/socket"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 1
        assert "does l7proxy run there?" in done.stderr


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1.0K"),
        (10_000, "9.8K"),
        (10_240, "10K"),
        (1 << 20, "1.0M"),
        ((1 << 20) - 1, "1.0M"),
        (5 << 30, "5.0G"),
        ((1 << 63) - 1, "8.0E"),
        (10**24, "867362E"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text
