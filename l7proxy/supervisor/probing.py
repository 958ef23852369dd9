"""What the supervisor tells of backend groups.

It has no use for backends of its own, so they are read out of the sealed policy (`net.bundle`) when
somebody asks, once for each policy.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from l7proxy.model import Backend
from l7proxy.net import bundle
from l7proxy.telemetry.backends import Collector
from l7proxy.telemetry.health import HealthSlot


class Backends:
    """The backend groups of the policy in force."""

    def __init__(self, slot: HealthSlot) -> None:
        self._collector = Collector(slot)
        self._generation = -1
        self._backends: Mapping[str, Backend] = {}

    def _of(self, generation: int, policy: int) -> Mapping[str, Backend]:
        if generation != self._generation:
            self._backends, self._generation = bundle.backends(policy), generation
        return self._backends

    def stats(
        self, generation: int, policy: int, resolved: Mapping[str, Sequence[str]]
    ) -> dict[str, Any]:
        """`backends` of `/stats`; `policy` is the descriptor, `generation` the policy's number."""
        backends = self._of(generation, policy)
        return self._collector.collect(backends, resolved, time.monotonic())
