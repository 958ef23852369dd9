"""What was passed to user space, and cannot be read: it comes, or its socket is reset."""

from __future__ import annotations

import socket
import struct
from types import SimpleNamespace
from typing import Any, cast

import pytest

from l7proxy.datapath.relay import SourceBroken
from l7proxy.worker.wire import LOOKS, Wire

INTO = memoryview(bytearray(100))


def ends() -> tuple[Wire, socket.socket]:
    """A connection over TCP; the kernel is said to have passed ten bytes of its first end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    wire = Wire(near)
    wire._splicer = cast(Any, SimpleNamespace(passed=lambda _: 10))
    return wire, far


def test_it_may_come_behind_an_end() -> None:
    wire, far = ends()
    with wire.sock, far:
        far.shutdown(socket.SHUT_WR)
        for _ in range(2 * LOOKS):
            wire.more = True
            assert wire.read(INTO) == -1
            assert not wire.more  # an edge tells


def test_of_a_socket_that_was_reset_it_does_not_come() -> None:
    wire, far = ends()
    with wire.sock:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        while not wire.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            pass  # and it has told so: recv(2) says nothing but that it has ended
        for _ in range(LOOKS):
            assert wire.read(INTO) == -1
            assert wire.more  # nothing tells: it is to be looked at again
        with pytest.raises(SourceBroken):
            wire.read(INTO)


def test_who_owes_something_is_not_quiet() -> None:
    wire, far = ends()
    with wire.sock, far:
        assert not wire.is_quiet
        wire.taken = 10
        assert wire.is_quiet
