"""How full a socket is and how much it may receive, on real loopback connections."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from l7proxy.net import buffers
from l7proxy.net.tcpinfo import tcp_info

pytestmark = pytest.mark.net

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """(a sender that does not block, a receiver that reads only when it is told to)."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = socket.create_connection(listener.getsockname())
        receiver, _ = listener.accept()
    with sender, receiver:
        sender.setblocking(False)
        receiver.setblocking(False)
        yield sender, receiver


def flood(sender: socket.socket) -> int:
    """Send until nothing goes for a while."""
    sent, idle = 0, 0
    while idle < 20:
        try:
            sent += sender.send(b"x" * 5000)
            idle = 0
        except BlockingIOError:
            idle += 1
            time.sleep(0.002)
    return sent


def drained(receiver: socket.socket) -> int:
    taken = 0
    try:
        while True:
            taken += len(receiver.recv(1 << 20))
    except BlockingIOError:
        return taken


def test_an_empty_connection(ends: Ends) -> None:
    for sock in ends:
        received, limit, send_limit, queued = buffers.memory(sock)
        assert (received, queued) == (0, 0)
        assert limit == sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert send_limit == sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


def test_full_at_both_ends(ends: Ends) -> None:
    sender, receiver = ends
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 50_000)
    sent = flood(sender)
    _, _, send_limit, queued = buffers.memory(sender)
    arrived = tcp_info(receiver).bytes_received
    received, limit, _, _ = buffers.memory(receiver)
    assert send_limit == 100_000
    assert queued >= sent - arrived > 0  # with overhead
    assert received >= arrived > 0
    assert limit > 0


def test_the_receive_limit_is_what_was_asked_for(ends: Ends) -> None:
    _, receiver = ends
    for size in (200_000, 50_000, 100_001):
        buffers.limit_receive(receiver, size)
        assert buffers.memory(receiver)[1] == size - size % 2


def test_a_limit_of_nothing_is_the_kernels_least(ends: Ends) -> None:
    """Never an error: what is left of a buffer after a subtraction may be nothing at all."""
    _, receiver = ends
    for size in (0, -5000):
        buffers.limit_receive(receiver, size)
        assert 0 < buffers.memory(receiver)[1] < 5000


def test_the_ceiling_is_the_most_that_can_be_set(ends: Ends) -> None:
    _, receiver = ends
    ceiling = buffers.receive_ceiling()
    assert ceiling > 0
    buffers.limit_receive(receiver, ceiling)
    assert buffers.memory(receiver)[1] == ceiling
    buffers.limit_receive(receiver, 2 * ceiling)
    assert buffers.memory(receiver)[1] == ceiling


def test_a_limited_receiver_holds_its_sender(ends: Ends) -> None:
    sender, receiver = ends
    buffers.limit_receive(receiver, 100_000)
    sent = flood(sender)
    arrived = tcp_info(receiver).bytes_received
    assert 0 < arrived <= 100_000 < sent
    taken = 0
    while taken < sent:  # and nothing is lost
        taken += drained(receiver)
        time.sleep(0.001)


def test_the_window_is_what_a_sender_may_be_ahead(ends: Ends) -> None:
    """Segments of one kind only: see `limit_window` for what ends it."""
    sender, receiver = ends
    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffers.limit_receive(receiver, 400_000)
    trickle(sender, 1, receiver)
    buffers.limit_window(receiver, 20_000)
    trickle(sender, 100, receiver)  # the window of the handshake is used up
    before = tcp_info(receiver).bytes_received
    trickle(sender, 40)
    assert 10_000 < tcp_info(receiver).bytes_received - before <= 20_000


def trickle(sender: socket.socket, segments: int, receiver: socket.socket | None = None) -> None:
    """Segments of 1000 bytes, each on its own; `receiver` reads them."""
    for _ in range(segments):
        sender.send(b"x" * 1000)
        if receiver is not None:
            time.sleep(0.0005)
            drained(receiver)


@pytest.mark.parametrize("content", [None, "", "much"])
def test_no_ceiling_is_known(tmp_path: Path, content: str | None) -> None:
    """Zero: then no buffer is limited at all."""
    file = tmp_path / "rmem_max"
    if content is not None:
        file.write_text(content)
    with mock.patch.object(buffers, "_RMEM_MAX", str(file)):
        assert buffers.receive_ceiling() == 0
