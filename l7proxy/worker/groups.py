"""A worker's live view of a backend group: who is there, who may be used, who is next.

Policy and DNS say who is there; the decisions about it are pure (`balance`, `health`, `budget`);
what all processes know of an endpoint stands in shared memory (`telemetry.health`). This module
joins the three, and costs little while nothing changes: what may be used is computed anew only when
the shared version says that something happened, or when time alone changes it.

An endpoint that goes (a reload, another answer of the DNS) gets nothing new. Connections that it
has keep its row until the last of them is over.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

from l7proxy import cookies, health
from l7proxy.balance import Chance, Hashed, Member, affinity, members, picker
from l7proxy.budget import RetryBudget
from l7proxy.errors import Reason
from l7proxy.health import Failure
from l7proxy.maglev import SIZE, Filling
from l7proxy.model import Address, Backend, BalanceType, Hello, NameAddress, Requested
from l7proxy.telemetry.health import HealthSlot, Row, endpoint_key, group_key
from l7proxy.telemetry.log import event
from l7proxy.worker.timers import Calendar

log = logging.getLogger(__name__)

Resolved = Mapping[str, Sequence[str]]
"""The addresses of each DNS name, as the prober last found them."""

_PROBES = 20_000  # of a hash table that is filled beside the traffic: about two milliseconds


class Counted:
    """A row, and the connections that this worker has on it."""

    __slots__ = ("_held", "_is_attached", "_is_retired", "row")

    def __init__(self, row: Row) -> None:
        self.row = row
        self._held = 0
        self._is_retired = False
        self._is_attached = True

    def enter(self) -> None:
        """One connection more."""
        self._held += 1
        self.row.enter()

    def stay(self) -> None:
        """One connection of the worker before is this one's now."""
        self._held += 1
        self.row.stay()

    def leave(self) -> None:
        """One connection fewer."""
        self._held -= 1
        self.row.leave()
        self._settle_row()

    def retire(self) -> None:
        """Nothing new comes; the row is given back after the last connection."""
        self._is_retired = True
        self._settle_row()

    @property
    def is_retired(self) -> bool:
        """Whether nothing new is to come."""
        return self._is_retired

    def _settle_row(self) -> None:
        if self._is_retired and not self._held and self._is_attached:
            self._is_attached = False
            self.row.detach()


class Place(Counted):
    """An endpoint in a group."""

    __slots__ = ("at", "member", "text", "token")

    def __init__(self, row: Row, text: str, token: bytes) -> None:
        super().__init__(row)
        self.text = text
        self.token = token  # of a sticky cookie
        self.member: Member  # set by the group
        self.at = -1  # its index in the group; -1: it is there no more

    @property
    def key(self) -> object:
        """What connections to it have in common, and to nothing else."""
        return self

    @property
    def is_gone(self) -> bool:
        """Whether nothing new is to come to it."""
        return self.at < 0

    @property
    def is_ipv6(self) -> bool:
        """Whether it is dialled over IPv6."""
        address = self.member.address
        return isinstance(address, Address) and address.is_ipv6


class Elsewhere(Place):
    """Where one intercepted connection was going. The group counts it, and nobody judges it."""

    __slots__ = ("_group",)

    def __init__(self, group: Counted, address: Address) -> None:
        super().__init__(group.row, str(address), b"")
        self._group = group
        self.member = Member(address, 1)
        self.at = 0

    @property
    def key(self) -> object:
        """See `Place.key`: many connections go to the same address."""
        return self._group, self.text

    @property
    def is_gone(self) -> bool:
        """See `Place.is_gone`."""
        return self._group.is_retired

    def enter(self) -> None:
        """It is counted in the group already."""

    def leave(self) -> None:
        """Likewise."""


class Group:
    """One backend group in one worker. `start` tells workers apart: their slot."""

    def __init__(
        self,
        backend: Backend,
        resolved: Resolved,
        slot: HealthSlot,
        calendar: Calendar,
        chance: Chance,
        now: float,
        start: int = 0,
    ) -> None:
        self.backend = backend
        self.places: tuple[Place, ...] = ()
        self.load = Counted(slot.attach(group_key(backend.name)))
        self.tick = -1
        self._slot = slot
        self._calendar = calendar
        self._picker = picker(backend.balance, chance, start)
        self._names = frozenset(
            one.address.name for one in backend.endpoints if isinstance(one.address, NameAddress)
        )
        self._by_hash = backend.balance.type is BalanceType.HASH
        self._budget = RetryBudget(backend.retries.budget, now, self.load.row.entered)
        self._by_token: dict[bytes, Place] = {}
        self._filling: Filling | None = None
        self._version = -1
        self._settle(resolved, now)
        self._fill(at_once=True)

    # ---- who is there

    def update(self, resolved: Resolved, now: float, changed: Iterable[str] | None = None) -> None:
        """DNS names have these addresses now. Connections that there are stay as they are.

        `changed` are the names that have others than before; None: it may be any.
        """
        if not self._names if changed is None else self._names.isdisjoint(changed):
            return
        if members(self.backend, resolved) != tuple(place.member for place in self.places):
            self._settle(resolved, now)
            self._fill(at_once=False)

    def close(self) -> None:
        """The group is there no more: a reload took it out of the policy, or made it anew.

        Who asks it for an endpoint all the same gets none.
        """
        self._calendar.cancel(self)
        self._replace(())
        self._look(0.0)
        self._fill(at_once=True)
        self._names = frozenset()
        self.load.retire()

    def _settle(self, resolved: Resolved, now: float) -> None:
        found = members(self.backend, resolved)
        known = {place.text: place for place in self.places}
        places = []
        for member in found:
            text = str(member.address)
            place = known.get(text)
            if place is None:
                row = self._slot.attach(endpoint_key(self.backend.name, text))
                place = Place(row, text, cookies.token(self.backend.name, text))
            place.member = member
            places.append(place)
        self._replace(tuple(places))
        self._look(now)

    def _replace(self, places: tuple[Place, ...]) -> None:
        stay = set(places)
        for place in self.places:
            if place not in stay:
                place.at = -1
                place.retire()
        for at, place in enumerate(places):
            place.at = at
        self.places = places
        if self.backend.sticky is not None:
            self._by_token = {place.token: place for place in places}
        weights = [place.member.weight for place in places]
        self._ejects = health.ejects(self.backend.ejection, weights)
        self._is_fixed = self.backend.health is None and not self._ejects

    def _fill(self, *, at_once: bool) -> None:
        """The table of a group that balances by hash.

        At once while nobody waits; beside the traffic later.
        """
        if not self._by_hash:
            return
        self._calendar.cancel(self)  # a table that is being filled is not wanted any more
        assert isinstance(self._picker, Hashed)
        names = [place.text for place in self.places]
        full = [place.member.weight for place in self.places]
        self._picker.set_members(names, full)
        self._filling = None
        if not 1 < len(names) <= SIZE or not any(full):
            self._picker.set_table(None)
            return
        self._filling = Filling(names, full)
        if not at_once:
            self._calendar.set(self, 0.0)
            return
        while self._filling is not None:
            self._go_on(_PROBES)

    def on_deadline(self) -> None:
        """Go on with the table."""
        self._go_on(_PROBES)
        if self._filling is not None:
            self._calendar.set(self, 0.0)

    def _go_on(self, probes: int) -> None:
        assert self._filling is not None
        slots = self._filling.go_on(probes)
        if slots is not None:
            assert isinstance(self._picker, Hashed)
            self._picker.set_table(slots)
            self._filling = None

    # ---- who may be used

    def standing(self, now: float) -> health.Standing:
        """Who may be used now, and how much each may get."""
        if self._is_fixed or (self._slot.version == self._version and now < self._standing.until):
            return self._standing
        return self._look(now)

    def _look(self, now: float) -> health.Standing:
        self._version = self._slot.version  # before the states: what changes meanwhile is seen then
        seen = self._seen()
        if self._ejects:
            back = [
                place
                for place, one in zip(self.places, seen, strict=True)
                if one.ejected_until and one.ejected_until <= now
            ]
            for place in back:
                self._come_back(place, now)
            if back:
                seen = self._seen()
        self._standing = health.standing(seen, self.backend, now)
        if self._standing.panic != self.load.row.panics and self.places:
            self._tell_panic(now)
        return self._standing

    def _tell_panic(self, now: float) -> None:
        """Say that a panic has begun, or is over: one of all the workers does."""
        row = self.load.row
        with self._slot.locked():
            seen = self._seen()
            panics = health.standing(seen, self.backend, now).panic
            if panics == row.panics:
                return
            row.store_panic(panics)
        takers = [one for one in seen if one.weight]
        figures = {
            "backend": self.backend.name,
            "healthy": sum(one.is_healthy(now) for one in takers),
            "endpoints": len(takers),
        }
        if panics:
            log.warning(event("panic, health is ignored", **figures))
        else:
            log.info(event("panic over", **figures))

    def _seen(self) -> list[health.Seen]:
        checks, ejects = self.backend.health is not None, self._ejects
        return [
            place.row.seen(place.member.weight, checks=checks, ejects=ejects)
            for place in self.places
        ]

    def _come_back(self, place: Place, now: float) -> None:
        with self._slot.locked():
            marks = place.row.marks()
            if not marks.come_back(self.backend.ejection, now):
                return  # another worker was first
            place.row.store(marks)
            self._slot.changed()
        self._tell_back(place)

    def _tell_back(self, place: Place) -> None:
        log.info(event("endpoint back", backend=self.backend.name, endpoint=place.text))

    def failed(self, place: Place, failure: Failure, why: str, now: float) -> None:
        """The endpoint failed a connection; it may be ejected for it."""
        place.row.count_failure()
        if not self._ejects or place.at < 0:
            return
        rules, row = self.backend.ejection, place.row
        with self._slot.locked():
            marks = row.marks()
            came_back = marks.come_back(rules, now)  # and nobody had looked since
            marks.failed(failure)
            eject = (
                marks.ejected_until <= now
                and marks.is_due(rules)
                and place.member.weight > 0
                and health.may_eject(self._seen(), place.at, rules, now)
            )
            seconds = marks.eject(rules, now) if eject else 0.0
            row.store(marks)
            if eject or came_back:
                self._slot.changed()
        if came_back:
            self._tell_back(place)
        if eject:
            log.warning(
                event(
                    "endpoint ejected",
                    backend=self.backend.name,
                    endpoint=place.text,
                    seconds=f"{seconds:g}",
                    why=why,
                )
            )

    def worked(self, place: Place, failure: Failure) -> None:
        """The endpoint did not fail a connection in this way."""
        if place.row.is_failing:
            with self._slot.locked():
                marks = place.row.marks()
                marks.worked(failure)
                place.row.store(marks)

    # ---- who is next

    def order(
        self, request: Requested | None, client: str, hello: Hello | None, now: float
    ) -> Iterator[Place]:
        """The endpoints to dial for one connection, each once, the best first."""
        standing = self.standing(now)
        key = affinity(self.backend.balance, request, client, hello) if self._by_hash else None
        order = self._picker.order(standing.weights, self._present, key)
        return map(self.places.__getitem__, order)

    def original(self, destination: Address | None) -> Iterator[Place]:
        """Where the connection was going, of a group that stands for that."""
        if destination is None or self.load.is_retired:
            return iter(())
        return iter((Elsewhere(self.load, destination),))

    def _present(self, at: int) -> int:
        return self.places[at].row.present()

    def remembered(self, request: Requested | None, now: float) -> Place | None:
        """The endpoint that the client's sticky cookie names, if it may be used."""
        sticky = self.backend.sticky
        if sticky is None or request is None:
            return None
        value = cookies.value(request.headers, sticky.cookie)
        place = None if value is None else self._by_token.get(value)
        if place is None or not self.standing(now).usable[place.at]:
            return None
        return place

    def racers(self, place: Place, now: float) -> list[Place]:
        """What to try beside an address of a name, in this order; empty if one family is all.

        RFC 8305 section 4: "the ordering ... interleaves address families", so the next one is of
        the other family.
        """
        name = place.member.name
        if name is None:
            return []
        weights = self.standing(now).weights
        others = [one for one in self.places if weights[one.at] and _shares(one, name)]
        others = [one for one in others if one is not place]
        across = [one for one in others if one.is_ipv6 is not place.is_ipv6]
        along = [one for one in others if one.is_ipv6 is place.is_ipv6]
        if not across:
            return []
        mixed: list[Place] = []
        while across or along:
            mixed += across[:1] + along[:1]
            del across[:1], along[:1]
        return mixed

    def why_nobody(self) -> Reason:
        """Why there is no endpoint to dial."""
        is_unresolved = bool(self._names) and not self.places
        return Reason.UNRESOLVED if is_unresolved else Reason.NO_ENDPOINT

    # ---- how much

    def admit(self) -> bool:
        """Count one connection that is being dialled, unless the group has all that it takes."""
        circuit, row = self.backend.circuit, self.load.row
        if circuit.connections is None and circuit.pending is None:
            self.load.enter()
            row.begin_dial()
            return True
        with self._slot.locked():  # so that no two workers take the last place both
            full = (circuit.connections is not None and row.present() >= circuit.connections) or (
                circuit.pending is not None and row.dialling() >= circuit.pending
            )
            if full:
                row.count_refused()
                return False
            self.load.enter()
            row.begin_dial()
            return True

    def take(self, place: Place) -> bool:
        """Count one connection of an endpoint, unless it has all that it takes."""
        most = self.backend.circuit.endpoint_connections
        if most is None:
            place.enter()
            return True
        with self._slot.locked():
            if place.row.present() >= most:
                return False
            place.enter()
            return True

    def may_retry(self, now: float) -> bool:
        """Whether one more dial of this group may be a retry; it counts as one then."""
        if not self._budget.take(now, self.load.row.entered):
            return False
        self.load.row.count_retry()
        return True


def _shares(place: Place, name: NameAddress) -> bool:
    return place.member.name == name
