"""What a routing decision costs, by the number of routes: `python3 -m tests.bench.routing`.

Half of the routes have hostnames of their own, exact and wildcard, the other half prefixes; what is
asked meets each kind, and none of them. A figure is CPU time. The bounds are
held against the least of the rounds, which is what the work itself costs.
"""

from __future__ import annotations

import gc
import sys
import time
from statistics import median

from l7proxy.model import (
    Address,
    Backend,
    BackendRef,
    Endpoint,
    Listener,
    Match,
    PathMatch,
    PathType,
    Policy,
    Request,
    Route,
)
from l7proxy.routing import Router, compile_routers, compile_slices

SIZES = (10, 100, 1_000, 10_000)
ROUNDS, DECISIONS = 15, 2_000
ADDRESS = Address("127.0.0.1", 9000)

MOST_RATIO = 3.0  # of the largest policy to the smallest
MOST_MICROSECONDS = 15.0  # with 100 routes


def policy(count: int) -> Policy:
    """`count` routes on one listener."""
    refs = (BackendRef("app"),)
    routes = tuple(
        Route(f"h{n}", (Match(),), refs, (f"h{n}.example.com", f"*.w{n}.example.com"))
        if n % 2
        else Route(f"p{n}", (Match(PathMatch(PathType.PATH_PREFIX, f"/v{n}/api")),), refs)
        for n in range(count)
    )
    backends = {"app": Backend("app", (Endpoint(ADDRESS),))}
    return Policy({"web": Listener("web", ADDRESS)}, routes, backends)


REQUESTS = {
    "host": Request(host="h5.example.com", path="/v4/api/users/42"),
    "wildcard": Request(host="a.b.w5.example.com", path="/x"),
    "prefix": Request(host="other.test", path="/v4/api/users/42"),
    "no route": Request(host="other.test", path="/none/of/these"),
    "two readings": Request(host="other.test", path="/v4/api/a%2Fb/../c"),
}


def decision(router: Router, request: Request) -> list[float]:
    """Microseconds of one decision, in each round."""
    decide = router.decide
    found = []
    for _ in range(ROUNDS):
        started = time.thread_time()
        for _ in range(DECISIONS):
            decide(request)
        found.append((time.thread_time() - started) / DECISIONS * 1e6)
    return found


def compiling(count: int) -> tuple[float, float]:
    """Milliseconds to compile a policy, and of its longest slice."""
    whole, slices = policy(count), []
    steps = compile_slices(whole)
    while True:
        started = time.thread_time()
        try:
            next(steps)
        except StopIteration:
            break
        finally:
            slices.append((time.thread_time() - started) * 1e3)
    return sum(slices), max(slices)


def main() -> int:
    """Print the tables; 1 when a bound is not kept."""
    gc.disable()
    figures: dict[int, dict[str, list[float]]] = {size: {} for size in SIZES}
    for size in SIZES:
        router = compile_routers(policy(size))["web"]
        for name, request in REQUESTS.items():
            figures[size][name] = decision(router, request)
    gc.collect()
    gc.freeze()  # as a worker does
    gc.enable()
    print("One routing decision, microseconds: median (least-most)\n")
    print("| routes | " + " | ".join(REQUESTS) + " |")
    print("| ---: |" + " ---: |" * len(REQUESTS))
    for size, found in figures.items():
        cells = (f"{median(one):.2f} ({min(one):.2f}-{max(one):.2f})" for one in found.values())
        print(f"| {size:,} | " + " | ".join(cells) + " |")
    kept = True
    for name in REQUESTS:
        ratio = min(figures[SIZES[-1]][name]) / min(figures[SIZES[0]][name])
        kept = kept and ratio <= MOST_RATIO
        print(f"\n{name}: {SIZES[-1]:,} routes cost {ratio:.2f} times what {SIZES[0]} cost", end="")
    slowest = max(min(one) for one in figures[100].values())
    kept = kept and slowest < MOST_MICROSECONDS
    print(f"\n\nslowest with 100 routes: {slowest:.2f} us (at most {MOST_MICROSECONDS:g})")
    for size in SIZES:
        total, longest = compiling(size)
        print(f"compiling {size:,} routes: {total:.1f} ms, the longest slice {longest:.1f} ms")
    if not kept:
        print("a bound is not kept", file=sys.stderr)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
