"""Backend groups and their endpoints as metrics, out of what `/stats` shows of them (`backends`).

There are only so many series: `GROUPS` groups and `ENDPOINTS` endpoints, the first ones of the
policy, have their own; all others are counted together as `_other`.

Counts of a group or an endpoint are kept by those who count (`health`) for as long as it is known,
and what they come to as `_other` is summed up here from look to look, so that it only grows though
groups come and go.
"""

from __future__ import annotations

from collections import Counter as Sums
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from l7proxy.telemetry.exposition import Family, Kind, Labels
from l7proxy.telemetry.series import OTHER

GROUPS = 512
ENDPOINTS = 1_024

STATES = ("up", "unchecked", "starting", "drained", "ejected", "down")
TAKING = frozenset({"up", "unchecked", "starting"})
"""States in which an endpoint gets new connections."""

_GROUP_COUNTS = (
    ("l7proxy_backend_connections", "accepted", "Connections that the group has had."),
    ("l7proxy_backend_retries", "retries", "Dials that were retries."),
    (
        "l7proxy_backend_circuit_open",
        "circuit_open",
        "Connections that were beyond the limits of the group's circuit.",
    ),
)
_ENDPOINT_COUNTS = (
    ("l7proxy_endpoint_connections", "accepted", "Dials of the endpoint."),
    ("l7proxy_endpoint_failures", "failures", "Connections that the endpoint failed."),
)


class Growing:
    """Sums up the counts of what has no series of its own."""

    def __init__(self) -> None:
        self._last: dict[Labels, int] = {}
        self._sum = 0

    def look(self, found: Sequence[tuple[Labels, int]], own: int) -> int:
        """What all but the first `own` of these have come to, over all looks.

        What moves among them, or is known anew from 0, makes the sum no smaller.
        """
        for labels, value in found[own:]:
            last = self._last.get(labels, 0)
            self._sum += value - last if value >= last else value
        self._last = dict(found)
        return self._sum


class Endpoints:
    """Makes families of `backends` of `/stats`, look by look."""

    def __init__(self) -> None:
        self._growing: dict[str, Growing] = {}

    def families(self, backends: Mapping[str, Any]) -> Iterator[Family]:
        """All of them."""
        groups: dict[Labels, Any] = {(name,): group for name, group in backends.items()}
        yield from self._counts(_GROUP_COUNTS, ("backend",), groups, GROUPS)
        yield from _group_gauges(groups)
        endpoints: dict[Labels, Any] = {
            (name, one["address"]): one
            for name, group in backends.items()
            for one in group["endpoints"]
        }
        yield from self._counts(_ENDPOINT_COUNTS, ("backend", "endpoint"), endpoints, ENDPOINTS)
        yield from _endpoint_gauges(endpoints)

    def _counts(
        self,
        names: tuple[tuple[str, str, str], ...],
        labels: Labels,
        things: Mapping[Labels, Any],
        most: int,
    ) -> Iterator[Family]:
        for name, key, text in names:
            found = [(values, int(thing[key])) for values, thing in things.items()]
            growing = self._growing.setdefault(name, Growing())
            rest = growing.look(found, most)
            samples = found[:most]
            if rest:
                samples.append(((OTHER,) * len(labels), rest))
            yield Family(name, Kind.COUNTER, text, labels, samples)


def _group_gauges(groups: Mapping[Labels, Any]) -> Iterator[Family]:
    states: Sums[Labels] = Sums()
    live: Sums[Labels] = Sums()
    pending: Sums[Labels] = Sums()
    panics: Sums[Labels] = Sums()
    for number, (labels, group) in enumerate(groups.items()):
        who = labels if number < GROUPS else (OTHER,)
        live[who] += group["connections"]
        pending[who] += group["pending"]
        panics[who] += bool(group["panic"])
        for state in STATES:
            states[(*who, state)] += 0
        for one in group["endpoints"]:
            states[(*who, one["state"])] += 1
    for name, text, labels, sums in (
        (
            "l7proxy_backend_endpoints",
            "Endpoints of the group, by the state that they are in.",
            ("backend", "state"),
            states,
        ),
        ("l7proxy_backend_active_connections", "Connections that live now.", ("backend",), live),
        (
            "l7proxy_backend_pending_connections",
            "Connections that are being dialled now.",
            ("backend",),
            pending,
        ),
        (
            "l7proxy_backend_panic",
            "1 while so many endpoints are down that their health is ignored.",
            ("backend",),
            panics,
        ),
    ):
        yield Family(name, Kind.GAUGE, text, labels, list(sums.items()))


def _endpoint_gauges(endpoints: Mapping[Labels, Any]) -> Iterator[Family]:
    shown = list(endpoints.items())[:ENDPOINTS]
    yield Family(
        "l7proxy_endpoint_up",
        Kind.GAUGE,
        "1 while the endpoint gets new connections; 0: its checks fail, it was ejected, or its"
        " weight is 0.",
        ("backend", "endpoint"),
        [(labels, int(one["state"] in TAKING)) for labels, one in shown],
    )
    yield Family(
        "l7proxy_endpoint_active_connections",
        Kind.GAUGE,
        "Connections that live now.",
        ("backend", "endpoint"),
        [(labels, one["connections"]) for labels, one in shown],
    )
