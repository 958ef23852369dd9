"""What it costs a worker to hand a pair to the supervisor: `python3 -m tests.bench.handover`, as
root.

The worker is a live one: it has thousands of spliced pairs, and goes on to accept, dial and splice
meanwhile, so its caches are as cold as they are in service. Processor time of the thread is taken
in the worker itself, around each turn of the hand-over. The bound: less than 10 us a pair.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from proxy import Proxy, until

MOST_US = 10.0
POLICY = """\
listeners:
  web: {{address: "127.0.0.1:0", limits: {{connections: 20000}}}}
routes:
  - {{name: all, listeners: [web], splice: connection, backendRefs: [{{name: app}}]}}
backends:
  app: {{endpoints: ["127.0.0.1:{port}"]}}
"""
REQUEST = b"GET /some/where?a=b HTTP/1.1\r\nHost: app.test\r\nUser-Agent: bench\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"

METERED = """\
import json, sys, time
from l7proxy import cli
from l7proxy.worker.keeping import Keeping
hand_over = Keeping._hand_over
taken = []
def metered(keeping):
    before = len(keeping._fresh)
    began = time.thread_time_ns()
    goes_on = hand_over(keeping)
    spent = time.thread_time_ns() - began
    if before > len(keeping._fresh):
        taken.append((before - len(keeping._fresh), spent))
        with open({path!r}, "w") as file:
            json.dump(taken, file)
    return goes_on
Keeping._hand_over = metered
sys.exit(cli.main())
"""


def answer() -> None:
    """A backend that answers each request and keeps the connection."""
    import select

    epoll, peers = select.epoll(), {}
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        print(listener.getsockname()[1], flush=True)
        epoll.register(listener, select.EPOLLIN)
        while True:
            for fd, _ in epoll.poll():
                if fd == listener.fileno():
                    peer, _ = listener.accept()
                    peers[peer.fileno()] = peer
                    epoll.register(peer, select.EPOLLIN)
                    continue
                try:
                    goes_on = bool(peers[fd].recv(1 << 16))
                    peers[fd].sendall(ANSWER if goes_on else b"")
                except ConnectionError:
                    goes_on = False
                if not goes_on:
                    peers.pop(fd).close()


def measure(pairs: int, rate: int, options: list[str]) -> list[tuple[int, int]]:
    """(pairs, nanoseconds) of each turn.

    So many connections are made at this rate.
    """
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, __file__, "answer"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as backend:
        assert backend.stdout is not None
        policy = POLICY.format(port=int(backend.stdout.readline()))
        out = Path(f"/tmp/l7proxy-handover-{os.getpid()}.json")
        out.touch(mode=0o666)
        out.chmod(0o666)
        entry = ("-c", METERED.format(path=str(out)))
        clients: list[socket.socket] = []
        try:
            with Proxy(policy, "sockmap", entry=entry, environment=environment, more=options) as it:
                address, began = it.address("web"), time.monotonic()
                for number in range(pairs):
                    one = socket.create_connection(address)
                    one.sendall(REQUEST)
                    clients.append(one)
                    if number >= 20:
                        assert clients[number - 20].recv(4096).endswith(b"hello")
                    time.sleep(max(0.0, began + number / rate - time.monotonic()))
                until(lambda: it.stats()["kept"]["pairs"] == pairs, "all are kept", 30.0)
                time.sleep(0.2)
                found: list[tuple[int, int]] = json.loads(out.read_text())
                assert sum(count for count, _ in found) == pairs
        finally:
            for one in clients:
                one.close()
            backend.kill()
            out.unlink()
    return found


def main() -> int:
    """The exit code: 1 when it costs more than the bound."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--rate", type=int, default=800, help="connections a second")
    parser.add_argument("--guardian", action="store_true", help="with one above the supervisor")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    turns = measure(options.pairs, options.rate, ["--guardian"] * options.guardian)
    late = turns[len(turns) // 2 :]  # when there are thousands of them
    each = [spent / count / 1000 for count, spent in late]
    mean = sum(spent for _, spent in late) / sum(count for count, _ in late) / 1000
    print(
        f"{options.pairs} pairs in {len(turns)} turns; of the later half, us a pair:"
        f" mean {mean:.2f}, median turn {median(each):.2f}, best {min(each):.2f}"
    )
    return int(mean >= MOST_US)


if __name__ == "__main__":
    if sys.argv[1:] == ["answer"]:
        answer()
    else:
        sys.exit(main())
