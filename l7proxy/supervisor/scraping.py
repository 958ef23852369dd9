"""`GET /metrics`: what the supervisor knows, and what all processes wrote into shared memory.

No worker is asked: counters, series and health are shared mappings, the kernel's totals are mapped
BPF arrays, and of a process the kernel tells. So a scrape costs workers nothing, shows what is
spliced while it is spliced, and tells of a worker that hangs as well.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from l7proxy import __version__
from l7proxy.admin import Answer, Request, Router
from l7proxy.datapath.sockmap import Splicer, Totals, totals_of
from l7proxy.supervisor.reload import Reloader
from l7proxy.supervisor.workers import Supervisor
from l7proxy.telemetry import families, processes
from l7proxy.telemetry.counters import Counter, SharedCounters
from l7proxy.telemetry.endpoints import Endpoints
from l7proxy.telemetry.exposition import OPENMETRICS, TEXT, Family, Kind, render, wants_openmetrics
from l7proxy.telemetry.meter import Meter, counts_board, times_board
from l7proxy.telemetry.series import SeriesBoard


@dataclass(frozen=True, slots=True)
class Boards:
    """The tables of series. Make them before the first fork."""

    counts: SeriesBoard
    times: SeriesBoard

    @classmethod
    def make(cls, workers: int) -> Boards:
        """Tables with a slot for each worker."""
        return cls(counts_board(workers), times_board(workers))

    def meter(self, worker: int, view: memoryview) -> Meter:
        """What a worker counts with; `view` is its slot of the counters."""
        return Meter(self.counts, self.times, worker, view)

    def reconcile(self, worker: int) -> None:
        """A worker was waited for."""
        self.counts.reconcile(worker)
        self.times.reconcile(worker)


class Scraper:
    """Renders the metrics of this l7proxy."""

    def __init__(
        self,
        supervisor: Supervisor,
        reloader: Reloader,
        shared: SharedCounters,
        boards: Boards,
        splicers: Sequence[Splicer],
        datapath: str,
        backends: Callable[[], Mapping[str, Any]],
        kept: Callable[[], int],
    ) -> None:
        """`backends` answers with those of `/stats`, `kept` with how many pairs are kept."""
        self._supervisor = supervisor
        self._reloader = reloader
        self._shared = shared
        self._boards = boards
        self._splicers = splicers
        self._datapath = datapath
        self._backends = backends
        self._kept = kept
        self._endpoints = Endpoints()
        self._cpu = processes.CpuTimes()

    def add_to(self, router: Router) -> None:
        """Put the path into the router."""
        router.add("GET", "/metrics", self._answer)

    async def _answer(self, request: Request) -> Answer:
        text, content_type = self.scrape(request.header(b"accept") or "")
        return Answer(200, text, content_type, (("Vary", "Accept"),))

    def scrape(self, accept: str) -> tuple[bytes, str]:
        """The text and its content type, in the format that an `Accept` header asks for."""
        openmetrics = wants_openmetrics(accept)
        text = render(self._families(), openmetrics=openmetrics)
        return text, OPENMETRICS if openmetrics else TEXT

    def _families(self) -> Iterator[Family]:
        yield Family(
            "l7proxy_build",
            Kind.INFO,
            "The version that runs, and what moves the bytes of its pairs.",
            ("version", "datapath"),
            [((__version__, self._datapath), 1)],
        )
        yield from families.counted(self._boards.counts)
        yield self._listeners()
        yield from families.totals(self._shared)
        yield from self._kernel()
        yield from families.timed(self._boards.times)
        yield from self._endpoints.families(self._backends())
        yield from self._policy()
        yield from families.series_used(self._boards.counts, self._boards.times)
        yield from self._workers()
        yield from _self()

    # ---- connections and bytes

    def _listeners(self) -> Family:
        present = self._reloader.serving.present(self._shared)
        return families.listeners([((name,), count) for name, count in present.items()])

    def _kernel(self) -> Iterator[Family]:
        totals, shared = totals_of(self._splicers), self._shared
        yield Family(
            "l7proxy_transferred_bytes",
            Kind.COUNTER,
            "Bytes that were moved, those of spliced pairs as they flow.",
            ("direction", "way"),
            [
                (("from_client", "kernel"), totals.redirected_client),
                (("from_backend", "kernel"), totals.redirected_backend),
                (("from_client", "relay"), shared.total(Counter.RELAYED_CLIENT)),
                (("from_backend", "relay"), shared.total(Counter.RELAYED_BACKEND)),
            ],
        )
        yield Family(
            "l7proxy_relayed_by_reference_bytes",
            Kind.COUNTER,
            "Of the bytes that user space moved: those of splice(2), which it has never read.",
            ("direction",),
            [
                (("from_client",), shared.total(Counter.SPLICE2_CLIENT)),
                (("from_backend",), shared.total(Counter.SPLICE2_BACKEND)),
            ],
        )
        if not self._splicers:
            return
        for name, text, figure in _KERNEL:
            yield Family(name, Kind.COUNTER, text, samples=[((), figure(totals))])

    # ---- policy

    def _policy(self) -> Iterator[Family]:
        stats, shared = self._reloader.stats(), self._shared
        reloads = stats["reloads"]
        yield Family(
            "l7proxy_reloads",
            Kind.COUNTER,
            "Reloads of the policy, by how they went.",
            ("result",),
            [(("ok",), reloads["ok"]), (("failed",), reloads["failed"])],
        )
        gauges = (
            (
                "l7proxy_policy_last_reload_successful",
                "0: the last reload was refused, and an earlier policy is in force.",
                int(stats["last_error"] is None),
            ),
            (
                "l7proxy_policy_loaded_timestamp_seconds",
                "When the policy in force was loaded, in seconds since the epoch.",
                datetime.fromisoformat(stats["loaded_at"]).timestamp(),
            ),
            (
                "l7proxy_policy_generation",
                "The number of the policy in force.",
                stats["generation"],
            ),
            ("l7proxy_policy_listeners", "Listeners of the policy.", stats["listeners"]),
            ("l7proxy_policy_routes", "Routes of the policy.", stats["routes"]),
            ("l7proxy_policy_backends", "Backend groups of the policy.", stats["backends"]),
            (
                "l7proxy_policy_longest_slice_seconds",
                "Processor time of the longest step of a worker towards another policy.",
                shared.most(Counter.LONGEST_SLICE) / 1e6,
            ),
            ("l7proxy_draining", "1 while no connection is taken any more.", self._draining),
        )
        for name, text, value in gauges:
            yield Family(name, Kind.GAUGE, text, samples=[((), value)])

    @property
    def _draining(self) -> int:
        return int(self._supervisor.draining)

    # ---- processes

    def _workers(self) -> Iterator[Family]:
        supervisor = self._supervisor
        yield Family(
            "l7proxy_workers",
            Kind.GAUGE,
            "Workers.",
            ("state",),
            [(("configured",), supervisor.configured), (("running",), supervisor.running)],
        )
        yield Family(
            "l7proxy_pairs_kept",
            Kind.GAUGE,
            "Spliced pairs that would outlive their worker.",
            samples=[((), self._kept())],
        )
        yield Family(
            "l7proxy_worker_restarts",
            Kind.COUNTER,
            "Workers that ended and were replaced.",
            samples=[((), supervisor.restarts)],
        )
        yield Family(
            "l7proxy_connections_lost",
            Kind.COUNTER,
            "Connections that ended with their worker, and are in no other count of ends.",
            samples=[((), supervisor.lost)],
        )
        cpu, gauges = [], []
        for place, pid in supervisor.places:
            found = processes.look(pid)
            if found is not None:
                labels = (str(place),)
                cpu.append((labels, self._cpu.add(place, pid, found.cpu_seconds)))
                gauges.append((labels, found))
        yield Family(
            "l7proxy_worker_cpu_seconds",
            Kind.COUNTER,
            "Processor time of the workers in this slot.",
            ("worker",),
            cpu,
        )
        for name, text, figure in _WORKER:
            values = [(labels, figure(found)) for labels, found in gauges]
            yield Family(
                name,
                Kind.GAUGE,
                text,
                ("worker",),
                [(labels, value) for labels, value in values if value is not None],
            )


_KERNEL: tuple[tuple[str, str, Callable[[Totals], int]], ...] = (
    (
        "l7proxy_kernel_passed_bytes",
        "Bytes of spliced pairs that the kernel left to user space.",
        lambda one: one.passed,
    ),
    (
        "l7proxy_kernel_overflow_events",
        "Times that the kernel told user space that it passes bytes of a direction.",
        lambda one: one.overflows,
    ),
    (
        "l7proxy_kernel_trims",
        "Segments whose front had come before and was cut off.",
        lambda one: one.trims,
    ),
    ("l7proxy_kernel_trimmed_bytes", "Bytes that were cut off.", lambda one: one.trimmed_bytes),
    (
        "l7proxy_kernel_drops",
        "Segments dropped because their direction had been given up.",
        lambda one: one.drops,
    ),
)

_WORKER: tuple[tuple[str, str, Callable[[processes.Figures], int | float | None]], ...] = (
    (
        "l7proxy_worker_resident_memory_bytes",
        "Memory of the worker, what it shares with others included.",
        lambda one: one.resident_bytes,
    ),
    ("l7proxy_worker_open_fds", "Open descriptors of the worker.", lambda one: one.descriptors),
    (
        "l7proxy_worker_start_time_seconds",
        "When the worker started, in seconds since the epoch.",
        lambda one: one.started,
    ),
)


def _self() -> Iterator[Family]:
    """The supervisor's own, under the names that every client library of Prometheus gives them."""
    found = processes.look(os.getpid())
    if found is None:
        return
    yield Family(
        "process_cpu_seconds",
        Kind.COUNTER,
        "Processor time of the supervisor.",
        samples=[((), found.cpu_seconds)],
    )
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    gauges = (
        ("process_resident_memory_bytes", "Resident memory.", found.resident_bytes),
        ("process_virtual_memory_bytes", "Virtual memory.", found.virtual_bytes),
        ("process_start_time_seconds", "Start, in seconds since the epoch.", found.started),
        ("process_open_fds", "Open descriptors.", found.descriptors),
        ("process_max_fds", "The limit of open descriptors.", limit if limit > 0 else None),
    )
    for name, text, value in gauges:
        if value is not None:
            yield Family(name, Kind.GAUGE, text, samples=[((), value)])
