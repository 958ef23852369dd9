"""Random transfers, every byte compared: chunks, slow readers, half-closes, losses, small MTU."""

from __future__ import annotations

import contextlib
import hashlib
import random
import select
import socket
import subprocess
import time

import pytest

from l7proxy.datapath.sockmap import Splicer

from .pairs import BACKEND, CLIENT, Pair
from .test_timers import own_network

pytestmark = pytest.mark.kernel


class Flow:
    """One direction of one pair: what is sent, in which pieces, and what arrived."""

    def __init__(self, rng: random.Random, source: socket.socket, sink: socket.socket) -> None:
        self.rng, self.source, self.sink = rng, source, sink
        size = rng.choice([0, 1, 100, 5_000, 70_000, 300_000, 1_000_000])
        self.data = rng.randbytes(rng.randint(size // 2, size))
        self.piece = max(rng.choice([10, 1_000, 20_000, 200_000]), size // 200)
        self.slow = rng.random() < 0.3
        self.at, self.shut, self.ended = 0, False, False
        self.count, self.digest = 0, hashlib.sha256()

    def step(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if self.at < len(self.data):
                end = self.at + self.rng.randint(1, self.piece)
                self.at += self.source.send(self.data[self.at : end])
            elif not self.shut:
                self.source.shutdown(socket.SHUT_WR)
                self.shut = True
        if self.ended or (self.slow and self.rng.random() < 0.8):
            return
        with contextlib.suppress(BlockingIOError):
            data = self.sink.recv(self.rng.randint(1, 2 * self.piece))
            self.ended = not data
            self.count += len(data)
            self.digest.update(data)

    def exact(self) -> bool:
        return self.digest.digest() == hashlib.sha256(self.data).digest()


def run(splicer: Splicer, seed: int, pairs: int) -> tuple[int, int]:
    """As many pairs at once; returns how many bytes the kernel and user space moved."""
    made: list[Pair] = []
    try:
        return transfer(splicer, random.Random(seed), pairs, made)
    finally:
        for one in made:
            one.close_all()
        splicer.events()


def transfer(splicer: Splicer, rng: random.Random, pairs: int, made: list[Pair]) -> tuple[int, int]:
    flows: list[Flow] = []
    for _ in range(pairs):
        buffers = {"rcvbuf": rng.choice([0, 8192, 65536]), "sndbuf": rng.choice([0, 16384])}
        made.append(Pair(splicer, **buffers))
        one = made[-1]
        for sock in one.near:
            if rng.random() < 0.4:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
        for sock in (one.client, one.backend):
            sock.setblocking(False)
        flows += [Flow(rng, one.client, one.backend), Flow(rng, one.backend, one.client)]
        for flow in flows[-2:]:
            if flow.data and rng.random() < 0.5:
                flow.step()  # bytes that wait at the insertion
    for one in made:
        one.splice()
    deadline = time.monotonic() + 120
    while not all(flow.ended for flow in flows):
        assert time.monotonic() < deadline, [
            (flow.count, len(flow.data)) for flow in flows if not flow.ended
        ]
        for flow in flows:
            flow.step()
        moved = [one.pump() for one in made]
        if not any(moved):
            select.select([], [], [], 0.0002)
    assert all(flow.exact() for flow in flows)
    counts = [one.counts(side) for one in made for side in (CLIENT, BACKEND)]
    return sum(redirected for redirected, _, _ in counts), sum(passed for _, passed, _ in counts)


def test_random_transfers(splicer: Splicer):
    """72 pairs, 12 at a time, with buffers so small that both ways are taken."""
    moved = [run(splicer, seed, 12) for seed in range(6)]
    assert all(redirected for redirected, _ in moved)
    assert sum(passed for _, passed in moved)


@pytest.mark.parametrize("seed", range(2))
def test_random_transfers_with_losses_and_a_small_mtu(splicer: Splicer, seed):
    with own_network():
        subprocess.run(["ip", "link", "set", "lo", "mtu", "1500"], check=True)
        rules = (
            "add table inet t; add chain inet t i { type filter hook input priority 0; };"
            "add rule inet t i meta l4proto tcp numgen random mod 100 < 1 drop"
        )
        subprocess.run(["nft", rules], check=True)
        redirected, _ = run(splicer, 100 + seed, 12)
    assert redirected
