"""What a worker is given when it starts; everything in it was opened before privileges went."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from l7proxy.datapath.sockmap import Splicer
from l7proxy.model import Datapath, Policy
from l7proxy.net.kept import Kept
from l7proxy.net.messages import Prepare
from l7proxy.telemetry.accesslog import AccessLog
from l7proxy.telemetry.counters import Counters
from l7proxy.telemetry.health import HealthSlot
from l7proxy.telemetry.meter import Meter
from l7proxy.telemetry.metered import Metered


@dataclass(slots=True)
class WorkerSetup:
    """One worker's share.

    `prepare` says what belongs to the listeners of `policy`, as in a reload: their sockets, which
    stand in `sockets` by number and which all workers share (`net.listen` has set on them what
    accepted sockets inherit), and their rows of `counters`. `splicer` is None where pairs are
    relayed. `kept` are pairs of the worker before, by the index of their client: they are to be
    adopted. The supervisor holds the other end of the channel `control_fd`: EOF on it means that
    the supervisor is gone. `drain_idle`: seconds, see `worker.farewell`.
    """

    slot: int
    policy: Policy
    prepare: Prepare
    sockets: Mapping[int, socket.socket]
    splicer: Splicer | None
    datapath: Datapath
    counters: Counters
    meter: Meter
    metered: Metered
    access_log: AccessLog
    control_fd: int
    health: HealthSlot
    resolved: Mapping[str, Sequence[str]] = field(default_factory=dict)
    drain_idle: float = 1.0
    kept: Mapping[int, Kept] = field(default_factory=dict)
