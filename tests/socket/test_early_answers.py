"""A backend that answers before it has the whole request, and breaks: its answer counts."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from peers import PATIENCE, Backend, Peer, connect
from proxy import DATAPATHS, Proxy, state_of, until

pytestmark = pytest.mark.net

POLICY = """\
listeners:
  web: {{address: 127.0.0.1:0}}
  raw: {{address: "127.0.0.1:0", protocol: TCP}}
routes:
  - name: sticky
    listeners: [web]
    matches: [{{path: /sticky}}]
    splice: connection
    backendRefs: [{{name: sticky}}]
  - {{name: app, splice: connection, backendRefs: [{{name: app}}]}}
backends:
  app: {{endpoints: ["127.0.0.1:{port}"], ejection: {{failures: 1}}}}
  sticky: {{endpoints: ["127.0.0.1:{port}"], sticky: {{cookie: at}}}}
"""
ANSWER = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno"
SHORT = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\n\r\nno"
ENDLESS = b"HTTP/1.1 413 Content Too Large\r\n\r\nno"
LARGE = 1 << 20  # bytes of a body: more than there is room for on the way


def post(size: int, path: bytes = b"/") -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n" % (path, size)


@pytest.fixture(scope="module")
def listening() -> Iterator[Backend]:
    """There is little room for what it does not read, on either side."""
    backend = Backend(receive_buffer=4096, segment=1000)
    yield backend
    backend.close()


@pytest.fixture(scope="module", params=DATAPATHS)
def proxy(request: pytest.FixtureRequest, listening: Backend) -> Iterator[Proxy]:
    with Proxy(POLICY.format(port=listening.port), request.param) as proxy:
        yield proxy
        assert proxy.settled()["errors"]["internal"] == 0
        proxy.stop()


@pytest.fixture
def stingy(listening: Backend, proxy: Proxy) -> Iterator[Backend]:
    proxy.forget_records()
    yield listening
    listening.finish()
    proxy.settled()


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """What happens meanwhile, a worker finds all at once."""
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: state_of(pid) == "T", "it is stopped")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def refuse(stingy: Backend, answer: bytes) -> Callable[[], None]:
    """A backend that reads a little, and when it is told to, answers and resets."""
    go_on, gone = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        peer.sock.recv(64)
        stingy.tell("begun")
        assert go_on.wait(PATIENCE)
        peer.send(answer)
        peer.reset()
        gone.set()

    def now() -> None:
        go_on.set()
        assert gone.wait(PATIENCE)

    stingy.play(script)
    return now


def failures(proxy: Proxy) -> int:
    """That the endpoint is said to have had."""
    (endpoint,) = proxy.stats()["backends"]["app"]["endpoints"]
    found: int = endpoint["failures"]
    return found


def upload(client: Peer, data: bytes) -> threading.Thread:
    """Send as much as is taken, in a thread of its own."""

    def send() -> None:
        with contextlib.suppress(OSError):
            client.sock.sendall(data)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def is_stuck(uploading: threading.Thread, client: Peer) -> bool:
    """Whether all of an upload is under way, or there is no room for more."""
    return not uploading.is_alive() or not select.select([], [client.sock], [], 0)[1]


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        pytest.param(ANSWER, ANSWER, id="whole"),
        pytest.param(SHORT, b"HTTP/1.1 502 ", id="short"),
        pytest.param(ENDLESS, b"HTTP/1.1 502 ", id="no length"),
        pytest.param(b"", b"HTTP/1.1 502 ", id="nothing"),
    ],
)
def test_while_the_request_is_written(
    proxy: Proxy, stingy: Backend, answer: bytes, got: bytes
) -> None:
    (worker,) = proxy.workers
    before = failures(proxy)
    now = refuse(stingy, answer)
    with connect(proxy.address("web")) as client:
        with stopped(worker):  # so that it finds more than goes on at once
            uploading = upload(client, post(LARGE) + bytes(LARGE))
            until(lambda: is_stuck(uploading, client), "nothing has room")
        assert stingy.heard() == "begun"
        time.sleep(0.1)  # until nothing has room
        now()
        seen = client.rest()
        uploading.join(PATIENCE)
        port = client.port
    assert seen.startswith(got)
    record = proxy.record(port)
    assert (record["reason"], record["state"]) == ("backend_closed", "send")
    whole = got is ANSWER
    assert seen == ANSWER or not whole
    assert (record["status"], record["bytes_out"]) == ((None, len(ANSWER)) if whole else (502, 0))
    assert failures(proxy) == before + (not whole)


@pytest.mark.parametrize("sent", [5, LARGE], ids=["all is written", "some is written"])
def test_while_a_cookie_is_to_be_added(proxy: Proxy, stingy: Backend, sent: int) -> None:
    (worker,) = proxy.workers
    now = refuse(stingy, ANSWER)
    with connect(proxy.address("web")) as client:
        with stopped(worker):
            uploading = upload(client, post(LARGE, b"/sticky") + bytes(sent))
            until(lambda: is_stuck(uploading, client), "nothing has room")
        assert stingy.heard() == "begun"
        time.sleep(0.1)
        with stopped(worker):
            now()
        head, _, body = client.rest().partition(b"\r\n\r\n")
        uploading.join(PATIENCE)
        port = client.port
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nSet-Cookie: at=" in head
    assert body == b"no"
    assert proxy.record(port)["reason"] == "backend_closed"


@pytest.mark.parametrize("proxy", ["splice2", "copy"], indirect=True)
def test_after_the_pair_is_open(stingy: Backend, proxy: Proxy) -> None:
    """Where user space moves the bytes; the kernel passes the answer on before the reset."""
    (worker,) = proxy.workers
    now = refuse(stingy, ANSWER)
    with connect(proxy.address("web")) as client:
        client.send(post(100) + b"begin")
        assert stingy.heard() == "begun"
        until(lambda: proxy.stats()["pairs"]["active"], "the pair is open")
        with stopped(worker):
            now()
        assert client.rest() == ANSWER
        port = client.port
    record = proxy.record(port)
    assert (record["reason"], record["bytes_out"]) == ("backend_closed", len(ANSWER))


def test_a_bare_stream_is_reset(proxy: Proxy, stingy: Backend) -> None:
    """Where its answers end, nobody knows."""
    now = refuse(stingy, ANSWER)
    with connect(proxy.address("raw")) as client:
        uploading = upload(client, post(LARGE) + bytes(LARGE))
        assert stingy.heard() == "begun"
        now()
        assert client.ending() == "reset"
        uploading.join(PATIENCE)
