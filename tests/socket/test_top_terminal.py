"""`l7proxy top` on a terminal, and once, of a proxy that runs."""

from __future__ import annotations

import http.server
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import vt52
from peers import refusing_port
from proxy import Proxy, until
from vt52 import Vt52

pytestmark = pytest.mark.net

POLICY = """\
listeners:
  web: {address: 127.0.0.1:0}
routes:
  - {name: nobody, matches: [{path: /nobody}], backendRefs: [{name: nobody}]}
  - {name: home, respond: {status: 200, body: hello}}
backends:
  nobody: {endpoints: ["127.0.0.1:PORT"]}
"""


@pytest.fixture(scope="module")
def watched() -> Iterator[Proxy]:
    with Proxy(POLICY.replace("PORT", str(refusing_port())), "copy") as proxy:
        yield proxy
        proxy.stop()


@pytest.fixture
def client(watched: Proxy) -> Iterator[str]:
    """The address of a connection that says nothing."""
    with socket.create_connection(watched.address("web")) as silent:
        host, port = silent.getsockname()
        until(lambda: watched.stats()["connections"]["active"] == 1, "it is accepted")
        yield f"{host}:{port}"
    watched.settled()


def command(proxy: Proxy, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "l7proxy", "top", f"--admin={proxy.admin}", *arguments]


def once(proxy: Proxy, *arguments: str) -> str:
    done = subprocess.run(
        command(proxy, "--seconds=0.2", *arguments), capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def screen(watched: Proxy, client: str) -> Iterator[Vt52]:
    with vt52.running(command(watched, "--seconds=0.5")) as terminal:
        terminal.until(client)
        yield terminal


def test_it_works_at_80_by_24(screen: Vt52, watched: Proxy, client: str) -> None:
    lines = screen.until_last("q quit")
    assert "every 0.5s" in lines[2]
    assert lines[0].startswith("l7proxy ")
    assert lines[0].endswith("HEALTHY")
    assert "1/1 workers" in lines[0]
    assert "1 Connections 1  2 Backends 1  3 Listeners 1" in "\n".join(lines)
    assert lines[-1] == (
        "q quit  1-5 show  <> sort  r reverse  / filter  p pause  +- speed  arrows scroll"
    )
    screen.press("3")
    host, port = watched.address("web")
    screen.until(rf"web +HTTP +{host}:{port} +1$")
    screen.press("2")
    screen.until("WEIGHT")
    screen.press("1")
    screen.until(client)
    screen.press("q")
    assert screen.end() == 0


def test_its_keys_sort_filter_and_pause(screen: Vt52, client: str) -> None:
    screen.until("RATE↓")
    screen.press(">")
    screen.until("BYTES↓")
    screen.press("r")
    screen.until("BYTES↑")
    screen.press("/nobody")
    screen.until("filter: nobody_")
    screen.until("nothing is like that")
    screen.press("\x1b")
    screen.until(client)
    screen.press("/listener:other\r")
    screen.until("1 Connections 0")
    screen.press("\x1b")
    screen.until("1 Connections 1")
    screen.press("p")
    screen.until("PAUSED")
    screen.press("p-")
    screen.until("every 1s")


def test_the_window_may_change_its_size(screen: Vt52) -> None:
    screen.resize(40, 94)
    lines = screen.until_last("q quit")
    assert lines[0].endswith("HEALTHY")
    assert len(lines[0]) > 80
    screen.resize(10, 40)
    lines = screen.until_last("q quit")
    assert lines[0].startswith("l7proxy")
    screen.resize(2, 10)
    screen.press("q")
    assert screen.end() == 0


def test_it_says_that_nobody_answers_and_goes_on(tmp_path: object) -> None:
    with (
        Proxy(POLICY.replace("PORT", "1"), "copy") as proxy,
        vt52.running(command(proxy, "--seconds=0.5")) as terminal,
    ):
        terminal.until("HEALTHY")
        proxy.stop()
        terminal.until("NO ANSWER")
        terminal.until("no such file or directory")
        terminal.press("q")
        assert terminal.end() == 0


@pytest.mark.parametrize("term", ["xterm-256color", "dumb-and-unknown"])
def test_other_terminals(watched: Proxy, term: str) -> None:
    """What they are sent is for them to read; here it is enough that it goes on and ends."""
    with vt52.running(command(watched, "--seconds=0.5"), term=term) as terminal:
        terminal._take = lambda _one: None  # type: ignore[method-assign]
        while not terminal._read(1):
            assert terminal.process.poll() is None
        terminal.press("q")
        assert terminal.end() == 0


def test_where_there_is_no_terminal_it_is_told_once(watched: Proxy, client: str) -> None:
    found = once(watched)
    assert found.startswith("l7proxy ")
    assert client in found
    assert "nobody" in found
    assert "\x1b" not in found
    assert "CLIENT" not in once(watched, "--filter=listener:other")


def test_the_document_is_for_scripts(watched: Proxy, client: str) -> None:
    found = json.loads(once(watched, "--once", "--json"))
    assert found["format"] == 1
    assert found["condition"]["is"] == "good"
    assert found["live"]["connections"] == found["connections_total"] == 1
    assert [one["client"] for one in found["connections"]] == [client]
    assert found["rates"]["accepted"] == 0
    assert [one["name"] for one in found["routes"]] == ["nobody", "home"]
    assert found["routes"][0]["place"].endswith("policy.yaml:4")
    assert found["seconds"] >= 0.2
    assert json.loads(once(watched, "--json", "--limit=0"))["connections"] == []


def test_another_program_there_is_an_error_in_a_line(tmp_path: object) -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        done = subprocess.run(
            [sys.executable, "-m", "l7proxy", "top", f"--admin=127.0.0.1:{server.server_port}"],
            capture_output=True,
            text=True,
            timeout=120,
        )
        server.shutdown()
        thread.join()
    assert done.returncode == 1
    assert "no l7proxy of this version" in done.stderr


def test_nobody_there_is_an_error_in_a_line(tmp_path: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "l7proxy", "top", f"--admin={tmp_path}/none", "--once"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "does l7proxy run there?" in done.stderr
    assert "Traceback" not in done.stderr
