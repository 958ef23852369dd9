"""What the supervisor asks the workers for an operator, and has them do.

Workers answer when they get to it, in parts, and are believed as far as `net.channel` reads them;
one that does not answer in time, or dies meanwhile, is told of as such. One inquiry is under way at
a time: the next one waits its turn, and a part that comes too late belongs to none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from l7proxy.net.channel import ChannelBroken
from l7proxy.net.messages import (
    ConnectionRow,
    Connections,
    ListConnections,
    LogLevel,
    ResetConnection,
    WasReset,
)
from l7proxy.supervisor.workers import Supervisor
from l7proxy.telemetry import log as operational

SECONDS = 5.0  # that workers may take to answer

FILTERS = ("state", "way", "listener", "route", "backend", "endpoint", "client")

SORTS: dict[str, Callable[[ConnectionRow], float | str]] = {
    "age": lambda row: row.age,
    "idle": lambda row: row.idle,
    "bytes": lambda row: row.to_backend + row.to_client,
    "to_backend": lambda row: row.to_backend,
    "to_client": lambda row: row.to_client,
    "kernel": lambda row: row.kernel,
    "client": lambda row: row.client,
    "listener": lambda row: row.listener,
    "route": lambda row: row.route,
    "backend": lambda row: row.backend,
    "endpoint": lambda row: row.endpoint,
    "state": lambda row: row.state,
}
"""The orders that connections can be told in: numbers from the largest, words from A."""

WORDS = frozenset(("client", "listener", "route", "backend", "endpoint", "state"))


class Unanswered(Exception):
    """The worker did not answer in time."""


@dataclass(slots=True)
class Found:
    """Connections by their workers. `silent`: workers that did not answer, or not completely."""

    total: int = 0
    rows: list[tuple[int, ConnectionRow]] = field(default_factory=list)
    silent: list[int] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As the admin server tells it, but for the rows: see `told`."""
        return {"total": self.total, "shown": len(self.rows), "silent_workers": self.silent}


def told(worker: int, row: ConnectionRow) -> dict[str, Any]:
    """A connection as the admin server tells it."""
    return {
        "id": f"{worker}-{row.number}",
        "worker": worker,
        "listener": row.listener,
        "route": row.route,
        "backend": row.backend,
        "endpoint": row.endpoint,
        "client": row.client,
        "state": row.state,
        "way": row.way,
        "age_seconds": row.age,
        "idle_seconds": row.idle,
        "bytes": {
            "to_backend": row.to_backend,
            "to_client": row.to_client,
            "kernel": row.kernel,
        },
    }


class _Asked:
    """What is under way: whose answer is missing, and what has come."""

    def __init__(self, number: int, workers: Iterable[int], limit: int) -> None:
        self.number = number
        self.missing = set(workers)
        self.limit = limit
        self.rows: dict[int, list[ConnectionRow]] = {}
        self.totals: dict[int, int] = {}
        self.was_reset = False


class Inquiry:
    """Asks workers. `supervisor` has to be set, and has to pass on what they say."""

    def __init__(self) -> None:
        self.supervisor: Supervisor
        self._turn = asyncio.Lock()
        self._number = 0
        self._asked: _Asked | None = None

    # ---- what the supervisor passes on

    def on_message(self, slot: int, message: object) -> bool:
        """A worker said something; whether it was an answer. Raises ChannelBroken."""
        match message:
            case Connections():
                asked = self._expecting(slot, message.inquiry)
                if asked is not None:
                    rows = asked.rows.setdefault(slot, [])
                    rows.extend(message.rows)
                    if len(rows) > asked.limit:
                        raise ChannelBroken("it tells of more connections than it was asked for")
                    asked.totals[slot] = message.total
                    if message.is_last:
                        asked.missing.discard(slot)
            case WasReset():
                asked = self._expecting(slot, message.inquiry)
                if asked is not None:
                    asked.was_reset = message.found
                    asked.missing.discard(slot)
            case _:
                return False
        return True

    def on_exit(self, slot: int) -> None:
        """A worker has ended; its successor knows nothing of what was asked."""
        if self._asked is not None and slot in self._asked.missing:
            self._asked.missing.discard(slot)
            self._asked.totals.pop(slot, None)
            self._asked.rows.pop(slot, None)

    def _expecting(self, slot: int, number: int) -> _Asked | None:
        if number > self._number:
            raise ChannelBroken(f"nobody has asked inquiry {number} yet")
        asked = self._asked
        if asked is None or asked.number != number or slot not in asked.missing:
            return None
        return asked

    # ---- what is asked

    async def connections(
        self, only: dict[str, str], sort: str, *, reverse: bool, limit: int
    ) -> Found:
        """The first `limit` connections in this order of those that are as `only` says.

        `reverse`: from the largest, or from Z.
        """
        supervisor = self.supervisor
        async with self._turn:
            workers = [slot for slot in range(supervisor.configured) if supervisor.has(slot)]
            asked = self._ask(workers, limit)
            message = ListConnections(asked.number, only, sort, reverse, limit)
            for slot in workers:
                supervisor.send(slot, message)
            await supervisor.until(lambda: not asked.missing, SECONDS)
            self._asked = None
        found = Found(sum(asked.totals.values()))
        found.rows = [(slot, row) for slot, rows in asked.rows.items() for row in rows]
        key = SORTS[sort]
        found.rows.sort(key=lambda one: key(one[1]), reverse=reverse)
        del found.rows[limit:]
        found.silent = sorted(asked.missing | (set(workers) - asked.totals.keys()))
        return found

    async def reset(self, worker: int, number: int) -> bool:
        """Reset a connection; whether there was one of this number. Raises Unanswered."""
        supervisor = self.supervisor
        if worker >= supervisor.configured or not supervisor.has(worker):
            return False
        async with self._turn:
            asked = self._ask([worker], 0)
            supervisor.send(worker, ResetConnection(asked.number, number))
            answered = await supervisor.until(lambda: not asked.missing, SECONDS)
            self._asked = None
        if not answered:
            raise Unanswered
        return asked.was_reset

    def set_log_level(self, level: str) -> None:
        """In this process and in every other; those that start later inherit it."""
        operational.set_level(level)
        self.supervisor.send_workers(LogLevel(level))
        self.supervisor.send(self.supervisor.configured, LogLevel(level))

    def _ask(self, workers: Iterable[int], limit: int) -> _Asked:
        self._number += 1
        self._asked = _Asked(self._number, workers, limit)
        return self._asked
