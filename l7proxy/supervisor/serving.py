"""A policy in force: the sealed policy, the listening sockets that it asks for, and their rows.

Sockets are kept by address: a policy that names one that is open goes on with it, under whatever
name its listener has now, and with whatever waits in its queue.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from l7proxy.errors import StartupError
from l7proxy.model import Address, Listener
from l7proxy.net import bundle
from l7proxy.net.activation import Activation
from l7proxy.net.listen import ListeningSocket, let_intercept, open_for_clients
from l7proxy.net.messages import Prepare
from l7proxy.telemetry.counters import Rows, RowsExhausted, SharedCounters
from l7proxy.telemetry.log import event

log = logging.getLogger(__name__)

MOST_LISTENERS = 4_096  # of one policy: their sockets are named in one message


@dataclass(slots=True)
class Serving:
    """A policy, and what the supervisor holds for it. Sockets have a number while they are open."""

    number: int
    policy: int  # a descriptor: `net.bundle`
    manifest: bundle.Manifest
    sockets: dict[int, ListeningSocket]  # in the order of the listeners
    rows: tuple[int, ...]
    loaded_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def prepare(self) -> Prepare:
        """What a worker is told about it."""
        passed = tuple(number for number, one in self.sockets.items() if one.passed)
        return Prepare(self.number, tuple(self.sockets), self.rows, passed)

    @property
    def fds(self) -> frozenset[int]:
        """What a worker that starts with it inherits."""
        return frozenset({self.policy, *(one.sock.fileno() for one in self.sockets.values())})

    def listeners(self) -> Iterator[tuple[Listener, ListeningSocket]]:
        """Each listener with its socket."""
        return zip(self.manifest.listeners, self.sockets.values(), strict=True)

    def present(self, shared: SharedCounters) -> dict[str, int]:
        """How many connections live on each listener, by its name."""
        names = (listener.name for listener in self.manifest.listeners)
        return {name: shared.present(row) for name, row in zip(names, self.rows, strict=True)}


class Refused(Exception):
    """This policy cannot be used; the argument says why."""


class Opener:
    """Opens what policies need, and gives everything its number."""

    def __init__(self, rows: Rows, activation: Activation | None = None) -> None:
        self._rows = rows
        self._activation = activation or Activation()
        self._numbers = 0
        self.generations = 0

    def open(self, policy: int, current: Serving | None) -> Serving:
        """Open what the policy needs beyond what `current` has.

        The descriptor `policy` belongs to what is returned. Raises Refused, and then holds nothing.
        """
        fresh: list[ListeningSocket] = []
        try:
            manifest = bundle.manifest(policy)
            if len(manifest.listeners) > MOST_LISTENERS:
                raise Refused(
                    f"the policy has {len(manifest.listeners):,} listeners, and {MOST_LISTENERS:,}"
                    " can be open; split it over several l7proxy"
                )
            sockets = self._sockets(manifest, current, fresh)
            names = [f"listener:{listener.name}" for listener in manifest.listeners]
            rows = self._rows.assign(names)
            self.generations += 1
            return Serving(
                self.generations, policy, manifest, sockets, tuple(rows[name] for name in names)
            )
        except (Refused, RowsExhausted, OSError) as error:
            for one in fresh:
                one.close()
            os.close(policy)
            raise Refused(str(error)) from error

    def _sockets(
        self,
        manifest: bundle.Manifest,
        current: Serving | None,
        fresh: list[ListeningSocket],
    ) -> dict[int, ListeningSocket]:
        there = {}
        if current is not None:
            for (listener, one), number in zip(current.listeners(), current.sockets, strict=True):
                there[_key(listener)] = (number, one)
        wanted = {_key(listener) for listener in manifest.listeners}
        leaving = [one for key, (_, one) in there.items() if key not in wanted]
        sockets: dict[int, ListeningSocket] = {}
        problems: list[str] = []
        for listener in manifest.listeners:
            found = there.get(_key(listener))
            try:
                if found is None:
                    opened = self._activation.open(listener) or open_for_clients(listener, leaving)
                    fresh.append(opened)
                    self._numbers += 1
                    found = self._numbers, opened
                let_intercept(found[1].sock, listener)
            except StartupError as error:
                problems.append(f"listener {listener.name}: {error}")
                continue
            sockets[found[0]] = found[1]
        if problems:
            raise Refused("\n".join(problems))
        return sockets

    def keep(self, serving: Serving) -> None:
        """Give back the rows that only other policies have."""
        self._rows.keep(f"listener:{one.name}" for one in serving.manifest.listeners)


def tell(listener: Listener, one: ListeningSocket) -> None:
    """Say that a listener listens, and where."""
    log.info(
        event("listening", name=listener.name, address=one.address, protocol=listener.protocol)
    )


def deserted(leaving: Iterable[ListeningSocket], serving: Serving) -> list[Address]:
    """Where those that go listen on ports that none of the policy's sockets has."""
    kept = [one.address for one in serving.sockets.values()]
    ports = {address.port for address in kept if isinstance(address, Address)}
    own = [one.address for one in leaving if not one.passed]
    return [one for one in own if isinstance(one, Address) and one.port not in ports]


def _key(listener: Listener) -> tuple[object, str]:
    """What makes a socket the same one: its address; with port 0, the listener's name as well."""
    address = listener.address
    chosen = isinstance(address, Address) and address.port == 0
    return address, listener.name if chosen else ""


def changes(old: Serving, new: Serving) -> str:
    """How many sockets came and went, as `+1-0`."""
    came = sum(number not in old.sockets for number in new.sockets)
    went = sum(number not in new.sockets for number in old.sockets)
    return f"+{came}-{went}"
