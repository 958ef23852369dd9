"""What the supervisor tells of backend groups, and which names it waits for when it starts.

It has no use for backends of its own, so they are read out of the sealed policy (`net.bundle`) when
somebody asks, once for each policy.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from l7proxy.model import Backend, NameAddress
from l7proxy.net import bundle
from l7proxy.telemetry.backends import collect_backends
from l7proxy.telemetry.health import HealthSlot

FIRST_ANSWERS = 3.0
"""Seconds that the start waits for names: a connection before their first answer gets a 503."""


class Backends:
    """The backend groups of the policy in force."""

    def __init__(self, slot: HealthSlot) -> None:
        self._slot = slot
        self._generation = -1
        self._backends: Mapping[str, Backend] = {}

    def of(self, generation: int, policy: int) -> Mapping[str, Backend]:
        """Those of a policy; `policy` is the descriptor, `generation` its number."""
        if generation != self._generation:
            self._backends, self._generation = bundle.backends(policy), generation
        return self._backends

    def names(self, generation: int, policy: int) -> frozenset[str]:
        """The DNS names of their endpoints."""
        return frozenset(
            one.address.name
            for backend in self.of(generation, policy).values()
            for one in backend.endpoints
            if isinstance(one.address, NameAddress)
        )

    def stats(
        self, generation: int, policy: int, resolved: Mapping[str, Sequence[str]]
    ) -> dict[str, Any]:
        """`backends` of `/stats`."""
        backends = self.of(generation, policy)
        return collect_backends(backends, resolved, self._slot, time.monotonic())
