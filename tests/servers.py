"""Backends that can be told to be ill: each answers with its name."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Any

PATIENCE = 30.0


class Server:
    """An HTTP server (a connection is one request), or a stream that sends its name and waits.

    `health` is the status of GET /health. With `breaks` it resets each connection once it has the
    request.
    """

    def __init__(self, name: str, address: Any = ("127.0.0.1", 0), *, stream: bool = False) -> None:
        self.name = name
        self.health = 200
        self.breaks = False
        self.hits = 0  # connections that asked for anything but /health
        self._stream = stream
        self._address = address
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.start()

    def start(self) -> None:
        """Listen, again where it has listened before."""
        kind = socket.AF_UNIX if isinstance(self._address, str) else socket.AF_INET
        if kind == socket.AF_INET and ":" in self._address[0]:
            kind = socket.AF_INET6
        self._listener = socket.socket(kind)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(self._address)
        self._listener.listen(128)
        self._address = self._listener.getsockname()
        self._thread = threading.Thread(target=self._accept, args=[self._listener], daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        port: int = self._address[1]
        return port

    @property
    def address(self) -> str:
        """As a policy says it."""
        return self._address if isinstance(self._address, str) else f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Listen no more, and reset what is open: whoever connects is refused."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(PATIENCE)
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                with self._lock:
                    self._open.add(sock)
                threading.Thread(target=self._serve, args=[sock], daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(60)
        with contextlib.suppress(OSError):
            if self._stream:
                self.hits += 1
                sock.sendall(self.name.encode())
                while sock.recv(4096):
                    pass
            else:
                self._answer(sock)
        with self._lock:
            self._open.discard(sock)
        sock.close()

    def _answer(self, sock: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = sock.recv(65536)
            if not piece:
                return
            head += piece
        status, body = 200, self.name.encode()
        if head.startswith(b"GET /health "):
            status = self.health
        else:
            self.hits += 1
            if self.breaks:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
        sock.sendall(
            b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
            % (status, len(body), body)
        )
