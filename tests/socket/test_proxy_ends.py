"""How connections end when something breaks: an end, a process, the proxy, or the patience.

Whoever is in the middle of a stream must see a reset then, and never a clean end of a short stream.
A proxy that is to be killed here is the test's own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from peers import Backend, BackendProcess, Peer, connect, digest, hashed, stream
from proxy import DATAPATHS, PATIENCE, Proxy, alive, until

pytestmark = pytest.mark.net

POLICY = """\
listeners:
  raw: {{address: "127.0.0.1:0", protocol: TCP}}
  web: {{address: 127.0.0.1:0}}
routes:
  - {{name: all, backendRefs: [{{name: app}}]}}
backends:
  app: {{endpoints: ["127.0.0.1:{port}"]}}
"""
REQUEST = b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def endless(peer: Peer) -> None:
    """Send until the connection breaks."""
    try:
        for piece in stream(0, 1 << 40):
            peer.send(piece)
    except (ConnectionResetError, BrokenPipeError):
        pass


# ---- one end resets


@pytest.mark.parametrize("calm", [True, False], ids=["after an exchange", "at once"])
@pytest.mark.parametrize("sending", ["client", "backend", "both"])
def test_a_client_that_resets_in_mid_transfer(
    proxy: Proxy, backend: Backend, sending: str, calm: bool
) -> None:
    before = proxy.settled()["errors"]["client_reset"]

    def script(peer: Peer) -> None:
        if calm:
            peer.read(5)
            peer.send(b"hello")
            assert settled.wait(PATIENCE)
        if sending != "backend":
            peer.read(100_000)
            backend.tell("half way")
        backend.tell(peer.ending() if sending == "client" else peer.ending_while_sending())

    settled = threading.Event()
    backend.play(script)
    client = connect(proxy.address("raw"))
    way = "spliced" if proxy.datapath == "sockmap" else "relayed"
    if calm:
        client.send(b"hello")
        assert client.read(5) == b"hello"
        until(lambda: proxy.stats()["pairs"][way], "the pair has settled")
        settled.set()
    if sending != "backend":
        client.send(bytes(300_000))
        assert backend.heard() == "half way"
    if sending != "client":
        client.read(100_000)
    port = client.port
    client.reset()
    assert backend.heard() == "reset"
    record = proxy.record(port)
    assert record["reason"] == "client_reset"
    if calm:  # else it depends on how much comes at once
        assert record["state"] == way
    assert proxy.settled()["errors"]["client_reset"] == before + 1


@pytest.mark.parametrize("sending", ["client", "backend", "both"])
def test_a_backend_that_resets_in_mid_transfer(
    proxy: Proxy, backend: Backend, sending: str
) -> None:
    def script(peer: Peer) -> None:
        if sending != "client":
            peer.send(bytes(300_000))
        if sending != "backend":
            peer.read(100_000)
        backend.tell("half way")
        assert go_on.wait(PATIENCE)
        peer.reset()

    go_on = threading.Event()
    backend.play(script)
    with connect(proxy.address("raw")) as client:
        if sending != "backend":
            client.send(bytes(100_000))
        if sending != "client":
            client.read(100_000)
        assert backend.heard() == "half way"
        go_on.set()
        assert client.ending() == "reset"
        port = client.port
    assert proxy.record(port)["reason"] == "backend_reset"


def test_a_reset_of_an_http_answer(proxy: Proxy, backend: Backend) -> None:
    """Once a byte of the answer was sent, there is nothing to be said but a reset."""

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhal")
        assert go_on.wait(PATIENCE)
        peer.reset()

    go_on = threading.Event()
    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n")
        client.head()
        assert client.read(3) == b"hal"
        go_on.set()
        assert client.ending() == "reset"


def test_a_reset_after_a_half_close(proxy: Proxy, backend: Backend) -> None:
    """The client's end is complete and delivered; the answer still is not."""

    def script(peer: Peer) -> None:
        assert peer.rest() == b"all"
        peer.send(b"begin")
        assert go_on.wait(PATIENCE)
        peer.reset()

    go_on = threading.Event()
    backend.play(script)
    with connect(proxy.address("raw")) as client:
        client.send(b"all").half_close()
        assert client.read(5) == b"begin"
        go_on.set()
        assert client.ending() == "reset"
        port = client.port
    assert proxy.record(port)["reason"] == "backend_reset"


# ---- a process is killed


@pytest.mark.parametrize("role", ["sink", "source"])
@pytest.mark.parametrize("datapath", DATAPATHS)
def test_kill_9_of_a_backend(datapath: str, role: str) -> None:
    """In the middle of an upload or of an answer. What it had not read makes its kernel send a
    reset; without that the kernel ends the stream cleanly, and nobody can tell."""
    with BackendProcess(role) as far, Proxy(POLICY.format(port=far.port), datapath) as proxy:
        with connect(proxy.address("raw")) as client:
            sending = threading.Thread(target=endless, args=[client], daemon=True)
            sending.start()
            client.read(6 if role == "sink" else 1 << 20)
            until(lambda: sum(live(proxy)) > 1 << 20, "a MiB has gone through")
            far.kill()
            sending.join(PATIENCE)
            assert not sending.is_alive()
            port = client.port
        assert proxy.record(port)["reason"] == "backend_reset"
        proxy.stop()


@pytest.fixture
def own_backend() -> Iterator[Backend]:
    backend = Backend()
    yield backend
    backend.close()
    backend.finish()


@pytest.mark.parametrize("direction", ["down", "up"])
@pytest.mark.parametrize("datapath", ["splice2", "copy"])
def test_kill_9_of_a_worker(own_backend: Backend, datapath: str, direction: str) -> None:
    """Both ends see a reset, and a new worker takes the next connection.

    What the kernel moves goes on: tests/kernel/test_worker_death.py.
    """

    def script(peer: Peer) -> None:
        own_backend.tell(peer.ending_while_sending() if direction == "down" else peer.ending())

    own_backend.play(script)
    with Proxy(POLICY.format(port=own_backend.port), datapath) as proxy:
        (worker,) = proxy.workers

        def kill() -> None:
            until(lambda: sum(live(proxy)) > 1 << 20, "a MiB has gone through")
            os.kill(worker, signal.SIGKILL)

        with connect(proxy.address("raw")) as client:
            killing = threading.Thread(target=kill)
            killing.start()
            ending = client.ending() if direction == "down" else client.ending_while_sending()
            killing.join(PATIENCE)
            assert ending == "reset"
        assert own_backend.heard() == "reset"

        own_backend.play(lambda peer: own_backend.tell(peer.rest()) or peer.send(b"bye"))
        with connect(proxy.address("raw")) as client:
            client.send(b"again").half_close()
            assert client.rest() == b"bye"
        assert own_backend.heard() == b"again"
        stats = proxy.settled()
        assert stats["workers"] == {"configured": 1, "running": 1, "restarts": 1}
        assert stats["connections"] == {"accepted": 2, "active": 0, "refused": 0}
        assert worker not in proxy.workers
        proxy.stop()


def live(proxy: Proxy) -> list[int]:
    """Bytes that the proxy says to have moved, while it moves them."""
    moved = proxy.stats()["bytes"]
    return [number for way in moved.values() for number in way.values()]


@pytest.mark.parametrize("datapath", DATAPATHS)
def test_kill_9_of_the_supervisor(own_backend: Backend, datapath: str) -> None:
    """Its workers leave at once, and reset what they had; the port is free."""
    own_backend.play(lambda peer: own_backend.tell(peer.ending()))
    with Proxy(POLICY.format(port=own_backend.port), datapath, workers=2) as proxy:
        address, workers = proxy.address("raw"), proxy.workers
        assert len(workers) == 2
        with connect(address) as client:
            client.send(b"begin")
            until(lambda: proxy.stats()["pairs"]["active"], "the pair is open")
            if proxy.stats()["pairs"]["spliced"]:
                until(lambda: proxy.stats()["kept"]["pairs"], "it is kept")
            proxy.signal(signal.SIGKILL)
            assert client.ending() == "reset"
        assert own_backend.heard() == "reset"
        assert proxy.wait() == -signal.SIGKILL
        until(lambda: not any(alive(pid) for pid in workers), "the workers are gone")
        with pytest.raises(ConnectionRefusedError):
            connect(address)


# ---- the proxy is told to stop


class Transfer:
    """A download of `size` bytes that is half way when the proxy is told to stop."""

    SIZE = 8 << 20

    def __init__(self, backend: Backend, proxy: Proxy) -> None:
        self.go_on = threading.Event()

        def script(peer: Peer) -> None:
            pieces = b"".join(stream(3, self.SIZE))
            peer.send(pieces[: self.SIZE // 2])
            assert self.go_on.wait(PATIENCE)
            try:
                peer.send(pieces[self.SIZE // 2 :]).half_close()
                backend.tell(peer.ending())
            except (ConnectionResetError, BrokenPipeError):
                backend.tell("reset")

        backend.play(script)
        self.backend = backend
        self.client = connect(proxy.address("raw"))
        self.first = self.client.read(self.SIZE // 2)

    def close(self) -> None:
        """Let both ends go."""
        self.go_on.set()
        self.client.close()

    def is_exact(self) -> bool:
        """Whether the rest comes, all of it, and both ends see the other's end."""
        rest = self.client.rest()
        self.client.close()  # both FINs are out: nothing of this is lost
        whole = hashed(iter([self.first, rest]))
        return whole == digest(3, self.SIZE) and self.backend.heard() == "end"


@pytest.mark.parametrize("everybody", [False, True], ids=["supervisor", "whole group"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("datapath", DATAPATHS)
def test_a_drain(
    own_backend: Backend, datapath: str, number: signal.Signals, everybody: bool
) -> None:
    """No new connections; the running transfer ends by itself, exact; exit code 0.

    A terminal, and an init system, signal the workers too: that is no second signal.
    """
    with (
        Proxy(POLICY.format(port=own_backend.port), datapath, workers=2) as proxy,
        contextlib.ExitStack() as stack,
    ):
        address, web = proxy.address("raw"), proxy.address("web")
        transfer = stack.enter_context(contextlib.closing(Transfer(own_backend, proxy)))
        waiting = stack.enter_context(connect(web))  # no request yet: nothing is lost with it
        until(lambda: proxy.stats()["connections"]["active"] == 2, "both are accepted")
        workers = proxy.workers if everybody else []
        proxy.signal(number)
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):  # had nothing to wait for
                os.kill(pid, number)
        until(lambda: refused(web), "the ports are closed")
        until(lambda: refused(address), "and this one")
        assert waiting.ending() == "end"
        assert proxy.process.poll() is None
        assert proxy.stats()["draining"] is True
        transfer.go_on.set()
        assert transfer.is_exact()
        assert proxy.wait() == 0
        (record,) = [record for record in proxy.records() if record["listener"] == "raw"]
        assert (record["bytes_out"], record["reason"]) == (Transfer.SIZE, "done")


def refused(address: tuple[str, int]) -> bool:
    """Whether nobody listens there."""
    try:
        connect(address).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        return False
    return False


@pytest.mark.parametrize("second", [False, True], ids=["deadline", "second signal"])
@pytest.mark.parametrize("datapath", DATAPATHS)
def test_a_drain_that_comes_to_no_end(own_backend: Backend, datapath: str, second: bool) -> None:
    """At its deadline, or at a second signal, what is left is reset; exit code 3."""
    seconds = 60 if second else 0.5
    with (
        Proxy(POLICY.format(port=own_backend.port), datapath, drain_seconds=seconds) as proxy,
        contextlib.closing(Transfer(own_backend, proxy)) as transfer,
    ):
        proxy.signal(signal.SIGTERM)
        until(lambda: refused(proxy.address("web")), "the ports are closed")
        if second:
            proxy.signal(signal.SIGTERM)
        assert transfer.client.ending() == "reset"
        assert proxy.wait() == 3
        transfer.go_on.set()
        assert own_backend.heard() == "reset"
        (record,) = [record for record in proxy.records() if record["listener"] == "raw"]
        assert record["reason"] == "drain_deadline"


def test_a_stop_without_connections() -> None:
    with Proxy(POLICY.format(port=1), "copy", workers=2) as proxy:
        proxy.stop()
        assert proxy.records() == []


# ---- patience


def ask(stack: contextlib.ExitStack, proxy: Proxy, path: str) -> Peer:
    """A client of the listener that has little patience."""
    client = stack.enter_context(connect(proxy.address("restless")))
    return client.send(REQUEST.replace(b"/", path.encode(), 1))


TRICKLE = 12  # bytes, 0.4 s apart: for longer than an idle connection may last


def test_an_idle_connection_is_reset_and_one_with_a_trickle_is_not(
    proxy: Proxy, backend: Backend
) -> None:
    """In whichever direction."""

    def script(peer: Peer) -> None:
        path = peer.head().split()[1].decode()
        peer.send(ANSWER)
        if path == "/backend-trickles":
            for _ in range(TRICKLE):
                time.sleep(0.4)
                peer.send(b"!")
        try:
            backend.tell((path, peer.rest()))
        except ConnectionResetError:
            backend.tell((path, "reset"))

    backend.play(script)
    with contextlib.ExitStack() as stack:
        idle = ask(stack, proxy, "/idle")
        busy = ask(stack, proxy, "/client-trickles")
        fed = ask(stack, proxy, "/backend-trickles")
        clients = (idle, busy, fed)
        ports = [client.port for client in clients]
        for client in clients:
            client.read(len(ANSWER))
        for _ in range(TRICKLE):
            time.sleep(0.4)
            busy.send(b"!")
            assert fed.read(1) == b"!"
        assert idle.ending() == "reset"
        for client in (busy, fed):
            client.half_close()
            assert client.rest() == b""
    assert dict(backend.heard() for _ in clients) == {
        "/idle": "reset",
        "/client-trickles": b"!" * TRICKLE,
        "/backend-trickles": b"",
    }
    records = [proxy.record(port) for port in ports]
    assert [one["reason"] for one in records] == ["idle_timeout", "done", "done"]
    assert records[0]["total_ms"] > 3800


def test_a_receiver_that_takes_nothing_is_reset(proxy: Proxy, backend: Backend) -> None:
    over = threading.Event()

    def script(peer: Peer) -> None:
        if b"/client-stalls" in peer.head():
            peer.send(ANSWER)
            endless(peer)
            return
        assert over.wait(PATIENCE)
        backend.tell(peer.ending())

    backend.play(script)
    with contextlib.ExitStack() as stack:
        stalled = ask(stack, proxy, "/client-stalls")
        sending = ask(stack, proxy, "/backend-stalls")
        ports = stalled.port, sending.port
        endless(sending)
        records = [proxy.record(port) for port in ports]
        over.set()
        assert stalled.ending() == "reset"
    # nothing moves at all then, so either timeout may be the one
    assert {one["reason"] for one in records} <= {"stalled", "idle_timeout"}
    assert backend.heard() == "reset"


def test_a_slow_receiver_is_not_a_stalled_one(proxy: Proxy, backend: Backend) -> None:
    """It takes a little now and then, for longer than the timeout."""
    size = 12 << 20

    def script(peer: Peer) -> None:
        peer.head()
        for piece in stream(4, size):
            peer.send(piece)

    backend.play(script)
    with connect(proxy.address("restless"), receive_buffer=1 << 16) as client:
        client.send(REQUEST)
        got = []
        for _ in range(16):
            time.sleep(0.3)
            got.append(client.read(1 << 19))
        got.append(client.rest())
        port = client.port
    assert hashed(iter(got)) == digest(4, size)
    assert proxy.record(port)["reason"] == "done"


# ---- urgent data


def shout(peer: Peer, datapath: str) -> str:
    """Send urgent data; how that ends. A copying relay may read such a byte, in-band, before epoll
    tells of it, so there it may take some."""
    try:
        peer.urgent()
        for _ in range(200):
            if datapath != "copy" or not peer.silent(0.01):
                break
            peer.urgent()
    except (ConnectionResetError, BrokenPipeError):
        return "reset"
    return peer.ending()


@pytest.mark.parametrize("side", ["client", "backend"])
def test_urgent_data_resets_both_ends(proxy: Proxy, backend: Backend, side: str) -> None:
    before = proxy.settled()["errors"]["urgent_data"]

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(ANSWER)
        if side == "backend":
            assert peer.read(4) == b"next"
            backend.tell(shout(peer, proxy.datapath))
        else:
            backend.tell(peer.ending())

    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(REQUEST)
        client.read(len(ANSWER))
        port = client.port
        if side == "backend":
            assert client.send(b"next").ending() == "reset"
        else:
            assert shout(client, proxy.datapath) == "reset"
    assert backend.heard() == "reset"
    assert proxy.record(port)["reason"] == "urgent_data"
    assert proxy.settled()["errors"]["urgent_data"] == before + 1


@pytest.mark.parametrize("size", [0, 200_000, 900_000])
def test_urgent_data_in_an_early_answer(proxy: Proxy, backend: Backend, size: int) -> None:
    """It comes while the request is still being written, or after the pair is open: it is data
    then, or a reset. TCP counts the byte either way: a ledger that misses it waits for ever."""

    def script(peer: Peer) -> None:
        with contextlib.suppress(OSError):
            peer.send(b"abc").urgent(b"!").send(b"def")
            peer.head()
            peer.read(size)
            peer.half_close()
            peer.ending()

    backend.play(script)
    head = b"POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: %d\r\n\r\n" % size
    with connect(proxy.address("web")) as client:
        port = client.port
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            client.send(head + bytes(size))
        try:
            assert client.rest() == b"abc!def"
            client.half_close()
        except OSError:  # reset, before the answer had come or right after it
            assert proxy.record(port)["reason"] == "urgent_data"
        else:
            record = proxy.record(port)
            known = ("done", 7), ("urgent_data", 7)  # the reset may come after the half-close, too
            assert (record["reason"], record["bytes_out"]) in known


@pytest.mark.parametrize("at", [5, 24, len(REQUEST) - 1])
def test_urgent_data_in_the_head(proxy: Proxy, backend: Backend, at: int) -> None:
    """There the byte counts as any other: what is parsed is what is there."""

    def script(peer: Peer) -> None:
        backend.tell(peer.head())
        peer.send(ANSWER)
        assert peer.rest() == b"more"

    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(REQUEST[:at])
        client.urgent(REQUEST[at : at + 1])
        time.sleep(0.05)
        client.send(REQUEST[at + 1 :])
        assert client.read(len(ANSWER)) == ANSWER
        client.send(b"more").half_close()
        assert client.rest() == b""
        port = client.port
    heard = backend.heard()
    assert heard.startswith(b"GET / HTTP/1.1\r\nHost: app.test\r\n")
    record = proxy.record(port)
    assert (record["reason"], record["bytes_in"]) == ("done", len(REQUEST) + 4)
