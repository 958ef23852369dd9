"""101 and CONNECT: the connection is spliced then, whatever went over it before."""

from __future__ import annotations

import threading

import pytest
from exchanging import ask, echo, get, ok, read_head, read_message, record, serve
from peers import Backend, Peer, connect, digest, stream
from proxy import Proxy

pytestmark = pytest.mark.net

WISH = b"Connection: Upgrade\r\nUpgrade: chat\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n"
MUCH = 5_000_000


def chat(peer: Peer, begin: bytes = b"") -> None:
    """Send and receive a stream at the same time, then end."""
    writer = threading.Thread(target=lambda: [peer.send(x) for x in stream(2, MUCH)])
    writer.start()
    assert peer.read(len(begin)) == begin
    assert peer.digest_of(MUCH) == digest(1, MUCH)
    writer.join()
    peer.half_close()
    assert peer.rest() == b""


def talk(client: Peer, begin: bytes = b"") -> None:
    """The other end of it."""
    client.send(begin)
    writer = threading.Thread(target=lambda: [client.send(x) for x in stream(1, MUCH)])
    writer.start()
    assert client.digest_of(MUCH) == digest(2, MUCH)
    writer.join()
    client.half_close()
    assert client.rest() == b""


@pytest.mark.parametrize("listener", ["web", "upgrade"])
@pytest.mark.parametrize("before", [0, 2], ids=["first", "third"])
def test_an_upgrade(proxy: Proxy, one: Backend, listener: str, before: int) -> None:
    def script(peer: Peer) -> None:
        for _ in range(before):
            peer.send(ok(read_message(peer).path))
        assert read_head(peer).fields[b"upgrade"] == b"chat"
        peer.send(SWITCHED)
        chat(peer)

    one.play(script)
    spliced = proxy.stats()["bytes"]["redirected"]["from_client"]
    with connect(proxy.address(listener)) as client:
        for number in range(before):
            assert ask(client, get(b"/one/%d" % number)).body == b"/one/%d" % number
        client.send(get(b"/one/chat", WISH))
        assert read_head(client).status == 101
        talk(client)
        port = client.port
    found = record(proxy, port, b"/one/chat", status=101, reason="done", datapath=proxy.datapath)
    assert found["bytes_in"] == len(get(b"/one/chat", WISH)) + MUCH
    assert found["bytes_out"] == len(SWITCHED) + MUCH
    if proxy.datapath == "sockmap":
        assert found["kernel_in"] > 0
        assert proxy.stats()["bytes"]["redirected"]["from_client"] > spliced


def test_what_comes_behind_the_heads_at_once(proxy: Proxy, one: Backend) -> None:
    """Bytes of the new protocol, in one segment with the 101, and with the request for it."""

    def script(peer: Peer) -> None:
        read_head(peer)
        peer.send(SWITCHED + b"hello")
        chat(peer, b"early")

    one.play(script)
    with connect(proxy.address("web")) as client:
        client.send(get(b"/one/chat", WISH) + b"early")
        assert read_head(client).status == 101
        assert client.read(5) == b"hello"
        talk(client)


def test_an_upgrade_that_is_declined(proxy: Proxy, one: Backend) -> None:
    serve(one, echo)
    with connect(proxy.address("upgrade")) as client:
        assert ask(client, get(b"/one", WISH)).body == b"/one "
        assert ask(client, get(b"/one/2", WISH)).body == b"/one/2 "
    assert one.accepted == 1


def test_connect(proxy: Proxy, two: Backend) -> None:
    def script(peer: Peer) -> None:
        assert read_head(peer).line == b"CONNECT far.test:443 HTTP/1.1"
        peer.send(b"HTTP/1.1 200 Connected\r\n\r\n")
        chat(peer)

    two.play(script)
    with connect(proxy.address("web")) as client:
        client.send(b"CONNECT far.test:443 HTTP/1.1\r\nHost: far.test:443\r\n\r\n")
        assert read_head(client).status == 200
        talk(client)


def test_a_tunnel_that_is_refused(proxy: Proxy, two: Backend) -> None:
    serve(two, lambda *_: b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
    with connect(proxy.address("web")) as client:
        wish = b"CONNECT far.test:443 HTTP/1.1\r\nHost: far.test:443\r\n\r\n"
        assert ask(client, wish).body == b"no"
        assert ask(client, get(b"/two")).body == b"no"
