"""What is asked of each contender.

A workload is data: what the clients do, on which of the contender's ports, at which loads.
`sampling` takes the samples. `load` is closed-loop saturation first, and then, where the latency
matters, an open loop at shares of what the contender reached in the same round (its knee).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .blast import Kind
from .contenders import Contender
from .results import SATURATION, WorkloadInfo

Port = Literal["web", "bulk", "echo"]

CLOSED = (SATURATION,)
OPEN = (SATURATION, "20", "50", "80")


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one client does; `rate` per second, 0: as fast as it goes. See `blast.Load`."""

    kind: Kind = "get"
    port: Port = "web"
    connections: int = 1
    path: str = ""
    size: int = 1
    close: bool = False
    rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Workload:
    """One row of the table below.

    `kind` as in the results (rate, stream, idle, memory, mix). `traffic`: clients by name, each in
    a process of its own; all but `mix` have one, named "". `loads`: of the samples, (None,) where
    the rate is given. `workers`: of the contender, where it is not as the run says. `contenders`:
    these only. `moves`: bytes count, so rates and costs per GB are told too.
    """

    name: str
    title: str
    unit: str
    kind: str
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    loads: tuple[str | None, ...] = CLOSED
    workers: int | None = None
    contenders: tuple[str, ...] = ()
    moves: bool = False
    idle: int = 0

    @property
    def info(self) -> WorkloadInfo:
        """For the results."""
        return WorkloadInfo(self.name, self.title, self.unit, self.kind)

    @property
    def room(self) -> int:
        """Connections at once that the contender has to hold, with some to spare."""
        used = self.idle + sum(traffic.connections for traffic in self.traffic.values())
        return max(1024, used + used // 8)

    def fits(self, contender: Contender) -> bool:
        """Whether it can be asked of this contender."""
        if self.contenders and contender.name not in self.contenders:
            return False
        raw = any(traffic.port == "echo" for traffic in self.traffic.values())
        return contender.tcp or not raw


def _one(
    name: str,
    title: str,
    unit: str,
    traffic: Traffic,
    *,
    kind: str = "rate",
    loads: tuple[str | None, ...] = CLOSED,
    moves: bool = False,
    workers: int | None = None,
    contenders: tuple[str, ...] = (),
    idle: int = 0,
) -> Workload:
    return Workload(name, title, unit, kind, {"": traffic}, loads, workers, contenders, moves, idle)


KIB, MIB = 1 << 10, 1 << 20
_CONNECT = Traffic(connections=64, close=True)
_SPLICING = ("direct", "l7proxy-sockmap", "l7proxy-tcp", "haproxy-tcp", "haproxy-http")
_SCALING = ("direct", "l7proxy-sockmap", "l7proxy-tcp", "haproxy-tcp")


def _download(
    name: str, size: int, connections: int, title: str, loads: tuple[str | None, ...] = CLOSED
) -> Workload:
    traffic = Traffic("get", "bulk", connections, path=f"/bytes/{size}")
    return _one(name, title, "download", traffic, loads=loads, moves=True)


def _upload(name: str, size: int, connections: int, title: str) -> Workload:
    traffic = Traffic("put", "bulk", connections, size=size)
    return _one(name, title, "upload", traffic, moves=True)


WORKLOADS = (
    _one("requests-1", "Small requests on 1 kept-alive connection", "request", Traffic()),
    _one(
        "requests-50",
        "Small requests on 50 kept-alive connections",
        "request",
        Traffic(connections=50),
        loads=OPEN,
    ),
    _one(
        "requests-256",
        "Small requests on 256 kept-alive connections",
        "request",
        Traffic(connections=256),
    ),
    _one("connect", "A connection per request, 64 at once", "connection", _CONNECT, loads=OPEN),
    _download("download-64k", 64 * KIB, 50, "Downloads of 64 KiB on 50 connections", OPEN),
    _download("download-1m", MIB, 8, "Downloads of 1 MiB on 8 connections"),
    _download("download-100m", 100 * MIB, 2, "Downloads of 100 MiB on 2 connections"),
    _upload("upload-1m", MIB, 8, "Uploads of 1 MiB on 8 connections"),
    _upload("upload-100m", 100 * MIB, 2, "Uploads of 100 MiB on 2 connections"),
    _one(
        "stream",
        "One endless response",
        "GB",
        Traffic("stream", "bulk"),
        kind="stream",
        moves=True,
    ),
    _one(
        "echo-1",
        "Raw TCP round trips of 1 byte on 50 connections",
        "round trip",
        Traffic("echo", "echo", 50, size=1),
        loads=OPEN,
    ),
    _one(
        "echo-16k",
        "Raw TCP round trips of 16 KiB on 50 connections",
        "round trip",
        Traffic("echo", "echo", 50, size=16 * KIB),
        loads=OPEN,
        moves=True,
    ),
    _one(
        "ws-echo",
        "WebSocket round trips of 1 byte on 50 connections",
        "round trip",
        Traffic("ws", "web", 50, size=1),
        loads=OPEN,
    ),
    _one(
        "idle",
        "5,000 idle connections, and 500 requests/s on 8 others",
        "request",
        Traffic(connections=8, rate=500),
        kind="idle",
        loads=(None,),
        idle=5_000,
    ),
    _one(
        "idle-20k",
        "20,000 idle connections, 4 workers, and 500 requests/s on 8 others",
        "request",
        Traffic(connections=8, rate=500),
        kind="idle",
        loads=(None,),
        workers=4,
        contenders=_SPLICING,
        idle=20_000,
    ),
    _one(
        "slow-reader",
        "8 endless responses, each read at 64 KiB/s",
        "GB",
        Traffic("stream", "bulk", 8, rate=64 * KIB),
        kind="memory",
        loads=(None,),
    ),
    Workload(
        "mix",
        "Requests, connections, downloads and uploads at once, at fixed rates",
        "exchange",
        "mix",
        {
            "requests": Traffic("get", "web", 50, rate=2_000),
            "connects": Traffic("get", "web", 64, close=True, rate=300),
            "downloads": Traffic("get", "bulk", 16, path=f"/bytes/{64 * KIB}", rate=300),
            "uploads": Traffic("put", "bulk", 4, size=MIB, rate=20),
        },
        loads=(None,),
    ),
    *(
        _one(
            f"connect-w{workers}",
            f"A connection per request, 64 at once, {workers} "
            + ("worker" if workers == 1 else "workers"),
            "connection",
            _CONNECT,
            workers=workers,
            contenders=_SCALING,
        )
        for workers in (1, 2, 4)
    ),
)
BY_NAME = {workload.name: workload for workload in WORKLOADS}
SCALING = tuple(name for name in BY_NAME if name.startswith("connect-w"))

# Without being asked for: all but these, which take long or ask the same at another number of
# workers.
DEFAULT = tuple(name for name in BY_NAME if name not in (*SCALING, "idle-20k"))

# Enough to see that everything works, and where each stands roughly.
QUICK = ("requests-50", "connect", "download-1m", "stream", "echo-1", "slow-reader")
QUICK_LOADS = (SATURATION, "50", None)
