"""A backend that answers every request with its own name, and clients that want it from all."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

SECONDS = 60.0


class Answering:
    """An HTTP backend, in threads; each answer's body is `name`. Keeps no connection."""

    def __init__(self, name: str) -> None:
        body = name.encode()
        self._answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (
            len(body),
            body,
        )
        self._sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._sock.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._sock.accept()
            except OSError:
                return
            client.settimeout(SECONDS)
            try:
                seen = b""
                while not seen.endswith(b"\r\n\r\n") and (data := client.recv(65536)):
                    seen += data
                if seen:
                    client.sendall(self._answer)
                client.close()
            except OSError:
                client.close()

    def close(self) -> None:
        """Answer no more."""
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._thread.join(SECONDS)


def ask(address: tuple[str, int] | str, host: str = "app.test") -> str:
    """The body of the answer to one request; raises OSError for anything but a whole 200."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    if not isinstance(address, str) and ":" in address[0]:
        family = socket.AF_INET6
    with socket.socket(family) as client:
        client.settimeout(SECONDS)
        client.connect(address)
        client.sendall(b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n" % host.encode())
        seen = b""
        while data := client.recv(65536):
            seen += data
    head, _, body = seen.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise OSError(f"answered {seen[:200]!r}")
    return body.decode()


class Crowd:
    """Clients that ask one after the other, each in a thread, until told to stop.

    `failed` has what any of them did not get.
    """

    def __init__(self, ask_once: Callable[[], str], clients: int = 4, pause: float = 0.0) -> None:
        self.answers: list[tuple[float, str]] = []
        self.failed: list[str] = []
        self._ask = ask_once
        self._pause = pause
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                answer = self._ask()
            except Exception as error:
                self.failed.append(repr(error))
            else:
                self.answers.append((time.monotonic(), answer))
            if self._pause:
                time.sleep(self._pause)

    def reached(self, number: int) -> bool:
        """Whether so many were answered, or any was not."""
        return len(self.answers) >= number or bool(self.failed)

    def stop(self) -> None:
        """Let each finish what it has begun."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(2 * SECONDS)
