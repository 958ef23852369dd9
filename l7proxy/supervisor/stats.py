"""What `GET /stats` answers with, but for what only its caller has."""

from __future__ import annotations

import os
from typing import Any

from l7proxy import __version__
from l7proxy.datapath.sockmap import totals_of
from l7proxy.supervisor.reload import Reloader
from l7proxy.supervisor.way import Way
from l7proxy.supervisor.workers import Supervisor
from l7proxy.telemetry.counters import Counter, SharedCounters


def collect(
    supervisor: Supervisor, reloader: Reloader, way: Way, shared: SharedCounters, uptime: float
) -> dict[str, Any]:
    """The object that `GET /stats` answers with: totals over all workers, live."""
    kernel, serving = totals_of(way.splicers), reloader.serving
    # in this order: a pair ends before its connection does
    active, spliced, relayed = shared.active(), shared.spliced(), shared.relayed()
    present = serving.present(shared)
    return {
        "version": __version__,
        "pid": os.getpid(),
        "datapath": str(way.datapath),
        "datapath_reason": way.reason,
        "workers": {
            "configured": supervisor.configured,
            "running": supervisor.running,
            "restarts": supervisor.restarts,
        },
        "uptime_seconds": round(uptime, 3),
        "draining": supervisor.draining,
        "drain": supervisor.progress(),
        "policy": reloader.stats()
        | {"longest_slice_ms": shared.most(Counter.LONGEST_SLICE) / 1000},
        "listeners": {
            listener.name: {
                "address": str(one.address),
                "protocol": str(listener.protocol),
                "active": present[listener.name],
            }
            for listener, one in serving.listeners()
        },
        "connections": {
            "accepted": shared.total(Counter.ACCEPTED),
            "active": active,
            "refused": shared.total(Counter.REFUSED),
        },
        "pairs": {"active": spliced + relayed, "spliced": spliced, "relayed": relayed},
        "requests": {
            "total": shared.total(Counter.REQUESTS),
            "reused": shared.total(Counter.REUSED),
            "stale": shared.total(Counter.STALE),
            "pooled": shared.pooled(),
            "bodies_by_kernel": shared.total(Counter.BODIES),
            "mirrored": shared.total(Counter.MIRRORED),
            "mirrors_lost": shared.total(Counter.MIRRORS_LOST),
        },
        "bytes": {
            "redirected": {
                "from_client": kernel.redirected_client,
                "from_backend": kernel.redirected_backend,
            },
            "relayed": {
                "from_client": shared.total(Counter.RELAYED_CLIENT),
                "from_backend": shared.total(Counter.RELAYED_BACKEND),
            },
            "relayed_by_splice2": {
                "from_client": shared.total(Counter.SPLICE2_CLIENT),
                "from_backend": shared.total(Counter.SPLICE2_BACKEND),
            },
        },
        "overflows": shared.total(Counter.OVERFLOWS),
        "odd_answers": shared.total(Counter.ODD_ANSWERS),
        "access_log_dropped": shared.total(Counter.LOG_DROPPED),
        "errors": shared.errors(),
        "kernel": {
            name: getattr(kernel, name) for name in ("passed", "trims", "trimmed_bytes", "drops")
        },
    }
