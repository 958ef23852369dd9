"""Backend groups and their endpoints as `/stats` shows them: `backends` of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from l7proxy import health
from l7proxy.balance import Member, members
from l7proxy.health import Checked, Seen
from l7proxy.model import Backend, NameAddress
from l7proxy.telemetry.findings import Finding
from l7proxy.telemetry.health import HealthSlot, Row, endpoint_key, group_key


def collect_backends(
    backends: Mapping[str, Backend],
    resolved: Mapping[str, Sequence[str]],
    slot: HealthSlot,
    now: float,
) -> dict[str, Any]:
    """All groups by their names. `now` in seconds of the monotonic clock.

    An endpoint's `state` is one of

        up           it gets its share
        unchecked    likewise; its first health check is not over yet
        starting     it came back, and gets a part of its share (slow start)
        drained      its weight is 0: it gets nothing new
        ejected      it failed connections; `seconds` until it is back
        down         its health checks fail; `why`
    """
    return {name: _group(backend, resolved, slot, now) for name, backend in backends.items()}


def _group(
    backend: Backend, resolved: Mapping[str, Sequence[str]], slot: HealthSlot, now: float
) -> dict[str, Any]:
    row = slot.find(group_key(backend.name))
    found = members(backend, resolved)
    rows = [slot.find(endpoint_key(backend.name, one.address)) for one in found]
    checks = backend.health is not None
    ejects = health.ejects(backend.ejection, (one.weight for one in found))
    seen = [
        Seen(one.weight) if row is None else row.seen(one.weight, checks=checks, ejects=ejects)
        for one, row in zip(found, rows, strict=True)
    ]
    names = {one.address.name for one in backend.endpoints if isinstance(one.address, NameAddress)}
    return {
        "connections": row.present() if row else 0,
        "pending": row.dialling() if row else 0,
        "accepted": row.connections() if row else 0,
        "retries": row.retries() if row else 0,
        "circuit_open": row.refused() if row else 0,
        "panic": health.standing(seen, backend, now).panic,
        "unresolved": sorted(name for name in names if not resolved.get(name)),
        "endpoints": [_endpoint(backend, *one, now) for one in zip(found, rows, seen, strict=True)],
    }


def _endpoint(
    backend: Backend, member: Member, row: Row | None, seen: Seen, now: float
) -> dict[str, Any]:
    state = _state(backend, seen, now)
    found: dict[str, Any] = {
        "address": str(member.address),
        "state": state,
        "weight": member.weight,
        "connections": row.present() if row else 0,
        "accepted": row.connections() if row else 0,
        "failures": row.failures() if row else 0,
    }
    if member.name is not None:
        found["name"] = str(member.name)
    if state == "down" and row is not None:
        found["why"] = str(Finding.of(row.why))
    if state == "ejected":
        found["seconds"] = round(seen.ejected_until - now, 3)
    return found


def _state(backend: Backend, seen: Seen, now: float) -> str:
    if seen.checked is Checked.DOWN:
        return "down"
    if seen.is_ejected(now):
        return "ejected"
    if not seen.weight:
        return "drained"
    if health.slow_start_share(_back_since(seen, now), backend.slow_start, now) < 1.0:
        return "starting"
    if backend.health is not None and seen.checked is Checked.UNKNOWN:
        return "unchecked"
    return "up"


def _back_since(seen: Seen, now: float) -> float:
    """An ejection that is over counts from its end, though no connection has asked yet."""
    return max(seen.back_since, seen.ejected_until if seen.ejected_until <= now else 0.0)
