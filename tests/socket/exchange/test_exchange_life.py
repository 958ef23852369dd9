"""What changes while connections are kept: policies, drains, time; and who a request is for."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from exchanging import Message, ask, echo, get, ok, post, read_head, read_message, serve
from peers import Backend, Peer, connect
from proxy import Proxy, until

pytestmark = pytest.mark.net

POLICY = """\
listeners:
  web: {{address: 127.0.0.1:0, timeouts: {{keepAlive: {keep}}}, trustedProxies: [127.0.0.1]}}
routes:
  - {{name: all, listeners: [web], splice: request, backendRefs: [{{name: app}}]}}
backends:
  app: {{endpoints: ["127.0.0.1:{port}"]{more}}}
"""


@pytest.fixture
def app() -> Iterator[Backend]:
    backend = Backend()
    yield backend
    backend.hang_up()
    backend.finish()
    backend.close()


@contextlib.contextmanager
def running(app: Backend, *, keep: str = "60s", more: str = "") -> Iterator[Proxy]:
    policy = POLICY.format(port=app.port, keep=keep, more=more)
    with Proxy(policy, "splice2") as proxy:
        yield proxy
        if proxy.process.poll() is None:
            proxy.stop()


def test_the_next_request_is_for_the_next_policy(app: Backend) -> None:
    serve(app, lambda _, request: ok(request.fields.get(b"x-new", b"old")))
    with running(app) as proxy, connect(proxy.address("web")) as client:
        assert ask(client, get(b"/")).body == b"old"
        new = "splice: request, filters: {requestHeaders: {set: {X-New: new}}}"
        proxy.reload(proxy.policy().replace("splice: request", new))
        assert ask(client, get(b"/")).body == b"new"
        assert app.accepted == 1  # the backend is still the same one


def test_a_policy_that_lets_the_client_in_no_more_ends_its_connection(app: Backend) -> None:
    serve(app, echo)
    trusted = "trustedProxies: [127.0.0.1]"
    policy = POLICY.format(port=app.port, keep="60s", more="").replace(
        trusted, "allow: [127.0.0.1]"
    )
    with Proxy(policy, "copy") as proxy, connect(proxy.address("web")) as client:
        assert ask(client, get(b"/1")).body == b"/1 "
        proxy.reload(policy.replace("allow:", "deny:"))
        client.send(get(b"/2"))
        assert client.ending() == "reset"
        proxy.settled()
        assert proxy.stats()["errors"]["denied"] == 1
        proxy.stop()


def test_connections_to_a_backend_that_is_gone_are_closed(app: Backend) -> None:
    def script(peer: Peer) -> None:
        peer.send(ok(read_message(peer).path))
        app.tell(peer.ending())

    app.play(script)
    other = Backend()
    serve(other, echo)
    with running(app) as proxy, connect(proxy.address("web")) as client:
        assert ask(client, get(b"/1")).body == b"/1"
        proxy.reload(proxy.policy().replace(f":{app.port}", f":{other.port}"))
        assert ask(client, get(b"/2")).body == b"/2 "
        assert app.heard() == "end"
        client.close()
    other.finish()
    other.close()


def test_a_client_that_sends_nothing_more(app: Backend) -> None:
    serve(app, echo)
    with running(app, keep="500ms") as proxy, connect(proxy.address("web")) as client:
        for _ in range(2):
            assert ask(client, get(b"/")).status == 200
        began = time.monotonic()
        assert client.rest() == b""
        assert time.monotonic() - began > 0.3
        assert proxy.settled()["errors"]["idle_timeout"] == 0


def test_a_drain(app: Backend) -> None:
    """Who waits is let go at once; who is served is told that this was the last response."""
    begun, go_on = threading.Event(), threading.Event()

    def handler(_: Peer, request: Message) -> bytes:
        if request.path == b"/slow":
            begun.set()
            assert go_on.wait(30)
        return ok(request.path)

    serve(app, handler)
    with (
        running(app) as proxy,
        connect(proxy.address("web")) as waiting,
        connect(proxy.address("web")) as served,
    ):
        assert ask(waiting, get(b"/1")).status == 200
        assert ask(served, get(b"/2")).status == 200
        served.send(get(b"/slow"))
        assert begun.wait(30)
        proxy.signal(signal.SIGTERM)
        assert waiting.rest() == b""
        go_on.set()
        answer = read_message(served)
        assert (answer.body, answer.fields[b"connection"]) == (b"/slow", b"close")
        assert served.rest() == b""
        served.close()
        assert proxy.wait() == 0


def test_each_request_tells_whom_it_is_for(app: Backend) -> None:
    """A trusted proxy brings several clients over one connection."""
    serve(app, lambda _, request: ok(request.fields[b"x-forwarded-for"]))
    with running(app) as proxy, connect(proxy.address("web")) as client:
        for host in (b"192.0.2.1", b"192.0.2.2"):
            field = b"X-Forwarded-For: " + host + b"\r\n"
            assert ask(client, get(b"/", field)).body == host + b", 127.0.0.1"
        assert ask(client, get(b"/")).body == b"127.0.0.1"
        client.close()
        proxy.settled()
        clients = until(
            lambda: len(found := [r["client"] for r in proxy.records()]) == 3 and found, "records"
        )
        assert clients[:2] == ["192.0.2.1", "192.0.2.2"]
        assert clients[2].startswith("127.0.0.1:")


def test_a_cookie_for_who_brings_none(app: Backend) -> None:
    serve(app, echo)
    more = ", sticky: {cookie: at}"
    with running(app, more=more) as proxy, connect(proxy.address("web")) as client:
        first = ask(client, get(b"/1"))
        cookie = first.fields[b"set-cookie"]
        assert cookie.startswith(b"at=")
        found = ask(client, get(b"/2", b"Cookie: " + cookie.partition(b";")[0] + b"\r\n"))
        assert b"set-cookie" not in found.fields
        assert found.body == b"/2 "


def test_a_backend_that_is_told_of_its_client_serves_no_other_one(app: Backend) -> None:
    heads = []

    def script(peer: Peer) -> None:
        line = b""
        while not line.endswith(b"\r\n"):
            line += peer.read(1)
        heads.append(line)
        peer.send(ok(read_head(peer).path))
        peer.ending()

    app.play(script)
    with running(app, more=", proxyProtocol: v1") as proxy:
        for number in range(2):
            with connect(proxy.address("web")) as client:
                assert ask(client, get(b"/%d" % number)).body == b"/%d" % number
                assert heads[-1].startswith(b"PROXY TCP4 127.0.0.1 127.0.0.1 %d " % client.port)
        assert proxy.settled()["requests"]["pooled"] == 0
    assert app.accepted == 2


def test_a_worker_that_dies_resets_what_it_exchanges(app: Backend) -> None:
    serve(app, echo)
    with running(app) as proxy, connect(proxy.address("web")) as client:
        assert ask(client, get(b"/")).status == 200
        client.send(post(b"/", b"ab")[:-1])
        until(lambda: proxy.connections("state=exchange"), "it is under way")
        os.kill(proxy.workers[0], signal.SIGKILL)
        assert client.ending() == "reset"
        until(lambda: proxy.stats()["workers"]["running"] == 1, "another worker runs")
        with connect(proxy.address("web")) as another:
            assert ask(another, get(b"/2")).body == b"/2 "
            another.close()
        proxy.settled()
