"""Spliced connections across a restart, in the service manager's store of descriptors."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import activating
import pytest
from peers import PATIENCE, Peer, connect, free_port
from proxy import Proxy, until

pytestmark = [pytest.mark.kernel, pytest.mark.net]

POLICY = """\
listeners:
  raw: {{address: "127.0.0.1:{raw}", protocol: TCP}}
routes:
  - {{name: all, listeners: [raw], backendRefs: [{{name: app}}]}}
backends:
  app: {{endpoints: ["127.0.0.1:{app}"]}}
"""


class Store:
    """systemd's part: keeps descriptors by their names, in no particular order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept: list[tuple[str, int]] = []
        self.said: list[str] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(path))
        self._sock.settimeout(0.1)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while not self._end.is_set():
            try:
                data, rights, _, _ = self._sock.recvmsg(4096, socket.CMSG_SPACE(253 * 4))
            except TimeoutError:
                continue
            fds = array.array("i")
            for _, _, some in rights:
                fds.frombytes(some[: len(some) // 4 * 4])
            lines = dict(line.partition("=")[::2] for line in data.decode().splitlines())
            if "FDSTORE" in lines:
                for fd in reversed(fds):
                    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100)
                    os.close(fd)
                    self.kept.append((lines["FDNAME"], high))
                continue
            for fd in fds:  # a barrier
                os.close(fd)
            if "FDSTOREREMOVE" in lines:
                gone = [one for one in self.kept if one[0] == lines["FDNAME"]]
                self.kept = [one for one in self.kept if one not in gone]
                for _, fd in gone:
                    os.close(fd)
            self.said += lines

    def close(self) -> None:
        self._end.set()
        self._thread.join()
        self._sock.close()
        for _, fd in self.kept:
            os.close(fd)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "notify")
    yield made
    made.close()


@contextlib.contextmanager
def life(store: Store, policy: str, more: Sequence[str] = ()) -> Iterator[Proxy]:
    """An l7proxy that gets what is in the store."""
    names, fds = [name for name, _ in store.kept], [fd for _, fd in store.kept]
    proxy = Proxy(
        policy,
        "sockmap",
        entry=activating.ENTRY,
        environment=activating.environment(names, fds, NOTIFY_SOCKET=str(store.path)),
        fds=fds,
        more=["--keep-in-store", *more],
    )
    with proxy:
        yield proxy


def pair(proxy: Proxy, server: socket.socket) -> tuple[Peer, Peer]:
    client = connect(proxy.address("raw"))
    client.send(b"hello")
    backend = Peer(server.accept()[0])
    assert backend.read(5) == b"hello"
    backend.send(b"hello")
    assert client.read(5) == b"hello"
    return client, backend


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        yield listener


@pytest.mark.parametrize("more", [(), ("--guardian",)], ids=["bare", "guardian"])
def test_connections_live_through_a_restart(
    store: Store, server: socket.socket, more: tuple[str, ...]
) -> None:
    policy = POLICY.format(raw=free_port(), app=server.getsockname()[1])
    with life(store, policy, more) as first:
        pairs = [pair(first, server) for _ in range(5)]
        until(lambda: first.stats()["kept"]["pairs"] == 5, "they are kept")
        first.signal(signal.SIGTERM)
        assert first.wait() == 0
        assert "STOPPING" not in store.said
    waiting = connect(("127.0.0.1", int(policy.partition("127.0.0.1:")[2].partition('"')[0])))
    for client, backend in pairs:
        client.send(b"nobody there")
        assert backend.read(12) == b"nobody there"
    with life(store, policy, more) as second:
        until(lambda: second.stats()["kept"]["adopted"] == 5, "they are adopted")
        until(lambda: not store.kept, "the store is empty again")
        waiting.send(b"still in the queue")
        with Peer(server.accept()[0]) as served:
            assert served.read(18) == b"still in the queue"
        waiting.close()
        for client, backend in pairs:
            client.half_close()
            assert backend.rest() == b""
            backend.half_close()
            assert client.rest() == b""
            record = second.record(client.port)
            assert (record["reason"], record["bytes_in"]) == ("done", 17)
            client.close()
            backend.close()
        second.settled()


def test_what_is_not_understood_is_reset(store: Store, server: socket.socket) -> None:
    policy = POLICY.format(raw=free_port(), app=server.getsockname()[1])
    with life(store, policy) as first:
        client, backend = pair(first, server)
        until(lambda: first.stats()["kept"]["pairs"] == 1, "it is kept")
        first.signal(signal.SIGTERM)
        assert first.wait() == 0
    lost = [one for one in store.kept if one[0] == "l7proxy-state"]
    store.kept = [one for one in store.kept if one not in lost]
    for _, fd in lost:
        os.close(fd)
    with life(store, policy) as second:
        assert client.ending() == "reset"
        assert backend.ending() == "reset"
        client.close()
        backend.close()
        assert "what was stored is not understood" in second.log()
        more = pair(second, server)
        for one in more:
            one.close()
        second.settled()
