"""What routes do with a request: exact bytes at both ends, over every datapath."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from fronts import OK, answer_once, fields_of, get
from peers import PATIENCE, Backend, Peer, connect, digest, stream
from proxy import Proxy, cpu_seconds

pytestmark = pytest.mark.net


# ---- answers of our own

ANSWERS = [
    (
        b"/respond",
        b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 60\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\nContent-Length: 6\r\n"
        b"Connection: close\r\n\r\n",
        b"later\n",
        ("local_reply", "", "respond", 503),
    ),
    (
        b"/old/x?y=1",
        b"HTTP/1.1 301 Moved Permanently\r\nLocation: https://new.test/new/x?y=1\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\nContent-Length: 22\r\n"
        b"Connection: close\r\n\r\n",
        b"301 Moved Permanently\n",
        ("local_reply", "", "redirect", 301),
    ),
    (
        b"/deny",
        b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"Content-Length: 14\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n",
        b"403 Forbidden\n",
        ("denied", "deny", "deny", 403),
    ),
    (
        b"/closed",
        b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"Content-Length: 14\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n",
        b"403 Forbidden\n",
        ("denied", "access", "closed", 403),
    ),
    (
        b"/closed-answer",
        b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"Content-Length: 14\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n",
        b"403 Forbidden\n",
        ("denied", "access", "closed-answer", 403),
    ),
]


@pytest.mark.parametrize(("path", "head", "body", "logged"), ANSWERS, ids=[x[0] for x in ANSWERS])
@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST"])
def test_an_answer_of_our_own(
    proxy: Proxy,
    backend: Backend,
    path: bytes,
    head: bytes,
    body: bytes,
    logged: tuple[str, str, str, int],
    method: bytes,
) -> None:
    with connect(proxy.address("web")) as client:
        request = get(path, fields=b"Connection: close\r\n")
        client.send(method + request.removeprefix(b"GET"))
        assert client.rest() == head + (b"" if method == b"HEAD" else body)
        port = client.port
    record = proxy.record(port)
    found = (record["reason"], record["rule"], record["route"], record["status"])
    assert found == logged
    assert backend.accepted == 0


# ---- each request by itself

LAST = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


def test_filters(proxy: Proxy, backend: Backend) -> None:
    answer_once(backend)
    with connect(proxy.address("web")) as client:
        fields = b"X-Gone: 1\r\nX-Set: 0\r\nX-Add: 1\r\nConnection: close\r\n"
        client.send(get(b"/filtered/a%20b?c", fields=fields))
        assert client.rest() == LAST
    assert backend.heard() == (
        b"GET /inner/a%20b?c HTTP/1.1\r\nHost: inner.test\r\nX-Add: 1\r\n"
        b"X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\n"
        b"X-Forwarded-Host: app.test\r\nX-Set: 1\r\nX-Add: 2\r\n\r\n"
    )


def test_a_second_request_is_not_answered_by_the_first_route(
    proxy: Proxy, backend: Backend
) -> None:
    """Pipelined in one segment: it does not reach the backend."""

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(OK)
        assert peer.silent(0.1)

    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(get(b"/one") + get(b"/respond", fields=b"Connection: close\r\n"))
        assert client.read(len(OK)) == OK
        assert client.rest().startswith(b"HTTP/1.1 503 ")
    assert backend.accepted == 1


def test_a_body_of_known_length_and_a_request_behind_it(proxy: Proxy, backend: Backend) -> None:
    size = 300_000

    def script(peer: Peer) -> None:
        peer.head()
        backend.tell(peer.digest_of(size))
        peer.send(OK)
        assert peer.silent(0.1)

    backend.play(script)
    with connect(proxy.address("web")) as client:
        head = b"POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: %d\r\n\r\n" % size
        client.send(head + b"".join(stream(3, size)))
        assert backend.heard() == digest(3, size)
        assert client.read(len(OK)) == OK


@pytest.mark.parametrize("path", [b"/never", b"/pinned"])
def test_later_requests_follow_the_first_where_the_policy_says_so(
    proxy: Proxy, backend: Backend, path: bytes
) -> None:
    def script(peer: Peer) -> None:
        for _ in range(3):
            backend.tell(peer.head())
            peer.send(OK)
        peer.rest()

    backend.play(script)
    with connect(proxy.address("web")) as client:
        for _ in range(3):
            client.send(get(path))
            assert client.read(len(OK)) == OK
            assert b"connection: close" not in backend.heard().lower()
        port = client.port
    kind = proxy.record(port)["datapath"]
    spliced = proxy.datapath == "sockmap" and path == b"/pinned"
    assert (kind == "sockmap") is spliced


def test_the_idle_timeout_of_a_route(proxy: Proxy, backend: Backend) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.send(OK)
        assert peer.ending() == "reset"

    backend.play(script)
    with connect(proxy.address("web")) as client:
        began = time.monotonic()
        client.send(get(b"/quick"))
        assert client.read(len(OK)) == OK
        assert client.ending() == "reset"
        assert time.monotonic() - began > 0.9  # not later than `PATIENCE` either, said the read
        port = client.port
    assert proxy.record(port)["reason"] == "idle_timeout"


# ---- upgrades

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"
WEBSOCKET = b"Upgrade: websocket\r\nConnection: upgrade\r\n"


@pytest.mark.parametrize("dripped", [False, True], ids=["whole", "dripped"])
def test_an_upgrade_is_spliced(proxy: Proxy, backend: Backend, dripped: bool) -> None:
    size = 1_000_000

    def script(peer: Peer) -> None:
        backend.tell(peer.head())
        peer.drip(SWITCH) if dripped else peer.send(SWITCH)
        backend.tell(peer.digest_of(size))
        for piece in stream(2, size):
            peer.send(piece)

    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(get(b"/upgrade", fields=WEBSOCKET))
        assert client.head() == SWITCH
        for piece in stream(1, size):
            client.send(piece)
        assert client.rest_digest() == (size, digest(2, size))
        port = client.port
    assert b"\r\nUpgrade: websocket\r\nConnection: upgrade\r\n" in backend.heard()
    assert backend.heard() == digest(1, size)
    record = proxy.record(port)
    assert record["datapath"] == proxy.datapath
    assert record["reason"] == "done"


def test_what_is_no_upgrade_is_relayed(proxy: Proxy, backend: Backend) -> None:
    answer_once(backend)
    with connect(proxy.address("web")) as client:
        client.send(get(b"/upgrade", fields=WEBSOCKET))
        assert client.read(len(OK)) == OK
        port = client.port
    assert proxy.record(port)["datapath"] != "sockmap"


# ---- sticky cookies

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def cookie_of(head: bytes) -> str:
    return fields_of(head)["set-cookie"]


@pytest.mark.parametrize("dripped", [False, True], ids=["whole", "dripped"])
def test_a_cookie_is_added_once(proxy: Proxy, backend: Backend, dripped: bool) -> None:
    def script(peer: Peer) -> None:
        backend.tell(peer.head())
        peer.drip(OK) if dripped else peer.send(OK)

    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(get(b"/sticky"))
        head = client.head()
        assert client.rest() == b"ok"
        port = client.port
    cookie = cookie_of(head)
    assert cookie.startswith("l7=")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSet-Cookie: l7=")
    assert proxy.record(port)["bytes_out"] == len(OK)

    with connect(proxy.address("web")) as client:
        client.send(
            get(b"/sticky", fields=b"Cookie: " + cookie.partition(";")[0].encode() + b"\r\n")
        )
        assert client.rest() == OK


def test_expect_continue_with_a_cookie(proxy: Proxy, backend: Backend) -> None:
    """The client sends the body when it has seen 100, so that must not wait for the final head."""
    size = 2_000_000

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(CONTINUE)
        backend.tell(peer.digest_of(size))
        peer.send(OK)

    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(
            b"POST /sticky HTTP/1.1\r\nHost: app.test\r\nContent-Length: %d\r\n"
            b"Expect: 100-continue\r\n\r\n" % size
        )
        assert client.read(len(CONTINUE)) == CONTINUE
        for piece in stream(1, size):
            client.send(piece)
        assert cookie_of(client.head()).startswith("l7=")
        assert client.rest() == b"ok"
    assert backend.heard() == digest(1, size)


def test_a_large_answer_with_a_cookie(proxy: Proxy, backend: Backend) -> None:
    size = 5_000_000

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for piece in stream(2, size):
            peer.send(piece)

    backend.play(script)
    with connect(proxy.address("web"), receive_buffer=4096) as client:
        client.send(get(b"/sticky"))
        time.sleep(0.3)  # until nobody has room
        assert cookie_of(client.head()).startswith("l7=")
        assert client.rest_digest() == (size, digest(2, size))
        port = client.port
    record = proxy.record(port)
    assert record["reason"] == "done"


def test_an_answer_before_the_request_is_through(proxy: Proxy, backend: Backend) -> None:
    """The backend answers early and reads on slowly: every byte of both directions arrives."""
    size = 8_000_000

    def script(peer: Peer) -> None:
        peer.head()
        time.sleep(0.3)
        peer.send(OK)
        time.sleep(0.2)
        backend.tell(peer.digest_of(size))

    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(b"POST /sticky HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        for piece in stream(1, size):
            client.send(piece)
        assert cookie_of(client.head()).startswith("l7=")
        assert client.rest() == b"ok"
    assert backend.heard() == digest(1, size)


def test_a_response_to_head_with_a_cookie(proxy: Proxy, backend: Backend) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(answer)

    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(b"HEAD" + get(b"/sticky").removeprefix(b"GET"))
        assert cookie_of(client.head()).startswith("l7=")
        assert client.rest() == b""


@pytest.mark.parametrize("answer", [b"nonsense", b"HTTP/1.1 200 OK\nA: b\n\nx", b"HTTP/1.1 2"])
def test_an_odd_answer_is_passed_on_as_it_is(proxy: Proxy, backend: Backend, answer: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.send(answer)

    backend.play(script)
    before = proxy.stats()["odd_answers"]
    with connect(proxy.address("web")) as client:
        client.send(get(b"/sticky"))
        assert client.rest() == answer
    assert proxy.settled()["odd_answers"] == before + 1


@pytest.mark.parametrize("ending", ["end", "reset"])
def test_no_answer_at_all(proxy: Proxy, backend: Backend, ending: str) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        time.sleep(0.05)
        if ending == "reset":
            peer.reset()

    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(get(b"/sticky"))
        assert client.head().startswith(b"HTTP/1.1 502 ")
        port = client.port
    assert proxy.record(port)["reason"] == "backend_closed"


def test_a_backend_that_breaks_in_its_head(proxy: Proxy, backend: Backend) -> None:
    """The client has a piece of it, so it must not take it for a whole response."""

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(CONTINUE + b"HTTP/1.1 200 OK\r\nContent-")
        assert has_a_piece.wait(PATIENCE)
        peer.reset()

    has_a_piece = threading.Event()
    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(get(b"/sticky"))
        assert client.read(len(CONTINUE)) == CONTINUE
        has_a_piece.set()
        assert client.ending() == "reset"
        port = client.port
    assert proxy.record(port)["reason"] == "backend_reset"


def test_a_client_that_leaves_before_the_answer(proxy: Proxy, backend: Backend) -> None:
    def script(peer: Peer) -> None:
        backend.tell(peer.head())
        assert peer.ending() == "reset"

    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(get(b"/sticky"))
        backend.heard()
        port = client.port
        client.reset()
    record = proxy.record(port)
    assert (record["reason"], record["state"]) == ("client_reset", "answer")


def test_a_half_closed_client_gets_its_answer_with_a_cookie(proxy: Proxy, backend: Backend) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        time.sleep(0.1)
        peer.send(OK)

    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(get(b"/sticky")).half_close()
        assert cookie_of(client.head()).startswith("l7=")
        assert client.rest() == b"ok"


def test_the_processor_rests_while_an_answer_is_awaited(proxy: Proxy, backend: Backend) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        time.sleep(0.6)
        peer.send(OK)

    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(get(b"/sticky"))
        client.sock.shutdown(socket.SHUT_WR)
        time.sleep(0.05)
        before = sum(map(cpu_seconds, proxy.workers))
        time.sleep(0.4)
        assert sum(map(cpu_seconds, proxy.workers)) - before < 0.1
        client.rest()
