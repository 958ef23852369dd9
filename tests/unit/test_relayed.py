"""A pair that user space relays, on real sockets and without a worker."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from l7proxy.datapath.relay import Relays
from l7proxy.model import Datapath, Side
from l7proxy.session import Command, Event, Flow, FlowCommand, State
from l7proxy.session import Session as LiveSession
from l7proxy.telemetry.counters import Counter
from l7proxy.worker.relayed import CALM, RelayedPair


class FakeConnection:
    """What a `RelayedPair` asks of its connection."""

    def __init__(self, client: socket.socket, backend: socket.socket) -> None:
        self.worker = SimpleNamespace(relays=Relays(Datapath.SPLICE2), now=1.0, view=[0] * 64)
        self.client, self.backend = self.ends = client, backend
        self.early_in = self.early_out = self.early_answer = 0
        self.pair: RelayedPair | None = None
        self.may_splice, self.is_whole, self.copied = False, True, False
        self.held_answer = self.held_request = b""
        self.session = LiveSession()
        self.session.state = State.RELAYED
        self.session.flows = [Flow.USER, Flow.USER]
        self.passed_on: list[Side] = []
        self.first_bytes = 0

    def on(self, event: Event) -> None:
        self.ordered = self.session.on(event)

    def note_first_byte(self) -> None:
        self.first_bytes += 1

    def end(self, side: Side) -> socket.socket:
        return self.client if side is Side.CLIENT else self.backend

    def watch(self, _sock: socket.socket, _mask: int, *, anew: bool = False) -> None:
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
    pair = connection.pair = RelayedPair(connection, copy=False)  # type: ignore[arg-type]

    def no_pipe(*_: object) -> tuple[int, int]:
        raise OSError(errno.EMFILE, "too many open files")

    with far_client, far_backend, client, backend:
        far_client.sendall(b"first ")
        far_client.settimeout(60)
        far_backend.settimeout(60)
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
        assert connection.worker.view[Counter.RELAYED_CLIENT] == 12
        assert connection.worker.view[Counter.SPLICE2_CLIENT] == 6
        pair.close()


class Calm:
    """A relayed pair between two far ends that the test plays."""

    def __init__(self, *, copy: bool = False, held_answer: bytes = b"") -> None:
        self.far_client, client = tcp_pair()
        self.far_backend, backend = tcp_pair()
        self.connection = FakeConnection(client, backend)
        self.connection.may_splice = True
        self.connection.held_answer = held_answer
        self.connection.early_answer = len(held_answer)
        self.pair = RelayedPair(self.connection, copy=copy)  # type: ignore[arg-type]
        self.connection.pair = self.pair
        for far in (self.far_client, self.far_backend):
            far.settimeout(60)

    def turn(self, side: Side, data: bytes) -> None:
        """One turn that moves `data` from `side`, read at the other end."""
        ends = (self.far_client, self.far_backend)
        ends[side].sendall(data)
        self.pair.ready(side, select.EPOLLIN)
        found = b""
        while len(found) < len(data):
            found += ends[side.other].recv(len(data) - len(found))
        assert found == data

    def close(self) -> None:
        self.pair.close()
        self.connection.worker.relays.close()
        for sock in (self.far_client, self.far_backend, *self.connection.ends):
            sock.close()


@pytest.fixture(params=["splice2", "copy"])
def calm(request: pytest.FixtureRequest) -> Iterator[Calm]:
    made = Calm(copy=request.param == "copy")
    yield made
    made.close()


@pytest.mark.net
def test_a_pair_that_is_calm_goes_to_the_kernel(calm: Calm):
    connection = calm.connection
    for turn in range(CALM):
        assert connection.pair is calm.pair, turn
        calm.turn(Side(turn % 2), bytes([turn]) * (turn + 1))
    assert connection.session.state is State.SPLICED
    assert connection.ordered == (Command.OPEN,)
    assert connection.pair is None
    assert (connection.early_in, connection.early_out, connection.early_answer) == (16, 16, 20)
    assert connection.worker.view[Counter.RELAYS_ENDED] == 1
    calm.pair.ready(Side.CLIENT, select.EPOLLIN | select.EPOLLOUT)  # of the same look at epoll
    calm.pair.again()
    assert connection.worker.view[Counter.RELAYED_CLIENT] == 16


@pytest.mark.net
def test_a_receiver_without_room_keeps_the_pair_in_user_space(calm: Calm):
    connection = calm.connection
    for _ in range(CALM - 1):
        calm.turn(Side.CLIENT, b"little")
    connection.backend.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    calm.far_client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            calm.far_client.send(bytes(1 << 20))
    calm.pair.ready(Side.CLIENT, select.EPOLLIN)
    calm.turn(Side.BACKEND, b"one")  # calm, but the first after one that was not
    assert connection.pair is calm.pair
    for _ in range(2 * CALM):
        calm.turn(Side.BACKEND, b"more")
    assert connection.pair is calm.pair, "bytes that user space holds would be left behind"


@pytest.mark.net
def test_a_pair_of_which_an_end_has_ended_stays(calm: Calm):
    calm.connection.is_whole = False
    for _ in range(2 * CALM):
        calm.turn(Side.BACKEND, b"more")
    assert calm.connection.pair is calm.pair


@pytest.mark.net
def test_what_was_held_is_counted_once():
    calm = Calm(copy=True, held_answer=b"held")
    calm.pair.ready(Side.CLIENT, select.EPOLLOUT)
    assert calm.far_client.recv(4) == b"held"
    for _ in range(CALM - 1):  # the held bytes were a turn, too
        assert calm.connection.pair is calm.pair
        calm.turn(Side.BACKEND, b"more")
    assert calm.connection.pair is None
    assert calm.connection.early_answer == 4 * CALM
    calm.close()
