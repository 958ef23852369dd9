"""More connections than there may be, and more than there are descriptors for: l7proxy sheds what
is too much, with a reset, and serves on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest
from peers import Backend, Peer, connect
from proxy import DATAPATHS, PATIENCE, Proxy, cpu_seconds, until

pytestmark = pytest.mark.net

REQUEST = b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
POLICY = """\
listeners:
  web: {{address: 127.0.0.1:0, timeouts: {{head: 60s}}}}
  few: {{address: 127.0.0.1:0, limits: {{connections: 4}}}}
routes:
  - {{name: all, backendRefs: [{{name: app}}]}}
backends:
  app: {{endpoints: ["127.0.0.1:{port}"]}}
"""


@pytest.fixture
def own_backend() -> Iterator[Backend]:
    backend = Backend()
    backend.play(serve)
    yield backend
    backend.close()
    backend.finish()


def serve(peer: Peer) -> None:
    """One request, and then as long as the client likes."""
    with contextlib.suppress(ConnectionResetError):
        peer.head()
        peer.send(ANSWER)
        peer.rest()


def is_served(address: tuple[str, int]) -> bool:
    """Whether a request is answered as it should be, and not reset."""
    try:
        with connect(address) as client:
            client.send(REQUEST)
            return client.read(len(ANSWER)) == ANSWER
    except (ConnectionResetError, BrokenPipeError):
        return False


def is_reset(address: tuple[str, int]) -> bool:
    """Whether a connection is reset without a request."""
    try:
        with connect(address) as client:
            return not client.silent(PATIENCE) and client.ending() == "reset"
    except ConnectionResetError:
        return True


def test_a_limit_on_connections_holds_over_all_workers(own_backend: Backend) -> None:
    with Proxy(POLICY.format(port=own_backend.port), "copy", workers=2) as proxy:
        few = proxy.address("few")
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                client = stack.enter_context(connect(few))
                assert client.send(REQUEST).read(len(ANSWER)) == ANSWER
            for _ in range(3):
                assert is_reset(few)
            assert is_served(proxy.address("web"))  # the limit is this listener's own
            stats = proxy.stats()
            assert stats["connections"]["refused"] == 3
            assert stats["errors"]["connection_limit"] == 3
        proxy.settled()
        for _ in range(4):
            assert is_served(few)
        stats = proxy.settled()
        assert stats["connections"] == {"accepted": 9, "active": 0, "refused": 3}
        proxy.stop()


@pytest.mark.parametrize("datapath", DATAPATHS)
def test_running_out_of_descriptors(own_backend: Backend, datapath: str) -> None:
    """Clients that say nothing take all there are. The next are reset, at no cost of processor
    time, those that were taken on stay, and when some leave the next are served."""
    with Proxy(POLICY.format(port=own_backend.port), datapath, files=64) as proxy:
        address = proxy.address("web")
        with contextlib.ExitStack() as stack:
            served = stack.enter_context(connect(address))
            assert served.send(REQUEST).read(len(ANSWER)) == ANSWER
            clients = crowd(stack, address, 80)
            stats = until(lambda: shed(proxy), "connections are shed")
            assert stats["errors"]["descriptors"] == stats["connections"]["refused"]
            assert is_reset(address)
            (worker,) = proxy.workers
            before = cpu_seconds(worker)
            assert clients[0].silent(0.5)
            assert cpu_seconds(worker) - before < 0.15
            assert served.send(REQUEST).silent(0.1)  # its backend answers once, but it is there
            alive = [client for client in clients if client.silent(0)]
            assert len(alive) > 30
        proxy.settled()
        for _ in range(5):
            assert is_served(address)
        stats = proxy.settled()
        assert stats["workers"]["restarts"] == 0
        assert stats["errors"]["internal"] == 0
        proxy.stop()


def crowd(stack: contextlib.ExitStack, address: tuple[str, int], count: int) -> list[Peer]:
    """So many clients that say nothing, less those that were reset before they knew."""
    clients = []
    for _ in range(count):
        with contextlib.suppress(ConnectionResetError):
            clients.append(stack.enter_context(connect(address)))
    return clients


def shed(proxy: Proxy) -> dict[str, dict[str, int]] | None:
    """The statistics, once nothing waits to be accepted any more."""
    connections = (stats := proxy.stats())["connections"]
    return stats if connections["accepted"] + connections["refused"] == 81 else None


@pytest.mark.parametrize("datapath", DATAPATHS)
def test_no_descriptor_for_the_dial(own_backend: Backend, datapath: str) -> None:
    """The last descriptor went to the client: it gets an answer, and no worker dies of it."""
    with Proxy(POLICY.format(port=own_backend.port), datapath, files=64) as proxy:
        address = proxy.address("web")
        with contextlib.ExitStack() as stack:
            clients = crowd(stack, address, 81)
            until(lambda: shed(proxy), "connections are shed")
            alive = [client for client in clients if client.silent(0)]
            for client in alive[:3]:
                assert client.send(REQUEST).head().startswith(b"HTTP/1.1 503 ")
            port = alive[0].port
        assert proxy.record(port)["reason"] == "descriptors"
        stats = proxy.settled()
        assert stats["errors"]["internal"] == 0
        assert is_served(address)
        proxy.stop()


@pytest.mark.parametrize("datapath", DATAPATHS)
def test_many_connections_come_and_go(own_backend: Backend, datapath: str) -> None:
    """No descriptor, no SOCKMAP index and no counter is left behind."""
    with Proxy(POLICY.format(port=own_backend.port), datapath) as proxy:
        address = proxy.address("web")
        assert is_served(address)
        proxy.settled()
        (worker,) = proxy.workers
        before = descriptors(worker)
        for _ in range(300):
            assert is_served(address)
        stats = proxy.settled()
        assert stats["connections"] == {"accepted": 301, "active": 0, "refused": 0}
        until(lambda: descriptors(worker) <= before + 2, "its descriptors are closed")
        proxy.stop()


def descriptors(pid: int) -> int:
    """How many descriptors a process holds open."""
    return len(os.listdir(f"/proc/{pid}/fd"))
