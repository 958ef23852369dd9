"""How much a socket may receive, on real loopback connections."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from l7proxy.net import buffers

pytestmark = pytest.mark.net

RMEM_MAX = Path("/proc/sys/net/core/rmem_max")
STREAM = 64 << 20  # bytes that a sender has, and that a fast reader lets the buffer grow for


def size_of(sock: socket.socket) -> int:
    size: int = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    return size


def read(near: socket.socket, far: socket.socket, count: int) -> None:
    """Have `count` bytes sent and read at once."""
    far.setblocking(False)
    data = bytes(1 << 20)
    sent = taken = 0
    while taken < count:
        if sent < count:
            try:
                sent += far.send(data[: count - sent])
            except BlockingIOError:
                pass
        taken += len(near.recv(1 << 20))


def test_a_frozen_buffer_grows_no_more() -> None:
    sizes = {}
    for frozen in (False, True):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            far = socket.create_connection(listener.getsockname())
            near, _ = listener.accept()
        with far, near:
            before = size_of(near)
            if frozen:
                buffers.freeze_receive(near)
                assert size_of(near) == before
            read(near, far, STREAM)
            sizes[frozen] = size_of(near) - before
    assert sizes[True] == 0
    assert sizes[False] > 0  # else nothing was shown


def test_no_more_than_the_system_allows() -> None:
    most = 2 * int(RMEM_MAX.read_text())
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, most)
        buffers.freeze_receive(sock)
        assert size_of(sock) == most
