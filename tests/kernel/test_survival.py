"""Many spliced connections with traffic that never pauses: workers are killed, l7proxy itself is
replaced by another one, its supervisor is killed, and its policy changes again and again.

Every byte is checked where it comes back. `make survive` does it with 5,000 connections: each takes
two descriptors of whoever holds it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from peers import stretch
from proxy import Proxy, alive, children, supervisor, until

pytestmark = [pytest.mark.kernel, pytest.mark.net, pytest.mark.slow, pytest.mark.matrix]

CONNECTIONS = int(os.environ.get("L7PROXY_SURVIVORS", "300"))
RELOADS = 20 if CONNECTIONS > 1000 else 4
WORKERS = 2
PATIENCE = 60.0  # seconds
FILES = 20_000
POLICY = """\
listeners:
  raw: {{address: 127.0.0.1:0, protocol: TCP, limits: {{connections: 20000}}}}
routes:
  - {{name: r{generation}, listeners: [raw], backendRefs: [{{name: app}}]}}
backends:
  app: {{endpoints: ["127.0.0.1:{port}"]}}
"""


def echo() -> None:
    """A server that sends back what it gets."""
    epoll, peers = select.epoll(), {}
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        print(listener.getsockname()[1], flush=True)
        epoll.register(listener, select.EPOLLIN)
        while True:
            for fd, _ in epoll.poll():
                if fd == listener.fileno():
                    peer, _ = listener.accept()
                    peers[peer.fileno()] = peer
                    epoll.register(peer, select.EPOLLIN)
                    continue
                try:
                    data = peers[fd].recv(1 << 16)
                    peers[fd].sendall(data)
                except ConnectionError:
                    data = b""
                if not data:
                    peers.pop(fd).close()


class Talker:
    """A connection that sends pieces of a stream, and wants them back as they were."""

    def __init__(self, address: tuple[str, int], seed: int) -> None:
        self.sock = socket.create_connection(address)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.seed = seed
        self.sent = self.received = self.rounds = 0
        self._size = 4096 if seed % 10 == 0 else 64 + seed % 100

    def speak(self) -> None:
        """The next piece; it is echoed before another one is sent."""
        self.sent += self.sock.send(stretch(self.seed, self.sent, self._size))

    def hear(self) -> None:
        """What has come back."""
        data = self.sock.recv(1 << 16)
        assert data, f"connection {self.seed} ended after {self.received} bytes"
        while data:
            expected = stretch(self.seed, self.received, len(data))
            assert data[: len(expected)] == expected, f"connection {self.seed}: wrong bytes"
            self.received += len(expected)
            data = data[len(expected) :]
        if self.received == self.sent:
            self.rounds += 1
            self.speak()


class Crowd:
    """All of them, in a thread of their own."""

    def __init__(self, address: tuple[str, int], count: int) -> None:
        self.talkers: list[Talker] = []
        self.failures: list[BaseException] = []
        self._over = False
        self._epoll = select.epoll()
        self._by_fd: dict[int, Talker] = {}
        for seed in range(count):
            one = Talker(address, seed)
            self.talkers.append(one)
            self._by_fd[one.sock.fileno()] = one
            self._epoll.register(one.sock, select.EPOLLIN)
            one.speak()
            one.hear()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over:
            for fd, _ in self._epoll.poll(0.05):
                try:
                    self._by_fd[fd].hear()
                except BaseException as failure:
                    self.failures.append(failure)
                    return
            time.sleep(0.02)  # two cores have more to do than that

    def go_on(self) -> None:
        """Until every connection has been round once more since now."""
        goal = [one.rounds + 2 for one in self.talkers]
        until(
            lambda: (
                self.failures
                or all(one.rounds >= n for one, n in zip(self.talkers, goal, strict=True))
            ),
            "every connection goes on",
            PATIENCE,
        )
        if self.failures:
            raise self.failures[0]

    def close(self) -> None:
        self._over = True
        self._thread.join()
        for one in self.talkers:
            one.sock.close()
        self._epoll.close()


def upgrade(proxy: Proxy) -> None:
    """A new l7proxy takes over all of it, and the old one is gone."""
    admins, old = proxy.log().count(" admin address="), supervisor(proxy)
    done = proxy.upgrade()
    assert done.returncode == 0, done.stderr
    assert f"{CONNECTIONS} spliced connections" in done.stdout
    until(lambda: not alive(old), "the old one is gone", PATIENCE)
    until(lambda: proxy.log().count(" admin address=") > admins, "it answers", PATIENCE)


def kill(proxy: Proxy) -> None:
    """The supervisor dies, and another one takes over all of it."""
    admins = proxy.log().count(" admin address=")
    until(lambda: proxy.stats()["kept"]["guarded"] == CONNECTIONS, "all are guarded", PATIENCE)
    os.kill(supervisor(proxy), signal.SIGKILL)
    until(lambda: proxy.log().count(" admin address=") > admins, "the next one answers", PATIENCE)


@contextlib.contextmanager
def echoing() -> Iterator[int]:
    """`echo` in a process of its own: its port."""
    command = [sys.executable, __file__, "echo"]
    path = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=path) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


@pytest.fixture
def server() -> Iterator[int]:
    with echoing() as port:
        yield port


def test_not_one_connection_is_lost_and_not_one_byte_wrong(server: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, FILES), hard))
    policy = POLICY.format(port=server, generation=0)
    with Proxy(policy, "sockmap", workers=WORKERS, more=["--guardian"]) as proxy:
        crowd = Crowd(proxy.address("raw"), CONNECTIONS)
        try:
            until(lambda: proxy.stats()["kept"]["pairs"] == CONNECTIONS, "all are kept", PATIENCE)
            crowd.go_on()
            for generation in range(1, RELOADS + 1):
                if generation <= WORKERS:
                    adopted = proxy.stats()["kept"]["adopted"]
                    adoptions = proxy.log().count("pairs adopted")
                    os.kill(children(supervisor(proxy))[0], signal.SIGKILL)  # the oldest one
                    until(
                        lambda n=adoptions: proxy.log().count("pairs adopted") > n,
                        "the next worker has them",
                        PATIENCE,
                    )
                    assert proxy.stats()["kept"]["adopted"] > adopted
                if generation == WORKERS + 1:
                    upgrade(proxy)
                if generation in (WORKERS + 2, WORKERS + 5):
                    kill(proxy)
                proxy.reload(POLICY.format(port=server, generation=generation))
                crowd.go_on()
            stats = proxy.stats()
            assert stats["pairs"]["spliced"] == CONNECTIONS
            assert stats["connections"]["active"] == CONNECTIONS
            kept = dict.fromkeys(("pairs", "adopted", "guarded"), CONNECTIONS)
            assert stats["kept"] == kept
            assert not crowd.failures
        finally:
            crowd.close()
        proxy.settled(PATIENCE)
        until(lambda: proxy.stats()["kept"]["pairs"] == 0, "no duplicate is left", PATIENCE)
        # a thread writes them
        until(lambda: len(proxy.records()) >= CONNECTIONS, "all are in the log", PATIENCE)
        records = {record["client"]: record for record in proxy.records()}
        assert len(records) == len(proxy.records()) == CONNECTIONS
        sizes = sorted(one["bytes_in"] for one in records.values())
        assert sizes == sorted(one.sent for one in crowd.talkers)
        proxy.signal(signal.SIGTERM)
        assert proxy.wait(PATIENCE) == 0


if __name__ == "__main__":
    echo()
