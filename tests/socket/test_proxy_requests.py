"""Requests through the running proxy: each test is the transcript of one connection, on every
datapath. Whatever the two ends do, each sees the other's bytes, all of them, in order, and its end.
"""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from typing import Any

import pytest
from peers import PATIENCE, Backend, Peer, connect, digest, stream
from proxy import Proxy, until

pytestmark = pytest.mark.net

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def answer_one(backend: Backend, answer: bytes = ANSWER) -> None:
    """Tell the head of the one request that comes, answer, close when the client has closed."""

    def script(peer: Peer) -> None:
        backend.tell(peer.head())
        peer.send(answer)
        assert peer.rest() == b""

    backend.play(script)


def request(*headers: bytes, line: bytes = b"GET / HTTP/1.1", host: bytes = b"app.test") -> bytes:
    return b"\r\n".join((line, b"Host: " + host, *headers, b"", b""))


def has_a_pair(proxy: Proxy) -> dict[str, Any] | None:
    """The statistics, if there is one."""
    stats = proxy.stats()
    return stats if stats["pairs"]["active"] else None


# ---- what the backend sees


def test_the_head_is_written_anew(proxy: Proxy, backend: Backend) -> None:
    answer_one(backend)
    with connect(proxy.address("web")) as client:
        client.send(
            b"GET /a%20b?q=1 HTTP/1.1\r\nhOsT: App.Test:80\r\nUser-Agent:  me \r\n"
            b"Connection: x-gone\r\nX-Gone: 1\r\nX-Forwarded-For: 10.0.0.1\r\nVia: 1.0 old\r\n\r\n"
        )
        assert client.read(len(ANSWER)) == ANSWER
    assert backend.heard() == (
        b"GET /a%20b?q=1 HTTP/1.1\r\nHost: App.Test:80\r\nUser-Agent: me\r\n"
        # 127.0.0.1 is no trusted proxy: what it says of hops before it goes no further
        b"X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\n"
        b"X-Forwarded-Host: App.Test:80\r\nVia: 1.0 old, 1.1 l7proxy\r\n\r\n"
    )


def test_a_client_of_ipv6(proxy: Proxy, backend: Backend) -> None:
    answer_one(backend)
    with connect(proxy.address("six")) as client:
        client.send(request())
        assert client.read(len(ANSWER)) == ANSWER
        port = client.port
    assert b"\r\nX-Forwarded-For: ::1\r\n" in backend.heard()
    assert proxy.record(port)["client"] == f"[::1]:{port}"


def test_the_record_of_a_request(proxy: Proxy, backend: Backend) -> None:
    answer_one(backend)
    before = proxy.settled()
    with connect(proxy.address("web")) as client:
        client.send(sent := request(line=b"GET /v2/users?x=1 HTTP/1.1", host=b"api.test"))
        assert client.read(len(ANSWER)) == ANSWER
        port = client.port
        spliced = proxy.datapath == "sockmap"  # a moment after the answer: it lasts
        until(lambda: proxy.stats()["pairs"]["spliced"] == spliced, "the pair is spliced")
        live = until(lambda: has_a_pair(proxy), "the pair is open")
    record, after = proxy.record(port), proxy.settled()
    told = {name: record[name] for name in ("listener", "route", "backend", "method", "host")}
    assert told == {
        "listener": "web",
        "route": "api",
        "backend": "app",
        "method": "GET",
        "host": "api.test",
    }
    assert record["path"] == "/v2/users"
    assert record["endpoint"] == f"127.0.0.1:{backend.port}"
    assert record["datapath"] == proxy.datapath == after["datapath"]
    assert (record["reason"], record["status"]) == ("done", None)
    assert (record["bytes_in"], record["bytes_out"]) == (len(sent), len(ANSWER))
    times = [record[name] for name in ("head_ms", "dial_ms", "splice_ms", "total_ms")]
    assert times == sorted(times)
    assert live["connections"]["active"] == live["pairs"]["active"] == 1
    assert after["connections"]["accepted"] == before["connections"]["accepted"] + 1
    assert after["errors"] == before["errors"]


# ---- how a request may come


def test_a_head_byte_by_byte(proxy: Proxy, backend: Backend) -> None:
    answer_one(backend)
    with connect(proxy.address("web")) as client:
        client.drip(request(b"X-Long: " + b"a" * 100), 0.0005)
        assert client.read(len(ANSWER)) == ANSWER
    assert b"X-Long: " + b"a" * 100 + b"\r\n" in backend.heard()


@pytest.mark.parametrize("size", [1, 40_000, 3_000_000])
def test_a_body_in_the_segment_of_its_head(proxy: Proxy, backend: Backend, size: int) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        backend.tell(peer.digest_of(size))
        peer.send(ANSWER)
        assert peer.rest() == b""

    backend.play(script)
    head = request(b"Content-Length: %d" % size, line=b"POST /up HTTP/1.1")
    with connect(proxy.address("web")) as client:
        client.send(head + b"".join(stream(5, size)))
        assert client.read(len(ANSWER)) == ANSWER
        port = client.port
    assert backend.heard() == digest(5, size)
    record = proxy.record(port)
    assert (record["bytes_in"], record["bytes_out"]) == (len(head) + size, len(ANSWER))


def test_requests_that_do_not_wait_for_answers(proxy: Proxy, backend: Backend) -> None:
    """Pipelined: the later ones follow the first as they are, parsed by nobody."""
    later = b"".join(b"GET /%d HTTP/1.1\r\nHost: other\r\n\r\n" % n for n in range(20))

    def script(peer: Peer) -> None:
        peer.head()
        backend.tell(peer.read(len(later)))
        peer.send(ANSWER * 21)
        assert peer.rest() == b""

    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(request() + later)
        assert client.read(21 * len(ANSWER)) == 21 * ANSWER
    assert backend.heard() == later


def test_one_request_after_the_other(proxy: Proxy, backend: Backend) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.send(ANSWER)
        for n in range(200):
            assert peer.head() == b"GET /%d HTTP/1.1\r\nHost: app.test\r\n\r\n" % n
            peer.send(ANSWER)
        assert peer.rest() == b""

    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(request())
        assert client.read(len(ANSWER)) == ANSWER
        for n in range(200):
            client.send(b"GET /%d HTTP/1.1\r\nHost: app.test\r\n\r\n" % n)
            assert client.read(len(ANSWER)) == ANSWER


def test_a_client_that_sends_and_half_closes_at_once(proxy: Proxy, backend: Backend) -> None:
    """`nc -N`: its socket is in CLOSE_WAIT before the splice, which no SOCKMAP takes."""

    def script(peer: Peer) -> None:
        backend.tell(peer.head())
        assert peer.rest() == b""
        peer.send(ANSWER)

    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(request()).half_close()
        assert client.rest() == ANSWER
        port = client.port
    assert proxy.record(port)["reason"] == "done"


def test_a_half_close_long_before_the_answer(proxy: Proxy, backend: Backend) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        backend.tell("head")
        assert peer.rest() == b"more"
        backend.tell("end")
        time.sleep(0.2)  # long enough for a proxy that takes the one end for both
        peer.send(ANSWER)

    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(request())
        assert backend.heard() == "head"
        until(lambda: proxy.stats()["pairs"]["active"] == 1, "the pair is open")
        client.send(b"more").half_close()
        assert backend.heard() == "end"
        assert client.rest() == ANSWER
        port = client.port
    record = proxy.record(port)
    # a pair is spliced once the backend has answered, and only if neither end has ended
    assert (record["reason"], record["datapath"]) == ("done", "copy")


def test_a_half_close_long_before_the_second_answer(proxy: Proxy, backend: Backend) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.send(ANSWER)
        assert peer.rest() == b"more"
        backend.tell("end")
        time.sleep(0.2)
        peer.send(ANSWER)

    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(request())
        assert client.read(len(ANSWER)) == ANSWER
        way = "spliced" if proxy.datapath == "sockmap" else "relayed"
        until(lambda: proxy.stats()["pairs"][way] == 1, "the pair is open")
        client.send(b"more").half_close()
        assert backend.heard() == "end"
        assert client.rest() == ANSWER
        port = client.port
    record = proxy.record(port)
    assert (record["reason"], record["datapath"]) == ("done", proxy.datapath)


def test_a_backend_that_half_closes_and_reads_on(proxy: Proxy, backend: Backend) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.send(ANSWER).half_close()
        backend.tell(peer.rest())

    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(request())
        assert client.rest() == ANSWER
        client.send(b"thank you").half_close()
    assert backend.heard() == b"thank you"


def test_http_1_0(proxy: Proxy, backend: Backend) -> None:
    """The backend is spoken to in 1.0 too, for its answer goes through the kernel as it is."""

    def script(peer: Peer) -> None:
        backend.tell(peer.head())
        peer.send(b"HTTP/1.0 200 OK\r\n\r\nall of it")

    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(b"GET / HTTP/1.0\r\nHost: app.test\r\n\r\n")
        assert client.rest() == b"HTTP/1.0 200 OK\r\n\r\nall of it"
    heard = backend.heard()
    assert heard.startswith(b"GET / HTTP/1.0\r\nHost: app.test\r\n")
    assert b"\r\nConnection: close\r\n" in heard
    assert b"\r\nVia: 1.0 l7proxy\r\n" in heard


def test_expect_100_continue(proxy: Proxy, backend: Backend) -> None:
    go_on = b"HTTP/1.1 100 Continue\r\n\r\n"

    def script(peer: Peer) -> None:
        backend.tell(peer.head())
        assert peer.silent()
        peer.send(go_on)
        backend.tell(peer.read(4))
        peer.send(ANSWER)
        assert peer.rest() == b""

    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(request(b"Content-Length: 4", b"Expect: 100-continue", line=b"PUT / HTTP/1.1"))
        assert client.read(len(go_on)) == go_on
        client.send(b"body")
        assert client.read(len(ANSWER)) == ANSWER
    assert b"\r\nExpect: 100-continue\r\n" in backend.heard()
    assert backend.heard() == b"body"


def test_head(proxy: Proxy, backend: Backend) -> None:
    """The answer to HEAD announces a body that never comes; nobody waits for it."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"

    def script(peer: Peer) -> None:
        backend.tell(peer.head())
        peer.send(answer)
        assert peer.head() == b"GET /next HTTP/1.1\r\n\r\n"
        peer.send(ANSWER)

    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(request(line=b"HEAD / HTTP/1.1"))
        assert client.read(len(answer)) == answer
        client.send(b"GET /next HTTP/1.1\r\n\r\n")
        assert client.rest() == ANSWER


def test_an_answer_before_the_body_has_come(proxy: Proxy, backend: Backend) -> None:
    """The client has its answer while it still sends, and every byte of its body arrives."""
    size = 2_000_000

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(ANSWER)
        assert backend_may_read.wait(PATIENCE)
        backend.tell(peer.rest_digest())

    backend_may_read = threading.Event()
    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(request(b"Content-Length: %d" % size, line=b"POST / HTTP/1.1"))
        pieces = stream(9, size)
        client.send(bytes(next(pieces))[:1000])
        assert client.read(len(ANSWER)) == ANSWER
        backend_may_read.set()
        client.send(b"".join(stream(9, size))[1000:]).half_close()
        assert client.rest() == b""
    assert backend.heard() == (size, digest(9, size))


def test_a_chunked_body_with_trailers(proxy: Proxy, backend: Backend) -> None:
    body = b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nX-Sum: 1\r\n\r\n"

    def script(peer: Peer) -> None:
        backend.tell(peer.head())
        backend.tell(peer.read(len(body)))
        peer.send(ANSWER)
        assert peer.rest() == b""

    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(request(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.1") + body[:9])
        client.drip(body[9:])
        assert client.read(len(ANSWER)) == ANSWER
    assert b"\r\nTransfer-Encoding: chunked\r\n" in backend.heard()
    assert backend.heard() == body


# ---- streams


def test_a_web_socket(proxy: Proxy, backend: Backend) -> None:
    key = b"dGhlIHNhbXBsZSBub25jZQ=="
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    switch = (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )

    def script(peer: Peer) -> None:
        head = peer.head()
        assert b"\r\nUpgrade: websocket\r\n" in head
        assert b"\r\nConnection: upgrade\r\n" in head.replace(b"Upgrade\r\n", b"upgrade\r\n")
        assert b"\r\nSec-WebSocket-Key: " + key + b"\r\n" in head
        peer.send(switch + b"\x81\x05first")  # a frame right behind the head
        while data := peer.sock.recv(1 << 16):
            peer.send(data)

    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(
            request(
                b"Connection: Upgrade",
                b"Upgrade: websocket",
                b"Sec-WebSocket-Version: 13",
                b"Sec-WebSocket-Key: " + key,
            )
        )
        assert client.read(len(switch)) == switch
        assert client.read(7) == b"\x81\x05first"
        for size in (1, 125, 70_000, 3, 400_000):
            frame = b"".join(stream(size, size))
            client.send(frame)
            assert client.read(size) == frame
        client.half_close()
        assert client.rest() == b""


def test_a_backend_that_speaks_first(proxy: Proxy, backend: Backend) -> None:
    def script(peer: Peer) -> None:
        peer.send(b"220 ready\r\n")
        assert peer.head() == b"HELO\r\n\r\n"
        peer.send(b"221 bye\r\n")

    backend.play(script)
    with connect(proxy.address("raw")) as client:
        assert client.read(11) == b"220 ready\r\n"
        client.send(b"HELO\r\n\r\n")
        assert client.rest() == b"221 bye\r\n"
        port = client.port
    record = proxy.record(port)
    assert (record["protocol"], record["route"], record["method"]) == ("TCP", "raw", "")
    assert (record["bytes_in"], record["bytes_out"]) == (8, 20)


def test_a_stream_that_nobody_uses(proxy: Proxy, backend: Backend) -> None:
    backend.play(lambda peer: backend.tell(peer.rest()))
    with connect(proxy.address("raw")) as client:
        client.half_close()
        assert client.rest() == b""
        port = client.port
    assert backend.heard() == b""
    record = proxy.record(port)
    assert (record["reason"], record["bytes_in"], record["bytes_out"]) == ("done", 0, 0)


def test_both_ends_send_before_either_reads(proxy: Proxy, backend: Backend) -> None:
    """Until nobody takes a byte any more; what is passed to user space then waits behind what is
    being sent to the same socket. Then both read, and everything is there."""

    def script(peer: Peer) -> None:
        sent = peer.flood(seed=1)
        backend.tell("full")
        assert both_full.wait(PATIENCE)
        peer.half_close()
        backend.tell((sent, *peer.rest_digest()))

    both_full = threading.Event()
    backend.play(script)
    with connect(proxy.address("raw"), receive_buffer=1 << 16) as client:
        sent = client.flood(seed=2)
        assert backend.heard() == "full"
        both_full.set()
        client.half_close()
        size, found = client.rest_digest()
        port = client.port
    their_sent, their_size, their_digest = backend.heard()
    assert (size, found) == (their_sent, digest(1, their_sent))
    assert (their_size, their_digest) == (sent, digest(2, sent))
    record = proxy.record(port)
    assert (record["bytes_in"], record["bytes_out"], record["reason"]) == (sent, size, "done")


def test_both_ends_at_once(proxy: Proxy, backend: Backend) -> None:
    """One MiB each way, dripped out of step, then both half-close."""
    size = 1 << 20

    def script(peer: Peer) -> None:
        for piece in stream(1, size):
            peer.send(piece)
        peer.half_close()
        backend.tell(peer.rest_digest())

    backend.play(script)
    with connect(proxy.address("raw")) as client:
        for piece in stream(2, size):
            client.send(piece)
        client.half_close()
        assert client.rest_digest() == (size, digest(1, size))
        port = client.port
    assert backend.heard() == (size, digest(2, size))
    record = proxy.record(port)
    assert (record["bytes_in"], record["bytes_out"], record["reason"]) == (size, size, "done")
