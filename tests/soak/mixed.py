"""A week of operation in miniature: `make soak`, for L7PROXY_SOAK seconds (600 if it isn't set).

Without a pause, in a network namespace of its own: transfers of all kinds and sizes, each hashed at
both ends; kept-alive spliced connections that must outlive everything; and in turn a worker that is
killed, an endpoint that goes away and comes back elsewhere, reloads, another l7proxy in place of
this one. Afterwards nothing may have grown, and nothing may be left.

A transfer may break when the worker that had it in user space is killed, and then both its ends see
a reset. Nobody may ever see a short stream with a clean end, or a wrong byte.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import resource
import signal
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import bpfobjects
import pytest
import transfers
from kernel.test_survival import Crowd, echoing
from kernel.test_timers import own_network
from proxy import Proxy, children, descriptors, until
from transfers import Far, Plan

from loadtest import memory

pytestmark = [pytest.mark.kernel, pytest.mark.net, pytest.mark.slow]

SECONDS = float(os.environ.get("L7PROXY_SOAK", "600"))
SEED = int(os.environ.get("L7PROXY_SEED", "0")) or random.SystemRandom().getrandbits(32)
REFUSES = 1  # a port at which nobody listens
PAUSE = 5.0  # seconds between two of the things that happen
SURVIVORS = 200
CONCURRENCY = 6
WORKERS = 2
FILES = 20_000
PATIENCE = 60.0  # seconds
MIB = 1 << 20
GROWTH = 8 * MIB  # that noise may look like: of all processes, late against early
POLICY = """\
listeners:
  http: {{address: 127.0.0.1:0}}
  raw: {{address: "127.0.0.1:0", protocol: TCP}}
  first: {{address: "127.0.0.1:0", protocol: TCP}}
  echo: {{address: "127.0.0.1:0", protocol: TCP}}
routes:
  - {{name: http-{generation}, listeners: [http], backendRefs: [{{name: http}}]}}
  - {{name: raw, listeners: [raw], backendRefs: [{{name: raw}}]}}
  - {{name: first, listeners: [first], backendRefs: [{{name: first}}]}}
  - {{name: echo, listeners: [echo], backendRefs: [{{name: echo}}]}}
backends:
  http: {{endpoints: ["127.0.0.1:{here[http]}", "127.0.0.1:{there[http]}"]}}
  raw: {{endpoints: ["127.0.0.1:{here[raw]}", "127.0.0.1:{there[raw]}"]}}
  first: {{endpoints: ["127.0.0.1:{here[first]}", "127.0.0.1:{there[first]}"]}}
  echo: {{endpoints: ["127.0.0.1:{echo}"]}}
"""


def plans(until_then: float) -> Iterator[Plan]:
    """Transfers of 1 B to 1 MiB, one in fifty of up to 32 MiB, until the time is over."""
    rng = random.Random(SEED)
    while time.monotonic() < until_then:
        sizes = [int(2 ** rng.uniform(0, 20)) for _ in range(2)]
        if rng.random() < 0.02:
            sizes[rng.randrange(2)] = int(2 ** rng.uniform(20, 25))
        yield Plan(rng.choice(transfers.KINDS), rng.getrandbits(48), *sizes)


def held_sockets() -> int:
    """TCP's sockets in this network namespace that somebody has a descriptor of."""
    table = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
    return sum(line.split()[9] != "0" for line in table)  # orphans have no inode


@dataclass
class Life:
    """What happens to l7proxy, and how large it was meanwhile."""

    proxy: Proxy
    here: Far
    there: Far
    echo: int
    began: float
    deaths: int = 0
    reloads: int = 0
    moves: int = 0
    upgrades: int = 0
    due: float = 0.0
    memory: list[tuple[float, int]] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    objects: list[set[bpfobjects.Held]] = field(default_factory=list)
    wrong: list[object] = field(default_factory=list)

    @property
    def pid(self) -> int:
        """The supervisor's, whichever it is by now."""
        found: int = self.proxy.stats()["pid"]
        return found

    def reload(self) -> None:
        """The same policy with another name in it, and with where the endpoints are now."""
        self.reloads += 1
        self.proxy.reload(self.policy())

    def policy(self) -> str:
        return POLICY.format(
            generation=self.reloads, here=self.here.ports, there=self.there_ports, echo=self.echo
        )

    def kill(self) -> None:
        """A worker, with whatever it has in user space."""
        log = self.proxy.log().count("pairs adopted")
        os.kill(self._worker(), signal.SIGKILL)
        self.deaths += 1
        until(
            lambda: self.proxy.log().count("pairs adopted") > log,
            "the next worker has the pairs",
            PATIENCE,
        )

    def _worker(self) -> int:
        """The one with most descriptors: the prober has few."""
        return max(children(self.pid), key=descriptors)

    def leave(self) -> None:
        """An endpoint goes away: the policy has one instead that refuses every dial."""
        self.gone, self.there_ports = self.there, dict.fromkeys(transfers.KINDS, REFUSES)
        self.reload()
        self.gone.dismiss()

    def come_back(self) -> None:
        """At other ports, once those it had before have ended in order."""
        assert self.gone is not None
        self.look_at(self.gone)
        self.there, self.gone = Far().__enter__(), None
        self.there_ports = self.there.ports
        self.moves += 1
        self.reload()

    def look_at(self, far: Far) -> None:
        """What the backends that are leaving have seen."""
        seen = far.finish()
        far.__exit__()
        self.wrong += [one for one in seen["failures"] if one[0] == "Wrong"]
        assert seen["left"] == 0, seen

    def indices(self) -> int:
        """Sockets that the kernel's maps have an index for."""
        maps = bpfobjects.held([self.pid, *children(self.pid)], map_type=bpfobjects.INDEX_OF)
        assert len(maps) == WORKERS
        return sum(len(bpfobjects.entries(one)) for one in maps)

    def close(self) -> None:
        """End the backends, however far this has come."""
        for far in (self.here, self.there, self.gone):
            if far is not None:
                far.__exit__()

    def upgrade(self) -> None:
        """Another l7proxy takes over."""
        before = self.pid
        done = self.proxy.upgrade()
        assert done.returncode == 0, done.stderr
        until(lambda: self._answers() not in (0, before), "another one answers", PATIENCE)
        self.upgrades += 1

    def _answers(self) -> int:
        """Who answers, if anybody does at the moment."""
        try:
            return self.pid
        except OSError:
            return 0

    def go_on(self) -> None:
        """To be called often: does what is due."""
        now = time.monotonic()
        if now < self.due:
            return
        if self._turn == self.come_back and self.gone is not None and not self.gone.is_over():
            self.due = now + 1.0  # whom it serves is served here: waiting for it would be for ever
            return
        self.due = now + PAUSE
        self._turn()
        self._turn = next(self._turns)
        stats = self.proxy.stats()
        everyone = [stats["pid"], *children(stats["pid"])]
        self.objects.append(bpfobjects.held(everyone))
        sizes = [memory.pss([pid]) * 1024 for pid in everyone]
        if all(sizes):  # else a worker was on its way out
            self.memory.append((now, sum(sizes)))
        with contextlib.suppress(OSError):
            self.files.append(descriptors(stats["pid"]) - 2 * stats["kept"]["pairs"])

    def __post_init__(self) -> None:
        self.there_ports = self.there.ports
        self.gone: Far | None = None
        order = (self.reload, self.kill, self.leave, self.kill, self.come_back, self.upgrade)
        self._turns = itertools.cycle(order)
        self._turn = next(self._turns)


@pytest.fixture
def echo_port() -> Iterator[int]:
    """Where a process echoes, in a network namespace of our own."""
    with own_network(), echoing() as port:
        yield port


def test_a_week_in_miniature(echo_port: int) -> None:
    print(f"L7PROXY_SEED={SEED}, {SECONDS:g} s")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, FILES), hard))
    before = held_sockets()
    with contextlib.ExitStack() as stack:
        here, there = Far().__enter__(), Far().__enter__()
        policy = POLICY.format(generation=0, here=here.ports, there=there.ports, echo=echo_port)
        proxy = stack.enter_context(Proxy(policy, "sockmap", workers=WORKERS))
        crowd = Crowd(proxy.address("echo"), SURVIVORS)
        began = time.monotonic()
        life = Life(proxy, here, there, echo_port, began)
        stack.callback(life.close)
        try:
            until(lambda: proxy.stats()["kept"]["pairs"] >= SURVIVORS, "all are kept", PATIENCE)
            outcomes = transfers.run(
                plans(began + SECONDS),
                {kind: proxy.address(kind) for kind in transfers.KINDS},
                concurrency=CONCURRENCY,
                seconds=SECONDS + PATIENCE,
                check=life.go_on,
            )
            crowd.go_on()  # raises what went wrong with one of them
            assert proxy.stats()["pairs"]["spliced"] == SURVIVORS
            until(lambda: life.indices() == 2 * SURVIVORS, "no other socket has an index", PATIENCE)
        finally:
            crowd.close()
        _judge(life, outcomes)
        proxy.settled(PATIENCE)
        for far in (life.here, life.gone or life.there):
            life.look_at(far)
        assert not life.wrong
        until(lambda: proxy.stats()["kept"]["pairs"] == 0, "no duplicate is left", PATIENCE)
        until(lambda: life.indices() == 0, "every index is free", PATIENCE)
        os.kill(life.pid, signal.SIGTERM)
        until(lambda: not proxy.admin.exists(), "it stops", PATIENCE)
        proxy.check_log()
    objects = set().union(*life.objects)
    # the kernel frees maps and programs some time after their last holder has gone
    until(lambda: not any(map(bpfobjects.exists, objects)), "every BPF object is gone", PATIENCE)
    # the echo's listener; what nobody holds any more ends by TCP's own timers
    until(lambda: held_sockets() <= before, "every socket is closed", PATIENCE)


def _judge(life: Life, outcomes: list[transfers.Outcome]) -> None:
    broken = [one for one in outcomes if one.failure is not None]
    wrong = [one for one in broken if isinstance(one.failure, transfers.Wrong)]
    early = [size for then, size in life.memory if then < life.began + SECONDS / 2]
    late = [size for then, size in life.memory if then >= life.began + SECONDS / 2]
    grown = statistics.median(late) - statistics.median(early[len(early) // 3 :])
    print(
        f"{len(outcomes)} transfers, {sum(o.sent + o.received for o in outcomes) / MIB:.0f} MiB; "
        f"{life.deaths} workers killed, {life.reloads} reloads, {life.moves} endpoints moved, "
        f"{life.upgrades} upgrades; {len(broken)} transfers reset, {SURVIVORS} connections lived "
        f"through all; memory {statistics.median(late) / MIB:.1f} MiB, grown by "
        f"{grown / MIB:.1f} MiB; descriptors of the supervisor {min(life.files)} to "
        f"{max(life.files)}; {len(life.objects[-1])} BPF objects held, "
        f"{len(set().union(*life.objects))} different ones in all"
    )
    assert not wrong, f"L7PROXY_SEED={SEED}: {wrong[:3]}"
    assert min(life.deaths, life.reloads, life.moves, life.upgrades) > 0, "it was too short"
    assert len(broken) <= (life.deaths + life.upgrades) * CONCURRENCY, broken[:3]
    assert grown < GROWTH, life.memory
    assert len(life.objects[-1]) <= len(life.objects[0]), life.objects[-1]
    assert max(life.files[-5:]) <= max(life.files[: len(life.files) // 2]) + 8, life.files
