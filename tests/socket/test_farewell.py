"""Kept-alive HTTP connections end between two requests while a worker drains; nothing is cut."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest
from peers import PATIENCE, Backend, Peer, connect
from proxy import DATAPATHS, Proxy, until

pytestmark = pytest.mark.net

REQUEST = b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n"
UPGRADE = REQUEST[:-2] + b"Connection: upgrade\r\nUpgrade: chat\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
POLICY = """\
listeners:
  web: {{address: 127.0.0.1:0}}
routes:
  - {{name: all, splice: connection, backendRefs: [{{name: app}}]}}
backends:
  app: {{endpoints: ["127.0.0.1:{port}"]}}
"""


@pytest.fixture
def own_backend() -> Iterator[Backend]:
    backend = Backend()
    yield backend
    backend.close()
    backend.finish()


def ordinary(peer: Peer) -> None:
    """A server: an answer for each request; it closes when its client has ended."""
    while not peer.silent(PATIENCE) and peer.sock.recv(65536):
        peer.send(ANSWER)


def proxy_for(backend: Backend, datapath: str, seconds: float) -> Proxy:
    return Proxy(
        POLICY.format(port=backend.port),
        datapath,
        drain_seconds=seconds,
        options=["--drain-idle=0.4"],
    )


def drain(proxy: Proxy) -> None:
    proxy.signal(signal.SIGTERM)
    until(lambda: "draining connections=" in proxy.log(), "it drains")


@pytest.mark.parametrize("datapath", DATAPATHS)
def test_who_waits_for_nothing_is_told_the_end(own_backend: Backend, datapath: str) -> None:
    """What has begun is finished; what rests ends as a server of its own would have ended it."""

    def serve(peer: Peer) -> None:
        head = peer.head()
        if b"upgrade" in head:
            peer.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\r\n")
            peer.rest()
        elif b"X-Slow" in head:
            peer.send(ANSWER)
            peer.head()
            time.sleep(1.6)  # longer than what is taken for idle
            peer.send(ANSWER)
            peer.rest()
        else:
            peer.send(ANSWER)
            ordinary(peer)

    own_backend.play(serve)
    with proxy_for(own_backend, datapath, 300.0) as proxy:
        address = proxy.address("web")
        with (
            connect(address) as idle,
            connect(address) as slow,
            connect(address) as fresh,
            connect(address) as chat,
        ):
            idle.send(REQUEST).read(len(ANSWER))
            idle.send(REQUEST).read(len(ANSWER))
            slow.send(REQUEST[:-2] + b"X-Slow: 1\r\n\r\n").read(len(ANSWER))
            chat.send(UPGRADE).head()
            slow.send(REQUEST)
            drain(proxy)
            begun = time.monotonic()
            assert fresh.ending() == "end", "it had said nothing yet"
            assert idle.ending() == "end"
            assert slow.read(len(ANSWER)) == ANSWER
            assert slow.ending() == "end"
            assert time.monotonic() - begun < 60, "not at the deadline of the drain"
            assert chat.silent(0.3), "it speaks something else"
            chat.half_close()
            assert chat.ending() == "end"
        assert proxy.wait() == 0
        assert sorted(record["reason"] for record in proxy.records()) == [
            "client_closed",
            *["done"] * 3,
        ]


@pytest.mark.parametrize("datapath", [DATAPATHS[0], "copy"])
def test_what_was_not_read_yet_is_not_lost(own_backend: Backend, datapath: str) -> None:
    size = 300_000

    def serve(peer: Peer) -> None:
        peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
        ordinary(peer)

    own_backend.play(serve)
    with proxy_for(own_backend, datapath, 300.0) as proxy:
        with connect(proxy.address("web"), receive_buffer=16 * 1024) as client:
            client.send(REQUEST).head()
            drain(proxy)
            time.sleep(1.5)
            assert len(client.rest()) == size
        assert proxy.wait() == 0


@pytest.mark.parametrize("datapath", [DATAPATHS[0], "copy"])
def test_a_backend_that_does_not_take_the_hint(own_backend: Backend, datapath: str) -> None:
    """A request that comes too late is never left without a word; who waits is reset at the end."""

    def serve(peer: Peer) -> None:
        for _ in range(2):
            peer.head()
            peer.send(ANSWER)
        peer.rest()  # the hint
        own_backend.tell("told")
        assert over.wait(PATIENCE)

    over = threading.Event()
    own_backend.play(serve)
    with proxy_for(own_backend, datapath, 6.0) as proxy:
        address = proxy.address("web")
        with connect(address) as late, connect(address) as waiting:
            for client in (late, waiting):
                for _ in range(2):
                    client.send(REQUEST).read(len(ANSWER))
            drain(proxy)
            assert [own_backend.heard(), own_backend.heard()] == ["told"] * 2
            assert late.send(REQUEST).ending() == "reset"
            assert waiting.ending() == "reset"
        assert proxy.wait() == 3
        over.set()
        reasons = [record["reason"] for record in proxy.records()]
        assert sorted(reasons) == ["backend_reset", "drain_deadline"]
