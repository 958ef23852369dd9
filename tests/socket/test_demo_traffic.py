"""The demo tells nothing that it has not checked: its checks fail where a proxy is wrong."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from peers import free_port

from l7proxy.demo import traffic
from l7proxy.demo.backends import Backends
from l7proxy.demo.traffic import CheckError
from l7proxy.model import Address

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]

ROOT = Path(__file__).resolve().parents[2]
_BODY = 90_000


def free() -> Address:
    return Address("127.0.0.1", free_port())


@pytest.fixture
def http() -> Iterator[Address]:
    address = free()
    with Backends() as backends:
        backends.start_http("app (here)", address)
        yield address


@pytest.fixture
def echo() -> Iterator[Address]:
    address = free()
    with Backends() as backends:
        backends.start_echo("echo (here)", address)
        yield address


def test_what_a_backend_sends_is_what_the_checks_want(
    http: Address, echo: Address, tmp_path: Path
) -> None:
    size = 700_000
    assert traffic.download(http, "http://any/download", size, tmp_path).size == size
    assert traffic.upload(http, "http://any/upload", size, tmp_path).size == size
    assert traffic.web_socket(http, "any", "/", 3, 70_000).size == 2 * 3 * 70_000
    assert traffic.raw_stream(echo, "echo", size).size == 2 * size


def test_a_request_that_came_through_no_proxy_is_noticed(http: Address, tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="x-forwarded-for"):
        traffic.hello(http, "http://any/", {"app"}, tmp_path)


def test_a_request_that_went_astray_is_noticed(
    http: Address, echo: Address, tmp_path: Path
) -> None:
    with pytest.raises(CheckError, match="went to app"):
        traffic.hello(http, "http://any/", {"api"}, tmp_path)
    with pytest.raises(CheckError, match="backend group"):
        traffic.raw_stream(echo, "other", 10)
    with pytest.raises(CheckError, match="404 was expected"):
        traffic.missing(http, "http://any/", tmp_path)
    with pytest.raises(CheckError, match="two lengths"):
        traffic.refused(http, "any", "/")


class Meddler:
    """A relay that changes what the backend answers, as a broken proxy would."""

    def __init__(self, backend: Address, change: bytes, into: bytes) -> None:
        self._backend, self._change, self._into = backend, change, into
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = Address("127.0.0.1", self._server.getsockname()[1])
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        client, _ = self._server.accept()
        backend = socket.create_connection((self._backend.host, self._backend.port))
        with client, backend:
            backend.sendall(client.recv(65536))
            answer = b""
            while data := backend.recv(65536):
                answer += data
                if len(answer) > _BODY:  # with its head: all of it is here
                    break
            client.sendall(answer.replace(self._change, self._into))

    def close(self) -> None:
        self._server.close()
        self._thread.join()


def test_one_wrong_byte_is_noticed(http: Address, tmp_path: Path) -> None:
    # The chunk number at the front of the pattern is the only run of eight zero bytes.
    meddler = Meddler(http, bytes(8), b"\0\0\0\1\0\0\0\0")
    try:
        with pytest.raises(CheckError, match="SHA-256"):
            traffic.download(meddler.address, "http://any/download", _BODY, tmp_path)
    finally:
        meddler.close()


def test_a_short_answer_is_noticed(http: Address, tmp_path: Path) -> None:
    meddler = Meddler(http, bytes(8), b"")
    try:
        with pytest.raises(CheckError, match=r"bytes (remaining|missing)"):
            traffic.download(meddler.address, "http://any/download", _BODY, tmp_path)
    finally:
        meddler.close()


@pytest.mark.slow
def test_the_demo_itself() -> None:
    command = [sys.executable, "-m", "l7proxy.demo", "--download", "16", "--upload", "4"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240, env=os.environ
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every check held" in done.stdout
    assert "400 by l7proxy" in done.stdout
