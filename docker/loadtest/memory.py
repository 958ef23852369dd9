"""Memory: of processes, of sockets, of the kernel's slabs, and of the whole machine, over time.

Facts, and what follows from them:

- A proxy's bytes in flight stand in its own memory (read, not yet written), in socket queues, in
  pipes (splice), or in skbs that no socket is charged for (SOCKMAP's redirect queue). No one figure
  shows them all. PSS is the first; "mem" of TCP in /proc/net/sockstat the second, in pages, of the
  *whole machine* in every namespace (include/net/tcp.h, tcp_memory_allocated) and so with the
  client's and the origins' queues in it, which are alike for all contenders; SUnreclaim has the
  third's heads. Page fragments that skbs and pipes hold are in none of them.
- So `machine_kib` counts by difference: all that is neither free nor page cache nor reclaimable.
  It moves with everything else on the machine, but gigabytes cannot hide from it.
- All but PSS are told above what they were before the load began.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

PAGE_KIB = os.sysconf("SC_PAGE_SIZE") / 1024


@dataclass(frozen=True, slots=True)
class Kernel:
    """The machine's memory at one moment, in KiB."""

    sockets: float
    slab: float
    machine: float


def pss(pids: Iterable[int]) -> float:
    """Proportional set size of processes, summed, in KiB; of those that have ended, nothing."""
    total = 0.0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total


def tcp_pages(sockstat: str) -> int:
    """The pages that TCP's queues hold, from the text of /proc/net/sockstat."""
    for line in sockstat.splitlines():
        if line.startswith("TCP:"):
            words = line.split()
            return int(words[words.index("mem") + 1])
    return 0


def meminfo(text: str) -> tuple[float, float]:
    """Unreclaimable slabs, and memory that is neither free nor cache; KiB, from /proc/meminfo."""
    field = {
        name: float(rest.split()[0])
        for name, _, rest in (line.partition(":") for line in text.splitlines() if line)
    }
    cache = field["Buffers"] + field["Cached"] + field["SReclaimable"]
    return field["SUnreclaim"], field["MemTotal"] - field["MemFree"] - cache


def kernel() -> Kernel:
    """Read now."""
    slab, machine = meminfo(Path("/proc/meminfo").read_text())
    pages = tcp_pages(Path("/proc/net/sockstat").read_text())
    return Kernel(pages * PAGE_KIB, slab, machine)


class Recorder:
    """Takes a point of the series every `interval` seconds while its block runs.

    `own_pss`: the contender's PSS now, in KiB. A point has `t` (seconds), `pss_kib`, and above what
    they were at the beginning `sockets_kib`, `slab_kib` and `machine_kib`.
    """

    def __init__(self, own_pss: Callable[[], float], interval: float = 0.25) -> None:
        self.series: list[dict[str, float]] = []
        self._own_pss = own_pss
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: Exception | None = None

    def __enter__(self) -> Recorder:
        self._before, self._began = kernel(), time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error

    def peak(self, key: str) -> float:
        """The most that a figure of the series was."""
        return max((point[key] for point in self.series), default=0.0)

    def last(self, key: str, share: float = 0.5) -> float:
        """The mean of a figure over the last `share` of the series."""
        points = self.series[int(len(self.series) * (1 - share)) :]
        return sum(point[key] for point in points) / len(points) if points else 0.0

    def _run(self) -> None:
        try:
            while True:
                self._point()
                if self._stop.wait(self._interval):
                    break
        except Exception as error:
            self._error = error

    def _point(self) -> None:
        now = kernel()
        self.series.append(
            {
                "t": round(time.monotonic() - self._began, 3),
                "pss_kib": self._own_pss(),
                "sockets_kib": now.sockets - self._before.sockets,
                "slab_kib": now.slab - self._before.slab,
                "machine_kib": now.machine - self._before.machine,
            }
        )
