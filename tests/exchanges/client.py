"""The scripted client: says what a script says, and judges every byte that comes back.

`run` plays many scripts at once and returns an `Outcome` for each. A connection that the proxy
closes with a reason (the model's `Exchange.closing`) is followed by another one for what is left;
one that it closes without is a failure, as is whatever does not belong to the exchange it came for.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from .messages import (
    RESPONSE,
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
from .plan import MOST, Exchange, Script, draw, request_fields, response_fields
from .wire import Wire

SECONDS = 30.0  # that an exchange may take
QUIET = 0.01  # seconds that some clients wait for bytes that nobody should send
OWN_ANSWERS = (502, 503, 504)  # by which a proxy tells that an origin failed


@dataclass(slots=True)
class Outcome:
    """What became of a script. `ends`: of each exchange and attempt, done, cut, lost or aborted."""

    script: int
    ends: list[tuple[int, int, str]] = field(default_factory=list)
    connections: int = 0
    failure: str = ""
    body_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Target:
    """The proxy and the run: where it is, and what scripts are drawn from."""

    address: tuple[str, int]
    seed: int
    most: int = MOST
    features: frozenset[str] = frozenset()


async def _open(target: Target, script: Script) -> Wire:
    sock = socket.socket()
    sock.setblocking(False)
    if script.way.buffer:  # before connecting: the window is agreed on in the handshake
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, script.way.buffer)
    try:
        await asyncio.get_running_loop().sock_connect(sock, target.address)
    except BaseException:
        sock.close()
        raise
    return Wire(sock, script.way)


async def play(target: Target, number: int) -> Outcome:
    """One script, to its end."""
    script = draw(target.seed, number, target.features, target.most)
    outcome = Outcome(number)
    left = [(exchange, 0) for exchange in script.exchanges]
    doing = "connecting"
    try:
        while left:
            outcome.connections += 1
            if outcome.connections > 3 * len(script.exchanges) + 3:
                raise Wrong("as many connections as that make no progress")
            talk = _Talk(await _open(target, script), script, left, outcome)
            try:
                async with asyncio.timeout(SECONDS) as limit:
                    await talk.run(limit)
            finally:
                doing = talk.doing
                talk.wire.sock.close()
            left = talk.left
    except TimeoutError:
        outcome.failure = f"stuck: {doing}"
    except (Malformed, Wrong, Cut) as error:
        outcome.failure = f"{doing}: {type(error).__name__}: {error}"
    except OSError as error:
        outcome.failure = f"{doing}: {error!r}"
    return outcome


async def _forget(data: bytes) -> None:
    """Bytes that do not matter."""


class _Aborted(Exception):
    """The client broke it off, as planned."""


class _Talk:
    """One connection of a script. `left`: what is to be said on the next one."""

    def __init__(
        self,
        wire: Wire,
        script: Script,
        todo: Sequence[tuple[Exchange, int]],
        outcome: Outcome,
    ) -> None:
        self.wire = wire
        self.left: list[tuple[Exchange, int]] = list(todo)
        self.doing = "connected"
        self._script = script
        self._todo = list(todo)
        self._outcome = outcome
        self._done = 0
        self._begun = 0
        self._moved = asyncio.Condition()
        self._continued: dict[int, str] = {}  # by position: "100" or "final"
        self._writing = ""
        self._broken = False  # nothing can be sent any more
        self._fragile = False  # an early answer came: this connection may end, or go on

    async def run(self, limit: asyncio.Timeout) -> None:
        """Until it is over. The limit begins anew with each answer."""
        self._limit = limit
        writing = asyncio.ensure_future(self._write())
        reading = asyncio.ensure_future(self._read())
        try:
            await asyncio.wait({writing, reading}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                try:
                    await writing
                except OSError:  # whatever ended the sending, what has come is what counts
                    self._broken = True
                    await self._notify()
            await reading
        except _Aborted:
            exchange, attempt = self._todo[self._done]
            self._outcome.ends.append((exchange.number, attempt, "aborted"))
            self.left = []
            self.wire.reset()
        except asyncio.CancelledError:
            self.doing += f"; {self._writing}"
            raise
        finally:
            for task in (writing, reading):
                task.cancel()
            await asyncio.gather(writing, reading, return_exceptions=True)

    async def _notify(self) -> None:
        async with self._moved:
            self._moved.notify_all()

    # ---- the request's side

    async def _write(self) -> None:
        wire = self.wire
        for at, (exchange, attempt) in enumerate(self._todo):
            if at - self._done >= self._script.depth:
                self._writing = f"request {exchange.name} waits for its turn"
                await wire.flush()
                async with self._moved:
                    await self._moved.wait_for(lambda at=at: at - self._done < self._script.depth)
                if self._script.waits:
                    await asyncio.sleep(self._script.waits)
            self._begun = at + 1
            await self._notify()
            self._writing = f"sending the head of {exchange.name}"
            await wire.write(request_head(exchange, attempt))
            if exchange.expect:
                await wire.flush()
                self._writing = f"{exchange.name} waits for 100 or an answer"
                async with self._moved:
                    await self._moved.wait_for(lambda at=at: at in self._continued)
                if self._continued[at] == "final" and exchange.expect == "skip":
                    return
            self._writing = f"sending the body of {exchange.name}"
            if exchange.abort == "request":
                await wire.flush()
                async with self._moved:  # it takes none of those before it with it
                    await self._moved.wait_for(lambda at=at: self._done == at)
                await self._abort(exchange)
                return
            if not exchange.upgrade:
                for piece in exchange.request.framed():
                    await wire.write(piece)
                await wire.write(exchange.request.end())
            elif exchange.upgrade:
                await wire.flush()
                async with self._moved:
                    await self._moved.wait_for(lambda at=at: at in self._continued)
                for piece in exchange.request.data():
                    await wire.write(piece)
                await wire.flush()
                wire.half_close()
        await wire.flush()
        self._writing = "all was sent"
        if self._script.half_close:
            wire.half_close()

    async def _abort(self, exchange: Exchange) -> None:
        at = 0
        for piece in exchange.request.framed():
            if at + len(piece) > exchange.abort_at:
                await self.wire.write(piece[: max(0, exchange.abort_at - at)])
                break
            at += len(piece)
            await self.wire.write(piece)
        await self.wire.flush()
        if exchange.abort_by == "reset":
            raise _Aborted
        self.wire.half_close()

    # ---- the response's side

    async def _read(self) -> None:
        for at, (exchange, attempt) in enumerate(self._todo):
            async with self._moved:
                await self._moved.wait_for(lambda at=at: self._begun > at or self._broken)
            if self._begun <= at and self._fragile:
                return
            self.doing = f"reading the answer of {exchange.name} (attempt {attempt})"
            goes_on, end = await self._answer(at, exchange)
            if end == "again":
                return
            self._outcome.ends.append((exchange.number, attempt, end))
            self._done = at + 1
            self._limit.reschedule(asyncio.get_running_loop().time() + SECONDS)
            self.left = [(one, tries + 1) for one, tries in self._todo[self._done :]]
            await self._notify()
            if not goes_on:
                return
        if self._script.waits:
            self.doing = "listening for what nobody should say"
            try:
                async with asyncio.timeout(QUIET):
                    data = await self.wire.inbox.some(1000)
            except TimeoutError:
                data = b""
            if data:
                raise Wrong(f"bytes after all answers: {data!r}")
        elif self.wire.inbox.kept:
            raise Wrong(f"bytes after all answers: {self.wire.inbox.kept[:1000]!r}")

    async def _answer(self, at: int, exchange: Exchange) -> tuple[bool, str]:
        """Whether the connection goes on, and the end of the exchange."""
        began = self.wire.inbox.taken
        try:
            return await self._final(at, exchange)
        except (Cut, ConnectionError, OSError) as error:
            if exchange.abort:
                return False, "aborted"
            nothing = self.wire.inbox.taken == began and not self.wire.inbox.kept
            if exchange.breaks and (self._reached_body or nothing or not self._has_final):
                return False, "cut"
            if nothing and self._fragile:
                self.left = [(one, tries + 1) for one, tries in self._todo[at:]]
                return False, "again"
            if nothing and self._may_be_lost(exchange):
                return False, "lost"
            if nothing and exchange.early >= 0 and exchange.ending == "close":
                raise Wrong(f"an early answer is lost: {error!r}") from error
            raise Wrong(f"{error!r} {'before any byte' if nothing else ''}") from error

    @staticmethod
    def _may_be_lost(exchange: Exchange) -> bool:
        """A connection of the pool may end as a request is sent: this one cannot be sent again."""
        return not exchange.safe

    async def _final(self, at: int, exchange: Exchange) -> tuple[bool, str]:
        inbox = self.wire.inbox
        self._reached_body = self._has_final = False
        interims = list(exchange.interims) if exchange.version else []
        if exchange.expect == "continue":
            interims.insert(0, 100)
        while True:
            head = await inbox.head(RESPONSE)
            if head is None:
                raise Cut("the end instead of an answer")
            status = int(head.start[0])
            if not 100 <= status < 200 or status == 101:
                break
            if not interims or interims.pop(0) != status:
                raise Wrong(f"status {status} that nobody sent: {head.fields}")
            if status == 100:
                self._continued[at] = "100"
                await self._notify()
            elif head.one(b"x-interim") != b"%d" % status:
                raise Wrong(f"another answer {status}: {head.fields}")
        self._has_final, self._fragile = True, False
        own = head.one(b"x-exchange") is None
        self._continued.setdefault(at, "final")
        await self._notify()
        if own:
            await self._own_answer(head, exchange)
            end = "cut" if exchange.breaks or exchange.abort else "lost"
            return await self._goes_on(head, exchange, allowed="may"), end
        check_response(head, exchange)
        if interims:
            raise Wrong(f"answers {interims} did not come")
        if exchange.upgrade:
            return await self._tunnel(exchange)
        self._reached_body = True
        await self._body(head, exchange)
        if exchange.breaks:
            raise Wrong("an answer that was broken off looks complete")
        if exchange.abort == "request":
            raise Wrong("a request that was broken off was answered")
        return await self._goes_on(head, exchange, allowed=exchange.closing), "done"

    async def _own_answer(self, head: Head, exchange: Exchange) -> None:
        """The proxy's own, which tells that an origin failed."""
        status = int(head.start[0])
        if exchange.abort_by == "end" and exchange.abort and 400 <= status < 500:
            pass
        elif status not in OWN_ANSWERS or not (exchange.breaks or self._may_be_lost(exchange)):
            raise Wrong(f"the proxy itself says {status}: {head.fields}")
        elif exchange.method != "HEAD":
            await self._framed(head, _forget)

    async def _framed(self, head: Head, take: Into) -> None:
        inbox = self.wire.inbox
        if head.chunked:
            for name, value in await read_chunked(inbox, take):
                if not name.startswith(b"x-trailer"):
                    raise Wrong(f"a trailer {name!r}: {value!r}")
        elif head.length is not None:
            await read_length(inbox, head.length, take)
        else:
            await read_rest(inbox, take)

    async def _body(self, head: Head, exchange: Exchange) -> None:
        if exchange.bodiless:
            return
        expected = Expected(exchange.response.seed, exchange.response.size)

        async def take(data: bytes) -> None:
            await expected.feed(data)
            self._outcome.body_bytes += len(data)
            if exchange.abort == "response" and expected.at >= exchange.abort_at:
                raise _Aborted

        await self._framed(head, take)
        if not exchange.breaks:
            expected.end()

    async def _goes_on(self, head: Head, exchange: Exchange, allowed: str) -> bool:
        """Whether the connection does, which has to be as the model says."""
        options = head.options()
        closing = b"close" in options or (head.start[2] == 0 and b"keep-alive" not in options)
        ends_with_body = head.length is None and not head.chunked and not exchange.bodiless
        if ends_with_body and int(head.start[0]) not in (204, 304):
            closing = True
        if exchange.expect == "skip":  # the body was left out: this connection is of no use
            return False
        if allowed == "must" or closing:
            if allowed == "no":
                raise Wrong(f"closes without a reason: {head.fields}")
            await self._ending()
            return False
        self._fragile = exchange.early >= 0 or exchange.expect == "send"
        return True

    async def _ending(self) -> None:
        """The end, and nothing before it."""
        try:
            data = await self.wire.inbox.some(1000)
        except OSError:
            return  # requests that were on their way may meet a closed socket
        if data:
            raise Wrong(f"bytes after the last answer: {data!r}")

    async def _tunnel(self, exchange: Exchange) -> tuple[bool, str]:
        expected = Expected(exchange.response.seed, exchange.response.size)
        await read_rest(self.wire.inbox, expected.feed)
        expected.end()
        while self._writing != "all was sent":
            await asyncio.sleep(0.005)
        return False, "done"


def request_head(exchange: Exchange, attempt: int) -> bytes:
    """What the client says first. The padding is what makes heads of all lengths."""
    path = f"/{exchange.origin}/{exchange.script}/{exchange.number}/{attempt}"
    lines = [f"{exchange.method} {path}?{'p' * exchange.padding} HTTP/1.{exchange.version}"]
    lines.append("Host: origins.test")
    lines += [f"{name}: {value}" for name, value in request_fields(exchange)]
    options = [exchange.keep_alive] if exchange.keep_alive else []
    if exchange.upgrade:
        options.append("upgrade")
        lines.append("Upgrade: l7-stream")
    if exchange.hop:
        options.append("X-Hop")
        lines += ["X-Hop: client", "Keep-Alive: timeout=5"]
    if options:
        lines.append(f"Connection: {', '.join(options)}")
    if exchange.expect:
        lines.append("Expect: 100-continue")
    if exchange.request.framing == "length":
        lines.append(f"Content-Length: {exchange.request.size}")
    elif exchange.request.framing == "chunked":
        lines.append("Transfer-Encoding: chunked")
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def check_response(head: Head, exchange: Exchange) -> None:
    """Whether the head is the one that the origin sent for this exchange."""
    if (found := head.one(b"x-exchange")) != exchange.name.encode():
        raise Wrong(f"the answer of exchange {found!r}")
    if (found := head.one(b"x-origin")) != exchange.origin.encode():
        raise Wrong(f"answered by origin {found!r} and not {exchange.origin}")
    status, _, _ = head.start
    if int(status) != exchange.status:
        raise Wrong(f"status {status!r} and not {exchange.status}")
    for name in {name.lower().encode() for name, _ in response_fields(exchange)}:
        sent = [v.encode() for n, v in response_fields(exchange) if n.lower().encode() == name]
        if head.all(name) != sent:
            raise Wrong(f"{name!r}: {head.all(name)} and not {sent}")
    if exchange.hop and head.all(b"x-hop"):
        raise Wrong("X-Hop belongs to one connection, and came")
    framing, size = exchange.response.framing, exchange.response.size
    chunked, length = head.chunked, head.length
    if exchange.status in (101, 204):
        if chunked or length:
            raise Wrong(f"a body after status {exchange.status}: {head.fields}")
    elif framing == "length" and (chunked or length != size):
        raise Wrong(f"{size} bytes were announced: {head.fields}")
    elif chunked and not exchange.version:
        raise Wrong("chunks for a client of HTTP/1.0")
    elif framing == "chunked" and exchange.version and not exchange.bodiless and not chunked:
        raise Wrong(f"chunks were announced: {head.fields}")
    elif framing == "close" and length is not None:
        raise Wrong(f"no length was announced: {head.fields}")


async def run(
    target: Target, numbers: Sequence[int], *, concurrency: int = 16
) -> AsyncGenerator[Outcome, None]:
    """Play these scripts, so many at once; their outcomes as they come."""
    waiting = iter(numbers)
    running: set[asyncio.Task[Outcome]] = set()
    try:
        while True:
            while len(running) < concurrency and (number := next(waiting, None)) is not None:
                running.add(asyncio.ensure_future(play(target, number)))
            if not running:
                return
            over, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in over:
                yield task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
