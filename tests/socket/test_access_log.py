"""The access log of a running l7proxy: formats, rotation, syslog, samples, long connections."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from peers import PATIENCE, Backend, Peer, connect
from proxy import DATAPATHS, Proxy, links, until

pytestmark = pytest.mark.net

REQUEST = b'GET /a?b=c HTTP/1.1\r\nHost: app.test\r\nUser-Agent: a "b"\r\n\r\n'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
FORWARDED = "splice: connection, backendRefs: [{name: app}]}"
ANSWERED = "respond: {status: 200}}"
POLICY = """\
listeners:
  web: {{address: 127.0.0.1:0}}
  raw: {{address: 127.0.0.1:0, protocol: TCP}}
routes:
  - {{name: web, listeners: [web], splice: connection, backendRefs: [{{name: app}}]}}
  - {{name: raw, listeners: [raw], backendRefs: [{{name: app}}]}}
backends:
  app: {{endpoints: ["127.0.0.1:{port}"]}}
accessLog: {log}
"""


@pytest.fixture
def own_backend() -> Iterator[Backend]:
    backend = Backend()
    backend.play(serve)
    yield backend
    backend.close()
    backend.finish()


def serve(peer: Peer) -> None:
    """An answer for each request, until the client ends."""
    with contextlib.suppress(ConnectionResetError):
        while peer.sock.recv(65536):
            peer.send(ANSWER)


def policy(backend: Backend, log: str) -> str:
    return POLICY.format(port=backend.port, log=log)


def ask(proxy: Proxy) -> int:
    """One request; the client's port."""
    with connect(proxy.address("web")) as client:
        client.send(REQUEST).read(len(ANSWER))
        return client.port


def lines(path: Path, count: int = 1) -> list[str]:
    def found() -> list[str] | None:
        got = path.read_text().splitlines() if path.exists() else []
        return got if len(got) >= count else None

    told: list[str] = until(found, f"{count} lines in {path}")
    return told


def test_a_format_and_another_one_by_a_reload(own_backend: Backend) -> None:
    form = """{format: '%ci:%cp %ft %[endpoint] "%r" "%{User-Agent}i" %B %[reason]'}"""
    with Proxy(policy(own_backend, form), "copy", workers=2) as proxy:
        path = proxy.directory / "access.log"
        port = ask(proxy)
        assert lines(path) == [
            f"127.0.0.1:{port} web 127.0.0.1:{own_backend.port}"
            rf' "GET /a?b=c HTTP/1.1" "a \"b\"" {len(ANSWER)} done'
        ]
        proxy.reload(policy(own_backend, "{format: common}"))
        ask(proxy)
        second = lines(path, 2)[1]
        assert re.fullmatch(
            r'127\.0\.0\.1 - - \[[^]]+ \+0000\] "GET /a\?b=c HTTP/1\.1" - \d+', second
        )
        outcome = proxy.reload(policy(own_backend, "{format: '%[reeson]'}"), ok=False)
        assert "did you mean `reason`?" in outcome["text"]
        ask(proxy)
        assert len(lines(path, 3)) == 3
        proxy.reload(policy(own_backend, "{format: json}"))
        ask(proxy)
        assert json.loads(lines(path, 4)[3])["rate"] == 1
        proxy.stop()


def test_sigusr1_opens_the_file_again(own_backend: Backend) -> None:
    """As logrotate does it: move, create, signal. Workers may not open it, and need not."""
    with Proxy(policy(own_backend, "{format: '%[client_port]'}"), "copy", workers=2) as proxy:
        path, old = proxy.directory / "access.log", proxy.directory / "access.log.1"
        ports = [str(ask(proxy)) for _ in range(4)]
        assert sorted(lines(path, 4)) == sorted(ports)
        path.rename(old)
        path.touch(mode=0o600)
        proxy.signal(signal.SIGUSR1)
        until(lambda: "access log opened again" in proxy.log(), "it says so")
        until(lambda: all(str(path) in links(pid) for pid in proxy.workers), "each worker has it")
        ports = [str(ask(proxy)) for _ in range(8)]
        assert sorted(lines(path, 8)) == sorted(ports)
        assert len(old.read_text().splitlines()) == 4
        assert proxy.stats()["workers"]["restarts"] == 0
        victim = proxy.workers[0]  # its successor writes to the new one too
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(proxy.workers) == 2 and victim not in proxy.workers, "another worker")
        for _ in range(8):
            ask(proxy)
        assert len(lines(path, 16)) == 16
        shutil.move(path, old)
        path.mkdir()
        proxy.signal(signal.SIGUSR1)
        until(lambda: "goes on in its old file" in proxy.log(), "it says so")
        ask(proxy)
        assert len(lines(old, 17)) == 17
        path.rmdir()
        proxy.stop()


def test_who_signals_the_whole_group_does_no_harm(own_backend: Backend) -> None:
    """`systemctl kill -s USR1` reaches the workers too."""
    with Proxy(policy(own_backend, "{format: json}"), "copy", workers=2) as proxy:
        with connect(proxy.address("web")) as client:
            client.send(REQUEST).read(len(ANSWER))
            for pid in proxy.workers:
                os.kill(pid, signal.SIGUSR1)
                os.kill(pid, signal.SIGUSR1)
            proxy.signal(signal.SIGUSR1)
            until(lambda: "access log opened again" in proxy.log(), "it says so")
            client.send(REQUEST).read(len(ANSWER))
        assert proxy.stats()["workers"]["restarts"] == 0
        proxy.stop()


LOGROTATE = shutil.which("logrotate", path="/usr/sbin:/usr/bin:/sbin:/bin")


@pytest.mark.skipif(LOGROTATE is None or os.geteuid() != 0, reason="needs logrotate, and root")
def test_logrotate(own_backend: Backend) -> None:
    with Proxy(policy(own_backend, "{format: '%[client_port]'}"), "copy") as proxy:
        path = proxy.directory / "access.log"
        config, state = proxy.directory / "rotate", proxy.directory / "state"
        config.write_text(
            f"{path} {{ rotate 2\n create 0600\n su root root\n postrotate\n"
            f" kill -USR1 {proxy.process.pid}\n endscript\n }}\n"
        )
        ask(proxy)
        lines(path)
        subprocess.run([str(LOGROTATE), "-f", "-s", state, config], check=True, timeout=120)
        until(lambda: "access log opened again" in proxy.log(), "it says so")
        until(lambda: all(str(path) in links(pid) for pid in proxy.workers), "the worker has it")
        port = ask(proxy)
        assert lines(path) == [str(port)]
        proxy.stop()


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that workers reach, who are another user."""
    with tempfile.TemporaryDirectory(prefix="l7proxy-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_syslog(own_backend: Backend, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(folder / "log"))
        os.chmod(folder / "log", 0o666)
        daemon.settimeout(PATIENCE)
        where = [f"--access-log=syslog:{folder / 'log'}?facility=local3"]
        text = policy(own_backend, "{format: '%[client_port] %[reason]'}")
        with Proxy(text, "copy", options=where) as proxy:
            port = ask(proxy)
            message = daemon.recv(9000).decode()
            assert message.startswith("<158>")
            assert message.endswith(f" l7proxy[{proxy.workers[0]}]: {port} done")
            with connect(proxy.address("web")) as client:
                client.send(b"GET / HTTP/1.1\r\nbad header\r\n\r\n").rest()
            assert daemon.recv(9000).decode().startswith("<156>"), "an error is a warning"
            proxy.stop()


def test_what_nobody_reads_is_counted_and_stops_nobody(own_backend: Backend, folder: Path) -> None:
    """A pipe whose reader sleeps: the first lines wait for it, the others are dropped."""
    os.mkfifo(folder / "pipe")
    reader = os.open(folder / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    os.chmod(folder / "pipe", 0o666)
    text = policy(own_backend, "{format: json}").replace(FORWARDED, ANSWERED, 1)
    with Proxy(text, "copy", options=[f"--access-log={folder / 'pipe'}"]) as proxy:
        asked = 0
        while not proxy.stats()["access_log_dropped"]:
            assert asked < 5000
            for _ in range(200):
                with connect(proxy.address("web")) as client:
                    client.send(REQUEST).rest()
            asked += 200
        got, dropped = b"", 0

        def read() -> bool:
            nonlocal got, dropped
            dropped = proxy.stats()["access_log_dropped"]
            with contextlib.suppress(BlockingIOError):
                while data := os.read(reader, 1 << 16):
                    got += data
            return got.count(b"\n") == asked - dropped

        until(read, "what was kept is written once somebody reads")
        assert [json.loads(line)["reason"] for line in got.splitlines()] == ["local_reply"] * (
            asked - dropped
        )
        proxy.stop()
    os.close(reader)


def test_of_many_a_share(own_backend: Backend) -> None:
    with Proxy(policy(own_backend, "{sample: 20%}"), "copy", workers=2) as proxy:
        for _ in range(150):
            ask(proxy)
        for _ in range(5):
            with connect(proxy.address("web")) as client:
                client.send(b"GET / HTTP/1.1\r\nbad header\r\n\r\n").rest()
        proxy.stop()
        found = proxy.records()
        errors = [one for one in found if one["reason"] == "bad_request"]
        assert [one["rate"] for one in errors] == [1] * 5
        normal = [one for one in found if one not in errors]
        assert 8 <= len(normal) <= 60
        assert {one["rate"] for one in normal} == {0.2}


@pytest.mark.parametrize("datapath", [DATAPATHS[0], "copy"])
def test_a_connection_that_lasts_is_told_of(own_backend: Backend, datapath: str) -> None:
    """With its bytes as they are, those that the kernel has moved included."""
    with Proxy(policy(own_backend, "{liveEvery: 1s}"), datapath) as proxy:
        with connect(proxy.address("web")) as client, connect(proxy.address("web")) as idle:
            sent = 0
            client.send(REQUEST).read(len(ANSWER))
            idle.send(REQUEST).read(len(ANSWER))

            def live() -> list[dict[str, object]]:
                return [
                    one
                    for one in proxy.records()
                    if one["state"] == "live" and one["client"].endswith(f":{client.port}")
                ]

            def seen(count: int) -> dict[str, object]:
                until(lambda: len(live()) >= count, f"record {count}")
                return live()[-1]

            first = seen(1)
            assert first["reason"] == ""
            assert first["total_ms"] >= 1000  # type: ignore[operator]
            assert (first["bytes_in"], first["bytes_out"]) == (len(REQUEST), len(ANSWER))
            for _ in range(10):
                client.send(REQUEST).read(len(ANSWER))
                sent += 1
            until(
                lambda: live()[-1]["bytes_out"] == (sent + 1) * len(ANSWER),
                "a record with the bytes so far",
            )
            last = live()[-1]
            assert last["bytes_in"] == (sent + 1) * len(REQUEST)
            assert last["time"] == first["time"], "when it was accepted tells which one it is"
            if datapath == "sockmap":
                assert last["kernel_out"] == sent * len(ANSWER)
            proxy.reload(policy(own_backend, "{sample: 100%}"))
            proxy.record(ask(proxy))  # what was on its way to the file is written before that
            before = len(live())
            time.sleep(1.5)
            assert len(live()) == before, "another policy does not want it"
        proxy.stop()
        finals = [one for one in proxy.records() if one["state"] != "live"]
        assert [one["reason"] for one in finals] == ["done"] * 3
