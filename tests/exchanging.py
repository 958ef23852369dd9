"""Backends and clients for connections on which request follows request, each read by hand.

`serve` plays a backend that keeps its connections: it reads each request as strictly as it can,
tells the test of it, and does what the test says. `Answer` is a response as its client reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peers import Backend, Ended, Peer
from proxy import Proxy, until


@dataclass
class Message:
    """A request or a response: its first line, its fields by lower-case names, its body."""

    line: bytes
    fields: dict[bytes, bytes]
    body: bytes = b""

    @property
    def path(self) -> bytes:
        """Of a request."""
        return self.line.split(b" ")[1]

    @property
    def status(self) -> int:
        """Of a response."""
        return int(self.line.split(b" ")[1])


def read_head(peer: Peer) -> Message:
    """A head; no field stands twice."""
    line, *fields = peer.head().removesuffix(b"\r\n\r\n").split(b"\r\n")
    found: dict[bytes, bytes] = {}
    for field in fields:
        name, _, value = field.partition(b": ")
        assert name.lower() not in found, fields
        found[name.lower()] = value
    return Message(line, found)


def read_chunks(peer: Peer) -> bytes:
    """A chunked body without extensions and trailers."""
    body = b""
    while True:
        size = b""
        while not size.endswith(b"\r\n"):
            size += peer.read(1)
        count = int(size, 16)
        data = peer.read(count + 2)
        assert data.endswith(b"\r\n")
        if not count:
            return body
        body += data[:-2]


def read_message(peer: Peer, *, bodiless: bool = False) -> Message:
    """A head and its body, which has one length or one kind of chunks, or is none."""
    found = read_head(peer)
    length, coding = found.fields.get(b"content-length"), found.fields.get(b"transfer-encoding")
    assert length is None or coding is None
    if coding is not None:
        assert coding == b"chunked"
        found.body = read_chunks(peer)
    elif length is not None and not bodiless:
        found.body = peer.read(int(length))
    return found


def ok(body: bytes = b"", fields: bytes = b"") -> bytes:
    """A response with a length."""
    return b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (fields, len(body), body)


def get(path: bytes, fields: bytes = b"", method: bytes = b"GET", version: bytes = b"1.1") -> bytes:
    """A request without a body."""
    return b"%b %b HTTP/%b\r\nHost: app.test\r\n%b\r\n" % (method, path, version, fields)


def post(path: bytes, body: bytes, fields: bytes = b"", method: bytes = b"POST") -> bytes:
    """A request with a length."""
    return get(path, b"Content-Length: %d\r\n%b" % (len(body), fields), method) + body


Handler = Callable[[Peer, Message], bytes | None]


def serve(backend: Backend, handler: Handler) -> None:
    """Answer request after request with what `handler` returns, until it is None or the peer ends.

    Each request is told to the test, and which connection it came on: (port, request).
    """

    def script(peer: Peer) -> None:
        while True:
            try:
                request = read_message(peer)
            except (Ended, ConnectionResetError):
                return
            backend.tell((peer.sock.getpeername()[1], request))
            answer = handler(peer, request)
            if answer is None:
                return
            peer.send(answer)

    backend.play(script)


def echo(_: Peer, request: Message) -> bytes:
    """The path and the body."""
    return ok(request.path + b" " + request.body)


def record(proxy: Proxy, client: int, path: bytes, **wanted: object) -> dict[str, Any]:
    """The record of a request that came from this port of a client, once it is there."""

    def found() -> list[dict[str, Any]]:
        return [
            one
            for one in proxy.records()
            if one["client"].endswith(f":{client}") and one["path"] == path.decode()
        ]

    last: dict[str, Any] = until(found, f"a record of {path!r}")[-1]
    assert {name: last[name] for name in wanted} == wanted
    return last


def ask(client: Peer, request: bytes, *, bodiless: bool = False) -> Message:
    """Send a request; its response."""
    client.send(request)
    return read_message(client, bodiless=bodiless)
