"""What blast is tried against: its origin, and servers that do it wrong (a function per connection,
in threads)."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from peers import free_port

from loadtest import blast
from loadtest.blast import Load, Result, Slow

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"

Order = Load | Slow
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


def undisturbed(program: Path, order: Order, good: Callable[[Result], bool]) -> Result:
    """What blast says of this order, on a machine that lets it: good, or bad by its own doing.

    A result that is not good counts only if no processor stood still meanwhile (others had it, or
    the hypervisor took it), for longer than the hundredth of its time that blast waits in the end.
    """
    for _ in range(TRIES):
        with Standing() as standing:
            result = blast.measure(program, order)
        if good(result) or standing.longest < order.seconds / 200:
            return result
    pytest.skip(f"the machine stands still, for {1000 * standing.longest:.1f} ms just now")


TRIES = 20


class Standing:
    """How long a processor stood still at most while the `with` block was open, in seconds.

    A thread on each of them wakes up every millisecond, and looks how late it is.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._watch, args=[processor])
            for processor in os.sched_getaffinity(0)
        ]

    def _watch(self, processor: int) -> None:
        os.sched_setaffinity(0, [processor])  # of this thread alone
        before = time.monotonic()
        while not self._over.is_set():
            time.sleep(0.001)
            now = time.monotonic()
            self.longest = max(self.longest, now - before - 0.001)
            before = now

    def __enter__(self) -> Standing:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


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
            thread.join(60)


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
