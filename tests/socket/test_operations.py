"""What an operator sees of live connections, and can do to them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from peers import Backend, Peer, connect
from proxy import PATIENCE, Proxy, until

from l7proxy.config import check_text
from l7proxy.net.messages import ConnectionRow

pytestmark = pytest.mark.net

HEAD = b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def answers_and_stays(peer: Peer) -> None:
    peer.head()
    peer.send(ANSWER)
    peer.ending()


def of_port(proxy: Proxy, port: int) -> dict[str, Any]:
    (row,) = proxy.connections(f"client=127.0.0.1:{port}")
    return row


def open_pair(proxy: Proxy, backend: Backend) -> tuple[Peer, dict[str, Any]]:
    """A client whose first answer has come, and what is told of it once its pair has settled."""
    client = connect(proxy.address("web")).send(HEAD)
    assert client.read(len(ANSWER)) == ANSWER
    settled = "spliced" if proxy.datapath == "sockmap" else "relayed"
    until(lambda: of_port(proxy, client.port)["state"] == settled, f"the pair is {settled}")
    return client, of_port(proxy, client.port)


def test_a_live_connection(proxy: Proxy, backend: Backend) -> None:
    backend.play(answers_and_stays)
    client, row = open_pair(proxy, backend)
    with client:
        assert row == {
            "id": row["id"],
            "worker": 0,
            "listener": "web",
            "route": "app",
            "backend": "app",
            "endpoint": f"127.0.0.1:{backend.port}",
            "client": f"127.0.0.1:{client.port}",
            "state": "spliced" if proxy.datapath == "sockmap" else "relayed",
            "way": "kernel" if proxy.datapath == "sockmap" else "relay",
            "age_seconds": row["age_seconds"],
            "idle_seconds": row["idle_seconds"],
            "bytes": {"to_backend": len(HEAD), "to_client": len(ANSWER), "kernel": 0},
        }
        assert 0 <= row["idle_seconds"] <= row["age_seconds"] < 60
        time.sleep(0.3)
        later = of_port(proxy, client.port)
        assert later["id"] == row["id"]
        assert later["age_seconds"] >= row["age_seconds"] + 0.3
        assert later["idle_seconds"] >= 0.3


def test_bytes_are_told_while_they_flow(proxy: Proxy, backend: Backend) -> None:
    size = 300_000

    def takes(peer: Peer) -> None:
        peer.head()
        peer.send(ANSWER)
        peer.read(size)
        backend.tell("has it")
        peer.ending()

    backend.play(takes)
    client, _ = open_pair(proxy, backend)
    with client:
        client.send(bytes(size))
        assert backend.heard() == "has it"
        row = of_port(proxy, client.port)
        assert row["bytes"]["to_backend"] == len(HEAD) + size
        assert row["idle_seconds"] < 20
        if proxy.datapath == "sockmap":
            assert row["bytes"]["kernel"] > 0
        else:
            assert row["bytes"]["kernel"] == 0


def test_a_connection_that_has_not_said_anything(proxy: Proxy) -> None:
    with connect(proxy.address("web")) as client:
        until(lambda: proxy.connections(f"client=127.0.0.1:{client.port}"), "it is accepted")
        row = of_port(proxy, client.port)
        assert (row["state"], row["way"], row["route"]) == ("head", None, "")
        assert row["bytes"] == {"to_backend": 0, "to_client": 0, "kernel": 0}
        assert 0 <= row["idle_seconds"] <= row["age_seconds"]


def test_one_is_ended_and_the_others_are_not(proxy: Proxy, backend: Backend) -> None:
    backend.play(answers_and_stays)
    client, row = open_pair(proxy, backend)
    other, _ = open_pair(proxy, backend)
    with client, other:
        assert proxy.ask("DELETE", f"/connections/{row['id']}") == (204, None)
        assert client.ending() == "reset"
        record = proxy.record(client.port)
        assert record["reason"] == "operator_reset"
        assert record["state"] == row["state"]
        assert record["bytes_out"] == len(ANSWER)
        status, problem = proxy.ask("DELETE", f"/connections/{row['id']}")
        assert (status, problem["detail"]) == (404, f"there is no connection {row['id']}")
        assert other.silent()
        assert of_port(proxy, other.port)["id"] != row["id"]
    until(lambda: f"connection reset id={row['id']} " in proxy.log(), "it is told")
    assert proxy.stats()["errors"]["operator_reset"] >= 1


def test_both_ends_see_a_reset(proxy: Proxy, backend: Backend) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.send(ANSWER)
        backend.tell(peer.ending())

    backend.play(script)
    client, row = open_pair(proxy, backend)
    with client:
        assert proxy.ask("DELETE", f"/connections/{row['id']}")[0] == 204
        assert client.ending() == "reset"
        assert backend.heard() == "reset"


def test_one_that_waits_for_its_head_is_ended(proxy: Proxy) -> None:
    with connect(proxy.address("web")) as client:
        until(lambda: proxy.connections(f"client=127.0.0.1:{client.port}"), "it is accepted")
        row = of_port(proxy, client.port)
        assert proxy.ask("DELETE", f"/connections/{row['id']}")[0] == 204
        assert client.ending() == "reset"
        assert proxy.record(client.port)["reason"] == "operator_reset"


@pytest.mark.parametrize("name", ["0-0", "0-999999999", "7-1", "x", "0", "0-", "0-1-1", "\u0660-1"])
def test_what_no_connection_is_called(proxy: Proxy, name: str) -> None:
    status, problem = proxy.ask("DELETE", f"/connections/{quote(name)}")
    assert (status, problem["status"]) == (404, 404)


def test_chosen_and_sorted(proxy: Proxy, backend: Backend) -> None:
    backend.play(answers_and_stays)
    first, _ = open_pair(proxy, backend)
    second, _ = open_pair(proxy, backend)
    with first, second, connect(proxy.address("web")) as quiet:
        until(lambda: len(proxy.connections()) == 3, "all three are there")
        for query, ports in [
            ("sort=age", [first, second, quiet]),
            ("sort=-age", [quiet, second, first]),
            ("sort=age&limit=1", [first]),
            ("route=app&sort=-age", [second, first]),
            ("state=head", [quiet]),
            (f"endpoint=127.0.0.1:{backend.port}&limit=2&sort=age", [first, second]),
            ("listener=raw", []),
            ("backend=app&state=head", []),
            ("client=127.0.0.1&sort=age", [first, second, quiet]),
            ("client=127.0.0.2", []),
            ("way=kernel" if proxy.datapath == "sockmap" else "way=relay", [first, second]),
            ("limit=0", []),
        ]:
            found = proxy.connections(query)
            assert [int(row["client"].rpartition(":")[2]) for row in found] == [
                one.port for one in ports
            ], query
        for name in ConnectionRow.__slots__:
            if name in ("number", "way", "age", "idle"):
                continue
            for sign in ("", "-"):
                rows = proxy.connections(f"sort={sign}{name}")
                told = [row["bytes"].get(name, row.get(name)) for row in rows]
                falls = isinstance(told[0], int) != bool(sign)
                assert told == sorted(told, reverse=falls), (sign, name)
        status, found = proxy.ask("GET", "/connections?limit=1")
        assert (status, found["total"], found["shown"]) == (200, 3, 1)
        assert found["silent_workers"] == []


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("sort=size", "sort is one of age,"),
        ("sort=--age", "sort is one of age,"),
        ("limit=ten", "limit is a number from 0 to 10000"),
        ("limit=10001", "limit is a number"),
        ("limit=-1", "limit is a number"),
        ("limit=", "limit is a number"),
        ("colour=red", "there is no colour; there are sort, limit, state, "),
    ],
)
def test_a_question_that_makes_no_sense(proxy: Proxy, query: str, says: str) -> None:
    status, problem = proxy.ask("GET", f"/connections?{query}")
    assert status == 400
    assert problem["detail"].startswith(says)


def test_the_level_of_the_log_is_changed_everywhere(proxy: Proxy, backend: Backend) -> None:
    assert proxy.ask("GET", "/loglevel") == (200, {"level": "info"})
    assert proxy.ask("POST", "/loglevel", {"level": "debug"}) == (200, {"level": "debug"})
    assert proxy.ask("GET", "/loglevel") == (200, {"level": "debug"})
    proxy.reload()
    # a worker says so, and only at this level
    until(lambda: "debug   policy swapped slot=0" in proxy.log(), "the worker tells more")
    assert proxy.ask("POST", "/loglevel", {"level": "info"}) == (200, {"level": "info"})
    told = proxy.log().count("policy swapped")
    proxy.reload()
    assert proxy.log().count("policy swapped") == told
    for wrong in ({"level": "loud"}, {"level": 10}, {"level": ["info"]}, ["info"], {}, None):
        status, problem = proxy.ask("POST", "/loglevel", wrong)
        assert status == 400
        assert problem["title"] == "Bad Request"


def test_a_worker_that_does_not_answer_is_named_and_holds_nobody_up() -> None:
    policy = 'listeners: {web: {address: "127.0.0.1:0"}}\nroutes: [{name: all, respond: 200}]\n'
    with Proxy(policy, "copy", workers=2) as proxy:
        stopped = proxy.workers[0]
        os.kill(stopped, signal.SIGSTOP)
        try:
            began = time.monotonic()
            status, found = proxy.ask("GET", "/connections")
            assert (status, found["silent_workers"]) == (200, [0])
            assert proxy.ask("GET", "/healthz") == (200, "ok")
            assert time.monotonic() - began < PATIENCE
        finally:
            os.kill(stopped, signal.SIGCONT)
        # its late answer belongs to nobody, and is no reason to replace it
        until(lambda: proxy.ask("GET", "/connections")[1]["silent_workers"] == [], "it answers")
        assert proxy.stats()["workers"] == {"configured": 2, "running": 2, "restarts": 0}
        proxy.stop()


# ---- the policy

PARTS = {
    "a.yaml": """\
listeners:
  web: {address: "127.0.0.1:${PORT:-0}"}
  db: {address: 127.0.0.1:0, protocol: TCP}
routes:
  - name: home
    listeners: [web]
    redirect: {path: /new}
""",
    "b.yaml": """\
backends: {app: {endpoints: ["127.0.0.1:9"]}}
routes:
  - {name: app, hostnames: [app.test], backendRefs: [{name: app}]}
  - {name: database, listeners: [db], backendRefs: [{name: app}], splice: never}
""",
}


def test_the_policy_in_force_with_the_place_of_everything(tmp_path: Path) -> None:
    for name, text in PARTS.items():
        (tmp_path / name).write_text(text)
    a, b = (str(tmp_path / name) for name in PARTS)
    with Proxy("", "copy", path=tmp_path) as proxy:
        status, found = proxy.ask("GET", "/policy")
        assert status == 200
        assert (found["generation"], found["source"]) == (1, str(tmp_path))
        assert check_text(found["policy"]).policy is not None
        assert 'address: "127.0.0.1:0"' in found["policy"]
        assert found["listeners"] == [
            {"name": "web", "file": a, "line": 2},
            {"name": "db", "file": a, "line": 3},
        ]
        assert found["backends"] == [{"name": "app", "file": b, "line": 1}]
        home, app, database = found["routes"]
        assert home == {
            "name": "home",
            "file": a,
            "line": 5,
            "does": "redirect",
            "backends": [],
            "hostnames": [],
            "listeners": ["web"],
            "splice": None,
            "why": None,
            "choices": [],
        }
        assert (app["file"], app["line"], app["hostnames"]) == (b, 3, ["app.test"])
        assert [one["listener"] for one in app["choices"]] == app["listeners"]
        assert "web" in app["listeners"]
        assert app["splice"] == "request"
        assert app["why"].startswith("later requests of a connection may match")
        assert (database["splice"], database["why"]) == ("never", "the route says so")
        assert proxy.ask("GET", "/policy") == (status, found)

        (tmp_path / "b.yaml").write_text(PARTS["b.yaml"].replace("app.test", "other.test"))
        proxy.reload()
        found = proxy.ask("GET", "/policy")[1]
        assert (found["generation"], found["routes"][1]["hostnames"]) == (2, ["other.test"])
        (tmp_path / "b.yaml").write_text("routes: 7\n")
        proxy.reload(ok=False)
        assert proxy.ask("GET", "/policy")[1]["generation"] == 2
        proxy.stop()
