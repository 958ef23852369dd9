"""Bodies of known length through the kernel: exact to the byte, and then heads again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from exchanging import ask, get, ok, post, read_head, read_message, record, serve
from peers import Backend, Peer, connect, digest, stream, stretch
from proxy import Proxy, until

from l7proxy.worker.bykernel import LEAST

pytestmark = pytest.mark.net

SIZES = [LEAST - 1, LEAST, LEAST + 65_536, 3_000_001]


def pieces(seed: int, size: int, piece: int) -> Iterator[memoryview]:
    """The first bytes of the stream `seed`, cut into pieces."""
    at = 0
    while at < size:
        found = stretch(seed, at, min(piece, size - at))
        at += len(found)
        yield found


def paced(peer: Peer, seed: int, size: int, *, before: bytes = b"", behind: bytes = b"") -> None:
    """Send a body as a network would bring it: a piece, and a pause."""
    peer.send(before)
    at = 0
    while at < size:
        part = bytes(stretch(seed, at, min(64_000, size - at)))
        at += len(part)
        peer.send(part if at < size else part + behind)
        time.sleep(0.0002)


def head_of(size: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size


@pytest.fixture(params=["sockmap"])
def kernel(proxy: Proxy) -> Proxy:
    """The proxy, where the kernel moves bodies."""
    if proxy.datapath != "sockmap":
        pytest.skip("the kernel moves nothing there")
    return proxy


def test_large_bodies_between_small_requests(kernel: Proxy, one: Backend) -> None:
    """Nearly all of what comes as a network brings it goes through the kernel, both ways."""
    size = 32_000_000

    def script(peer: Peer) -> None:
        while True:
            try:
                request = read_head(peer)
            except AssertionError:
                return
            if request.path.startswith(b"/one/down"):
                paced(peer, 2, size, before=head_of(size))
            elif request.path.startswith(b"/one/up"):
                peer.send(ok(peer.digest_of(size).encode()))
            else:
                peer.send(ok(request.path))

    one.play(script)
    with connect(kernel.address("web")) as client:
        port, most = client.port, 8  # a machine that stands still has one of them relayed
        best_down = best_up = number = 0
        while number < 2 or (min(best_down, best_up) < 0.95 * size and number < most):
            assert ask(client, get(b"/one/%d" % number)).body == b"/one/%d" % number
            client.send(get(b"/one/down/%d" % number))
            assert read_head(client).status == 200
            assert client.digest_of(size) == digest(2, size)
            assert ask(client, get(b"/one/small")).body == b"/one/small"
            length = b"Content-Length: %d\r\n" % size
            client.send(get(b"/one/up/%d" % number, length, method=b"POST"))
            paced(client, 1, size)
            assert read_message(client).body.decode() == digest(1, size)
            down = record(kernel, port, b"/one/down/%d" % number, reason="done", datapath="sockmap")
            up = record(kernel, port, b"/one/up/%d" % number, reason="done", datapath="sockmap")
            assert down["bytes_out"] == len(head_of(size)) + size
            best_down = max(best_down, down["kernel_out"])
            best_up = max(best_up, up["kernel_in"])
            number += 1
    assert min(best_down, best_up) >= 0.95 * size
    assert one.accepted == 1


@pytest.mark.parametrize("size", SIZES)
def test_what_follows_a_body_is_the_next_message(proxy: Proxy, one: Backend, size: int) -> None:
    """In the same segment, on every datapath, and again and again on the same sockets."""

    def script(peer: Peer) -> None:
        for number in range(4):
            assert read_head(peer).path == b"/one/%d" % number
            one.tell(peer.digest_of(size))
            peer.send(head_of(size))
            for piece in pieces(number, size, 50_000):
                peer.send(piece)
        assert peer.rest() == b""

    def upload() -> None:
        for number in range(4):
            head = get(b"/one/%d" % number, b"Content-Length: %d\r\n" % size, method=b"PUT")
            behind = b"" if number < 3 else get(b"/nowhere")
            paced(client, number + 10, size, before=head, behind=behind)

    one.play(script)
    with connect(proxy.address("web")) as client:
        writer = threading.Thread(target=upload)
        writer.start()
        for number in range(4):
            assert one.heard() == digest(number + 10, size)
            assert read_head(client).status == 200
            assert client.digest_of(size) == digest(number, size)
        assert read_message(client).status == 404
        writer.join()
    one.hang_up()


def test_a_body_that_flows_is_not_idle(kernel: Proxy, one: Backend) -> None:
    """The kernel moves it, for longer than the timeout, and user space hears of nothing."""
    size = 5_000_000

    def script(peer: Peer) -> None:
        read_head(peer)
        peer.send(head_of(size))
        for part in pieces(2, size, 20_000):
            peer.send(part)
            time.sleep(0.02)
        peer.rest()

    one.play(script)
    with connect(kernel.address("restless")) as client:
        client.send(get(b"/one"))
        assert read_head(client).status == 200
        assert client.digest_of(size) == digest(2, size)
        port = client.port
    assert record(kernel, port, b"/one", reason="done")["total_ms"] > 4000


def test_a_reader_that_stops_and_goes_on(kernel: Proxy, one: Backend) -> None:
    size = 20_000_000
    serve(one, lambda *_: head_of(size) + _whole(size))
    with connect(kernel.address("web"), receive_buffer=65_536) as client:
        for _ in range(2):
            client.send(get(b"/one"))
            assert read_head(client).status == 200
            time.sleep(0.3)
            assert client.digest_of(size) == digest(4, size)
        assert ask(client, get(b"/nowhere")).status == 404


def _whole(size: int) -> bytes:
    return b"".join(stream(4, size))


def by_kernel(proxy: Proxy) -> Callable[[], Any]:
    """Whether the kernel moves a body now."""
    return lambda: [row for row in proxy.connections("state=exchange") if row["way"] == "kernel"]


@pytest.mark.parametrize("how", ["close", "half_close", "reset"])
def test_an_upload_that_is_cut(kernel: Proxy, one: Backend, how: str) -> None:
    def script(peer: Peer) -> None:
        read_head(peer)
        one.tell(peer.ending())

    one.play(script)
    with connect(kernel.address("web")) as client:
        client.send(get(b"/one", b"Content-Length: 10000000\r\n", method=b"POST"))
        paced(client, 1, 1_000_000)
        until(by_kernel(kernel), "it goes through the kernel")
        getattr(client, how)()
        assert one.heard() == "reset"


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_download_that_is_cut(kernel: Proxy, one: Backend, how: str) -> None:
    cut = threading.Event()

    def script(peer: Peer) -> None:
        read_head(peer)
        paced(peer, 1, 1_000_000, before=head_of(10_000_000))
        assert cut.wait(30)
        getattr(peer, how)()

    one.play(script)
    with connect(kernel.address("web")) as client:
        client.send(get(b"/one"))
        assert read_head(client).status == 200
        assert client.digest_of(1_000_000) == digest(1, 1_000_000)
        until(by_kernel(kernel), "it goes through the kernel")
        cut.set()
        assert client.ending() == "reset"
        port = client.port
    record(kernel, port, b"/one", reason="backend_reset")


def test_a_client_that_leaves_in_its_download(kernel: Proxy, one: Backend) -> None:
    def script(peer: Peer) -> None:
        read_head(peer)
        try:
            paced(peer, 1, 100_000_000, before=head_of(100_000_000))
        except OSError:
            one.tell("broken")

    one.play(script)
    with connect(kernel.address("web")) as client:
        client.send(get(b"/one"))
        assert read_head(client).status == 200
        until(by_kernel(kernel), "it goes through the kernel")
        client.reset()
        assert one.heard() == "broken"


def test_an_early_answer_to_an_upload(kernel: Proxy, one: Backend) -> None:
    size = 5_000_000

    def script(peer: Peer) -> None:
        read_head(peer)
        until(by_kernel(kernel), "it goes through the kernel")
        peer.send(ok(b"early"))
        one.tell(peer.digest_of(size))
        assert peer.rest() == b""

    one.play(script)
    with connect(kernel.address("web")) as client:
        client.send(get(b"/one", b"Content-Length: %d\r\n" % size, method=b"POST"))
        at = 0
        for piece in pieces(1, 1_000_000, 50_000):
            client.send(piece)
            at += len(piece)
            time.sleep(0.001)
        answer = read_message(client)
        assert (answer.body, answer.fields[b"connection"]) == (b"early", b"close")
        while at < size:
            piece = stretch(1, at, min(50_000, size - at))
            client.send(piece)
            at += len(piece)
        assert one.heard() == digest(1, size)
        assert client.rest() == b""
    one.hang_up()


def test_a_bad_answer_to_an_upload(kernel: Proxy, one: Backend) -> None:
    """The kernel writes nothing more to the backend, nor the backend's bytes to anybody."""

    def script(peer: Peer) -> None:
        read_head(peer)
        until(by_kernel(kernel), "it goes through the kernel")
        peer.send(b"nonsense\r\n\r\n")
        peer.ending()

    one.play(script)
    with connect(kernel.address("web")) as client:
        client.send(get(b"/one", b"Content-Length: 5000000\r\n", method=b"POST"))
        paced(client, 1, 1_000_000)
        answer = read_message(client)
        assert (answer.status, answer.fields[b"connection"]) == (502, b"close")


def test_urgent_data_in_a_body(kernel: Proxy, one: Backend) -> None:
    def script(peer: Peer) -> None:
        read_head(peer)
        one.tell(peer.ending())

    one.play(script)
    with connect(kernel.address("web")) as client:
        client.send(get(b"/one", b"Content-Length: 10000000\r\n", method=b"POST"))
        paced(client, 1, 1_000_000)
        until(by_kernel(kernel), "it goes through the kernel")
        client.urgent()
        assert client.ending() == "reset"
        assert one.heard() == "reset"


def test_an_upgrade_after_a_body(proxy: Proxy, one: Backend) -> None:
    """The sockets stand in the map by themselves then: the pair is relayed."""
    size = 1_000_000

    def script(peer: Peer) -> None:
        read_head(peer)
        paced(peer, 1, size, before=head_of(size))
        assert read_head(peer).fields[b"upgrade"] == b"chat"
        peer.send(b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n")
        one.tell(peer.digest_of(size))
        for piece in stream(3, size):
            peer.send(piece)

    one.play(script)
    with connect(proxy.address("web")) as client:
        client.send(get(b"/one"))
        assert read_head(client).status == 200
        assert client.digest_of(size) == digest(1, size)
        client.send(get(b"/one/chat", b"Connection: upgrade\r\nUpgrade: chat\r\n"))
        assert read_head(client).status == 101
        for piece in stream(2, size):
            client.send(piece)
        assert one.heard() == digest(2, size)
        assert client.rest_digest() == (size, digest(3, size))


def test_many_bodies_between_many_sockets(proxy: Proxy, one: Backend, two: Backend) -> None:
    """Every body its hash, whichever sockets it goes between, on every datapath."""

    def handler(_: Peer, request: Any) -> bytes:
        size = int(request.path.rpartition(b"/")[2])
        return ok(bytes(stretch(size, 0, size)), b"X-Sum: %d\r\n" % sum(request.body[::97]))

    def client(number: int) -> None:
        with connect(proxy.address("web")) as peer:
            for turn in range(6):
                size = (number * 211_003 + turn * 307_001) % 900_000
                name = b"/%b/%d" % (b"one" if (number + turn) % 2 else b"two", size)
                body = bytes(stretch(number, turn, 400_000 if turn % 2 else 300))
                answer = ask(peer, post(name, body))
                assert answer.body == stretch(size, 0, size)
                assert int(answer.fields[b"x-sum"]) == sum(body[::97])
        done.append(number)

    serve(one, handler)
    serve(two, handler)
    done: list[int] = []
    clients = [threading.Thread(target=client, args=[number]) for number in range(6)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert sorted(done) == list(range(6))
