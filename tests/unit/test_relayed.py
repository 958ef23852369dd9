"""A pair that user space relays, on real sockets and without a worker."""

from __future__ import annotations

import errno
import select
import socket
from types import SimpleNamespace

import pytest

from l7proxy.datapath.relay import Relays
from l7proxy.model import Datapath, Side
from l7proxy.session import Flow, FlowCommand, State
from l7proxy.session import Session as LiveSession
from l7proxy.worker.relayed import RelayedPair


class FakeConnection:
    """What a `RelayedPair` asks of its connection."""

    def __init__(self, client: socket.socket, backend: socket.socket) -> None:
        self.worker = SimpleNamespace(relays=Relays(Datapath.SPLICE2), now=1.0, view=[0] * 64)
        self.client, self.backend = client, backend
        self.early_in = self.early_answer = 0
        self.held_answer = b""
        self.session = LiveSession()
        self.session.state = State.RELAYED
        self.session.flows = [Flow.USER, Flow.USER]
        self.passed_on: list[Side] = []

    def end(self, side: Side) -> socket.socket:
        return self.client if side is Side.CLIENT else self.backend

    def watch(self, _sock: socket.socket, _mask: int) -> None:
        pass

    def look_again(self, _delay: float) -> None:
        pass

    def expect_progress(self) -> None:
        pass

    def flow(self, side: Side, event) -> None:
        for command in self.session.on_flow(side, event):
            assert command is FlowCommand.PASS_FIN
            self.passed_on.append(side)
            self.end(side.other).shutdown(socket.SHUT_WR)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        near, _ = server.accept()
    near.setblocking(False)
    return far, near


@pytest.mark.net
def test_without_a_pipe_the_bytes_are_copied(monkeypatch):
    """Out of descriptors: splice(2), then copy; the pair does not notice."""
    far_client, client = tcp_pair()
    far_backend, backend = tcp_pair()
    connection = FakeConnection(client, backend)
    pair = RelayedPair(connection, copy=False)  # type: ignore[arg-type]

    def no_pipe(*_: object) -> tuple[int, int]:
        raise OSError(errno.EMFILE, "too many open files")

    with far_client, far_backend, client, backend:
        far_client.sendall(b"first ")
        far_client.settimeout(5)
        far_backend.settimeout(5)
        pair.ready(Side.CLIENT, select.EPOLLIN)
        assert far_backend.recv(100) == b"first "
        monkeypatch.setattr("l7proxy.datapath.relay.os.pipe2", no_pipe)
        connection.worker.relays.close()
        far_client.sendall(b"second")
        pair.ready(Side.CLIENT, select.EPOLLIN)
        assert far_backend.recv(100) == b"second"
        far_client.shutdown(socket.SHUT_WR)
        pair.ready(Side.CLIENT, select.EPOLLIN | select.EPOLLRDHUP)
        assert far_backend.recv(100) == b""
        assert connection.passed_on == [Side.CLIENT]
        assert pair.moved() == (12, 0, 0, 0)
        assert connection.worker.view[7] == 12  # RELAYED_CLIENT
        pair.close()
