"""100 MiB down and 100 MiB up between small requests of one kept-alive connection.

At the rate of a network at least 99 % of the bodies' bytes are the kernel's. As fast as it goes
the receiver is too slow for most of them, which user space moves: then the share is only told.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterator

import pytest
from peers import Backend, Peer, connect, digest, stream
from proxy import Proxy, until

pytestmark = [pytest.mark.kernel, pytest.mark.net]

SO_MAX_PACING_RATE = 47  # asm-generic/socket.h
RATE = 125_000_000  # bytes a second: a network of 1 Gbit/s
SIZE = 100 << 20
SHARE = 0.99
TRIES = 5  # a machine that stands still lets a paced stream come all at once
POLICY = """\
listeners: {{web: {{address: "127.0.0.1:0"}}}}
routes: [{{name: all, listeners: [web], splice: request, backendRefs: [{{name: app}}]}}]
backends: {{app: {{endpoints: ["127.0.0.1:{port}"]}}}}
"""
DOWN, UP = 11, 12  # the streams


def pace(peer: Peer, rate: int) -> None:
    """What this end sends leaves at this rate; 0: at once."""
    peer.sock.setsockopt(
        socket.SOL_SOCKET, SO_MAX_PACING_RATE, struct.pack("I", rate or 0xFFFFFFFF)
    )


def serve(peer: Peer) -> None:
    """As long as requests come: the stream, the hash of what was put, or the path."""
    while True:
        try:
            head = peer.head().decode()
        except AssertionError:
            return
        path = head.split()[1]
        if rate := re.fullmatch(r"/down/(\d+)", path):
            pace(peer, int(rate[1]))
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
            for piece in stream(DOWN, SIZE):
                peer.send(piece)
            continue
        answer = peer.digest_of(SIZE) if path == "/up" else path
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer))
        peer.send(answer.encode())


def ask(client: Peer, path: str) -> None:
    client.send(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())


def answer(client: Peer) -> bytes:
    """The body of a small answer."""
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)\r\n", client.head())
    assert length
    return client.read(int(length[1]))


@pytest.fixture
def backend() -> Iterator[Backend]:
    backend = Backend()
    backend.play(serve)
    yield backend
    backend.close()


def moved(proxy: Proxy) -> dict[str, tuple[int, int]]:
    """By side: bytes that the kernel has moved, and user space."""
    found = proxy.stats()["bytes"]
    return {side: (found["redirected"][side], found["relayed"][side]) for side in found["relayed"]}


def shares(client: Peer, proxy: Proxy, rate: int) -> dict[str, float]:
    """The kernel's share of both bodies, which are exact."""
    before = moved(proxy)
    ask(client, "/small/1")
    assert answer(client) == b"/small/1"
    ask(client, f"/down/{rate}")
    assert b"%d" % SIZE in client.head()
    assert client.digest_of(SIZE) == digest(DOWN, SIZE)
    ask(client, "/small/2")
    assert answer(client) == b"/small/2"
    pace(client, rate)
    client.send(b"PUT /up HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % SIZE)
    for piece in stream(UP, SIZE):
        client.send(piece)
    assert answer(client) == digest(UP, SIZE).encode()
    pace(client, 0)
    ask(client, "/small/3")
    assert answer(client) == b"/small/3"

    def counted() -> dict[str, tuple[int, int]] | None:
        after = moved(proxy)
        grown = {s: (after[s][0] - before[s][0], after[s][1] - before[s][1]) for s in after}
        return grown if all(sum(both) >= SIZE for both in grown.values()) else None

    grown = until(counted, "all bytes are counted")
    return {side: kernel / SIZE for side, (kernel, _) in grown.items()}


def test_a_hundred_mib_each_way_at_the_rate_of_a_network(backend: Backend) -> None:
    with (
        Proxy(POLICY.format(port=backend.port), "sockmap") as proxy,
        connect(proxy.address("web")) as client,
    ):
        tried = []
        for _ in range(TRIES):
            tried.append(shares(client, proxy, RATE))
            if min(tried[-1].values()) >= SHARE:
                break
        print(f"paced: {tried}")
        assert min(tried[-1].values()) >= SHARE, tried
        assert backend.accepted == 1  # all on one connection, on both sides
        print(f"as fast as it goes: {shares(client, proxy, 0)}")
        client.close()
        proxy.settled()
        proxy.stop()
