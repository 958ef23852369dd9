"""Clients that read nothing of an endless answer: bounded memory on the whole host, no work for
anybody, and when they read on, the stream goes on exactly where it was.

Unread bytes can hide from every account but the host's (KERNEL.md's unbounded redirect queue is
charged to no socket), so the host's free memory is what is measured. Others use this host, too, so
the best of many looks counts: what is unbounded is so in every one of them. If none of them is good
enough, what comes free with the connection tells whose memory it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from peers import PATIENCE, Backend, Peer, connect, digest, stretch
from proxy import Proxy, cpu_seconds, resident, until

pytestmark = [pytest.mark.kernel, pytest.mark.net, pytest.mark.slow]

MIB = 1 << 20
MOST = 32 * MIB  # that one such connection may cost
BULK = 4 * MIB  # that fill what buffers there are, before the one-byte segments
FILL = 1.2  # seconds; the redirect queue, unbounded, takes 200 MiB and more in each of them
LOOK = 4.0  # seconds to catch a moment in which others don't need more
TRIES = 5
POLICY = """\
listeners:
  web: {{address: 127.0.0.1:0}}
routes:
  - {{name: all, backendRefs: [{{name: app}}]}}
backends:
  app: {{endpoints: ["127.0.0.1:{port}"]}}
"""
REQUEST = b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n"


class Endless:
    """A backend that answers without end, until it is told that it is enough."""

    def __init__(self, piece: int) -> None:
        self.backend = Backend()
        self.backend.play(self._answer)
        self.port = self.backend.port
        self.sent = 0  # by the latest connection that has ended
        self._piece = piece
        self.enough = threading.Event()

    def _answer(self, peer: Peer) -> None:
        peer.head()
        sent = 0
        peer.sock.settimeout(0.1)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while not self.enough.is_set():
                piece = self._piece if sent >= BULK else min(MIB, BULK - sent)
                with contextlib.suppress(TimeoutError):
                    sent += peer.sock.send(stretch(0, sent, piece))
            peer.sock.settimeout(PATIENCE)
            peer.half_close()
            peer.ending()
        self.sent = sent


@pytest.fixture(params=[MIB, 1], ids=["bulk", "one-byte segments"])
def endless(request: pytest.FixtureRequest) -> Iterator[Endless]:
    made = Endless(request.param)
    yield made
    made.enough.set()
    made.backend.close()
    made.backend.finish()


def host_memory() -> int:
    """Bytes that nobody could have now."""
    fields = dict(line.split()[:2] for line in Path("/proc/meminfo").read_text().splitlines())
    return (int(fields["MemTotal:"]) - int(fields["MemAvailable:"])) * 1024


def tcp_memory() -> int:
    """Bytes that TCP accounts for, all sockets together."""
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        if line.startswith("TCP:"):
            return int(line.split()[-1]) * os.sysconf("SC_PAGE_SIZE")
    raise AssertionError("no TCP in /proc/net/sockstat")


def kworker_seconds() -> float:
    """Processor time of the kernel's workers, which move what is redirected."""
    total = 0.0
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if comm.read_text().startswith("kworker/"):
                total += cpu_seconds(int(comm.parent.name))
    return total


def stalled(proxy: Proxy) -> Callable[[], bool]:
    """Whether nothing has moved for a moment."""

    def moved() -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = proxy.stats()["bytes"]
        return found

    def still() -> bool:
        before = moved()
        time.sleep(0.4)
        return moved() == before

    return still


def ask(proxy: Proxy) -> Peer:
    """A client that has sent its request and reads nothing, after the time that `FILL` is.

    Its buffer is small: what the client's own kernel keeps for it is not l7proxy's doing.
    """
    client = connect(proxy.address("web"), receive_buffer=1 << 14)
    client.send(REQUEST)
    until(lambda: proxy.stats()["pairs"]["active"], "the pair is open")
    time.sleep(FILL)
    return client


def growth_since(before: list[int], measures: list[Callable[[], int]]) -> list[int]:
    """By how much each measure has grown, in the best moment of some seconds."""
    least = [measure() - then for measure, then in zip(measures, before, strict=True)]
    deadline = time.monotonic() + LOOK
    while max(least) >= MOST and time.monotonic() < deadline:
        time.sleep(0.1)
        grown = [measure() - then for measure, then in zip(measures, before, strict=True)]
        least = min(least, grown, key=max)
    return least


@pytest.mark.parametrize("datapath", ["sockmap", "splice2", "copy"])
def test_a_client_that_reads_nothing(endless: Endless, datapath: str) -> None:
    with Proxy(POLICY.format(port=endless.port), datapath) as proxy:
        (worker,) = proxy.workers
        measures = [host_memory, tcp_memory, lambda: resident(worker)]
        told: list[str] = []
        for _ in range(TRIES):
            before = [measure() for measure in measures]
            client = ask(proxy)
            grown = growth_since(before, measures)
            if max(grown) < MOST:
                break
            # is it this connection, or somebody else on this host?
            held = host_memory()
            client.reset()
            proxy.settled()
            time.sleep(0.3)
            released = held - host_memory()
            if released < MOST:
                client = ask(proxy)
                break
            told.append(f"{released} bytes came free with it; grown by {grown}")
        else:
            pytest.fail("; ".join(told))

        # It reads on, a little at first, and then all of it.
        with client:
            first = client.read(200_000)
            time.sleep(0.3)
            second = client.read(100_000)
            endless.enough.set()
            size, found = client.rest_digest(hashlib.sha256(first + second))
            port = client.port
        size += len(first) + len(second)
        record = proxy.record(port)
        until(lambda: endless.sent == size, "the backend has sent what the client got")
        assert record["bytes_out"] == size
        assert found == digest(0, size)
        assert record["reason"] == "done"
        proxy.stop()


@pytest.mark.parametrize("datapath", ["sockmap", "splice2", "copy"])
def test_fifty_that_read_nothing_cost_nothing(datapath: str) -> None:
    endless = Endless(MIB)
    with (
        Proxy(POLICY.format(port=endless.port), datapath) as proxy,
        contextlib.ExitStack() as stack,
    ):
        (worker,) = proxy.workers
        for _ in range(50):
            client = stack.enter_context(connect(proxy.address("web"), receive_buffer=1 << 16))
            client.send(REQUEST)
        until(lambda: proxy.stats()["pairs"]["active"] == 50, "all pairs are open", 120)
        until(stalled(proxy), "all streams have come to a stand", 120)
        quiet = stalled(proxy)
        used = []
        for _ in range(TRIES):
            before = cpu_seconds(worker), kworker_seconds()
            time.sleep(2.0)
            used.append((cpu_seconds(worker) - before[0], kworker_seconds() - before[1]))
            if used[-1][0] < 0.1 and used[-1][1] < 0.2:
                break
        else:
            pytest.fail(f"processor seconds of 2 s (worker, kworkers), each time: {used}")
        assert quiet()
        assert proxy.stats()["pairs"]["active"] == 50
        stack.close()
        proxy.settled(120)
        proxy.stop()
    endless.enough.set()
    endless.backend.close()
    endless.backend.finish()
