"""When a pair is spliced: the state FIRST, on every datapath."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest
from peers import PATIENCE, Backend, Peer, connect
from proxy import Proxy, until

from l7proxy.worker.relayed import CALM

pytestmark = pytest.mark.net

PIECES = 8 * CALM
"""A relay moves several in one turn where both ends are quicker than it: four at the most."""

CLOSE = b"GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"


def open_as(proxy: Proxy, way: str) -> bool:
    """Whether one pair is open, and is `first`, or moved as the datapath moves it."""
    pairs = proxy.stats()["pairs"]
    spliced = way != "first" and proxy.datapath == "sockmap"
    return bool(pairs == {"active": 1, "spliced": int(spliced), "relayed": int(not spliced)})


def test_a_short_answer_that_ends_the_connection_is_never_spliced(
    proxy: Proxy, backend: Backend
) -> None:
    go_on = threading.Event()

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(HEAD + b"some")
        assert go_on.wait(PATIENCE)
        peer.send(b" more")
        peer.half_close()
        assert peer.rest() == b""

    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(CLOSE)
        assert client.read(len(HEAD) + 4) == HEAD + b"some"
        until(lambda: open_as(proxy, "first"), "the pair is open")
        go_on.set()
        assert client.rest() == b" more"
        port = client.port
    record = proxy.record(port)
    assert (record["reason"], record["state"], record["datapath"]) == ("done", "first", "copy")
    assert (record["bytes_out"], record["kernel_out"]) == (len(HEAD) + 9, 0)


def pieces(peer: Peer, answer: Callable[[], None]) -> None:
    """Send what makes `CALM` turns of a relay at least, each asked for by the other end."""
    for _ in range(PIECES):
        answer()
        peer.send(b"piece")


def test_a_long_answer_is_relayed_until_it_is_calm_though_it_ends_the_connection(
    proxy: Proxy, backend: Backend
) -> None:
    begun, rest = HEAD + bytes(20_000), bytes(50_000)
    go_on = threading.Semaphore(0)

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(begun)
        pieces(peer, lambda: bool(go_on.acquire(timeout=PATIENCE)))
        assert go_on.acquire(timeout=PATIENCE)
        peer.send(rest)
        peer.half_close()
        assert peer.rest() == b""

    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(CLOSE)
        assert client.read(len(begun)) == begun
        until(lambda: open_as(proxy, "first"), "the pair is open")
        for _ in range(PIECES):
            go_on.release()
            assert client.read(5) == b"piece"
        until(lambda: open_as(proxy, "lasting"), "the kernel has the pair")
        go_on.release()
        assert client.rest() == rest
        port = client.port
    record = proxy.record(port)
    assert (record["reason"], record["datapath"]) == ("done", proxy.datapath)
    assert record["bytes_out"] == len(begun) + 5 * PIECES + len(rest)
    if proxy.datapath == "sockmap":
        assert 0 < record["kernel_out"] <= len(rest) + 5 * PIECES


def test_a_stream_is_spliced_when_the_backend_has_answered(proxy: Proxy, backend: Backend) -> None:
    go_on = threading.Event()

    def script(peer: Peer) -> None:
        assert peer.read(3) == b"one"
        assert go_on.wait(PATIENCE)
        peer.send(b"two")
        assert peer.rest() == b"three"
        peer.send(b"four")

    backend.play(script)
    with connect(proxy.address("raw")) as client:
        client.send(b"one")
        until(lambda: open_as(proxy, "first"), "the pair is open")
        go_on.set()
        assert client.read(3) == b"two"
        until(lambda: open_as(proxy, "lasting"), "the pair lasts")
        client.send(b"three").half_close()
        assert client.rest() == b"four"
        port = client.port
    record = proxy.record(port)
    assert (record["reason"], record["bytes_in"], record["bytes_out"]) == ("done", 8, 7)


def test_a_stream_of_which_much_has_come_is_spliced_when_it_is_calm(
    proxy: Proxy, backend: Backend
) -> None:
    def script(peer: Peer) -> None:
        assert peer.read(5) == b"begin"
        backend.tell("begun")
        assert peer.read(50_000) == bytes(50_000)
        backend.tell("all")
        for _ in range(PIECES):
            assert peer.read(5) == b"piece"
            backend.tell("piece")
        assert len(peer.rest()) == 50_000

    backend.play(script)
    with connect(proxy.address("raw")) as client:
        client.send(b"begin")
        assert backend.heard() == "begun"
        client.send(bytes(50_000))
        assert backend.heard() == "all"
        for _ in range(PIECES):
            client.send(b"piece")
            assert backend.heard() == "piece"
        until(lambda: open_as(proxy, "lasting"), "the kernel has the pair")
        client.send(bytes(50_000)).half_close()
        assert client.rest() == b""
        port = client.port
    assert proxy.record(port)["bytes_in"] == 100_005 + 5 * PIECES


def test_urgent_data_among_the_first_bytes_is_refused(proxy: Proxy, backend: Backend) -> None:
    def script(peer: Peer) -> None:
        assert peer.read(5) == b"begin"
        backend.tell("begun")
        backend.tell(peer.ending())

    backend.play(script)
    with connect(proxy.address("raw")) as client:
        client.send(b"begin")
        assert backend.heard() == "begun"
        until(lambda: open_as(proxy, "first"), "the pair is open")
        client.sock.send(b"!", socket.MSG_OOB)
        assert client.ending() == "reset"
        port = client.port
    assert backend.heard() == "reset"
    assert proxy.record(port)["reason"] == "urgent_data"
