"""What `GET /metrics` costs: `python3 -m tests.bench.scrape`, as root.

There are live spliced connections, and a policy with many endpoints. The bounds: a scrape takes
less than 100 ms, and what workers use meanwhile is what they use without. Beside that, what a
connection costs a worker to be counted, and what spliced connections move while nobody scrapes, and
while somebody does ten times a second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from proxy import Proxy, cpu_seconds, until

from l7proxy.telemetry.accesslog import Record
from l7proxy.telemetry.counters import SharedCounters
from l7proxy.telemetry.meter import Meter, counts_board, times_board

MOST_SECONDS = 0.1
SCRAPES = 20
TURNS = 100_000
ROUNDS = 5
BLOCK = 64 * 1024  # bytes
ACCEPT = {"Accept": "application/openmetrics-text; version=1.0.0"}

POLICY = """\
listeners:
  raw: {{address: "127.0.0.1:0", protocol: TCP, limits: {{connections: 20000}}}}
  others: {{address: "127.0.0.1:0", protocol: TCP}}
routes:
  - {{name: all, listeners: [raw], backendRefs: [{{name: app}}]}}
  - {{name: others, listeners: [others], backendRefs: [{others}]}}
backends:
  app: {{endpoints: ["127.0.0.1:{port}"]}}
"""
GROUP = 100  # endpoints in a group that has no connections


def policy(port: int, endpoints: int) -> str:
    """One endpoint that is used, at `port`, and so many others."""
    groups = {
        f"group-{first}": [
            f"127.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}:{port}"
            for n in range(first, min(first + GROUP, endpoints))
        ]
        for first in range(1, endpoints, GROUP)
    }
    references = ", ".join(f"{{name: {name}}}" for name in groups or ["app"])
    lines = [f"  {name}: {{endpoints: {json.dumps(one)}}}\n" for name, one in groups.items()]
    return POLICY.format(port=port, others=references) + "".join(lines)


class Greeter:
    """A backend that greets, keeps the connection, and answers each byte with a block."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.port: int = self._listener.getsockname()[1]
        self._held: list[socket.socket] = []
        threading.Thread(target=self._greet, daemon=True).start()

    def _greet(self) -> None:
        while True:
            one, _ = self._listener.accept()
            one.sendall(b"hello")
            self._held.append(one)

    def answer(self, number: int) -> int:
        """Have a process of its own answer on this connection; its process id."""
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(OSError):
                while self._held[number].recv(1):
                    self._held[number].sendall(bytes(BLOCK))
            os._exit(0)
        return pid

    def hang_up(self) -> None:
        """End all that it keeps."""
        for one in self._held:
            one.close()


def counting() -> float:
    """Microseconds that it takes a worker to count a connection, all its figures together."""
    shared, counts, times = SharedCounters(1), counts_board(1), times_board(1)
    meter = Meter(counts, times, 0, shared.slot(0).view)
    record = Record(0.0, 0, "web", "192.0.2.1:5", route="all", backend="app", endpoint="a:1")
    record.bytes_in, record.bytes_out, record.kernel_out = 10, 2000, 1000
    began = time.perf_counter()
    for _ in range(TURNS):
        meter.accepted("web")
        meter.head("web", 0.2)
        meter.dialled("app", 0.3)
        meter.first_byte("app", 2.0)
        meter.ended(record)
    return (time.perf_counter() - began) / TURNS * 1e6


def moved(client: socket.socket, seconds: float) -> float:
    """Gigabytes a second of blocks that are asked for one after the other."""
    buffer, count = bytearray(BLOCK), 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        client.send(b".")
        left = BLOCK
        while left:
            left -= client.recv_into(buffer, left)
        count += BLOCK
    return count / seconds / 1e9


def compared(proxy: Proxy, client: socket.socket) -> tuple[float, float]:
    """What is moved without scrapes and with them: medians of turns that alternate."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(2 * ROUNDS):
        done = threading.Event()

        def scrape(done: threading.Event = done) -> None:
            while not done.wait(0.1):
                proxy.get("/metrics", **ACCEPT)

        scraper = threading.Thread(target=scrape)
        if turn % 2:
            scraper.start()
        rates[bool(turn % 2)].append(moved(client, 1.0))
        done.set()
        if turn % 2:
            scraper.join()
    return median(rates[False]), median(rates[True])


def timed(call: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> int:
    """Print the figures; 1 when a bound is not held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=5_000)
    parser.add_argument("--endpoints", type=int, default=10_000)
    options = parser.parse_args()
    connections = options.connections
    print(f"to count a connection: {counting():.1f} us")
    greeter = Greeter()
    clients: list[socket.socket] = []
    with Proxy(policy(greeter.port, options.endpoints), "sockmap", workers=2) as proxy:
        for _ in range(connections):
            client = socket.create_connection(proxy.address("raw"))
            client.recv(5)
            clients.append(client)
        until(lambda: proxy.stats()["pairs"]["spliced"] == connections, "all are spliced")
        pids = proxy.workers
        idle = used(pids, lambda: time.sleep(1.0))
        seconds: list[float] = []
        size = 0

        def scrape() -> None:
            nonlocal size
            for _ in range(SCRAPES):
                seconds.append(timed(lambda: proxy.get("/metrics", **ACCEPT)))
            size = len(proxy.get("/metrics", **ACCEPT)[2])

        busy = used(pids, scrape)
        answering = greeter.answer(0)
        without, with_scrapes = compared(proxy, clients[0])
        os.kill(answering, signal.SIGKILL)
        os.waitpid(answering, 0)
        for client in clients:
            client.close()
        greeter.hang_up()
        proxy.settled(60)
        proxy.stop()
    print(
        f"{connections:,} spliced connections, {options.endpoints:,} endpoints:"
        f" a scrape of {size / 1000:.0f} kB takes {median(seconds) * 1000:.1f} ms,"
        f" {max(seconds) * 1000:.1f} ms at the most (the first: {seconds[0] * 1000:.1f} ms);"
        f" workers used {busy:.2f} s of processor time during {SCRAPES + 1} of them, and"
        f" {idle:.2f} s in a second without"
    )
    print(
        f"a spliced connection moves {without:.2f} GB/s in blocks of {BLOCK // 1024} KiB, and"
        f" {with_scrapes:.2f} GB/s while ten scrapes a second are made"
    )
    return int(max(seconds) > MOST_SECONDS)


def used(pids: list[int], call: Callable[[], object]) -> float:
    """Processor seconds that these processes use meanwhile."""
    before = sum(map(cpu_seconds, pids))
    call()
    return sum(map(cpu_seconds, pids)) - before


if __name__ == "__main__":
    sys.exit(main())
