"""What is left of a request when its backend is given up: for the next one, and for another try."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from l7proxy.head import HeadReader
from l7proxy.model import Limits
from l7proxy.worker.asking import Asking
from l7proxy.worker.wire import Wire

BODY = bytes(range(256)) * 240  # 60 KiB: more than a small send buffer takes, and still copied
NEXT = b"GET /next HTTP/1.1\r\nHost: a.test\r\n"  # half of a head
HEAD = b"PUT /one HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n" % len(BODY)


def ends(room: int | None = None) -> tuple[socket.socket, socket.socket]:
    """A connection; `room`: bytes that the first end's kernel takes, about."""
    near, far = socket.socketpair()
    if room is not None:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
    return near, far


class House:
    """An `Asking`, and the little that it sees of its exchange."""

    def __init__(self) -> None:
        self.client_end, far = ends()
        self.client_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.client_end.sendall(BODY + NEXT)
        self.requests = SimpleNamespace(client=Wire(far), pending=b"")
        worker = SimpleNamespace(body_scratch=memoryview(bytearray(1 << 20)), splicer=None)
        connection = SimpleNamespace(listener=SimpleNamespace(limits=Limits()), worker=worker)
        head = HeadReader(Limits()).feed(HEAD)
        assert head is not None
        self.exchange = SimpleNamespace(
            head=head,
            connection=connection,
            backend=None,
            may_lend=False,
            note=lambda _: None,
            watch=lambda *_: None,
            sent=lambda: None,
            check_over=lambda: None,
        )
        self.asking = Asking(
            cast(Any, self.exchange), cast(Any, self.requests), head, HEAD, b"", 1 << 16
        )

    def start(self, backend: socket.socket) -> None:
        self.exchange.backend = Wire(backend)
        self.exchange.backend.uses = 1
        self.asking.start(self.exchange.backend)


@pytest.fixture
def house() -> Iterator[House]:
    found = House()
    yield found
    found.client_end.close()
    found.requests.client.sock.close()


def read(sock: socket.socket, size: int) -> bytes:
    """So many bytes; fails where they do not come."""
    sock.settimeout(10)
    got = b""
    while len(got) < size:
        more = sock.recv(1 << 16)
        assert more, f"the end after {len(got)} bytes"
        got += more
    return got


def test_what_was_read_beyond_a_request_is_the_next_one_whatever_becomes_of_it(
    house: House,
) -> None:
    near, far = ends(room=4096)
    with near, far:
        house.start(near)
        assert house.asking.is_read
        assert not house.asking.sent  # the backend has not all of it
        house.asking.close()  # it is answered in the backend's place
        assert house.requests.pending == NEXT


def test_another_backend_gets_all_of_it(house: House) -> None:
    near, far = ends(room=4096)
    with near, far:
        house.start(near)
        assert not house.asking.sent
        house.asking.close()
        house.asking.again()
    near, far = ends(room=4096)
    with near, far:
        house.start(near)
        got = b""
        while not house.asking.sent:
            got += read(far, 1)
            house.asking.go()
        assert got + read(far, len(HEAD + BODY) - len(got)) == HEAD + BODY
        assert house.requests.pending == NEXT


def test_a_backend_that_has_all_of_it_leaves_nothing_behind(house: House) -> None:
    near, far = ends(room=1 << 20)
    with near, far:
        house.start(near)
        assert house.asking.sent
        house.asking.close()
        assert house.requests.pending == NEXT
        assert read(far, len(HEAD + BODY)) == HEAD + BODY
