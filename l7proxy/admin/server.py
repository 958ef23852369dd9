"""The admin server's sockets, and HTTP on them.

It reads little and bounds everything: a head of at most 16 KiB, a body only where one is wanted, a
few clients, a few seconds for each step.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial
from http import HTTPStatus

import h11

from l7proxy.admin.guard import Guard
from l7proxy.admin.message import Answer, Problem, Request, split_target
from l7proxy.admin.router import Router

log = logging.getLogger(__name__)

MAX_CLIENTS = 64
MAX_HEAD = 16 * 1024  # bytes
IDLE_SECONDS = 15.0  # for a whole head or body to arrive, from accept or the last response
SEND_SECONDS = 10.0  # for a client to take a response
_LINGER_SECONDS = 1.0
_LINGER_BYTES = 64 * 1024
_READ = 16 * 1024


class Admin:
    """Serves what is in the router on sockets made by `open_admin`."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._clients: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []

    async def start(self, sock: socket.socket, guard: Guard) -> None:
        """Serve on this socket too, from now on."""
        client = partial(self._client, guard)
        self._servers.append(await asyncio.start_server(client, sock=sock, limit=_READ))

    async def close(self) -> None:
        """Stop listening and drop the clients that are left."""
        for server in self._servers:
            server.close()
        # One that was accepted and has not begun knows of no cancelling: asyncio would log a bug.
        await asyncio.sleep(0)
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _client(
        self, guard: Guard, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._clients) >= MAX_CLIENTS:
            writer.transport.abort()
            return
        self._clients.add(task)
        try:
            await self._serve(guard, reader, writer)
        except (OSError, TimeoutError):
            pass  # gone, or too slow: nobody is left to tell
        except asyncio.CancelledError:
            pass  # close() waits for this task; there is no one above it to pass this on to
        except Exception:
            log.exception("admin request failed")
        finally:
            writer.transport.abort()
            self._clients.discard(task)

    async def _serve(
        self, guard: Guard, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        while True:
            method = b""
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    head = await _next_request(http, reader)
            except h11.RemoteProtocolError as error:
                answer = Problem(error.error_status_hint, "this is no HTTP request").answer()
            else:
                if head is None:
                    return
                method = head.method
                answer = await self._answer(guard, http, head, reader, writer)
            await _send(http, writer, answer, head_only=method == b"HEAD")
            if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                await _linger(reader, writer)
                return
            http.start_next_cycle()

    async def _answer(
        self,
        guard: Guard,
        http: h11.Connection,
        head: h11.Request,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> Answer:
        try:
            path, query = split_target(head.target)
            method, headers = head.method.decode("ascii"), tuple(head.headers)
            asked = Request(method, path, query, headers)
            try:
                route, arguments = self._router.find(method, path)
            except Problem:
                guard.admit(asked)  # who may not ask is not told what there is
                raise
            guard.admit(asked, is_public=route.is_public)
            guard.check_origin(asked)
            body = await _read_body(http, reader, writer, route.body) if route.body else b""
            return await route.handler(Request(method, path, query, headers, body, arguments))
        except Problem as problem:
            return problem.answer()
        except (OSError, TimeoutError):
            raise
        except Exception:
            log.exception("admin request failed")
            return Problem(500, "internal error, the log has it").answer()


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


async def _read_body(
    http: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int
) -> bytes:
    """The body of the request whose head was read. Raises Problem, and what reading raises."""
    found = bytearray()
    async with asyncio.timeout(IDLE_SECONDS):
        if http.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
            writer.write(http.send(go_on) or b"")
        while True:
            try:
                part = http.next_event()
            except h11.RemoteProtocolError as error:
                raise Problem(error.error_status_hint, "the body is cut or malformed") from None
            if part is h11.NEED_DATA:
                http.receive_data(await reader.read(_READ))
            elif isinstance(part, h11.Data):
                found += part.data
                if len(found) > most:
                    raise Problem(413, f"a body has at most {most:,} bytes here")
            else:
                return bytes(found)


async def _send(
    http: h11.Connection, writer: asyncio.StreamWriter, answer: Answer, *, head_only: bool
) -> None:
    """Send the answer. Another request may follow if both sides of `http` are DONE then."""
    headers = [
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        *answer.headers,
    ]
    if answer.status != HTTPStatus.NO_CONTENT:
        headers.append(("Content-Type", answer.content_type))
        headers.append(("Content-Length", str(len(answer.body))))
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
