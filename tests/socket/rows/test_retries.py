"""Requests that are sent once more: when, which, how often, and to whom."""

from __future__ import annotations

import time

import pytest
from exchanging import Message, ask, echo, get, ok, post, read_message, record, serve
from peers import Backend, Peer, connect
from proxy import Proxy

pytestmark = pytest.mark.net

BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5\r\n\r\nbusy\n"


def chunked(path: bytes, *pieces: bytes, method: bytes = b"PUT") -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in pieces)
    return get(path, b"Transfer-Encoding: chunked\r\n", method) + body + b"0\r\n\r\n"


def test_a_status_that_is_listed_is_tried_elsewhere(
    proxy: Proxy, one: Backend, two: Backend
) -> None:
    """One is busy, the other is not: whoever is asked first, the client gets the good answer."""
    serve(one, lambda *_: BUSY)
    serve(two, echo)
    with connect(proxy.address("web")) as client:
        for n in range(4):
            found = ask(client, get(b"/again/%d" % n))
            assert (found.status, found.body) == (200, b"/again/%d " % n)
        # a body goes along, in one piece or in chunks
        for request, body in (
            (post(b"/again/p", b"x" * 1000, method=b"PUT"), b"x" * 1000),
            (chunked(b"/again/c", b"ab", b"c" * 5000), b"ab" + b"c" * 5000),
        ):
            for _ in range(2):
                found = ask(client, request)
                assert found.status == 200
                assert found.body.partition(b" ")[2] == body
        last = record(proxy, client.port, b"/again/0", status=200, route="again")
        assert last["endpoint"].endswith(f":{two.port}")
    asked = [one.heard()[1].path for _ in range(4)]  # every second time it was the first choice
    assert len(asked) == 4
    assert proxy.stats()["backends"]["both"]["retries"] >= 4


def test_the_last_attempt_is_the_answer(proxy: Proxy, one: Backend, two: Backend) -> None:
    serve(one, lambda *_: BUSY)
    serve(two, lambda *_: BUSY)
    with connect(proxy.address("web")) as client:
        found = ask(client, get(b"/again"))
        assert (found.status, found.body) == (503, b"busy\n")
        assert ask(client, get(b"/again", method=b"HEAD"), bodiless=True).status == 503
    heard = [backend.heard()[1].path for backend in (one, two, one) for _ in range(1)]
    assert heard == [b"/again"] * 3  # the first attempt, and two more


def test_what_may_not_come_twice_does_not(proxy: Proxy, one: Backend) -> None:
    serve(one, lambda *_: BUSY)
    with connect(proxy.address("web")) as client:
        assert ask(client, post(b"/patient/post", b"x")).status == 503
        assert ask(client, get(b"/patient/patch", method=b"PATCH")).status == 503
        large = post(b"/patient/large", b"x" * 70_000, method=b"PUT")
        assert ask(client, large).status == 503
        assert ask(client, chunked(b"/patient/chunks", *[b"y" * 10_000] * 7)).status == 503
    heard = [one.heard()[1].path for _ in range(4)]
    assert heard == [b"/patient/post", b"/patient/patch", b"/patient/large", b"/patient/chunks"]


def test_a_status_that_is_not_listed_is_an_answer(proxy: Proxy, one: Backend) -> None:
    serve(one, lambda *_: BUSY.replace(b"503", b"500"))
    with connect(proxy.address("web")) as client:
        assert ask(client, get(b"/patient")).status == 500
    assert one.heard()[1].path == b"/patient"


def test_it_waits_before_and_takes_the_connection_on_after(proxy: Proxy, one: Backend) -> None:
    """A second request that came meanwhile has its turn; the answers come in order."""
    times: list[float] = []

    def once_busy(_: Peer, request: Message) -> bytes:
        times.append(time.monotonic())
        return BUSY if len(times) == 1 else ok(request.path)

    serve(one, once_busy)
    with connect(proxy.address("web")) as client:
        client.send(get(b"/patient/1") + get(b"/patient/2"))
        assert [read_message(client).body for _ in range(2)] == [b"/patient/1", b"/patient/2"]
    assert times[1] - times[0] >= 0.5


def test_a_backend_that_ends_without_an_answer(proxy: Proxy, one: Backend, two: Backend) -> None:
    def hang_up(peer: Peer) -> None:
        one.tell(read_message(peer).path)
        peer.reset()

    one.play(hang_up)
    serve(two, echo)
    with connect(proxy.address("web")) as client:
        for n in range(2):
            assert ask(client, get(b"/again/%d" % n)).body == b"/again/%d " % n
    assert one.heard().startswith(b"/again/")


def test_half_a_head_is_no_silence(proxy: Proxy, one: Backend) -> None:
    """The backend had begun to answer: who knows what it has done."""

    def script(peer: Peer) -> None:
        one.tell(read_message(peer).path)
        peer.send(b"HTTP/1.1 200 OK\r\nContent-")
        peer.close()

    one.play(script)
    with connect(proxy.address("web")) as client:
        assert ask(client, get(b"/patient")).status == 502
    assert one.heard() == b"/patient"


def test_the_time_of_the_request_bounds_all_attempts(proxy: Proxy, one: Backend) -> None:
    serve(one, lambda *_: BUSY)
    with connect(proxy.address("web")) as client:
        began = time.monotonic()
        assert ask(client, get(b"/late")).status == 504
        assert time.monotonic() - began >= 1.0
        record(proxy, client.port, b"/late", reason="request_timeout", status=504)


def test_a_client_that_leaves_meanwhile(proxy: Proxy, one: Backend) -> None:
    serve(one, lambda *_: BUSY)
    with connect(proxy.address("web")) as client:
        client.send(get(b"/patient"))
        one.heard()
        time.sleep(0.1)  # it waits by now
        port = client.port
        client.reset()
    record(proxy, port, b"/patient", reason="client_reset")


def test_a_budget_bounds_them(proxy: Proxy, one: Backend) -> None:
    """With 0 percent there are the ten that are always allowed, in ten seconds."""
    serve(one, lambda *_: BUSY)
    before = proxy.stats()["backends"]["poor"]["retries"]
    began = time.monotonic()
    with connect(proxy.address("web")) as client:
        assert [ask(client, get(b"/poor")).status for _ in range(30)] == [503] * 30
    retries = proxy.stats()["backends"]["poor"]["retries"] - before
    assert [one.heard()[1].path for _ in range(30 + retries)] == [b"/poor"] * (30 + retries)
    if time.monotonic() - began < 5.0:  # half of an old window may be over, or the machine stood
        assert 10 <= retries <= 15
