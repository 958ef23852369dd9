"""Many random transfers at once, every byte hashed at both ends.

Each stream tells at its front what follows: a seed and a size. So whoever receives it can work out
the right hash alone, and neither end needs to know whom the proxy connected it with. A stream that
is short, long, out of order or another's fails where it is received.

An `End` is one end of a connection, with habits that are drawn from a seed: the sizes of its sends
and receives, pauses in reading, and whether it half-closes when it has sent all or only when it has
received all. A `Crowd` runs many of them in one thread. `Far` is the backends' crowd, in a process
of its own so that it shares no lock with the clients:

    python transfers.py
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
import random
import select
import selectors
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from peers import digest, stretch

MAGIC = b"l7px"
FRONT = struct.Struct(">4sQQQQ")  # magic, seed, size of this stream, size and break of the answer
MIB = 1 << 20
SLOW = 1.5  # seconds that the slowest reader takes, about
TURN = 8  # sends or receives before another end has its turn
FIRST_MOST = 1 << 20  # bytes that a backend says without being asked, at most
KINDS = ("http", "raw", "first")
"""A POST through an HTTP listener; a bare stream; a stream on which the backend speaks first."""


@dataclass(frozen=True)
class Plan:
    """One transfer as the client plans it. `seed` decides both ends' habits."""

    kind: str
    seed: int
    size: int
    answer: int
    breaks: int = 0  # the client resets when it has sent and received so many bytes; 0: never
    answer_breaks: int = 0  # the same for the backend


@dataclass
class Habits:
    """How an end behaves."""

    send: int  # bytes of one send at most
    receive: int
    pause: float  # seconds between two receives; 0: as fast as it can
    polite: bool  # half-closes only when it has received everything
    buffer: int  # SO_RCVBUF; 0: what the kernel thinks best

    @classmethod
    def drawn(cls, rng: random.Random, incoming: int, outgoing: int) -> Habits:
        """Random habits under which these many bytes take a second or two at most."""
        receive = max(rng.choice([1, 1500, 1 << 16, 1 << 18]), incoming // 2000)
        # a window far below the MTU is opened by timers only: not for many bytes
        buffer = rng.choice([0, 0, 0, 4096, 1 << 16])
        if incoming > 16 * buffer:
            buffer = 0
        pause = 0.0
        if rng.random() < 0.12:
            # Many bytes in large sips: a small window lives on TCP's timers, proxy or no proxy.
            if incoming > MIB:
                receive, buffer = max(MIB, incoming // 50), 0
            receive = max(receive, incoming // 300)
            rounds = 2 * incoming / min(receive, buffer or receive) + 1
            pause = min(rng.choice([0.001, 0.01, 0.05]), SLOW / rounds)
        return cls(
            send=max(rng.choice([1, 100, 1500, 1 << 16, 1 << 20]), outgoing // 2000),
            receive=receive,
            pause=pause,
            polite=rng.random() < 0.3,
            buffer=buffer,
        )


class Wrong(AssertionError):
    """What came is not what was sent."""


class Broke(Exception):
    """This end has reset the connection, as planned."""


class End:
    """One end of a transfer. `events` says what it waits for, `step` goes on."""

    def __init__(self, sock: socket.socket, seed: int, *, client: bool) -> None:
        self.sock = sock
        self.seed = seed
        self.sent = 0
        self.received = 0
        self.wakes = 0.0  # not to be read before this moment
        self.done = False
        self.answer = self.answer_breaks = self.breaks = 0
        self.expected = -1  # bytes of payload; -1 while the front has not come
        self.their_seed = -1
        self._rng = random.Random(f"{seed} {client}")
        self._client = client
        self._front: bytes | None = None
        self._size = 0
        self._at = 0
        self._early = b""  # received before the payload begins
        self._has_head = False
        self._hash = hashlib.sha256()
        self._payload = 0
        self._shut = False
        self._ended = False
        self._habits = Habits(1, self._rng.choice([1, 100, 1 << 16]), 0.0, polite=False, buffer=0)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def expect_head(self) -> None:
        """The stream that comes has an HTTP head before its front."""
        self._has_head = True

    def speak(self, head: bytes, size: int, answer: int = 0, answer_breaks: int = 0) -> None:
        """Begin to send: the head, the front, `size` bytes."""
        self._front = head + FRONT.pack(MAGIC, self.seed, size, answer, answer_breaks)
        self._size = size

    def adopt(self, incoming: int) -> None:
        """Draw habits that fit the sizes."""
        self._habits = Habits.drawn(self._rng, incoming, self._size)
        if self._habits.buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._habits.buffer)

    def events(self, now: float) -> int:
        """What to wait for, as `selectors` names it."""
        mask = 0
        if not self._ended and now >= self.wakes:
            mask |= selectors.EVENT_READ
        if self._front is not None and not self._shut and self._may_end():
            mask |= selectors.EVENT_WRITE
        return mask

    def _may_end(self) -> bool:
        """Whether there is something to send, or the half-close is due."""
        return self._unsent() or not self._habits.polite or self._payload == self.expected

    def _unsent(self) -> bool:
        return bool(self._front) or self._at < self._size

    def step(self, mask: int, now: float) -> None:
        """Go on. Raises Wrong, OSError if the connection broke, Broke if this end broke it."""
        if mask & selectors.EVENT_WRITE:
            self._send()
        if mask & selectors.EVENT_READ:
            self._receive(now)
        if self._shut and self._ended:
            self.done = True
        elif self.breaks and self.sent + self.received >= self.breaks:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raise Broke

    def _send(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(TURN):
                if not self._unsent():
                    if not self._shut and self._may_end():
                        self.sock.shutdown(socket.SHUT_WR)
                        self._shut = True
                    return
                most = self._rng.randint(1, self._habits.send)
                if self._front:
                    n = self.sock.send(self._front[:most])
                    self._front = self._front[n:]
                else:
                    most = min(most, self._size - self._at)
                    n = self.sock.send(stretch(self.seed, self._at, most))
                    self._at += n
                self.sent += n

    def _receive(self, now: float) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(TURN):
                data = self.sock.recv(self._rng.randint(1, self._habits.receive))
                if not data:
                    self._ended = True
                    self._check()
                    return
                self.received += len(data)
                self._take(data)
                if self._habits.pause:
                    self.wakes = now + self._habits.pause
                    return

    def _take(self, data: bytes) -> None:
        if self.expected < 0:
            self._early += data
            early = self._early
            if self._has_head:
                _, mark, early = early.partition(b"\r\n\r\n")
                if not mark:
                    return
            if len(early) < FRONT.size:
                return
            magic, self.their_seed, self.expected, self.answer, self.answer_breaks = (
                FRONT.unpack_from(early)
            )
            if magic != MAGIC:
                raise Wrong(f"the front of the stream is {early[:40]!r}")
            data = early[FRONT.size :]
        self._payload += len(data)
        self._hash.update(data)

    def _check(self) -> None:
        if self.expected < 0:
            raise Wrong(f"the end came after {self._early[:300]!r}")
        if self._payload != self.expected:
            raise Wrong(f"{self._payload} bytes came, {self.expected} were sent")
        if self._hash.hexdigest() != digest(self.their_seed, self.expected):
            raise Wrong(f"other bytes than the {self.expected} that were sent")


class Crowd:
    """Ends, run by one thread."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.ends: set[End] = set()
        self._asleep: list[tuple[float, int, End]] = []
        self._count = 0

    def add(self, end: End) -> None:
        """Take one on."""
        self.ends.add(end)
        self._watch(end, time.monotonic())

    def turn(self, patience: float) -> Iterator[tuple[End, Exception | None]]:
        """Go on with whatever can; yields the ends that are over, and what was wrong with them."""
        now = time.monotonic()
        if self._asleep:
            patience = min(patience, max(0.0, self._asleep[0][0] - now))
        for key, mask in self.selector.select(patience):
            if isinstance(key.data, End):
                yield from self._step(key.data, mask)
            else:
                key.data()
        now = time.monotonic()
        while self._asleep and self._asleep[0][0] <= now:
            end = heapq.heappop(self._asleep)[2]
            if end in self.ends:
                self._watch(end, now)

    def _step(self, end: End, mask: int) -> Iterator[tuple[End, Exception | None]]:
        now = time.monotonic()
        failure: Exception | None = None
        try:
            end.step(mask, now)
        except (Wrong, OSError, Broke) as error:
            failure = error
        if failure is None and not end.done:
            self._watch(end, now)
            return
        self._unwatch(end)
        self.ends.discard(end)
        end.sock.close()
        yield end, failure

    def _watch(self, end: End, now: float) -> None:
        if end.wakes > now:
            self._count += 1
            heapq.heappush(self._asleep, (end.wakes, self._count, end))
        mask = end.events(now)
        known = self.selector.get_map().get(end.sock.fileno())
        if known is None:
            if mask:
                self.selector.register(end.sock, mask, end)
        elif not mask:
            self.selector.unregister(end.sock)
        elif known.events != mask:
            self.selector.modify(end.sock, mask, end)

    def _unwatch(self, end: End) -> None:
        with contextlib.suppress(KeyError):
            self.selector.unregister(end.sock)


# ---- clients


@dataclass
class Outcome:
    """What a transfer's client knows of it in the end: bytes on the wire, and its port."""

    plan: Plan
    port: int
    sent: int
    received: int
    failure: Exception | None


def call(plan: Plan, address: tuple[str, int]) -> End:
    """Connect and begin."""
    sock = socket.create_connection(address, 60)
    end = End(sock, plan.seed, client=True)
    head = b""
    if plan.kind == "http":
        end.expect_head()
        length = FRONT.size + plan.size
        head = b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (plan.seed, length)
    end.speak(head, plan.size, plan.answer, plan.answer_breaks)
    end.breaks = plan.breaks
    end.adopt(FIRST_MOST if plan.kind == "first" else plan.answer)
    return end


def run(
    plans: Iterable[Plan],
    addresses: dict[str, tuple[str, int]],
    *,
    concurrency: int,
    seconds: float,
    check: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Carry the plans out, so many at a time. Raises TimeoutError when they take too long."""
    crowd, outcomes = Crowd(), []
    waiting = iter(plans)
    running: dict[End, tuple[Plan, int]] = {}
    deadline = time.monotonic() + seconds
    left = True
    while left or running:
        while left and len(running) < concurrency:
            plan = next(waiting, None)
            if plan is None:
                left = False
                break
            end = call(plan, addresses[plan.kind])
            running[end] = (plan, end.sock.getsockname()[1])
            crowd.add(end)
        for end, failure in crowd.turn(0.5):
            plan, port = running.pop(end)
            outcomes.append(Outcome(plan, port, end.sent, end.received, failure))
        check()
        if time.monotonic() > deadline:
            stuck = [
                (plan, port, f"sent {end.sent} of {plan.size}", f"got {end.received}")
                for end, (plan, port) in running.items()
            ]
            raise TimeoutError(f"after {seconds:g} s these are not over: {stuck}")
    return outcomes


# ---- backends


def serve() -> None:
    """Be the backend of every transfer until standard input ends, then print what went wrong."""
    crowd = Crowd()
    failures: list[list[object]] = []
    ports = {}
    over = 0

    def accept(listener: socket.socket, kind: str) -> None:
        with contextlib.suppress(BlockingIOError):
            crowd.add(_Answering(listener.accept()[0], kind))

    for kind in KINDS:
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        listener.setblocking(False)
        ports[kind] = listener.getsockname()[1]
        accepting = _bound(accept, listener, kind)
        crowd.selector.register(listener, selectors.EVENT_READ, accepting)
    print(json.dumps(ports), flush=True)
    deadline = 0.0  # for slow readers, whose clients and proxy were done long before
    while not deadline or (crowd.ends and time.monotonic() < deadline):
        if not deadline and select.select([sys.stdin], [], [], 0)[0]:
            deadline = time.monotonic() + 60
        for end, failure in crowd.turn(0.1):
            over += 1
            if failure is not None:
                failures.append([type(failure).__name__, str(failure), end.their_seed])
    print(json.dumps({"over": over, "left": len(crowd.ends), "failures": failures}), flush=True)


def _bound(
    accept: Callable[[socket.socket, str], None], listener: socket.socket, kind: str
) -> Callable[[], None]:
    return lambda: accept(listener, kind)


class _Answering(End):
    """The backend's end: learns from the front what it is to answer."""

    _first = 0

    def __init__(self, sock: socket.socket, kind: str) -> None:
        _Answering._first += 1
        super().__init__(sock, _Answering._first, client=False)
        self._answered = False
        if kind == "http":
            self.expect_head()
        if kind == "first":
            self._answered = True
            self.speak(b"", int(FIRST_MOST ** self._rng.random()))
            self.adopt(FIRST_MOST)
        self._head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" if kind == "http" else b""

    def step(self, mask: int, now: float) -> None:
        super().step(mask, now)
        if not self._answered and self.expected >= 0:
            self._answered = True
            self.seed = self.their_seed + 1
            self.breaks = self.answer_breaks
            self.speak(self._head, self.answer)
            self.adopt(self.expected)


class Far:
    """The backends' process, while the `with` block is open."""

    def __enter__(self) -> Far:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.ports = self._read(120)
        return self

    def _read(self, seconds: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        ready = select.select([self.process.stdout], [], [], seconds)[0]
        assert ready, "the backends' process says nothing"
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def finish(self) -> dict[str, Any]:
        """What it saw: how many transfers were `over`, how many are `left`, and the `failures`.

        A failure is the name of an exception, its text, and the seed of the client.
        """
        self.dismiss()
        return self._read(120)

    def is_over(self) -> bool:
        """Whether `finish` would not have to wait."""
        return bool(select.select([self.process.stdout], [], [], 0)[0])

    def dismiss(self) -> None:
        """Have it end once it has served whom it has, and print what `finish` reads."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(60)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


if __name__ == "__main__":
    serve()
