"""The scripted origins: three of them, in a process that shares no lock with the clients.

    python -m exchanges.origin SEED MOST FEATURE...

A request tells in its path which exchange it is; the origin draws that exchange itself, checks what
has come against it to the byte, and answers as it says. `Origins` starts the process, `Crew` is the
same in a loop that runs already; `finish` has what they saw: every arrival of an exchange and how
far it came, and whatever was wrong.
"""

from __future__ import annotations

import asyncio
import json
import re
import select
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .messages import (
    REQUEST,
    Cut,
    Expected,
    Head,
    Into,
    Malformed,
    Wrong,
    read_chunked,
    read_length,
    read_rest,
)
from .plan import ORIGINS, Exchange, Way, draw, request_fields, response_fields
from .wire import Wire

PATH = re.compile(rb"/([abc])/([0-9]+)/([0-9]+)/([0-9]+)\?([a-z]*)")
LINGER = 3.0  # seconds
FINISH = 10.0  # seconds that what is under way has to end
REASONS = {101: b"Switching Protocols", 200: b"OK", 204: b"No Content", 304: b"Not Modified"}


@dataclass(slots=True)
class Arrival:
    """A request that came. `state`: head, request (all of it), answered (all was sent), broken."""

    origin: str
    script: int
    number: int
    attempt: int
    state: str = "head"


class Origin:
    """One of them: listens, and serves connection after connection."""

    def __init__(self, name: str, seed: int, most: int, features: frozenset[str]) -> None:
        self.name = name
        self.accepted = 0
        self.arrivals: list[Arrival] = []
        self.failures: list[str] = []
        self._drawn = (seed, most, features)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.listener.setblocking(False)
        self.port: int = self.listener.getsockname()[1]
        self.running: set[asyncio.Task[None]] = set()
        self.busy: dict[asyncio.Task[None] | None, str] = {}  # which exchange each is at

    async def listen(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self.listener)
            self.accepted += 1
            task = loop.create_task(self._serve(sock))
            self.running.add(task)
            task.add_done_callback(self.running.discard)

    async def _serve(self, sock: socket.socket) -> None:
        connection = _Connection(self, sock)
        try:
            while await connection.serve_one():
                pass
        except (Malformed, Wrong) as error:
            self.failures.append(f"{connection.doing}: origin {self.name}: {error}")
        except (Cut, OSError) as error:
            if not connection.may_end:
                self.failures.append(
                    f"{connection.doing}: origin {self.name}: {type(error).__name__} {error}"
                )
        except Exception as error:  # a bug of this file: it must not look like a proxy's
            self.failures.append(f"{connection.doing}: origin {self.name} crashed: {error!r}")
        finally:
            self.busy.pop(asyncio.current_task(), None)
            sock.close()

    def exchange(self, head: Head) -> tuple[Exchange, Arrival]:
        """Which one a request is."""
        found = PATH.fullmatch(head.start[1])
        if found is None:
            raise Wrong(f"the path is {head.start[1]!r}")
        seed, most, features = self._drawn
        script, number, attempt = (int(found[i]) for i in (2, 3, 4))
        exchange = draw(seed, script, features, most).exchanges[number]
        arrival = Arrival(self.name, script, number, attempt)
        self.arrivals.append(arrival)
        if found[1] != self.name.encode() or exchange.origin != self.name:
            raise Wrong(f"exchange {exchange.name} belongs to origin {exchange.origin}")
        if len(found[5]) != exchange.padding:
            raise Wrong(f"{len(found[5])} bytes of padding in exchange {exchange.name}")
        return exchange, arrival


class _Connection:
    def __init__(self, origin: Origin, sock: socket.socket) -> None:
        self.origin = origin
        self.wire = Wire(sock, Way(1 << 20, 0, 1 << 18, 0.0, 0))
        self.may_end = True
        self.doing = "?"

    async def serve_one(self) -> bool:
        """One request; whether another may follow."""
        self.may_end, self.doing = True, "idle"
        self.origin.busy.pop(asyncio.current_task(), None)
        inbox = self.wire.inbox
        if not inbox.kept:
            inbox.kept = await asyncio.get_running_loop().sock_recv(self.wire.sock, 1 << 16)
            if not inbox.kept:
                return False
        self.may_end = False
        head = await inbox.head(REQUEST)
        assert head is not None
        self.doing = "?"
        exchange, arrival = self.origin.exchange(head)
        self.doing = self.origin.busy[asyncio.current_task()] = exchange.name
        self.may_end = exchange.request_may_be_cut
        # a small window lives on TCP's timers: not for whatever comes later on this connection
        self.wire.adopt(exchange.origin_way, small=exchange.ending != "keep")
        check_request(head, exchange)
        if exchange.upgrade:
            await self._tunnel(exchange, arrival)
            return False
        return await self._exchange(head, exchange, arrival)

    async def _exchange(self, head: Head, exchange: Exchange, arrival: Arrival) -> bool:
        expected = Expected(exchange.request.seed, exchange.request.size)
        enough = asyncio.Event()
        early = exchange.expect in ("skip", "send") or exchange.early >= 0

        async def take(data: bytes) -> None:
            await expected.feed(data)
            if expected.at >= exchange.early:
                enough.set()

        if exchange.early == 0 or exchange.expect in ("skip", "send"):
            enough.set()
        if exchange.expect == "continue":
            await self.wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await self.wire.flush()
        reading = asyncio.ensure_future(self._read(head, take))
        try:
            if early:
                waiting = asyncio.ensure_future(enough.wait())
                await asyncio.wait({reading, waiting}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if reading.done() and reading.exception() is not None:
                    await reading
            else:
                await reading
                self._whole(expected, arrival)
            if not await self._answer(exchange, arrival):
                return False
            if early and exchange.ending == "close":
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            elif early:
                await reading
                self._whole(expected, arrival)
        finally:
            reading.cancel()
        self.may_end = True
        if exchange.ending == "silent":
            await asyncio.sleep(exchange.delay)
            return False
        if exchange.ending == "close":
            await self.wire.linger(LINGER)
            return False
        return True

    async def _read(self, head: Head, take: Into) -> None:
        inbox = self.wire.inbox
        if head.chunked:
            for name, value in await read_chunked(inbox, take):
                if not name.startswith(b"x-trailer"):
                    raise Wrong(f"a trailer {name!r}: {value!r}")
        else:
            await read_length(inbox, head.length or 0, take)

    @staticmethod
    def _whole(expected: Expected, arrival: Arrival) -> None:
        expected.end()
        if arrival.state == "head":
            arrival.state = "request"

    async def _answer(self, exchange: Exchange, arrival: Arrival) -> bool:
        """Send it; False if it was broken off."""
        wire, body = self.wire, exchange.response
        if exchange.breaks == "before":
            self._break(exchange, arrival)
            return False
        for status in exchange.interims:
            await wire.write(b"HTTP/1.1 %d Wait\r\nX-Interim: %d\r\n\r\n" % (status, status))
        head = response_head(exchange, self.origin.name)
        if exchange.breaks == "head":
            await wire.write(head[: exchange.broken_at % (len(head) - 1) + 1])
            await wire.flush()
            self._break(exchange, arrival)
            return False
        await wire.write(head)
        if not exchange.bodiless:
            at = 0
            for piece in body.framed():
                if exchange.breaks == "body" and at + len(piece) > exchange.broken_at:
                    await wire.write(piece[: max(0, exchange.broken_at - at)])
                    await wire.flush()
                    self._break(exchange, arrival)
                    return False
                at += len(piece)
                await wire.write(piece)
            await wire.write(body.end())
        await wire.flush()
        arrival.state = "answered"
        return True

    def _break(self, exchange: Exchange, arrival: Arrival) -> None:
        arrival.state = "broken"
        self.may_end = True
        if exchange.break_by == "reset":
            self.wire.reset()

    async def _tunnel(self, exchange: Exchange, arrival: Arrival) -> None:
        """101, and then a stream each way."""
        wire = self.wire
        await wire.write(response_head(exchange, self.origin.name))
        expected = Expected(exchange.request.seed, exchange.request.size)
        reading = asyncio.ensure_future(read_rest(wire.inbox, expected.feed))
        try:
            for piece in exchange.response.data():
                await wire.write(piece)
            await wire.flush()
            if exchange.rude:
                wire.half_close()
            await reading
        finally:
            reading.cancel()
        self._whole(expected, arrival)
        arrival.state = "answered"


def check_request(head: Head, exchange: Exchange) -> None:
    """Whether the head is the one that the client sent, but for what belongs to a connection."""
    method, _, _ = head.start
    if method.decode() != exchange.method:
        raise Wrong(f"{method!r} instead of {exchange.method}")
    if head.all(b"host") != [b"origins.test"]:
        raise Wrong(f"Host: {head.all(b'host')}")
    for name in {name.lower().encode() for name, _ in request_fields(exchange)}:
        sent = [v.encode() for n, v in request_fields(exchange) if n.lower().encode() == name]
        if head.all(name) != sent:
            raise Wrong(f"{name!r}: {head.all(name)} and not {sent}")
    for name in (b"x-hop", b"keep-alive"):
        if exchange.hop and head.all(name):
            raise Wrong(f"{name!r} belongs to one connection, and came: {head.all(name)}")
    options = head.options()
    if exchange.upgrade != (b"upgrade" in options) or exchange.upgrade != bool(
        head.all(b"upgrade")
    ):
        raise Wrong(f"Upgrade: {head.fields}")
    if exchange.expect and head.one(b"expect") != b"100-continue":
        raise Wrong(f"Expect: {head.one(b'expect')!r}")
    framing, size = exchange.request.framing, exchange.request.size
    chunked, length = head.chunked, head.length
    if framing == "length" and (chunked or length != size):
        raise Wrong(f"{size} bytes were announced: {head.fields}")
    if framing == "chunked" and not chunked:
        raise Wrong(f"chunks were announced: {head.fields}")
    if framing == "none" and (chunked or length):
        raise Wrong(f"no body was announced: {head.fields}")


def response_head(exchange: Exchange, origin: str) -> bytes:
    """What an origin says first."""
    body = exchange.response
    reason = REASONS.get(exchange.status, b"Some Reason")
    lines = [b"HTTP/1.%d %d %b" % (exchange.response_version, exchange.status, reason)]
    lines.append(b"X-Exchange: %b" % exchange.name.encode())
    lines.append(b"X-Origin: %b" % origin.encode())
    lines += [f"{name}: {value}".encode() for name, value in response_fields(exchange)]
    if exchange.upgrade:
        lines += [b"Connection: upgrade", b"Upgrade: l7-stream"]
    else:
        options = [b"close"] if exchange.ending == "close" else []
        if exchange.hop:
            options.append(b"X-Hop")
            lines.append(b"X-Hop: origin")
        if options:
            lines.append(b"Connection: " + b", ".join(options))
        if body.framing == "length":
            lines.append(b"Content-Length: %d" % body.size)
        elif body.framing == "chunked":
            lines.append(b"Transfer-Encoding: chunked")
    return b"\r\n".join(lines) + b"\r\n\r\n"


# ---- the process


class Crew:
    """All three, in the running loop."""

    def __init__(self, seed: int, most: int, features: frozenset[str]) -> None:
        self._origins = [Origin(name, seed, most, features) for name in ORIGINS]
        self.ports = {origin.name: origin.port for origin in self._origins}
        self._listening = [asyncio.ensure_future(origin.listen()) for origin in self._origins]

    async def finish(self) -> dict[str, Any]:
        """What they saw: `accepted`, exchanges `left`, `failures`, `arrivals`; and end them."""
        origins, loop = self._origins, asyncio.get_running_loop()
        deadline = loop.time() + FINISH
        while any(o.busy for o in origins) and loop.time() < deadline:
            await asyncio.sleep(0.02)
        seen = {
            "accepted": {origin.name: origin.accepted for origin in origins},
            "left": sorted(name for origin in origins for name in origin.busy.values()),
            "failures": [failure for origin in origins for failure in origin.failures],
            "arrivals": [asdict(arrival) for origin in origins for arrival in origin.arrivals],
        }
        tasks = [*self._listening, *(task for origin in origins for task in origin.running)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for origin in origins:
            origin.listener.close()
        return seen


async def _main(seed: int, most: int, features: frozenset[str]) -> None:
    crew = Crew(seed, most, features)
    print(json.dumps(crew.ports), flush=True)
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), over.set)
    await over.wait()
    loop.remove_reader(sys.stdin.fileno())
    print(json.dumps(await crew.finish()), flush=True)


class Origins:
    """The process, while the `with` block is open."""

    def __init__(self, seed: int, most: int, features: frozenset[str]) -> None:
        self._arguments = [str(seed), str(most), *sorted(features)]

    def __enter__(self) -> Origins:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "exchanges.origin", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
        )
        self.ports: dict[str, int] = self._read(30)
        return self

    def _read(self, seconds: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        ready = select.select([self.process.stdout], [], [], seconds)[0]
        assert ready, "the origins' process says nothing"
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    async def finish(self) -> dict[str, Any]:
        """As `Crew.finish`."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return await asyncio.to_thread(self._read, 30)

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(10)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2]), frozenset(sys.argv[3:])))
