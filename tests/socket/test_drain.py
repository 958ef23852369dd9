"""The end in order: not ready, no new connections, live ones may end, what is left is reset."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from peers import Backend, Peer, connect
from proxy import DATAPATHS, PATIENCE, Proxy, until
from servers import Server

from l7proxy.supervisor import workers as supervisor

pytestmark = pytest.mark.net

POLICY = """\
listeners:
  web: {{address: 127.0.0.1:0}}
  raw: {{address: 127.0.0.1:0, protocol: TCP}}
routes:
  - {{name: web, listeners: [web], backendRefs: [{{name: app}}]}}
  - {{name: raw, listeners: [raw], backendRefs: [{{name: stream}}]}}
backends:
  app: {{endpoints: ["{app}"]}}
  stream: {{endpoints: ["{stream}"]}}
"""


@pytest.fixture
def policy() -> Iterator[str]:
    with Server("app") as app, Server("stream", stream=True) as stream:
        yield POLICY.format(app=app.address, stream=stream.address)


@pytest.fixture
def own_backend() -> Iterator[Backend]:
    backend = Backend()
    yield backend
    backend.close()
    backend.finish()


def opened(proxy: Proxy, listener: str = "raw") -> socket.socket:
    """A connection that goes on until somebody ends it."""
    sock = socket.create_connection(proxy.address(listener), PATIENCE)
    assert sock.recv(100) == b"stream"
    return sock


def ask(proxy: Proxy) -> bytes:
    connection = http.client.HTTPConnection(*proxy.address("web"), timeout=PATIENCE)
    with closing(connection):
        connection.request("GET", "/")
        return connection.getresponse().read()


def refused(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, PATIENCE).close()
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    return False


def test_readiness_goes_first_and_listeners_a_while_later(policy: str) -> None:
    """Kubernetes tells the pod that it is deleted and the load balancers at the same moment."""
    with Proxy(policy, "copy", options=["--drain-delay=5"]) as proxy:
        assert proxy.stats()["drain"] == {"phase": "serving"}
        begun = time.monotonic()
        proxy.signal(signal.SIGTERM)
        until(lambda: proxy.stats()["draining"], "it is not ready any more")
        drain = proxy.stats()["drain"]
        assert drain["phase"] == "leaving"
        assert 0 < drain["seconds_left"] <= 5
        assert ask(proxy) == b"app", "who has not heard of it is served"
        assert proxy.wait() == 0
        assert time.monotonic() - begun >= 5
        assert refused(proxy.address("web"))
        said = re.findall(r" info +(.*)", proxy.log())
        first = said.index("not ready any more connections=0 seconds=5")
        assert said[first + 1].startswith("draining connections=0 workers=1 seconds=30")
        assert said[-1] == "stopped connections_reset=0"


def test_who_is_left_is_told_of_and_counted(policy: str) -> None:
    with Proxy(policy, "splice2", workers=2, drain_seconds=6.0) as proxy:
        ends, stays = opened(proxy), [opened(proxy) for _ in range(3)]
        proxy.signal(signal.SIGTERM)
        until(lambda: proxy.stats()["drain"]["phase"] == "draining", "it drains")
        ends.close()
        until(lambda: proxy.stats()["drain"]["connections"] == 3, "one has ended by itself")
        drain = proxy.stats()["drain"]
        assert (drain["connections_at_first"], drain["reset"]) == (4, 0)
        assert proxy.wait() == 3
        for one in stays:
            with closing(one), pytest.raises(ConnectionResetError):
                one.recv(1)
        assert "draining connections=4 on=raw:4 workers=2 seconds=6" in proxy.log()
        assert "resetting connections connections=3 on=raw:3 why=deadline" in proxy.log()
        assert "stopped connections_reset=3" in proxy.log()
        reasons = [record["reason"] for record in proxy.records()]
        assert sorted(reasons) == ["done"] + ["drain_deadline"] * 3


@pytest.mark.kernel
def test_a_worker_that_dies_while_it_leaves_is_replaced_and_its_connections_go_on(
    own_backend: Backend,
) -> None:
    def echo(peer: Peer) -> None:
        while data := peer.sock.recv(65536):
            peer.send(data)

    own_backend.play(echo)
    text = POLICY.format(app="127.0.0.1:1", stream=f"127.0.0.1:{own_backend.port}")
    with Proxy(text, "sockmap", options=["--drain-delay=60"]) as proxy:
        with connect(proxy.address("raw")) as client:
            for _ in range(3):
                assert client.send(b"ping").read(4) == b"ping"
            until(lambda: proxy.stats()["pairs"]["spliced"] == 1, "it is spliced")
            until(lambda: proxy.stats()["kept"]["pairs"] == 1, "it is kept")
            proxy.signal(signal.SIGTERM)
            until(lambda: proxy.stats()["drain"]["phase"] == "leaving", "it leaves")
            (victim,) = proxy.workers
            os.kill(victim, signal.SIGKILL)
            until(lambda: proxy.workers not in ([], [victim]), "another worker")
            until(lambda: proxy.stats()["kept"]["adopted"] == 1, "it is adopted")
            assert client.send(b"pong").read(4) == b"pong"
            client.half_close()
            assert client.ending() == "end"
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0


@pytest.mark.parametrize("datapath", [DATAPATHS[0], "copy"])
def test_what_dies_with_a_worker_that_drains_was_reset(policy: str, datapath: str) -> None:
    with Proxy(policy, datapath) as proxy:
        with opened(proxy) as one:
            proxy.signal(signal.SIGTERM)
            until(lambda: "draining connections=1" in proxy.log(), "it drains")
            os.kill(proxy.workers[0], signal.SIGKILL)
            with pytest.raises(ConnectionResetError):
                one.recv(1)
        assert proxy.wait() == 3
        assert "stopped connections_reset=1" in proxy.log()


@pytest.mark.parametrize("phase", ["leaving", "draining"])
def test_a_second_signal_resets_at_once(policy: str, phase: str) -> None:
    delay = "60" if phase == "leaving" else "0"
    with Proxy(policy, "copy", drain_seconds=60, options=[f"--drain-delay={delay}"]) as proxy:
        with opened(proxy) as one:
            proxy.signal(signal.SIGTERM)
            until(lambda: proxy.stats()["drain"]["phase"] == phase, "the drain has begun")
            proxy.signal(signal.SIGTERM)
            with pytest.raises(ConnectionResetError):
                one.recv(1)
        assert proxy.wait() == 3
        assert 'resetting connections connections=1 on=raw:1 why="second signal"' in proxy.log()
        assert "stopped connections_reset=1" in proxy.log()


def test_a_second_signal_with_nobody_left_resets_nobody(policy: str) -> None:
    with Proxy(policy, "copy", options=["--drain-delay=60"]) as proxy:
        proxy.signal(signal.SIGTERM)
        until(lambda: proxy.stats()["draining"], "the drain has begun")
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0


def test_exit_codes_are_told_where_people_look() -> None:
    codes = {value for name, value in vars(supervisor).items() if name.startswith("EXIT_")}
    assert codes == {0, 1, 3, 4}
    told = subprocess.run(
        [sys.executable, "-m", "l7proxy", "run", "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for code in codes | {2}:  # argparse's own
        assert re.search(rf"^  {code}  \w", told, re.MULTILINE)
        assert f"\n| {code} | " in readme
    assert (
        subprocess.run(
            [sys.executable, "-m", "l7proxy", "run"], capture_output=True, check=False, timeout=120
        ).returncode
        == 2
    )
