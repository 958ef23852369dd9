"""The backends of the demo: small, correct servers whose every byte can be checked.

An HTTP backend answers, under any path:

    GET  .../download?bytes=N    N bytes of `pattern`; with &rate=R, at R bytes a second
    PUT  .../upload              how many bytes came, and their SHA-256
    GET  with Upgrade: websocket an echo of every message
    anything else                its name, and the request as it arrived

An echo backend speaks first: one line with its name, then it returns what it gets.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import socketserver
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import cast
from urllib.parse import parse_qs, urlsplit

from l7proxy.demo import websocket
from l7proxy.model import Address

_CHUNK = 256 * 1024
_TIMEOUT = 30.0  # seconds that a backend waits for a client of the demo
_SO_MAX_PACING_RATE = 47  # asm-generic/socket.h; not in Python's socket module
_FILL = hashlib.shake_128(b"l7proxy demo").digest(_CHUNK - 8)


def pattern(size: int) -> Iterator[bytes]:
    """`size` bytes in chunks that all differ, so that a lost, doubled or moved one shows."""
    for number in range(-(-size // _CHUNK)):
        left = size - number * _CHUNK
        yield (number.to_bytes(8, "big") + _FILL)[:left]


def pattern_sha256(size: int) -> str:
    """SHA-256 of `pattern(size)`, in hexadecimal."""
    digest = hashlib.sha256()
    for chunk in pattern(size):
        digest.update(chunk)
    return digest.hexdigest()


class _Server(socketserver.ThreadingTCPServer):
    """A thread for each connection; a client that leaves is no event worth a traceback."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, name: str, address: Address, handler: type[_Http | _Echo]) -> None:
        self.name = name
        self.address_family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
        super().__init__((address.host, address.port), handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Left out on purpose: the client sees that its connection ended, and says so."""


class _Http(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "l7proxy-demo"
    timeout = _TIMEOUT

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if self.headers.get("Upgrade", "").lower() == "websocket":
            self._echo_messages()
        elif url.path.endswith("/download"):
            asked = {name: int(values[0]) for name, values in parse_qs(url.query).items()}
            if "rate" in asked:  # TCP paces by itself (tcp_internal_pacing)
                self.connection.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, asked["rate"])
            size = asked.get("bytes", 0)
            self._head(HTTPStatus.OK, "application/octet-stream", size)
            for chunk in pattern(size):
                self.wfile.write(chunk)
        else:
            self._text(f"backend: {self._name}\n{self.requestline}\n{self.headers}")

    def do_PUT(self) -> None:
        left = size = int(self.headers.get("Content-Length", "0"))
        digest = hashlib.sha256()
        while left:
            data = self.rfile.read(min(left, _CHUNK))
            if not data:
                self.close_connection = True
                return
            digest.update(data)
            left -= len(data)
        self._text(f"backend: {self._name}\nbytes: {size}\nsha256: {digest.hexdigest()}\n")

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the demo tells its own story."""

    @property
    def _name(self) -> str:
        return cast(_Server, self.server).name

    def _head(self, status: HTTPStatus, content_type: str, size: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def _text(self, text: str) -> None:
        body = text.encode("utf-8")
        self._head(HTTPStatus.OK, "text/plain; charset=utf-8", len(body))
        self.wfile.write(body)

    def _echo_messages(self) -> None:
        self.send_response(HTTPStatus.SWITCHING_PROTOCOLS)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        key = websocket.accept_key(self.headers.get("Sec-WebSocket-Key", ""))
        self.send_header("Sec-WebSocket-Accept", key)
        self.send_header("X-Backend", self._name)
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(EOFError, websocket.WebSocketError):
            while True:
                opcode, payload = websocket.read_frame(self.rfile)
                answer = websocket.Opcode.PONG if opcode is websocket.Opcode.PING else opcode
                self.wfile.write(websocket.encode(answer, payload))
                if opcode is websocket.Opcode.CLOSE:
                    return


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        connection: socket.socket = self.request
        connection.settimeout(_TIMEOUT)
        name = cast(_Server, self.server).name
        connection.sendall(f"backend: {name}\n".encode())
        while data := connection.recv(_CHUNK):
            connection.sendall(data)


class Backends:
    """Backends that run in threads of this process while the `with` block does."""

    def __init__(self) -> None:
        self._servers: list[tuple[_Server, threading.Thread]] = []

    def __enter__(self) -> Backends:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for server, thread in self._servers:
            server.shutdown()
            server.server_close()
            thread.join()

    def start_http(self, name: str, address: Address) -> None:
        """Serve HTTP at `address`. Raises OSError when it cannot be bound."""
        self._start(_Server(name, address, _Http))

    def start_echo(self, name: str, address: Address) -> None:
        """Serve the echo at `address`. Raises OSError when it cannot be bound."""
        self._start(_Server(name, address, _Echo))

    def _start(self, server: _Server) -> None:
        thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.05}, name=server.name
        )
        thread.start()
        self._servers.append((server, thread))
