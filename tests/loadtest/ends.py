"""What blast is tried against: its origin, and servers that do it wrong (a function per connection,
in threads)."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from peers import free_port

from loadtest import blast

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"

Behaviour = Callable[[socket.socket], None]


@dataclass(frozen=True, slots=True)
class Origin:
    """A running `blast origin` and its addresses."""

    http: str
    echo: str
    child: blast.Child


def free_address() -> str:
    """An address of 127.0.0.1 where nobody listens now."""
    return f"127.0.0.1:{free_port()}"


@contextmanager
def serving(behave: Behaviour) -> Iterator[str]:
    """An address of 127.0.0.1 where each connection gets `behave`, and is closed after it."""
    door = socket.create_server(("127.0.0.1", 0), backlog=512)
    host, port = door.getsockname()
    threads: list[threading.Thread] = []
    served: list[socket.socket] = []

    def one(client: socket.socket) -> None:
        with client, suppress(OSError):
            behave(client)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = door.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                served.append(client)
                threads.append(threading.Thread(target=one, args=(client,), daemon=True))
                threads[-1].start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield f"{host}:{port}"
    finally:
        for end in (door, *served):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        door.close()
        for thread in (acceptor, *threads):
            thread.join(10)


def head_of(client: socket.socket) -> bytes:
    """The next request head; b"" at the end of the stream."""
    text = b""
    while not text.endswith(b"\r\n\r\n"):
        more = client.recv(4096)
        if not more:
            return b""
        text += more
    return text


def saying(answer: bytes, *, then_close: bool = False) -> Behaviour:
    """Each request gets this answer."""

    def behave(client: socket.socket) -> None:
        while head_of(client):
            client.sendall(answer)
            if then_close:
                return

    return behave


def reset(client: socket.socket) -> None:
    """Close with a RST."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
