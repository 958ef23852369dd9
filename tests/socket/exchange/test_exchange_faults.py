"""What goes wrong: nobody gets another one's response, and what was cut never looks complete."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest
from exchanging import Message, ask, echo, get, ok, post, read_head, read_message, serve
from peers import PATIENCE, Backend, Ended, Peer, connect, stream
from proxy import Proxy, until

pytestmark = pytest.mark.net


# ---- kept connections that have ended


def stale(backend: Backend, after: int = 1) -> None:
    """A backend that closes a connection when another request comes on it, without a word."""

    def script(peer: Peer) -> None:
        for _ in range(after):
            request = read_message(peer)
            peer.send(ok(request.path))
        with contextlib.suppress(Ended, ConnectionResetError):
            backend.tell(read_head(peer).line)

    backend.play(script)


@pytest.mark.parametrize("method", [b"GET", b"PUT", b"DELETE", b"OPTIONS"])
def test_a_request_that_may_be_repeated_is(proxy: Proxy, one: Backend, method: bytes) -> None:
    stale(one)
    before = proxy.stats()["requests"]["stale"]
    body = b"x" if method == b"PUT" else b""
    with connect(proxy.address("web")) as client:
        assert ask(client, get(b"/one/1")).body == b"/one/1"
        assert ask(client, post(b"/one/2", body, method=method)).body == b"/one/2"
    assert one.heard() == method + b" /one/2 HTTP/1.1"
    until(lambda: proxy.stats()["requests"]["stale"] == before + 1, "it is counted")
    assert one.accepted == 2
    one.hang_up()


def test_a_request_that_must_not_be_repeated_is_not(proxy: Proxy, one: Backend) -> None:
    stale(one)
    with connect(proxy.address("web")) as client:
        assert ask(client, get(b"/one/1")).body == b"/one/1"
        assert ask(client, post(b"/one/2", b"x")).status == 502
        assert ask(client, get(b"/one/3")).body == b"/one/3"  # nor does it end the connection
    one.hang_up()


def test_it_is_repeated_once(proxy: Proxy, one: Backend) -> None:
    """The second connection is a new one: what it does not answer, it may have carried out."""

    def script(peer: Peer) -> None:
        request = read_message(peer)
        if one.accepted == 1:
            peer.send(ok(request.path))
            read_head(peer)

    one.play(script)
    with connect(proxy.address("web")) as client:
        assert ask(client, get(b"/one/1")).status == 200
        assert ask(client, get(b"/one/2")).status == 502
    assert one.accepted == 2


def test_one_that_ended_meanwhile_is_not_used(proxy: Proxy, one: Backend) -> None:
    def script(peer: Peer) -> None:
        peer.send(ok(read_message(peer).path))

    one.play(script)
    before = proxy.stats()["requests"]["stale"]
    with connect(proxy.address("web")) as client:
        for number in range(3):
            assert ask(client, post(b"/one/%d" % number, b"x")).body == b"/one/%d" % number
            until(lambda: proxy.stats()["requests"]["pooled"] == 0, "it is seen to have ended")
    assert proxy.stats()["requests"]["stale"] == before
    assert one.accepted == 3


# ---- responses that nobody asked for


@pytest.mark.parametrize("late", [False, True], ids=["at once", "later"])
def test_what_follows_a_response_answers_nobody(proxy: Proxy, one: Backend, late: bool) -> None:
    poison = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"

    def script(peer: Peer) -> None:
        with contextlib.suppress(Ended, ConnectionResetError, BrokenPipeError):
            request = read_message(peer)
            if not late:
                peer.send(ok(request.path) + poison)
            else:
                peer.send(ok(request.path))
                if one.accepted == 1:
                    time.sleep(0.05)
                    peer.send(poison)
            one.tell(peer.ending())

    one.play(script)
    with connect(proxy.address("web")) as client, connect(proxy.address("web")) as other:
        assert ask(client, get(b"/one/1")).body == b"/one/1"
        if late:
            one.heard()
        assert ask(other, get(b"/one/2")).body == b"/one/2"
        if not late:
            assert ask(client, get(b"/one/3")).body == b"/one/3"
    assert one.accepted == (2 if late else 3)
    one.hang_up()


BAD = {
    "a length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
    "a bare LF": b"HTTP/1.1 200 OK\nContent-Length: 5\r\n\r\nabcde",
    "no status line": b"ICY 200 OK\r\n\r\nabcde",
    "a folded line": b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "an upgrade that nobody wants": b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n"
    b"Upgrade: x\r\n\r\n",
}


@pytest.mark.parametrize("answer", BAD.values(), ids=BAD.keys())
def test_an_ambiguous_response_is_refused(proxy: Proxy, one: Backend, answer: bytes) -> None:
    """502; and its connection is closed, so that nobody else gets what is left of it."""

    def handler(_: Peer, request: Message) -> bytes:
        return answer if request.path == b"/one/bad" else ok(request.path)

    serve(one, handler)
    with connect(proxy.address("web")) as client:
        assert ask(client, get(b"/one/1")).body == b"/one/1"
        assert ask(client, get(b"/one/bad")).status == 502
        assert ask(client, get(b"/one/2")).body == b"/one/2"
        name = f"127.0.0.1:{client.port}"
    assert one.accepted == 2
    found = until(
        lambda: [r for r in proxy.records() if r["client"] == name and r["status"] == 502],
        "its record",
    )
    assert found[-1]["reason"] == "bad_response"
    assert found[-1]["rule"]


@pytest.mark.parametrize("late", [False, True], ids=["at once", "later"])
def test_bad_chunks_of_a_backend(proxy: Proxy, one: Backend, late: bool) -> None:
    """Once the client has the head there is nothing left but a reset."""

    def handler(peer: Peer, _: Message) -> bytes:
        begin = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
        if late:
            peer.send(begin)
            assert has_begun.wait(PATIENCE)
        return b"x\r\n" if late else begin + b"x\r\n"

    has_begun = threading.Event()
    serve(one, handler)
    with connect(proxy.address("web")) as client:
        client.send(get(b"/one"))
        if late:
            read_head(client)
            has_begun.set()
            assert client.ending() == "reset"
        else:
            assert read_message(client).status == 502
        port = client.port
    assert proxy.record(port)["reason"] == "bad_response"


@pytest.mark.parametrize("begun", [False, True], ids=["with the head", "later"])
def test_bad_chunks_of_a_client(proxy: Proxy, one: Backend, begun: bool) -> None:
    """400, and the backend sees a reset: no end of a body."""
    one.play(lambda peer: one.tell(peer.ending()))
    begin = get(b"/one", b"Transfer-Encoding: chunked\r\n", method=b"POST") + b"3\r\nabc\r\n"
    with connect(proxy.address("web")) as client:
        if begun:
            client.send(begin)
            until(lambda: proxy.connections("state=exchange"), "the request is on its way")
        client.send((b"" if begun else begin) + b"+1\r\nx\r\n0\r\n\r\n")
        answer = read_message(client)
        assert (answer.status, answer.fields[b"connection"]) == (400, b"close")
    if begun:
        assert one.heard() == "reset"


# ---- bodies that are cut


@pytest.mark.parametrize("how", ["close", "half_close", "reset"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_request_that_is_cut(proxy: Proxy, one: Backend, how: str, chunked: bool) -> None:
    def script(peer: Peer) -> None:
        one.tell("here")
        one.tell(peer.ending())

    one.play(script)
    framing = b"Transfer-Encoding: chunked\r\n" if chunked else b"Content-Length: 10\r\n"
    with connect(proxy.address("web")) as client:
        client.send(
            get(b"/one", framing, method=b"POST") + (b"3\r\nabc\r\n" if chunked else b"abc")
        )
        assert one.heard() == "here"
        time.sleep(0.05)
        getattr(client, how)()
        assert one.heard() == "reset"


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize(
    "framing", [b"Transfer-Encoding: chunked\r\n", b"Content-Length: 10\r\n", b""]
)
def test_a_response_that_is_cut(proxy: Proxy, one: Backend, how: str, framing: bytes) -> None:
    if not framing and how == "close":
        pytest.skip("that is how such a body ends")

    def script(peer: Peer) -> None:
        read_message(peer)
        data = b"3\r\nabc\r\n" if b"chunked" in framing else b"abc"
        peer.send(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n" + data)
        assert has_begun.wait(PATIENCE)
        getattr(peer, how)()

    has_begun = threading.Event()
    one.play(script)
    with connect(proxy.address("web")) as client:
        client.send(get(b"/one"))
        read_head(client)
        has_begun.set()
        assert client.ending() == "reset"
        port = client.port
    assert proxy.record(port)["reason"] == "backend_reset"


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nContent-"])
def test_a_backend_that_ends_without_an_answer(proxy: Proxy, one: Backend, said: bytes) -> None:
    def script(peer: Peer) -> None:
        read_message(peer)
        peer.send(said)

    one.play(script)
    with connect(proxy.address("web")) as client:
        assert ask(client, get(b"/one")).status == 502
        assert ask(client, get(b"/nowhere")).status == 404
        name = f"127.0.0.1:{client.port}"
    until(
        lambda: any(
            r["reason"] == "backend_closed" for r in proxy.records() if r["client"] == name
        ),
        "its record",
    )


def test_a_client_that_leaves_before_its_response(proxy: Proxy, one: Backend) -> None:
    """Its backend's connection is in the middle of something, and is given up."""

    def script(peer: Peer) -> None:
        one.tell(read_message(peer).path)
        if one.accepted == 1:
            one.tell(peer.ending())
        else:
            peer.send(ok(b"other"))
            peer.ending()

    one.play(script)
    client = connect(proxy.address("web"))
    client.send(get(b"/one/1"))
    assert one.heard() == b"/one/1"
    client.reset()
    assert one.heard() == "reset"
    with connect(proxy.address("web")) as other:
        assert ask(other, get(b"/one/2")).body == b"other"
    one.hang_up()


def test_a_client_that_half_closes_gets_its_response(proxy: Proxy, one: Backend) -> None:
    serve(one, echo)
    with connect(proxy.address("web")) as client:
        client.send(get(b"/one/1") + get(b"/one/2")).half_close()
        assert read_message(client).body == b"/one/1 "
        assert read_message(client).body == b"/one/2 "
        assert client.rest() == b""


def test_urgent_data(proxy: Proxy, one: Backend) -> None:
    serve(one, echo)
    with connect(proxy.address("web")) as client:
        assert ask(client, get(b"/one")).status == 200
        client.urgent()
        assert client.ending() == "reset"


# ---- time


def test_half_a_head(proxy: Proxy, one: Backend) -> None:
    serve(one, echo)
    with connect(proxy.address("hasty")) as client:
        assert ask(client, get(b"/one")).status == 200
        client.send(b"GET /one HT")
        assert read_message(client).status == 408
        assert client.rest() == b""


def test_a_backend_that_does_not_answer(proxy: Proxy, one: Backend) -> None:
    def script(peer: Peer) -> None:
        read_message(peer)
        peer.ending()

    one.play(script)
    with connect(proxy.address("restless")) as client:
        assert ask(client, get(b"/one")).status == 504
        port = client.port
    assert proxy.record(port)["reason"] == "idle_timeout"


def test_a_backend_that_pauses_within_its_response(proxy: Proxy, one: Backend) -> None:
    def script(peer: Peer) -> None:
        read_message(peer)
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        peer.ending()

    one.play(script)
    with connect(proxy.address("restless")) as client:
        client.send(get(b"/one"))
        assert client.ending() == "reset"


def test_a_client_that_does_not_read(proxy: Proxy, one: Backend) -> None:
    def script(peer: Peer) -> None:
        read_message(peer)
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for piece in stream(1, 100_000_000):
                peer.send(piece)

    one.play(script)
    with connect(proxy.address("restless"), receive_buffer=4096) as client:
        client.send(get(b"/one"))
        assert proxy.record(client.port)["reason"] == "stalled"


def test_a_backend_that_answers_and_ends_at_once_leaves_nobody_waiting(
    proxy: Proxy, one: Backend
) -> None:
    """Its end comes with its answer, amid the request: nothing tells of it again."""

    def script(peer: Peer) -> None:
        read_head(peer)
        peer.read(10)
        peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        peer.send(b"HTTP/1.1 403 Forbidden\r\n\r\nno")
        peer.half_close()  # both in one segment
        peer.ending()

    one.play(script)
    with connect(proxy.address("web")) as client:
        client.send(get(b"/one", b"Content-Length: 1000\r\n", b"POST") + b"x" * 10)
        answer = read_message(client)
        assert (answer.status, answer.body) == (403, b"no")
        assert client.rest() == b""
