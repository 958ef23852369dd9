"""Bodies at random between many sockets, several at once, each behind a head for user space.

A far end sends messages: 8 bytes that tell the length, then a body. The worker reads the head,
picks an idle sink of the other side, and sees the body through. What a far end receives must be
those bodies, one after the other, to the byte.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import select
import socket
import time
from collections import deque

import pytest

from l7proxy.datapath.sockmap import Splicer

from .bodies import Body, Single, singles
from .pairs import BACKEND, CLIENT

pytestmark = pytest.mark.kernel

HEAD = 8
SIZES = [1, 10, 1000, 20_000, 80_000, 400_000]


class End:
    """A far end: what it sends, and what it has to get."""

    def __init__(self, rng: random.Random, near: Single) -> None:
        self.rng, self.near = rng, near
        near.far.setblocking(False)
        self.bodies: deque[bytes] = deque()  # sent or being sent, and not yet given to a sink
        self.stream = b""
        self.at = 0
        self.wanted, self.got = hashlib.sha256(), hashlib.sha256()
        self.owed = 0  # bytes of bodies that are on their way here
        self.body: Body | None = None
        self.is_sink = False
        self.slow = rng.random() < 0.3
        self.piece = rng.choice([100, 3000, 50_000, 300_000])

    def send(self, more: bool) -> None:
        if more and self.at == len(self.stream):
            self.stream, self.at = b"", 0
            for _ in range(self.rng.choice([1, 1, 3])):  # one after the other, or pipelined
                body = self.rng.randbytes(self.rng.randint(1, self.rng.choice(SIZES)))
                self.bodies.append(body)
                self.stream += len(body).to_bytes(HEAD, "big") + body
            self.piece = max(self.piece, len(self.stream) // 100)
        with contextlib.suppress(BlockingIOError):
            if self.at < len(self.stream):
                end = self.at + self.rng.randint(1, self.piece)
                self.at += self.near.far.send(self.stream[self.at : end])

    def receive(self) -> None:
        if self.slow and self.rng.random() < 0.7:
            return
        with contextlib.suppress(BlockingIOError):
            data = self.near.far.recv(1 << self.rng.randint(8, 18))
            self.got.update(data)
            self.owed -= len(data)

    def work(self, others: list[End]) -> bool:
        """The worker's part; whether a body was through."""
        if self.body is None:
            if len(self.near.surplus) < HEAD:
                self.near.surplus += self.near.recv(self.rng.choice([HEAD, 1 << 16]))
            idle = [end for end in others if not end.is_sink]
            if len(self.near.surplus) < HEAD or not idle:
                return False
            head, self.near.surplus = self.near.surplus[:HEAD], self.near.surplus[HEAD:]
            sink, body = self.rng.choice(idle), self.bodies.popleft()
            assert int.from_bytes(head, "big") == len(body), "what is read as a head is none"
            sink.is_sink = True
            sink.wanted.update(body)
            sink.owed += len(body)
            self.sink = sink
            self.body = Body(self.near, sink.near, len(body))
        if not self.body.step():
            return False
        self.body, self.sink.is_sink = None, False
        return True


def run(splicer: Splicer, seed: int, bodies: int) -> tuple[int, int]:
    """As many bodies at least; returns the bytes that were redirected, and those that passed."""
    rng = random.Random(seed)
    with singles(splicer) as make:
        ends: list[list[End]] = [[], []]
        for side, count in ((CLIENT, 6), (BACKEND, 5)):
            for _ in range(count):
                near = make(side, rcvbuf=rng.choice([0, 8192, 65536]))
                if rng.random() < 0.4:
                    near.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
                ends[side].append(End(rng, near))
        every = ends[CLIENT] + ends[BACKEND]
        through, deadline = 0, time.monotonic() + 160
        while through < bodies or any(end.bodies or end.body or end.owed for end in every):
            assert time.monotonic() < deadline, [(len(end.bodies), end.owed) for end in every]
            before = through
            for end in every:
                end.send(through < bodies)
                end.receive()
                through += end.work(ends[1 - end.near.side])
            if through == before and through >= bodies:
                select.select([], [], [], 0.0002)
        assert [end.got.digest() for end in every] == [end.wanted.digest() for end in every]
        counts = [end.near.counts() for end in every]
        assert all(splicer.broken(end.near.index) == 0 for end in every)
        return sum(redirected for redirected, _ in counts), sum(passed for _, passed in counts)


@pytest.mark.parametrize("seed", range(3))
def test_random_bodies_between_random_sockets(splicer: Splicer, seed):
    redirected, passed = run(splicer, seed, 600)
    assert redirected
    assert passed
