"""What two readings of the admin server say together: rates, and rows of tables. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NAN = math.nan


@dataclass(frozen=True, slots=True)
class Reading:
    """What the admin server told at a time, in seconds of a clock that only goes on.

    `listed` is what `/connections` told, `policy` what `/policy` did; None where it told nothing.
    """

    at: float
    stats: Mapping[str, Any]
    listed: Mapping[str, Any] | None = None
    policy: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Rates:
    """In a second; bytes go by where they go. NaN where there is nothing to compare with."""

    to_client: float = NAN
    to_backend: float = NAN
    kernel: float = NAN
    user: float = NAN
    accepted: float = NAN
    errors: float = NAN

    @property
    def share(self) -> float:
        """The kernel's part of the bytes, NaN where none flowed."""
        whole = self.kernel + self.user
        return self.kernel / whole if whole else NAN


@dataclass(frozen=True, slots=True)
class ConnectionRow:
    """A live connection; `rate` in bytes a second."""

    name: str
    client: str
    listener: str
    route: str
    backend: str
    endpoint: str
    state: str
    way: str | None
    age: float
    idle: float
    to_backend: int
    to_client: int
    kernel: int
    rate: float

    @property
    def moved(self) -> int:
        """Bytes of both directions."""
        return self.to_backend + self.to_client


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """An endpoint of a backend; `rate` in new connections a second."""

    backend: str
    address: str
    state: str
    connections: int
    rate: float
    failures: int
    weight: int
    why: str


@dataclass(frozen=True, slots=True)
class ListenerRow:
    """A listener, and how many connections live on it."""

    name: str
    protocol: str
    address: str
    active: int


@dataclass(frozen=True, slots=True)
class RouteRow:
    """A route, and where the policy has it."""

    name: str
    listeners: str
    splice: str
    place: str
    why: str


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """Why connections failed: how often since the start, and in a second."""

    reason: str
    total: int
    rate: float


@dataclass(frozen=True, slots=True)
class Picture:
    """All that is shown. `seconds` between the two readings; 0 where there is only one."""

    stats: Mapping[str, Any]
    seconds: float
    rates: Rates
    connections: tuple[ConnectionRow, ...]
    total: int
    backends: tuple[EndpointRow, ...]
    listeners: tuple[ListenerRow, ...]
    routes: tuple[RouteRow, ...]
    errors: tuple[ErrorRow, ...]


LEVELS = {
    "up": "good",
    "unchecked": "good",
    "starting": "warning",
    "ejected": "bad",
    "down": "bad",
    "unresolved": "bad",
}
"""How grave the state of an endpoint is."""

_ILL_FIRST = {"bad": 0, "warning": 1}


def compare(before: Reading | None, after: Reading) -> Picture:
    """What the later of two readings shows; rates are known where the two are of one process."""
    seconds = 0.0
    old: Mapping[str, Any] = {}
    if before is not None and after.at > before.at and _same(before.stats, after.stats):
        seconds, old = after.at - before.at, before.stats
    return Picture(
        after.stats,
        seconds,
        _rates(old, after.stats, seconds),
        _connections(before if seconds else None, after),
        0 if after.listed is None else after.listed["total"],
        _endpoints(old, after.stats, seconds),
        tuple(
            ListenerRow(name, one["protocol"], one["address"], one["active"])
            for name, one in after.stats["listeners"].items()
        ),
        _routes(after.policy),
        _errors(old, after.stats, seconds),
    )


def _same(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether both are of one process: nothing has gone back."""
    old, new = _totals(before), _totals(after)
    return before["uptime_seconds"] <= after["uptime_seconds"] and all(
        one <= other for one, other in zip(old, new, strict=True)
    )


def _totals(stats: Mapping[str, Any]) -> tuple[int, ...]:
    """In the order of the fields of Rates."""
    kernel, user = stats["bytes"]["redirected"], stats["bytes"]["relayed"]
    return (
        kernel["from_backend"] + user["from_backend"],
        kernel["from_client"] + user["from_client"],
        sum(kernel.values()),
        sum(user.values()),
        stats["connections"]["accepted"],
        sum(stats["errors"].values()),
    )


def _rates(old: Mapping[str, Any], new: Mapping[str, Any], seconds: float) -> Rates:
    if not seconds:
        return Rates()
    pairs = zip(_totals(old), _totals(new), strict=True)
    return Rates(*((after - before) / seconds for before, after in pairs))


def _connections(before: Reading | None, after: Reading) -> tuple[ConnectionRow, ...]:
    if after.listed is None:
        return ()
    known: dict[str, int] = {}
    seconds = 0.0
    if before is not None and before.listed is not None:
        seconds = after.at - before.at
        known = {one["id"]: _moved(one) for one in before.listed["connections"]}
    return tuple(
        ConnectionRow(
            one["id"],
            one["client"],
            one["listener"],
            one["route"],
            one["backend"],
            one["endpoint"],
            one["state"],
            one["way"],
            one["age_seconds"],
            one["idle_seconds"],
            one["bytes"]["to_backend"],
            one["bytes"]["to_client"],
            one["bytes"]["kernel"],
            max(0, _moved(one) - known[one["id"]]) / seconds if one["id"] in known else NAN,
        )
        for one in after.listed["connections"]
    )


def _moved(one: Mapping[str, Any]) -> int:
    found: int = one["bytes"]["to_backend"] + one["bytes"]["to_client"]
    return found


def _endpoints(
    old: Mapping[str, Any], new: Mapping[str, Any], seconds: float
) -> tuple[EndpointRow, ...]:
    """The ill ones first; otherwise in the policy's order."""
    rows = []
    for name, group in new.get("backends", {}).items():
        endpoints = old.get("backends", {}).get(name, {}).get("endpoints", ())
        known = {one["address"]: one["accepted"] for one in endpoints}
        for unresolved in group["unresolved"]:
            why = "no address is known"
            rows.append(EndpointRow(name, unresolved, "unresolved", 0, NAN, 0, 0, why))
        for one in group["endpoints"]:
            grown = one["accepted"] - known.get(one["address"], one["accepted"])
            rows.append(
                EndpointRow(
                    name,
                    one["address"],
                    one["state"],
                    one["connections"],
                    grown / seconds if one["address"] in known and grown >= 0 else NAN,
                    one["failures"],
                    one["weight"],
                    one.get("why")
                    or (f"back in {one['seconds']:.0f}s" if "seconds" in one else ""),
                )
            )
    rows.sort(key=lambda row: _ILL_FIRST.get(LEVELS.get(row.state, ""), 2))  # stable
    return tuple(rows)


def _routes(policy: Mapping[str, Any] | None) -> tuple[RouteRow, ...]:
    return tuple(
        RouteRow(
            one["name"],
            ", ".join(one["listeners"]),
            one["splice"],
            f"{one['file']}:{one['line']}",
            one["why"],
        )
        for one in (policy or {}).get("routes", ())
    )


def _errors(old: Mapping[str, Any], new: Mapping[str, Any], seconds: float) -> tuple[ErrorRow, ...]:
    known = old.get("errors", {})
    return tuple(
        ErrorRow(reason, total, (total - known.get(reason, 0)) / seconds if seconds else NAN)
        for reason, total in new["errors"].items()
        if total
    )
