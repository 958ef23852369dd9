"""Copies of requests: what the second backend gets, and that the client never notices it."""

from __future__ import annotations

import contextlib
import time

import pytest
from exchanging import Message, ask, get, ok, post, read_message, serve
from peers import Backend, Peer, connect
from proxy import Proxy, until

pytestmark = pytest.mark.net


@pytest.fixture
def counted(proxy: Proxy) -> dict[str, int]:
    """What the counters of copies were before the test."""
    found: dict[str, int] = proxy.stats()["requests"]
    return found


def answer(_: Peer, request: Message) -> bytes:
    return ok(b"first " + request.path)


def second(_: Peer, request: Message) -> bytes:
    return ok(b"second " + request.path * 100)


def test_the_second_backend_gets_what_the_first_gets(
    proxy: Proxy, one: Backend, two: Backend, counted: dict[str, int]
) -> None:
    serve(one, answer)
    serve(two, second)
    body = b"z" * 60_000
    with connect(proxy.address("web")) as client:
        assert ask(client, get(b"/copied/a?b")).body == b"first /in/a?b"
        assert ask(client, post(b"/copied/c", body)).body == b"first /in/c"
        chunks = get(b"/copied/d", b"Transfer-Encoding: chunked\r\n", b"PUT")
        pieces = b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\n\r\n"
        assert ask(client, chunks + pieces).body == b"first /in/d"
        assert ask(client, get(b"/copied/e", method=b"HEAD"), bodiless=True).status == 200
        ports = set()
        for path, expected in (
            (b"/in/a?b", b""),
            (b"/in/c", body),
            (b"/in/d", b"abcdefg"),
            (b"/in/e", b""),
        ):
            (_, first), (port, copy) = one.heard(), two.heard()
            assert copy.line == first.line
            assert (copy.path, copy.body) == (path, expected)
            assert copy.fields == first.fields
            assert copy.fields[b"x-new"] == b"1"
            ports.add(port)
        assert len(ports) < 4  # kept connections
    until(lambda: proxy.stats()["requests"]["mirrored"] - counted["mirrored"] == 4, "counted")
    assert proxy.stats()["requests"]["mirrors_lost"] == counted["mirrors_lost"]


def test_a_large_body_is_not_copied(
    proxy: Proxy, one: Backend, two: Backend, counted: dict[str, int]
) -> None:
    serve(one, answer)
    serve(two, second)
    with connect(proxy.address("web")) as client:
        for request in (
            post(b"/copied/1", b"x" * 65_537),
            get(b"/copied/2", b"Transfer-Encoding: chunked\r\n", b"POST")
            + b"10001\r\n"
            + b"y" * 65_537
            + b"\r\n0\r\n\r\n",
        ):
            assert ask(client, request).status == 200
        assert ask(client, get(b"/copied/3")).status == 200
    assert two.heard()[1].path == b"/in/3"
    until(lambda: proxy.stats()["requests"]["mirrors_lost"] - counted["mirrors_lost"] == 2, "lost")


@pytest.mark.parametrize("fault", ["silent", "reset", "garbage", "endless", "close"])
def test_whatever_the_second_one_does_the_client_is_served(
    proxy: Proxy, one: Backend, two: Backend, fault: str
) -> None:
    def script(peer: Peer) -> None:
        two.tell(read_message(peer).path)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # the test is over
            misbehave(peer)

    def misbehave(peer: Peer) -> None:
        if fault == "reset":
            peer.reset()
        elif fault == "garbage":
            peer.send(b"SSH-2.0-x\r\n")
            peer.ending()
        elif fault == "endless":
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 900000000\r\n\r\n")
            peer.flood(seconds=2.0)
        elif fault == "close":
            peer.send(ok(b"x", b"Connection: close\r\n"))
            peer.ending()
        else:
            time.sleep(0.5)

    serve(one, answer)
    two.play(script)
    with connect(proxy.address("web")) as client:
        for n in range(3):
            assert ask(client, get(b"/copied/%d" % n)).body == b"first /in/%d" % n
        assert sorted(two.heard() for _ in range(3)) == [b"/in/0", b"/in/1", b"/in/2"]


def test_nobody_is_there_to_take_copies(proxy: Proxy, one: Backend) -> None:
    serve(one, answer)
    with connect(proxy.address("web")) as client:
        for _ in range(3):
            assert ask(client, get(b"/void")).status == 200
    until(lambda: not proxy.stats()["backends"]["void"]["connections"], "nothing is left")


def test_the_first_one_fails_and_the_copy_went_all_the_same(
    proxy: Proxy, one: Backend, two: Backend
) -> None:
    def script(peer: Peer) -> None:
        one.tell(read_message(peer).path)
        peer.reset()

    one.play(script)
    serve(two, second)
    with connect(proxy.address("web")) as client:
        assert ask(client, post(b"/copied/x", b"1")).status == 502
    assert two.heard()[1].body == b"1"


def test_one_in_five(proxy: Proxy, one: Backend, two: Backend, counted: dict[str, int]) -> None:
    serve(one, answer)
    serve(two, second)
    with connect(proxy.address("web")) as client:
        for _ in range(100):
            assert ask(client, get(b"/few")).status == 200
    found = proxy.stats()["requests"]["mirrored"] - counted["mirrored"]
    assert 3 <= found <= 45  # all but one in a million times


def test_an_upgrade_is_not_copied(proxy: Proxy, one: Backend, counted: dict[str, int]) -> None:
    def script(peer: Peer) -> None:
        read_message(peer)
        peer.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
        assert peer.read(2) == b"hi"
        peer.send(b"ho")
        peer.half_close()
        peer.ending()

    one.play(script)
    with connect(proxy.address("web")) as client:
        found = ask(client, get(b"/copied", b"Connection: upgrade\r\nUpgrade: x\r\n"))
        assert found.status == 101
        client.send(b"hi")
        assert client.read(2) == b"ho"
        client.half_close()
    assert proxy.stats()["requests"]["mirrored"] == counted["mirrored"]


def test_a_second_backend_that_wants_to_know_the_client(
    proxy: Proxy, one: Backend, two: Backend
) -> None:
    serve(one, answer)
    heads = []

    def script(peer: Peer) -> None:
        two.tell(peer.head())
        peer.send(ok())
        two.tell(peer.ending())

    two.play(script)
    with connect(proxy.address("web")) as client:
        port = client.port
        for _ in range(2):
            assert ask(client, get(b"/told")).status == 200
            heads.append(two.heard())
            assert two.heard() in ("end", "reset")  # it is not kept: it tells of one client
    for head in heads:
        first, request, *_ = head.split(b"\r\n")
        assert first.startswith(b"PROXY TCP4 127.0.0.1 127.0.0.1 %d " % port)
        assert request == b"GET /told HTTP/1.1"
