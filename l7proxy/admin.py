"""The admin server: health and statistics for whoever operates this l7proxy.

It runs in the supervisor, which is privileged, so it reads little and bounds everything: a head of
at most 16 KiB, no body, a few clients, a few seconds for each step. There is no authentication
yet, so it listens on a unix socket of mode 0600 or on loopback, nowhere else; on loopback the Host
header must name this machine, which keeps a web page from reading it by DNS rebinding.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import h11

log = logging.getLogger(__name__)

MAX_CLIENTS = 64
MAX_HEAD = 16 * 1024  # bytes
IDLE_SECONDS = 15.0  # for a whole head to arrive, from accept or the last response
SEND_SECONDS = 10.0  # for a client to take a response
_LINGER_SECONDS = 1.0
_LINGER_BYTES = 64 * 1024
_READ = 16 * 1024


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


class Admin:
    """Serves `GET /healthz`, `GET /stats` and `POST /reload` on a socket made by `open_admin`.

    `reload` answers when the reload is over; `ok` in its answer says how.
    """

    def __init__(
        self,
        stats: Callable[[], dict[str, Any]],
        draining: Callable[[], bool],
        reload: Callable[[], Awaitable[dict[str, Any]]] | None = None,
    ) -> None:
        self._stats = stats
        self._draining = draining
        self._reload = reload
        self._clients: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._loopback = False

    async def start(self, sock: socket.socket) -> None:
        """Serve on this socket, from now on."""
        self._loopback = sock.family != socket.AF_UNIX
        self._server = await asyncio.start_server(self._client, sock=sock, limit=_READ)

    async def close(self) -> None:
        """Stop listening and drop the clients that are left."""
        if self._server is not None:
            self._server.close()
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._clients) >= MAX_CLIENTS:
            writer.transport.abort()
            return
        self._clients.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, TimeoutError):
            pass  # gone, or too slow: nobody is left to tell
        except asyncio.CancelledError:
            pass  # close() waits for this task; there is no one above it to pass this on to
        except Exception:
            log.exception("admin request failed")
        finally:
            writer.transport.abort()
            self._clients.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        while True:
            method = b""
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    request = await _next_request(http, reader)
            except h11.RemoteProtocolError as error:
                answer = _Answer(error.error_status_hint, b"bad request\n")
            else:
                if request is None:
                    return
                method = request.method
                answer = await self._answer_safely(request)
            await _send(http, writer, answer, head_only=method == b"HEAD")
            if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                await _linger(reader, writer)
                return
            http.start_next_cycle()

    async def _answer_safely(self, request: h11.Request) -> _Answer:
        try:
            return await self._answer(request)
        except Exception:
            log.exception("admin request failed")
            return _Answer(500, b"internal error, see the log\n")

    async def _answer(self, request: h11.Request) -> _Answer:
        if self._loopback and not _names_this_machine(request):
            return _Answer(403, b"the Host header must be localhost or an IP address\n")
        path = _path(request.target)
        if path == b"/reload" and self._reload is not None:
            return await self._answer_reload(request, self._reload)
        if path not in (b"/healthz", b"/stats"):
            return _Answer(404, b"not found; there are /healthz, /stats and /reload\n")
        if request.method not in (b"GET", b"HEAD"):
            return _Answer(405, b"GET or HEAD\n", headers=(("Allow", "GET, HEAD"),))
        if path == b"/stats":
            body = json.dumps(self._stats(), indent=2) + "\n"
            return _Answer(200, body.encode(), "application/json")
        if self._draining():
            return _Answer(503, b"draining")
        return _Answer(200, b"ok")

    async def _answer_reload(
        self, request: h11.Request, reload: Callable[[], Awaitable[dict[str, Any]]]
    ) -> _Answer:
        if request.method != b"POST":
            return _Answer(405, b"POST\n", headers=(("Allow", "POST"),))
        if any(name == b"origin" for name, _ in request.headers):
            # a web page may send a POST anywhere; a browser says whose it is (Fetch, 3.2.5)
            return _Answer(403, b"not from a web page\n")
        outcome = await reload()
        body = json.dumps(outcome, indent=2) + "\n"
        return _Answer(200 if outcome["ok"] else 422, body.encode(), "application/json")


async def _next_request(http: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
    """The next head; None when the client is done."""
    while True:
        found = http.next_event()
        if isinstance(found, h11.Request):
            return found
        if isinstance(found, h11.ConnectionClosed):
            return None
        if found is h11.NEED_DATA:
            http.receive_data(await reader.read(_READ))


async def _send(
    http: h11.Connection, writer: asyncio.StreamWriter, answer: _Answer, *, head_only: bool
) -> None:
    """Send the answer. Another request may follow if both sides of `http` are DONE then."""
    headers = [
        ("Content-Type", answer.content_type),
        ("Content-Length", str(len(answer.body))),
        ("Cache-Control", "no-store"),
        *answer.headers,
    ]
    if not _ends_here(http):
        headers.append(("Connection", "close"))
    reason = HTTPStatus(answer.status).phrase
    response = h11.Response(status_code=answer.status, reason=reason, headers=headers)
    data = http.send(response) or b""
    if not head_only:
        data += http.send(h11.Data(data=answer.body)) or b""
    data += http.send(h11.EndOfMessage()) or b""
    async with asyncio.timeout(SEND_SECONDS):
        writer.write(data)
        await writer.drain()


def _ends_here(http: h11.Connection) -> bool:
    """Whether the request has no body. A body is not read: its connection ends with the answer."""
    if http.their_state is not h11.SEND_BODY:
        return http.their_state is h11.DONE
    try:
        return isinstance(http.next_event(), h11.EndOfMessage)
    except h11.RemoteProtocolError:
        return False


async def _linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read on for a moment: closing with unread bytes resets, and takes the answer with it."""
    if writer.can_write_eof():
        writer.write_eof()
    left = _LINGER_BYTES
    async with asyncio.timeout(_LINGER_SECONDS):
        while left > 0:
            data = await reader.read(_READ)
            if not data:
                return
            left -= len(data)


def _path(target: bytes) -> bytes:
    """The path of a request target; a server accepts absolute-form too (RFC 9112, 3.2.2)."""
    if target[:7].lower() == b"http://":
        target = b"/" + target[7:].partition(b"/")[2]
    return target.partition(b"?")[0]


def _names_this_machine(request: h11.Request) -> bool:
    hosts = [value for name, value in request.headers if name == b"host"]
    if not hosts:
        return True  # HTTP/1.0: no browser
    host = hosts[0].decode("latin-1").lower()
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
