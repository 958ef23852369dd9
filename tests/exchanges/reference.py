"""A proxy of our own that is slow and right, and what proves that the tester can fail: its faults.

    python -m exchanges.reference A B C PORT [FAULT...]

It routes every request by the first letter of its path to the port A, B or C, keeps connections to
them, and repeats a request whose kept connection was closed under it where that is safe. Each fault
of `FAULTS` is a mistake that proxies make; the tester must find every one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import sys

from .messages import REQUEST, RESPONSE, Cut, Head, Malformed, read_chunked, read_length, read_rest
from .plan import IDEMPOTENT, ORIGINS, Way
from .wire import Wire

FAULTS = {
    "pinned": "all requests of a connection go where the first one went",
    "swaps": "an answer goes to whoever asked before",
    "short": "a byte of a long body is lost, and the length is right all the same",
    "flips": "a byte of a long body is another",
    "cut-looks-whole": "an answer that was broken off gets a proper end",
    "repeats": "what is not safe to repeat is repeated, too",
    "no-retry": "what is safe to repeat is not repeated",
    "closes": "every connection is closed after its answer",
    "hop": "fields of one connection are passed on",
    "interim": "103 is not passed on",
    "chunks-for-1.0": "chunks for clients that do not know them",
    "surplus": "what follows an answer is sent, too",
    "head-with-body": "the answer to HEAD has a body",
    "whole-request": "a request that was broken off gets a proper end",
    "upgrade-cut": "a stream ends when the other one does",
    "stalls": "the last byte of a body is held back",
    "merges-cookies": "fields of one name become one",
}
HOP = {b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade"}
PLAIN = Way(1 << 16, 0, 1 << 16, 0.0, 0)
LONG = 10_000  # bytes of a body that some faults wait for


class Proxy:
    """What connections share: idle connections to the origins."""

    def __init__(self, ports: dict[bytes, int], faults: frozenset[str]) -> None:
        self.ports = ports
        self.faults = faults
        self.idle: dict[bytes, list[Wire]] = {name: [] for name in ports}
        self.last: list[bytes] = []  # for `swaps`
        self.count = itertools.count(1)

    async def serve(self, sock: socket.socket) -> None:
        client = Wire(sock, PLAIN)
        pinned: bytes | None = None
        try:
            while True:
                head = await client.inbox.head(REQUEST)
                if head is None:
                    break
                name = head.start[1][1:2]
                if "pinned" in self.faults:
                    name = pinned = pinned or name
                if not await _Exchange(self, client, head, name).run():
                    await client.linger(3.0)
                    break
        except (Malformed, Cut, OSError):
            client.reset()
        finally:
            sock.close()

    async def take(self, name: bytes, *, fresh: bool) -> tuple[Wire, bool]:
        """A connection to an origin, and whether it was used before."""
        if self.idle[name] and not fresh:
            return self.idle[name].pop(), True
        sock = socket.socket()
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.ports[name]))
        except BaseException:
            sock.close()
            raise
        return Wire(sock, PLAIN), False


class _Exchange:
    def __init__(self, proxy: Proxy, client: Wire, head: Head, name: bytes) -> None:
        self.proxy = proxy
        self.faults = proxy.faults
        self.client = client
        self.head = head
        self.name = name
        self.method = head.start[0].decode()
        self.bodiless = not head.chunked and head.length is None
        self.upload: asyncio.Future[None] | None = None

    async def run(self) -> bool:
        """Whether the client's connection goes on."""
        if "repeats" in self.faults:
            may_repeat = self.bodiless
        else:
            may_repeat = self.bodiless and self.method in IDEMPOTENT
        if "no-retry" in self.faults:
            may_repeat = False
        for fresh in (False, True):
            self.silent = True
            backend, reused = await self.proxy.take(self.name, fresh=fresh)
            try:
                answer = await self._ask(backend)
            except (Cut, OSError):
                answer = None
            except BaseException:
                self._end_upload()
                backend.sock.close()
                raise
            if answer is not None:
                break
            self._end_upload()
            backend.sock.close()
            if not reused or not may_repeat or not self.silent:
                return await self._failed()
        assert answer is not None
        try:
            return await self._relay(backend, answer)
        finally:
            self._end_upload()
            if backend not in self.proxy.idle[self.name]:
                backend.sock.close()

    def _end_upload(self) -> None:
        if self.upload is not None:
            self.upload.cancel()
            self.upload.add_done_callback(_seen)

    async def _failed(self) -> bool:
        body = b"" if self.method == "HEAD" else b"failed"
        await self.client.write(
            b"HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\nContent-Length: 6\r\n\r\n" + body
        )
        await self.client.flush()
        return False

    async def _ask(self, backend: Wire) -> Head | None:
        """Send the request, pass on what comes before the final answer; that one's head."""
        method, path, _ = self.head.start
        upgrade = b"upgrade" in self.head.options()
        lines = [b"%b %b HTTP/1.1" % (method, path), *self._passed(self.head)]
        if upgrade:
            lines += [b"Connection: upgrade", b"Upgrade: " + (self.head.one(b"upgrade") or b"")]
        if self.head.chunked:
            lines.append(b"Transfer-Encoding: chunked")
        await backend.write(b"\r\n".join(lines) + b"\r\n\r\n")
        await backend.flush()
        if not self.bodiless:
            self.upload = asyncio.ensure_future(self._upload(backend))
        while True:
            answering = asyncio.ensure_future(backend.inbox.head(RESPONSE))
            try:
                await self._until(answering)
                answer = await answering
            finally:
                answering.cancel()
            if answer is None or not 100 <= int(answer.start[0]) < 200 or answer.start[0] == b"101":
                return answer
            self.silent = False
            if not self.head.start[2] or ("interim" in self.faults and answer.start[0] == b"103"):
                continue
            lines = [b"HTTP/1.1 %b Interim" % answer.start[0], *self._passed(answer)]
            await self.client.write(b"\r\n".join(lines) + b"\r\n\r\n")
            await self.client.flush()

    async def _until(self, answering: asyncio.Future[Head | None]) -> None:
        """The answer, or a client that broke its request off."""
        while not answering.done():
            waiting = {answering, self.upload} if self.upload else {answering}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)  # type: ignore[type-var]
            if self.upload and self.upload.done():
                upload, self.upload = self.upload, None
                if isinstance(upload.exception(), _ClientBroke):
                    raise upload.exception() or Cut()
                self.uploaded = upload.exception() is None

    uploaded = False
    silent = True  # nothing has come from the origin

    def _passed(self, head: Head) -> list[bytes]:
        gone = HOP | head.options()
        if "hop" in self.faults:
            gone = HOP
        fields = [(name, value) for name, value in head.fields if name not in gone]
        if "merges-cookies" in self.faults:
            merged: dict[bytes, list[bytes]] = {}
            for name, value in fields:
                merged.setdefault(name, []).append(value)
            fields = [(name, b", ".join(values)) for name, values in merged.items()]
        return [b"%b: %b" % field for field in fields]

    async def _upload(self, backend: Wire) -> None:
        inbox = self.client.inbox
        chunked = self.head.chunked

        async def into(data: bytes) -> None:
            try:
                await backend.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
                await backend.flush()
            except OSError as error:
                raise _BackendBroke from error

        try:
            if chunked:
                await read_chunked(inbox, into, extensions=True)
                await backend.write(b"0\r\n\r\n")
            else:
                await read_length(inbox, self.head.length or 0, into)
            await backend.flush()
        except (Cut, OSError) as error:
            if "whole-request" in self.faults and chunked:
                await backend.write(b"0\r\n\r\n")
                await backend.flush()
            backend.reset()
            raise _ClientBroke from error

    async def _relay(self, backend: Wire, answer: Head) -> bool:
        """Pass the answer on; whether the client's connection goes on."""
        if answer.start[0] == b"101":
            await self._tunnel(backend, answer)
            return False
        status = int(answer.start[0])
        bodiless = self.method == "HEAD" or status in (204, 304)
        delimited = bodiless or answer.chunked or answer.length is not None
        chunked = answer.chunked
        modern = self.head.start[2] == 1 or "chunks-for-1.0" in self.faults
        options = self.head.options()
        keeps = b"close" not in options and (modern or b"keep-alive" in options)
        keeps = keeps and delimited and (modern or not chunked) and "closes" not in self.faults
        lines = [b"HTTP/1.1 %b Answer" % answer.start[0], *self._passed(answer)]
        if chunked and modern:
            lines.append(b"Transfer-Encoding: chunked")
        lines.append(b"Connection: keep-alive" if keeps else b"Connection: close")
        head = b"\r\n".join(lines) + b"\r\n\r\n"
        turn = next(self.proxy.count)
        if "swaps" in self.faults and turn % 20 == 0 and self.proxy.last:
            head = self.proxy.last.pop()
        if not chunked and not answer.length:
            self.proxy.last = [head]
        await self.client.write(head)
        if bodiless and self.method == "HEAD" and "head-with-body" in self.faults:
            await self.client.write(b"body")
        await self.client.flush()
        if not bodiless:
            await self._body(backend, answer, chunked and modern)
        if "surplus" in self.faults and turn % 50 == 0:
            await self.client.write(b"\r\n")
            await self.client.flush()
        closes = b"close" in answer.options() or answer.start[2] == 0 or not delimited
        if self.upload is not None and not self.upload.done():  # it was answered early
            if closes:
                return False
            try:
                await self.upload
            except (_BackendBroke, _ClientBroke):
                return False
            self.uploaded = True
        if not closes and (self.bodiless or self.uploaded):
            self.proxy.idle[self.name].append(backend)
        return keeps and (self.bodiless or self.uploaded)

    async def _body(self, backend: Wire, answer: Head, chunked: bool) -> None:
        sent = 0
        held = b""

        async def into(data: bytes) -> None:
            nonlocal sent, held
            if sent <= LONG < sent + len(data):
                at = LONG - sent
                if "flips" in self.faults:
                    data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                if "short" in self.faults:
                    data = data[:at] + data[at + 1 :]
            sent += len(data)
            if "stalls" in self.faults:
                data, held = held + data[:-1], data[-1:]
            if data:
                piece = b"%x\r\n%b\r\n" % (len(data), data) if chunked else data
                await self.client.write(piece)
            await self.client.flush()

        try:
            if answer.chunked:
                await read_chunked(backend.inbox, into, extensions=True)
            elif answer.length is not None:
                await read_length(backend.inbox, answer.length, into)
            else:
                await read_rest(backend.inbox, into)
        except (Cut, OSError):
            if "cut-looks-whole" not in self.faults:
                raise
        if chunked:
            await self.client.write(b"0\r\n\r\n")
            await self.client.flush()

    async def _tunnel(self, backend: Wire, answer: Head) -> None:
        lines = [b"HTTP/1.1 101 Switching", *self._passed(answer)]
        lines += [b"Connection: upgrade", b"Upgrade: " + (answer.one(b"upgrade") or b"")]
        await self.client.write(b"\r\n".join(lines) + b"\r\n\r\n")
        await self.client.flush()

        async def pump(source: Wire, sink: Wire) -> None:
            while data := await source.inbox.some(1 << 16):
                await sink.write(data)
                await sink.flush()
            sink.half_close()

        both = [
            asyncio.ensure_future(pump(self.client, backend)),
            asyncio.ensure_future(pump(backend, self.client)),
        ]
        when = asyncio.FIRST_COMPLETED if "upgrade-cut" in self.faults else asyncio.ALL_COMPLETED
        await asyncio.wait(both, return_when=when)
        for one in both:
            one.cancel()
        await asyncio.gather(*both, return_exceptions=True)


def _seen(task: asyncio.Future[None]) -> None:
    """Whatever it ended by is nobody's concern."""
    if not task.cancelled():
        task.exception()


class _BackendBroke(Exception):
    """The origin takes no more of a body."""


class _ClientBroke(Cut):
    """The client sends no more of a body."""


class Listening:
    """The proxy in the running loop; `port` is where. `close` ends it."""

    def __init__(self, ports: dict[str, int], faults: frozenset[str], port: int = 0) -> None:
        assert faults <= FAULTS.keys(), f"no fault is called {faults - FAULTS.keys()}"
        self._proxy = Proxy({name.encode(): port for name, port in ports.items()}, faults)
        self._listener = socket.create_server(("127.0.0.1", port), backlog=512)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._tasks = {asyncio.ensure_future(self._listen())}

    async def _listen(self) -> None:
        while True:
            sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            task = asyncio.ensure_future(self._proxy.serve(sock))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()
        for wires in self._proxy.idle.values():
            for wire in wires:
                wire.sock.close()


async def _main(ports: list[int], port: int, faults: frozenset[str]) -> None:
    listening = Listening(dict(zip(ORIGINS, ports, strict=True)), faults, port)
    try:
        await asyncio.Event().wait()
    finally:
        await listening.close()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(
            _main([int(p) for p in sys.argv[1:4]], int(sys.argv[4]), frozenset(sys.argv[5:]))
        )
