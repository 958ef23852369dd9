"""Who moves a stream of some rate, and how well: `python3 -m tests.bench.paced`, as root.

Client, l7proxy and backend have network namespaces of their own, on a bridge (veth, MTU 1500), or
are on loopback (`--loopback`). The backend sends for some seconds, at the rate that TCP paces it to
or as fast as it can; or the client reads at that rate and the backend sends what it can.

For each: what came, the share of the kernel in all of it and in its second half, how often a
direction overflowed, for how long nothing came at the most, and processor time of the workers.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "docker"))

from proxy import Proxy, cpu_seconds

from loadtest import netns

PIECE = 256 * 1024  # bytes that are sent and read at once
TICK = 0.002  # seconds between two reads of a client that paces
_SO_MAX_PACING_RATE = 47  # asm-generic/socket.h

POLICY = """\
listeners: {{raw: {{address: "{proxy}:0", protocol: TCP}}}}
routes: [{{name: all, listeners: [raw], backendRefs: [{{name: app}}]}}]
backends: {{app: {{endpoints: ["{backend}:{port}"]}}}}
"""


@dataclass(frozen=True, slots=True)
class Network:
    """Where the three are, and how to do something where one of them is."""

    proxy: str
    backend: str
    at_proxy: Callable[[Callable[[], Any]], Any]
    at_backend: Callable[[Callable[[], Any]], Any]


def serve(listener: socket.socket) -> int:
    """A process that sends for as long, and as fast, as each connection's first line says."""
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        one, _ = listener.accept()
        if os.fork():
            one.close()
            continue
        rate, seconds = (float(word) for word in one.recv(100).split())
        if rate:
            one.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, int(rate))
        block, end = bytes(PIECE), time.monotonic() + seconds
        try:
            one.sendall(b"+")
            time.sleep(0.1)  # the pair is spliced before the stream comes
            while time.monotonic() < end:
                one.sendall(block)
        finally:
            os._exit(0)


@dataclass(slots=True)
class Read:
    """What a client saw."""

    count: int = 0  # bytes
    gap: float = 0.0  # seconds
    seconds: float = 0.0


def read(
    address: tuple[str, int], sent: float, taken: float, seconds: float, half: Callable[[], None]
) -> Read:
    """Read all of it. `sent`, `taken`: the two rates, 0 for any; `half` is called in between."""
    found, buffer = Read(), bytearray(PIECE)
    with socket.create_connection(address) as client:
        client.sendall(f"{sent:g} {seconds:g}\n".encode())
        client.recv(1)
        time.sleep(0.05)
        client.recv(1, socket.MSG_PEEK)
        began = last = time.monotonic()
        told = False
        while True:
            if taken:
                ahead = found.count / taken - (time.monotonic() - began)
                if ahead > 0:
                    time.sleep(max(ahead, TICK))
            n = client.recv_into(buffer)
            now = time.monotonic()
            if not n:
                break
            found.gap, last = max(found.gap, now - last), now
            found.count += n
            if not told and now - began > seconds / 2:
                told = True
                half()
                last = time.monotonic()
        found.seconds = last - began
    return found


def moved(proxy: Proxy) -> tuple[int, int, int]:
    """Bytes of the kernel, bytes of user space, overflows."""
    stats = proxy.stats()
    ways = [sum(stats["bytes"][way].values()) for way in ("redirected", "relayed")]
    return ways[0], ways[1], stats["overflows"]


def measure(proxy: Proxy, sent: float, taken: float, seconds: float) -> str:
    """One stream, as a row."""
    before, cpu = moved(proxy), sum(map(cpu_seconds, proxy.workers))
    halves: list[tuple[int, int, int]] = []
    found = read(proxy.address("raw"), sent, taken, seconds, lambda: halves.append(moved(proxy)))
    proxy.settled(30)
    after, cpu = moved(proxy), sum(map(cpu_seconds, proxy.workers)) - cpu
    gigabytes = found.count / 1e9

    def share(since: tuple[int, int, int]) -> str:
        kernel, user = after[0] - since[0], after[1] - since[1]
        return f"{100 * kernel / max(1, kernel + user):4.0f} %"

    return (
        f"{sent / 1e6:7.0f} {taken / 1e6:7.0f} {found.count / found.seconds / 1e6:8.0f}"
        f"  {share(before)} {share(halves[0] if halves else before)} {after[2] - before[2]:6d}"
        f" {found.gap * 1000:7.1f} {cpu / gigabytes:7.2f}"
    )


def main() -> int:
    """Print a row for each rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loopback", action="store_true")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sent", type=float, nargs="*", default=[20, 60, 125, 200, 400, 0])
    parser.add_argument("--taken", type=float, nargs="*", default=[20, 125])
    parser.add_argument("--entry", nargs="*", default=["-m", "l7proxy"])
    options = parser.parse_args()
    if not netns.isolate():
        print("paced: no right to make network namespaces: run as root")
        return 1
    lan = None if options.loopback else netns.Lan()
    if lan is None:
        network = Network("127.0.0.1", "127.0.0.1", lambda call: call(), lambda call: call())
    else:
        contender, origins = lan.contender, lan.origins
        network = Network(
            netns.CONTENDER,
            netns.ORIGINS[0],
            lambda call: netns.inside(contender, call),
            lambda call: netns.inside(origins, call),
        )
    listener = network.at_backend(lambda: socket.create_server((network.backend, 0)))
    backend = serve(listener)
    policy = POLICY.format(
        proxy=network.proxy, backend=network.backend, port=listener.getsockname()[1]
    )
    proxy = Proxy(policy, "sockmap", workers=1, entry=options.entry)
    try:
        network.at_proxy(proxy.__enter__)
        print("sent at  taken at  came,  by the kernel  over-   gap,   CPU,")
        print("   MB/s     MB/s   MB/s    all   later  flows     ms   s/GB", flush=True)
        for _ in range(options.rounds):
            for sent, taken in [(one, 0) for one in options.sent] + [
                (0, one) for one in options.taken
            ]:
                print(measure(proxy, sent * 1e6, taken * 1e6, options.seconds), flush=True)
    finally:
        proxy.__exit__(None, None, None)
        os.kill(backend, signal.SIGKILL)
        os.waitpid(backend, 0)
        if lan is not None:
            lan.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
