"""The story that `make demo` tells: real requests, where they went, and who moved their bytes."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from l7proxy import config
from l7proxy.demo import plan
from l7proxy.demo.backends import Backends
from l7proxy.demo.place import settle
from l7proxy.demo.proxy import Proxy
from l7proxy.demo.traffic import CheckError, Result
from l7proxy.errors import L7ProxyError
from l7proxy.model import Address, Policy

_WHAT = 53  # columns for what was asked
_CHECKOUT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo. 0 if every check held, 1 if one did not, 2 if it could not start."""
    parser = argparse.ArgumentParser(prog="python -m l7proxy.demo", description=__doc__)
    quickstart = Path(os.path.relpath(_CHECKOUT / "policies" / "quickstart.yaml"))
    parser.add_argument("--policy", type=Path, default=quickstart, metavar="FILE")
    parser.add_argument("--download", type=int, default=256, metavar="MIB")
    parser.add_argument("--upload", type=int, default=64, metavar="MIB")
    parser.add_argument("--datapath", default="auto", help="as of `l7proxy run`")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave no proxy behind
    try:
        with tempfile.TemporaryDirectory(prefix="l7proxy-demo-") as scratch, Backends() as backends:
            _show(options, Path(scratch), backends)
    except CheckError as error:
        print(f"\ndemo: FAILED: {error}", file=sys.stderr)
        return 1
    except (L7ProxyError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _show(options: argparse.Namespace, scratch: Path, backends: Backends) -> None:
    started = time.monotonic()
    policy, path, notes = settle(config.load(str(options.policy)), options.policy, scratch)
    for note in notes:
        print(f"note: {note} (a copy of the policy runs)")
    _start_backends(policy, backends)
    with Proxy(path, scratch, options.datapath) as proxy:
        print(f"$ l7proxy {' '.join(proxy.arguments)}")
        proxy.wait_until_healthy()
        _print_start(policy, proxy)
        print("\nRequests, each checked at both ends\n")
        results = []
        for result in plan.run(policy, options.download << 20, options.upload << 20, scratch):
            results.append(result)
            print(f"  {len(results)}  {result.what:<{_WHAT}}  {result.answer}", flush=True)
        stats = proxy.settled_stats()
        left = proxy.stop()
        _print_connections(results, proxy.records())
        _print_totals(stats)
    print(f"\nSIGTERM: l7proxy drained and left with 0 in {left:.2f} s.")
    print(f"Every check held; {time.monotonic() - started:.0f} s in all.")


def _start_backends(policy: Policy, backends: Backends) -> None:
    spoken = plan.http_groups(policy)
    for group in policy.backends.values():
        start = backends.start_http if group.name in spoken else backends.start_echo
        for endpoint in group.endpoints:
            if isinstance(endpoint.address, Address):
                start(f"{group.name} ({endpoint})", endpoint.address)


def _print_start(policy: Policy, proxy: Proxy) -> None:
    for listener in policy.listeners.values():
        print(f"  listener {listener.name}: {listener.address}, {listener.protocol}")
    for group in policy.backends.values():
        print(f"  backend  {group.name}: {', '.join(map(str, group.endpoints))}")
    stats = proxy.stats()
    if stats["datapath"] == "sockmap":
        print("  datapath sockmap: this kernel passed the self-test, it moves the bytes")
        return
    print(f"  datapath {stats['datapath']}: user space relays, because {stats['datapath_reason']}")


def _print_connections(results: list[Result], records: dict[int, dict[str, Any]]) -> None:
    """The access log's account of each request. Raises CheckError when one is missing in it."""
    print("\nThe same connections in the access log\n")
    row = "  {:1}  {:<34} {:>8} {:>10} {:>10} {:>8} {:>11}".format
    print(row("", "route -> endpoint", "datapath", "in", "out", "kernel", "speed"))
    for number, result in enumerate(results, 1):
        try:
            record = records[result.port]
        except KeyError:
            raise CheckError(f"the access log has no record of {result.what}") from None
        moved = record["bytes_in"] + record["bytes_out"]
        kernel = record["kernel_in"] + record["kernel_out"]
        went = f"{record['route']} -> {record['endpoint']}" if record["endpoint"] else ""
        share = f"{100 * kernel / moved:.1f} %" if went and moved else ""
        sizes = _size(record["bytes_in"]), _size(record["bytes_out"])
        where = went or f"none: {record['reason']}"
        print(row(number, where, record["datapath"], *sizes, share, result.speed).rstrip())


def _print_totals(stats: dict[str, Any]) -> None:
    """Who moved the bytes. Raises CheckError when a kernel that could splice moved none."""
    print("\nWho moved the bytes, from /stats\n")
    redirected, relayed = stats["bytes"]["redirected"], stats["bytes"]["relayed"]
    by_reference = stats["bytes"]["relayed_by_splice2"]
    row = "  {:<20} {:>12} {:>12} {:>12}".format
    print(row("", "SOCKMAP", "splice(2)", "copied"))
    ways = {}
    for name, side in (("client -> backend", "from_client"), ("backend -> client", "from_backend")):
        copied = relayed[side] - by_reference[side]
        ways[side] = (redirected[side], by_reference[side], copied)
        print(row(name, *map(_size, ways[side])))
    kernel, referred, copied = map(sum, zip(*ways.values(), strict=True))
    print(row("both", *map(_size, (kernel, referred, copied))))
    if kernel + referred + copied:
        share = 100 * (kernel + referred) / (kernel + referred + copied)
        print(f"\n{share:.2f} % never entered user space: the kernel redirects (SOCKMAP) what its")
        print("receiver keeps up with; what comes faster is moved by splice(2), or copied.")
    if stats["datapath"] == "sockmap" and not kernel:
        raise CheckError("the datapath is sockmap, and the kernel redirected no byte")
    if stats["connections"]["active"]:
        raise CheckError(f"{stats['connections']['active']} connections are left after the last")


def _size(count: float) -> str:
    """Bytes for people: 999 B, 1.4 KiB, 256.0 MiB."""
    units = ["B", "KiB", "MiB", "GiB"]
    while count >= 1024 and len(units) > 1:
        count /= 1024
        units.pop(0)
    return f"{count:.{0 if units[0] == 'B' else 1}f} {units[0]}"
