"""Play exchanges through a proxy that listens already, or repeat a script that failed.

    PYTHONPATH=tests python -m exchanges SEED COUNT --command 'PROXY {a} {b} {c} {port}'
    PYTHONPATH=tests python -m exchanges SEED 0 --command ... --script 17

The command is started with the origins' ports and the port to listen on; it is ended at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import shlex
import socket
import subprocess
import time

from .client import Target
from .judge import perform
from .origin import Origins
from .plan import FEATURES, MOST


def main() -> int:
    parser = argparse.ArgumentParser(prog="exchanges", description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--command", required=True)
    parser.add_argument("--script", type=int, action="append")
    parser.add_argument("--without", default="", help="features, by commas")
    parser.add_argument("--only", default="", help="features, by commas")
    parser.add_argument("--most", type=int, default=MOST)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--tries", type=int, default=2)
    options = parser.parse_args()
    features = frozenset(options.only.split(",")) - {""} if options.only else FEATURES
    features -= frozenset(options.without.split(","))
    port = random.randrange(20_000, 30_000)  # below every ephemeral one
    with Origins(options.seed, options.most, features) as origins:
        command = options.command.format(port=port, **origins.ports)
        with subprocess.Popen(shlex.split(command)) as proxy:
            try:
                _wait(port)
                target = Target(("127.0.0.1", port), options.seed, options.most, features)
                began = time.monotonic()
                report = asyncio.run(
                    perform(
                        target,
                        origins,
                        options.count,
                        concurrency=options.concurrency,
                        scripts=options.script,
                        tries=options.tries,
                    )
                )
                took = time.monotonic() - began
            finally:
                proxy.terminate()
    print(f"{report} in {took:.1f} s")
    return 1 if report.failures else 0


def _wait(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.05)
    raise TimeoutError(f"nobody listens on {port}")


if __name__ == "__main__":
    raise SystemExit(main())
