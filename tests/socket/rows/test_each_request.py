"""What a route does to each request of a connection: fields of responses, times, rates."""

from __future__ import annotations

import time

import pytest
from exchanging import Message, ask, echo, get, ok, post, read_message, record, serve
from peers import Backend, Blackhole, Peer, connect
from proxy import Proxy, until

pytestmark = pytest.mark.net


# ---- header fields of responses


def test_responses_are_changed_each_of_them(proxy: Proxy, one: Backend, two: Backend) -> None:
    fields = b"Server: them\r\nX-Gone: 1\r\nX_Gone: 2\r\nX-Hop: 1\r\nX-Kept: k\r\n"
    serve(one, lambda _, request: ok(request.path, fields))
    serve(two, lambda _, request: ok(request.path, fields))
    changed = {
        b"server": b"l7",
        b"x-new": b"1",
        b"x-kept": b"k",
    }
    with connect(proxy.address("web")) as client:
        for path in (b"/changed/1", b"/changed/2"):
            client.send(get(path))
            head = client.head()
            assert head.count(b"X-Hop: 1\r\n") == head.count(b"X-Hop: 2\r\n") == 1
            assert all(b"%b: %b\r\n" % pair in head.lower() for pair in changed.items())
            assert head.lower().count(b"server:") == 1
            assert b"Gone" not in head
            assert client.read(len(path)) == path
            # the next request goes elsewhere, and its response comes as it is
            other = ask(client, get(b"/plain"))
            assert other.fields[b"server"] == b"them"
            assert other.fields[b"x_gone"] == b"2"
            assert b"x-new" not in other.fields


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified", b"404 Not Found"])
def test_responses_of_every_status_are_changed(proxy: Proxy, one: Backend, status: bytes) -> None:
    serve(
        one,
        lambda *_: (
            b"HTTP/1.1 103 Early Hints\r\nX-Gone: 1\r\n\r\nHTTP/1.1 "
            + status
            + (b"\r\nContent-Length: 0" if b"404" in status else b"")
            + b"\r\nX-Gone: 1\r\n\r\n"
        ),
    )
    with connect(proxy.address("web")) as client:
        early = ask(client, get(b"/changed"), bodiless=True)
        assert (early.status, early.fields) == (103, {b"x-gone": b"1"})
        found = read_message(client, bodiless=True)
        assert found.line == b"HTTP/1.1 " + status
        assert found.fields[b"x-new"] == b"1"
        assert b"x-gone" not in found.fields


def test_answers_of_our_own_are_not_changed(proxy: Proxy, one: Backend) -> None:
    one.play(lambda peer: peer.reset())
    with connect(proxy.address("web")) as client:
        found = ask(client, post(b"/changed", b"x"))
        assert found.status == 502
        assert b"x-new" not in found.fields


# ---- the time of a request


def test_a_request_that_takes_too_long(proxy: Proxy, one: Backend, two: Backend) -> None:
    """504, and the connection goes on: the request was read."""
    serve(two, echo)

    def script(peer: Peer) -> None:
        one.tell(read_message(peer).path)
        peer.ending()

    one.play(script)
    with connect(proxy.address("web")) as client:
        began = time.monotonic()
        found = ask(client, get(b"/timed/1"))
        assert found.status == 504
        assert time.monotonic() - began >= 1.0
        assert ask(client, get(b"/2")).body == b"/2 "
        record(proxy, client.port, b"/timed/1", reason="request_timeout", route="timed", status=504)
    until(lambda: proxy.stats()["errors"]["request_timeout"], "it is counted")


def test_a_response_that_takes_too_long_is_cut(proxy: Proxy, one: Backend) -> None:
    """Its bytes keep coming, so it is not idle; the client sees no clean end."""

    def script(peer: Peer) -> None:
        read_message(peer)
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        try:
            while True:
                peer.send(b"x" * 10)
                time.sleep(0.02)
        except OSError:
            one.tell("over")

    one.play(script)
    with connect(proxy.address("web")) as client:
        client.send(get(b"/timed"))
        assert client.head().startswith(b"HTTP/1.1 200 ")
        with pytest.raises(ConnectionResetError):
            client.rest()
        record(proxy, client.port, b"/timed", reason="request_timeout")
    assert one.heard() == "over"


def test_the_time_is_that_of_each_request(proxy: Proxy, one: Backend) -> None:
    """Three that take 0.6 s each are no request that takes 1.8 s."""

    def slow(_: Peer, request: Message) -> bytes:
        time.sleep(0.6)
        return ok(request.path)

    serve(one, slow)
    with connect(proxy.address("web")) as client:
        for path in (b"/timed/a", b"/timed/b", b"/timed/c"):
            found = ask(client, get(path))
            assert found.status in (200, 504)  # 504 only where the machine stood still
            assert found.body == path or found.status == 504


def test_the_time_goes_on_while_endpoints_are_dialled() -> None:
    """Two that do not answer, twenty seconds each, are no reason to wait for longer."""
    with Blackhole() as hole, Blackhole() as other:
        policy = f"""\
listeners: {{web: {{address: "127.0.0.1:0"}}}}
routes:
  - name: all
    splice: request
    timeouts: {{request: 1s, dial: 20s}}
    backendRefs: [{{name: app}}]
backends:
  app: {{endpoints: ["127.0.0.1:{hole.port}", "127.0.0.1:{other.port}"]}}
"""
        with Proxy(policy, "copy") as proxy, connect(proxy.address("web")) as client:
            client.send(get(b"/"))
            answer = read_message(client)
            assert answer.status == 504
            assert answer.body == b"504 Gateway Timeout: the backend did not answer in time\n"
            record(proxy, client.port, b"/", reason="request_timeout", status=504)
            client.close()
            proxy.stop()


# ---- the time between requests


def test_a_client_that_is_silent_between_requests(proxy: Proxy, two: Backend) -> None:
    serve(two, echo)
    with connect(proxy.address("brief")) as brief, connect(proxy.address("web")) as web:
        for client in (brief, web):
            assert ask(client, get(b"/a")).body == b"/a "
        began = time.monotonic()
        assert brief.rest() == b""  # in order, and no reset
        assert time.monotonic() - began >= 0.9
        assert ask(web, get(b"/b")).body == b"/b "  # a minute, there


# ---- rates


def test_a_refused_request_leaves_the_connection(proxy: Proxy, one: Backend, two: Backend) -> None:
    serve(one, echo)
    serve(two, echo)
    with connect(proxy.address("web")) as client:
        found = [ask(client, get(b"/counted")) for _ in range(4)]
        assert [one.status for one in found] == [200, 200, 429, 429]
        assert found[2].fields[b"retry-after"].isdigit()
        assert ask(client, get(b"/c")).body == b"/c "
        # a body that was not read cannot be left in front of the next request
        client.send(get(b"/counted", b"Content-Length: 10\r\n", b"POST"))
        last = read_message(client)
        assert (last.status, last.fields[b"connection"]) == (429, b"close")
