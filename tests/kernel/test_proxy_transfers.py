"""A thousand random transfers through the running proxy; every byte, every account, every end.

L7PROXY_TRANSFERS multiplies their number (`L7PROXY_TRANSFERS=50` is a soak of most of an hour),
L7PROXY_SEED repeats a run that failed.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator

import pytest
import transfers
from proxy import Proxy, until
from transfers import Far, Plan

pytestmark = [pytest.mark.kernel, pytest.mark.net, pytest.mark.slow]

TIMES = int(os.environ.get("L7PROXY_TRANSFERS", "1"))
SEED = int(os.environ.get("L7PROXY_SEED", "0")) or random.SystemRandom().getrandbits(32)
CONCURRENCY = 8
MIB = 1 << 20

POLICY = """\
listeners:
  http: {{address: 127.0.0.1:0}}
  raw: {{address: "127.0.0.1:0", protocol: TCP}}
  first: {{address: "127.0.0.1:0", protocol: TCP}}
routes:
  - {{name: http, listeners: [http], backendRefs: [{{name: http}}]}}
  - {{name: raw, listeners: [raw], backendRefs: [{{name: raw}}]}}
  - {{name: first, listeners: [first], backendRefs: [{{name: first}}]}}
backends:
  http: {{endpoints: ["127.0.0.1:{http}"]}}
  raw: {{endpoints: ["127.0.0.1:{raw}"]}}
  first: {{endpoints: ["127.0.0.1:{first}"]}}
"""


def plans(seed: int, count: int) -> Iterator[Plan]:
    """Sizes from 1 B to 1 MiB, even in their logarithm; one in forty is larger, up to 64 MiB."""
    rng = random.Random(seed)
    for number in range(count):
        sizes = [int(2 ** rng.uniform(0, 20)) for _ in range(2)]
        if number % 40 == 39:
            sizes[rng.randrange(2)] = int(2 ** rng.uniform(20, 26))
        if number == count // 2:
            sizes = [64 * MIB, 1]
        kind = rng.choice(transfers.KINDS)
        yield Plan(kind, rng.getrandbits(48), sizes[0], sizes[1])


@pytest.mark.parametrize(("datapath", "count"), [("sockmap", 400), ("splice2", 300), ("copy", 300)])
def test_transfers_are_exact(datapath: str, count: int) -> None:
    count *= TIMES
    print(f"L7PROXY_SEED={SEED}")
    with Far() as far, Proxy(POLICY.format(**far.ports), datapath, workers=2) as proxy:
        addresses = {kind: proxy.address(kind) for kind in transfers.KINDS}
        outcomes = transfers.run(
            plans(SEED, count), addresses, concurrency=CONCURRENCY, seconds=300 * TIMES
        )
        wrong = [outcome for outcome in outcomes if outcome.failure is not None]
        assert not wrong, f"L7PROXY_SEED={SEED}: {wrong}"
        assert len(outcomes) == count
        stats = proxy.settled(120)  # a backend may be slower than its client
        seen = far.finish()
        assert seen == {"over": count, "left": 0, "failures": []}, f"L7PROXY_SEED={SEED}: {seen}"

        assert stats["connections"] == {"accepted": count, "active": 0, "refused": 0}
        assert stats["pairs"] == {"active": 0, "spliced": 0, "relayed": 0}
        assert not any(stats["errors"].values()), stats["errors"]
        assert stats["workers"]["restarts"] == 0
        moved = stats["bytes"]
        for side, total in (
            ("from_client", sum(outcome.sent for outcome in outcomes)),
            ("from_backend", sum(outcome.received for outcome in outcomes)),
        ):
            assert moved["redirected"][side] + moved["relayed"][side] == total, (side, moved)

        until(lambda: len(proxy.records()) >= count, "a record of each")
        records = proxy.records()
        assert {(record["reason"], record["status"]) for record in records} == {("done", None)}
        told = Counter(
            (int(record["client"].rpartition(":")[2]), record["bytes_in"], record["bytes_out"])
            for record in records
        )
        assert told == Counter((o.port, o.sent, o.received) for o in outcomes)
        for name, side in (("kernel_in", "from_client"), ("kernel_out", "from_backend")):
            assert sum(record[name] for record in records) == moved["redirected"][side]

        ways = Counter(record["datapath"] for record in records)
        redirected = sum(moved["redirected"].values())
        if datapath == "sockmap":
            # the rest was over with its first bytes, or one end so early that no pair was left
            assert set(ways) <= {"sockmap", "splice2", "copy"}
            assert ways["sockmap"] > count // 4, ways
            share = redirected / (redirected + sum(moved["relayed"].values()))
            print(f"kernel share {share:.3f}, {ways}, overflows {stats['overflows']}")
            assert share > 0.1, moved  # the larger ones are relayed: they come too fast
        else:
            # the first bytes are copied: for these a pipe is not worth it
            assert set(ways) <= {datapath, "copy"}
            assert ways[datapath] > count // 4, ways
            assert redirected == 0
        proxy.stop()


def broken_plans(seed: int, count: int) -> Iterator[Plan]:
    """Bare streams; one end of each resets when it has seen so many bytes, if it gets that far."""
    rng = random.Random(seed)
    for _ in range(count):
        sizes = [int(2 ** rng.uniform(10, 22)) for _ in range(2)]
        breaks = [rng.randint(1, sum(sizes)), 0]
        rng.shuffle(breaks)
        yield Plan("raw", rng.getrandbits(48), *sizes, *breaks)


@pytest.mark.parametrize("datapath", ["sockmap", "splice2", "copy"])
def test_a_short_stream_never_has_a_clean_end(datapath: str) -> None:
    """Whichever end resets and whenever: the other one sees a reset, or had everything already."""
    count = 100 * TIMES
    print(f"L7PROXY_SEED={SEED}")
    with Far() as far, Proxy(POLICY.format(**far.ports), datapath, workers=2) as proxy:
        addresses = {kind: proxy.address(kind) for kind in transfers.KINDS}
        outcomes = transfers.run(
            broken_plans(SEED, count), addresses, concurrency=CONCURRENCY, seconds=240 * TIMES
        )
        stats = proxy.settled(120)  # a backend may be slower than its client
        seen = far.finish()
        wrong = [o for o in outcomes if isinstance(o.failure, transfers.Wrong)]
        wrong += [failure for failure in seen["failures"] if failure[0] == "Wrong"]
        assert not wrong, f"L7PROXY_SEED={SEED}: {wrong}"
        assert seen["left"] == 0
        broken = sum(o.failure is not None for o in outcomes)
        assert broken > count // 2
        errors = {name: n for name, n in stats["errors"].items() if n}
        assert errors.keys() <= {"client_reset", "backend_reset"}, errors
        assert sum(errors.values()) <= count
        assert min(errors.values()) > count // 10, errors
        proxy.stop()
