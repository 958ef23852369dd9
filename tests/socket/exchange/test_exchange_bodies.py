"""Bodies: lengths, chunks, ends of connections, none at all; and heads before the final one."""

from __future__ import annotations

import contextlib
import hashlib
import threading

import pytest
from exchanging import Message, ask, echo, get, ok, post, read_head, read_message, serve
from peers import Backend, Ended, Peer, connect, digest, stream
from proxy import Proxy

pytestmark = pytest.mark.net

CHUNKED = b"Transfer-Encoding: chunked\r\n"
MUCH = 3_000_000


def test_chunks_are_framed_anew(proxy: Proxy, one: Backend) -> None:
    """Extensions are gone, and so are trailers that could be taken for heads; others are not."""

    def script(peer: Peer) -> None:
        backend_got.append(peer.head())
        backend_got.append(peer.read(len(b"3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n")))
        peer.send(b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"\r\n")
        peer.send(b"2;x=y\r\nde\r\n0\r\nContent-Length: 5\r\nX-Sum: 2\r\n\r\n")
        assert peer.rest() == b""

    backend_got: list[bytes] = []
    one.play(script)
    with connect(proxy.address("web")) as client:
        client.send(get(b"/one", CHUNKED, method=b"POST"))
        client.send(b'3;a="b"\r\nabc\r\n0\r\nX-Sum: 1\r\nHost: evil\r\n\r\n')
        assert client.head() == b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"\r\n"
        assert client.read(len(b"2\r\nde\r\n0\r\nX-Sum: 2\r\n\r\n")) in (
            b"2\r\nde\r\n0\r\nX-Sum: 2\r\n\r\n",
        )
    assert backend_got[1] == b"3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"
    one.hang_up()


def test_a_client_of_http_1_0_gets_no_chunks(proxy: Proxy, one: Backend) -> None:
    answer = b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    serve(one, lambda *_: answer)
    with connect(proxy.address("web")) as client:
        client.send(get(b"/one", b"Connection: keep-alive\r\n", version=b"1.0"))
        assert client.rest() == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcde"
    with connect(proxy.address("web")) as client:
        assert ask(client, get(b"/one")).body == b"abcde"
    assert one.accepted == 1


def test_a_body_that_ends_with_its_connection_is_put_in_chunks(proxy: Proxy, one: Backend) -> None:
    def script(peer: Peer) -> None:
        request = read_message(peer)
        peer.send(b"HTTP/1.0 200 OK\r\n\r\nuntil ")
        peer.send(b"the end of " + request.path)

    one.play(script)
    with connect(proxy.address("web")) as client:
        for number in range(2):
            answer = ask(client, get(b"/one/%d" % number))
            assert answer.fields[b"transfer-encoding"] == b"chunked"
            assert answer.body == b"until the end of /one/%d" % number
        client.send(get(b"/one/2", version=b"1.0"))
        assert client.rest().endswith(b"\r\n\r\nuntil the end of /one/2")
    assert one.accepted == 3


@pytest.mark.parametrize(
    ("method", "status", "fields"),
    [
        (b"HEAD", b"200 OK", b"Content-Length: 5\r\n"),
        (b"HEAD", b"200 OK", CHUNKED),
        (b"HEAD", b"200 OK", b""),
        (b"GET", b"204 No Content", b""),
        (b"GET", b"304 Not Modified", b"Content-Length: 5\r\n"),
        (b"GET", b"304 Not Modified", b"ETag: x\r\n"),
    ],
)
def test_responses_without_a_body(
    proxy: Proxy, one: Backend, method: bytes, status: bytes, fields: bytes
) -> None:
    def handler(_: Peer, request: Message) -> bytes:
        if request.path == b"/one/next":
            return ok(b"next")
        return b"HTTP/1.1 %b\r\n%b\r\n" % (status, fields)

    serve(one, handler)
    with connect(proxy.address("web")) as client:
        for _ in range(2):
            answer = ask(client, get(b"/one", method=method), bodiless=True)
            assert answer.line == b"HTTP/1.1 " + status
            if b"Content-Length" in fields:
                assert answer.fields[b"content-length"] == b"5"
            assert ask(client, get(b"/one/next")).body == b"next"
    assert one.accepted == 1


def test_large_bodies_both_ways_at_their_own_pace(proxy: Proxy, one: Backend) -> None:
    """Each longer than the buffers on its way, the response beginning before the request ends."""

    def script(peer: Peer) -> None:
        with contextlib.suppress(Ended):
            while True:
                exchange(peer)

    def exchange(peer: Peer) -> None:
        request = read_head(peer)
        length = int(request.fields[b"content-length"])
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % MUCH)
        writer = threading.Thread(target=lambda: [peer.send(x) for x in stream(2, MUCH)])
        writer.start()
        one.tell(peer.digest_of(length))
        writer.join()

    one.play(script)
    with connect(proxy.address("web")) as client:
        for number in range(2):
            client.send(get(b"/one", b"Content-Length: %d\r\n" % MUCH, method=b"POST"))
            begun = read_head(client) if number else None
            writer = threading.Thread(target=lambda: [client.send(x) for x in stream(1, MUCH)])
            writer.start()
            answer = begun or read_head(client)
            assert int(answer.fields[b"content-length"]) == MUCH
            assert client.digest_of(MUCH) == digest(2, MUCH)
            writer.join()
            assert one.heard() == digest(1, MUCH)
            if answer.fields.get(b"connection") == b"close":
                assert client.rest() == b""
                break
    one.hang_up()


def test_a_large_chunked_body(proxy: Proxy, one: Backend) -> None:
    def script(peer: Peer) -> None:
        request = read_message(peer)
        peer.send(ok(hashlib.sha256(request.body).hexdigest().encode()))
        assert peer.rest() == b""

    one.play(script)
    with connect(proxy.address("web")) as client:
        client.send(get(b"/one", CHUNKED, method=b"PUT"))
        for piece in stream(5, MUCH):
            for at in range(0, len(piece), 70_001):
                part = piece[at : at + 70_001]
                client.send(b"%x\r\n%b\r\n" % (len(part), part))
        client.send(b"0\r\n\r\n")
        assert read_message(client).body.decode() == digest(5, MUCH)
    one.hang_up()


# ---- heads before the final one


def test_a_client_that_waits_for_100(proxy: Proxy, one: Backend) -> None:
    def script(peer: Peer) -> None:
        request = read_head(peer)
        assert request.fields[b"expect"] == b"100-continue"
        peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = peer.read(4)
        peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n" + ok(body))
        assert peer.rest() == b""

    one.play(script)
    with connect(proxy.address("web")) as client:
        expects = b"Content-Length: 4\r\nExpect: 100-continue\r\n"
        client.send(get(b"/one", expects, method=b"POST"))
        assert client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"body")
        assert client.head() == b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n"
        assert read_message(client).body == b"body"
        client.send(get(b"/nowhere"))
        assert read_message(client).status == 404
    one.hang_up()


def test_a_client_that_waits_for_100_in_vain(proxy: Proxy, one: Backend) -> None:
    """Nobody can tell whether the body still comes: the connection is not kept."""

    def script(peer: Peer) -> None:
        read_head(peer)
        peer.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
        peer.ending()

    one.play(script)
    with connect(proxy.address("web")) as client:
        expects = b"Content-Length: 4\r\nExpect: 100-continue\r\n"
        answer = ask(client, get(b"/one", expects, method=b"POST"))
        assert (answer.status, answer.fields[b"connection"]) == (413, b"close")
        assert client.rest() == b""


def test_interim_heads_are_not_for_http_1_0(proxy: Proxy, one: Backend) -> None:
    serve(one, lambda *_: b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3 + ok(b"x"))
    with connect(proxy.address("web")) as client:
        client.send(get(b"/one", version=b"1.0"))
        assert client.rest().startswith(b"HTTP/1.1 200 OK\r\n")


# ---- a response before the request's end


def test_an_early_response_to_a_body_that_the_backend_still_reads(
    proxy: Proxy, one: Backend
) -> None:
    def script(peer: Peer) -> None:
        read_head(peer)
        peer.send(ok(b"early"))
        one.tell(peer.digest_of(MUCH))
        assert peer.rest() == b""

    one.play(script)
    with connect(proxy.address("web")) as client:
        client.send(get(b"/one", b"Content-Length: %d\r\n" % MUCH, method=b"POST"))
        answer = read_message(client)
        assert (answer.body, answer.fields[b"connection"]) == (b"early", b"close")
        for piece in stream(1, MUCH):
            client.send(piece)
        assert one.heard() == digest(1, MUCH)
        assert client.rest() == b""
    one.hang_up()


def test_an_early_refusal_by_a_backend_that_closes(proxy: Proxy, one: Backend) -> None:
    """The client sees it, though the backend's kernel resets what still comes."""

    def script(peer: Peer) -> None:
        read_head(peer)
        peer.send(b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\n")
        peer.send(b"Content-Length: 2\r\n\r\nno")

    one.play(script)
    with connect(proxy.address("web")) as client:
        client.send(get(b"/one", b"Content-Length: %d\r\n" % MUCH, method=b"POST"))
        client.send(bytes(100_000))
        answer = read_message(client)
        if answer.status == 502:
            # The refusal was queued behind a piece of the body that the kernel was sending there,
            # and has dropped with that.
            assert proxy.datapath == "sockmap"
        else:
            assert (answer.status, answer.body) == (413, b"no")
        assert client.rest() == b""


def test_a_receiver_that_takes_its_time(proxy: Proxy, one: Backend) -> None:
    """User space holds one buffer; the rest waits in the kernel, and the backend waits."""
    serve(one, lambda *_: ok(bytes(30_000_000)))
    with connect(proxy.address("web"), receive_buffer=4096) as client:
        client.send(get(b"/one"))
        assert read_head(client).status == 200
        assert client.digest_of(30_000_000) == hashlib.sha256(bytes(30_000_000)).hexdigest()
        assert ask(client, get(b"/nowhere")).status == 404


def test_the_body_of_one_request_is_not_the_next_one(proxy: Proxy, one: Backend) -> None:
    serve(one, echo)
    with connect(proxy.address("web")) as client:
        smuggled = get(b"/one/smuggled")
        assert ask(client, post(b"/one", smuggled)).body == b"/one " + smuggled
        chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(smuggled), smuggled)
        found = ask(client, get(b"/one", CHUNKED, method=b"POST") + chunks)
        assert found.body == b"/one " + smuggled
        assert ask(client, get(b"/one/2")).body == b"/one/2 "
