"""What a worker is given when it starts; everything in it was opened before privileges went."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from l7proxy.datapath.sockmap import Splicer
from l7proxy.model import Datapath, Listener, Policy
from l7proxy.telemetry.accesslog import AccessLog
from l7proxy.telemetry.counters import Counters
from l7proxy.telemetry.health import HealthSlot


@dataclass(slots=True)
class WorkerSetup:
    """One worker's share.

    `listeners` stand in the policy's order, each with its listening socket, which all workers
    share; `net.listen` has set on it what accepted sockets inherit. `rows` are the rows of
    `counters` by name: `listener:web`, `backend:api`, `endpoint:api/127.0.0.1:9001`. `splicer` is
    None where pairs are relayed. The supervisor holds the other end of `control_fd`: EOF on it
    means that the supervisor is gone.
    """

    slot: int
    policy: Policy
    listeners: list[tuple[Listener, socket.socket]]
    splicer: Splicer | None
    datapath: Datapath
    counters: Counters
    rows: Mapping[str, int]
    access_log: AccessLog
    control_fd: int
    health: HealthSlot
    resolved: Mapping[str, Sequence[str]] = field(default_factory=dict)
