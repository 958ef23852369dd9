"""Processor time: of the whole machine, of a process tree, and of what neither explains.

(Memory is in `memory`.) Facts, and what follows from them:

- A proxy that leaves its work to the kernel shows no CPU time of its own. SOCKMAP sends from
  kworkers, and on loopback the *sender's* softirq runs the receiver's half of TCP (and the verdict
  program). So the figure that compares is the whole machine's.
- Without CONFIG_IRQ_TIME_ACCOUNTING, softirq time is charged to the process that it interrupted.
  On loopback that is often the client or the origin, so "machine minus client minus origin" is
  kind to whoever works in softirq. It is reported, beside the machine's, never instead of it.
- /proc/stat's user/system/irq/softirq are sampled by the timer tick on most kernels (250 samples
  a second), but idle and iowait are exact under NO_HZ. So busy = processors * wall - idle - iowait
  - steal, and the sampled split (softirq!) is only for the reader's understanding.
- Somebody else's load is measured, too: CPU of every user process that belongs to neither client,
  origin nor proxy (this driver among them). It is subtracted, and beyond a bound voids the sample.
- Where the driver does not see the processes (containers with a pid namespace each), all of that is
  unknown but `machine`, from which foreign load is then not taken off.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
PROCESSORS = os.cpu_count() or 1
PF_KTHREAD = 0x00200000  # include/linux/sched.h; field 9 of /proc/PID/stat


@dataclass(frozen=True, slots=True)
class Process:
    """One line of /proc/PID/stat; times in seconds. `reaped`: of children that were waited for."""

    parent: int
    kernel: bool
    used: float
    reaped: float


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything at one moment. `fields`: the `cpu` line of /proc/stat in seconds."""

    at: float
    fields: tuple[float, ...]
    processes: dict[int, Process]
    switches: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds between two readings.

    `machine` is the whole machine without foreign load and idle baseline; `rest` is `machine` less
    the client's and the origins' processes, that is: the proxy, kworkers, unattributed softirq.
    """

    wall: float
    machine: float
    client: float
    origin: float
    proxy: float
    kthreads: float
    softirq: float
    foreign: float
    steal: float
    switches: int  # context switches of the whole machine, foreign ones among them

    @property
    def rest(self) -> float:
        """What is left for the proxy and the kernel working for it."""
        return self.machine - self.client - self.origin


def _process(stat: str) -> Process:
    # The name may hold spaces and parentheses: what follows the last one is regular.
    field = stat[stat.rindex(")") + 2 :].split()
    used, reaped = int(field[11]) + int(field[12]), int(field[13]) + int(field[14])
    return Process(int(field[1]), bool(int(field[6]) & PF_KTHREAD), used / TICK, reaped / TICK)


def read() -> Reading:
    """Take a reading now (some milliseconds of work)."""
    processes: dict[int, Process] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    processes[int(name)] = _process(file.read())
            except (FileNotFoundError, ProcessLookupError):
                continue
    with open("/proc/stat") as file:
        fields = tuple(int(value) / TICK for value in file.readline().split()[1:])
        switches = next(int(line.split()[1]) for line in file if line.startswith("ctxt "))
    return Reading(time.monotonic(), fields, processes, switches)


def tree(roots: Iterable[int], processes: dict[int, Process]) -> set[int]:
    """`roots` and all their descendants."""
    children: dict[int, list[int]] = {}
    for pid, process in processes.items():
        children.setdefault(process.parent, []).append(pid)
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, [])
    return found


def _used(pids: Iterable[int], before: Reading, after: Reading) -> float:
    total = 0.0
    for pid in pids:
        if pid in after.processes:
            earlier = before.processes.get(pid)
            total += after.processes[pid].used - (earlier.used if earlier else 0.0)
    return total


def usage(
    before: Reading,
    after: Reading,
    *,
    client: Iterable[int] = (),
    origin: Iterable[int] = (),
    proxy: Iterable[int] = (),
    baseline: float = 0.0,
) -> Usage:
    """What was used between two readings, by the process trees under the given roots.

    `baseline`: CPU seconds per second that the idle machine uses.
    """
    wall = after.at - before.at
    delta = [b - a for a, b in zip(before.fields, after.fields, strict=True)]
    idle, iowait, softirq, steal = delta[3], delta[4], delta[6], delta[7]
    busy = PROCESSORS * wall - idle - iowait - steal

    groups = [tree(roots, after.processes) for roots in (client, origin, proxy)]
    ours = set().union(*groups)
    kernel = {pid for pid, process in after.processes.items() if process.kernel}
    others = after.processes.keys() - ours - kernel
    foreign = _used(others, before, after)
    # Foreign processes that came and went are in their parents' "reaped"; what they (and their own
    # children) had used before the first reading is not of this interval. This driver reaps only
    # our clients.
    for pid in others - {os.getpid()}:
        if pid in before.processes:
            foreign += after.processes[pid].reaped - before.processes[pid].reaped
    gone = before.processes.keys() - after.processes.keys()
    foreign -= sum(before.processes[pid].used + before.processes[pid].reaped for pid in gone)
    foreign = max(foreign, 0.0)

    used_by_client, used_by_origin, used_by_proxy = (_used(g, before, after) for g in groups)
    return Usage(
        wall=wall,
        machine=busy - foreign - baseline * wall,
        client=used_by_client,
        origin=used_by_origin,
        proxy=used_by_proxy,
        kthreads=_used(kernel, before, after),
        softirq=softirq,
        foreign=foreign,
        steal=steal,
        switches=after.switches - before.switches,
    )


def own(roots: Iterable[int]) -> tuple[float, int, frozenset[int]]:
    """CPU seconds and context switches of the trees under `roots`, and the processes in them.

    To the nanosecond, from the scheduler: an idle proxy uses less than a clock tick.
    """
    pids = tree(roots, read().processes)
    nanoseconds = switches = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*"):
            try:
                nanoseconds += int((task / "schedstat").read_text().split()[0])
                status = (task / "status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            for line in status.splitlines():
                if "_ctxt_switches:" in line:
                    switches += int(line.split()[1])
    return nanoseconds / 1e9, switches, frozenset(pids)
