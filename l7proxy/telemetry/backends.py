"""Backend groups and their endpoints as `/stats` shows them: `backends` of it.

There may be ten thousand endpoints, and somebody who looks every second. So what only a policy, the
DNS or a new row changes is remembered from look to look: who is in a group, under which text, in
which row. What the rows say is read column by column (`HealthSlot.columns`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from l7proxy import health
from l7proxy.balance import Member, members
from l7proxy.health import Checked, Seen
from l7proxy.model import Backend, NameAddress
from l7proxy.telemetry.findings import Finding
from l7proxy.telemetry.health import (
    UNTOUCHED,
    Columns,
    HealthSlot,
    endpoint_key,
    group_key,
    seen,
)

TAKING = frozenset({"up", "unchecked", "starting"})
"""States in which an endpoint gets new connections."""


class Collector:
    """Shows groups, again and again."""

    def __init__(self, slot: HealthSlot) -> None:
        self._slot = slot
        self._groups: dict[str, _Group] = {}

    def collect(
        self, backends: Mapping[str, Backend], resolved: Mapping[str, Sequence[str]], now: float
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
        claims = self._slot.claims  # before the columns: they have all of these rows
        columns = self._slot.columns()
        groups: dict[str, _Group] = {}
        for name, backend in backends.items():
            group = self._groups.get(name)
            if group is None or not group.holds(backend, resolved, claims):
                group = _Group(backend, resolved, self._slot, claims)
            groups[name] = group
        self._groups = groups
        return {name: group.show(resolved, columns, now) for name, group in groups.items()}


class _Group:
    """What is known of a group until something changes it."""

    def __init__(
        self,
        backend: Backend,
        resolved: Mapping[str, Sequence[str]],
        slot: HealthSlot,
        claims: tuple[int, int],
    ) -> None:
        self._backend = backend
        self._claims = claims
        self._slot = slot
        self._names = sorted(
            {one.address.name for one in backend.endpoints if isinstance(one.address, NameAddress)}
        )
        self._found = [resolved.get(name) for name in self._names]
        self._row = slot.find(group_key(backend.name))
        self._checks = backend.health is not None
        found = members(backend, resolved)
        self._ejects = health.ejects(backend.ejection, (one.weight for one in found))
        self._endpoints = [_Endpoint(backend, one, slot, claims[0]) for one in found]
        self._has_all = self._row is not None and all(one.row >= 0 for one in self._endpoints)

    def holds(
        self, backend: Backend, resolved: Mapping[str, Sequence[str]], claims: tuple[int, int]
    ) -> bool:
        """Whether all of it is as it was."""
        used, claimed_anew = self._claims
        return (
            backend is self._backend
            and claims[1] == claimed_anew
            and (self._has_all or claims[0] == used)
            and self._found == [resolved.get(name) for name in self._names]
        )

    def show(
        self, resolved: Mapping[str, Sequence[str]], columns: Columns, now: float
    ) -> dict[str, Any]:
        """The group as it is now."""
        row = self._row
        endpoints = [self._show(one, columns, now) for one in self._endpoints]
        weighty = [one["state"] for one in endpoints if one["weight"]]
        healthy = sum(state in TAKING for state in weighty)
        return {
            "connections": row.present() if row else 0,
            "pending": row.dialling() if row else 0,
            "accepted": row.connections() if row else 0,
            "retries": row.retries() if row else 0,
            "circuit_open": row.refused() if row else 0,
            "panic": health.is_panic(self._backend, healthy, len(weighty)),
            "unresolved": [name for name in self._names if not resolved.get(name)],
            "endpoints": endpoints,
        }

    def _show(self, one: _Endpoint, columns: Columns, now: float) -> dict[str, Any]:
        number = one.row
        state = UNTOUCHED if number < 0 else columns.states[number]
        word = one.word
        if state != one.state or not word:
            one.state = state
            found = seen(one.weight, state, checks=self._checks, ejects=self._ejects)
            word = _state(self._backend, found, now)
            # what has a time in it may be another one at the next look
            one.word = "" if found.ejected_until or found.back_since else word
        shown: dict[str, Any] = {
            "address": one.text,
            "state": word,
            "weight": one.weight,
            "connections": 0 if number < 0 else columns.present[number],
            "accepted": 0 if number < 0 else columns.connections[number],
            "failures": 0 if number < 0 else columns.failures[number],
        }
        if one.name:
            shown["name"] = one.name
        if word == "down":
            row = self._slot.find(one.key)
            shown["why"] = str(Finding.of(row.why if row else 0))
        elif word == "ejected":
            shown["seconds"] = round(found.ejected_until - now, 3)
        return shown


class _Endpoint:
    """One in a group: how it is called, where its row is, and in which state it was last found."""

    __slots__ = ("key", "name", "row", "state", "text", "weight", "word")

    def __init__(self, backend: Backend, member: Member, slot: HealthSlot, rows: int) -> None:
        self.text = str(member.address)
        self.name = "" if member.name is None else str(member.name)
        self.weight = member.weight
        self.key = endpoint_key(backend.name, member.address)
        number = slot.number(self.key)
        self.row = number if number is not None and number < rows else -1  # claimed since: later
        self.state = UNTOUCHED
        self.word = ""  # in /stats; empty: to be found out


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
