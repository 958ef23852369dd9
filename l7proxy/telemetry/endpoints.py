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
from operator import ge, itemgetter
from typing import Any

from l7proxy.telemetry.backends import TAKING
from l7proxy.telemetry.exposition import Family, Kind, Labels
from l7proxy.telemetry.series import OTHER

GROUPS = 512
ENDPOINTS = 1_024

STATES = ("up", "unchecked", "starting", "drained", "ejected", "down")
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
        self._who: Sequence[Labels] = ()
        self._counts: Sequence[int] = ()
        self._sum = 0

    def look(self, who: Sequence[Labels], counts: Sequence[int], own: int) -> int:
        """What all but the first `own` of these have come to, over all looks.

        What moves among them, or is known anew from 0, makes the sum no smaller.
        """
        if who == self._who and all(map(ge, counts, self._counts)):  # as a rule, and much quicker
            self._sum += sum(counts[own:]) - sum(self._counts[own:])
        else:
            before = dict(zip(self._who, self._counts, strict=True))
            for labels, value in zip(who[own:], counts[own:], strict=True):
                last = before.get(labels, 0)
                self._sum += value - last if value >= last else value
        self._who, self._counts = who, counts
        return self._sum


class Endpoints:
    """Makes families of `backends` of `/stats`, look by look."""

    def __init__(self) -> None:
        self._growing: dict[str, Growing] = {}

    def families(self, backends: Mapping[str, Any]) -> Iterator[Family]:
        """All of them."""
        groups: list[Labels] = [(name,) for name in backends]
        yield from self._counts(
            _GROUP_COUNTS, ("backend",), groups, list(backends.values()), GROUPS
        )
        yield from _group_gauges(backends)
        who: list[Labels] = []
        endpoints: list[Mapping[str, Any]] = []
        for name, group in backends.items():
            who += [(name, one["address"]) for one in group["endpoints"]]
            endpoints += group["endpoints"]
        yield from self._counts(
            _ENDPOINT_COUNTS, ("backend", "endpoint"), who, endpoints, ENDPOINTS
        )
        yield from _endpoint_gauges(list(zip(who, endpoints[:ENDPOINTS], strict=False)))

    def _counts(
        self,
        names: tuple[tuple[str, str, str], ...],
        labels: Labels,
        who: Sequence[Labels],
        things: Sequence[Mapping[str, Any]],
        most: int,
    ) -> Iterator[Family]:
        for name, key, text in names:
            counts: list[int] = list(map(itemgetter(key), things))
            rest = self._growing.setdefault(name, Growing()).look(who, counts, most)
            samples = list(zip(who[:most], counts[:most], strict=True))
            if rest:
                samples.append(((OTHER,) * len(labels), rest))
            yield Family(name, Kind.COUNTER, text, labels, samples)


def _group_gauges(groups: Mapping[str, Any]) -> Iterator[Family]:
    states: Sums[Labels] = Sums()
    live: Sums[Labels] = Sums()
    pending: Sums[Labels] = Sums()
    panics: Sums[Labels] = Sums()
    for number, (name, group) in enumerate(groups.items()):
        who = (name,) if number < GROUPS else (OTHER,)
        live[who] += group["connections"]
        pending[who] += group["pending"]
        panics[who] += bool(group["panic"])
        if (*who, STATES[0]) not in states:
            states.update({(*who, state): 0 for state in STATES})
        for state, count in Sums(map(itemgetter("state"), group["endpoints"])).items():
            states[(*who, state)] += count
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


def _endpoint_gauges(shown: Sequence[tuple[Labels, Mapping[str, Any]]]) -> Iterator[Family]:
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
