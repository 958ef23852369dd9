"""From a decision to a connected backend: which endpoint, and what if it does not answer.

Usually one dial is under way. When an endpoint fails, the next one is dialled: that is a retry, and
there are only so many. An address of a DNS name that has addresses of both families is another
matter: RFC 8305 ("Happy Eyeballs"), section 5: "connection attempts are made in a staggered
manner": the next address of the name, of the other family, is tried when this one has failed, or
has not answered for a quarter of a second; whoever is connected first wins, and the others are
given up without blame.
"""

from __future__ import annotations

import math
import select
import socket
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

from l7proxy import cookies
from l7proxy.errors import Reason
from l7proxy.health import Failure
from l7proxy.model import Address, Forward, Hello, Protocol, Requested, SocketAddress
from l7proxy.net import dial
from l7proxy.session import Event
from l7proxy.telemetry.counters import Counter
from l7proxy.worker.groups import Group, Place
from l7proxy.worker.wire import WATCH, Wire

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection
    from l7proxy.worker.exchange import Exchange

ATTEMPT_DELAY = 0.25
"""Seconds; RFC 8305 section 8: "Connection Attempt Delay ... recommended value: 250 milliseconds".
The calendar's ticks make it up to an eighth of a second more."""

SPARE_DELAY = 0.005
"""Seconds until a socket that can have a client's address is looked for again."""

_GONE = select.EPOLLERR | select.EPOLLHUP

_WHY = {
    Reason.DIAL_TIMEOUT: "no endpoint of the backend answered in time",
    Reason.REQUEST_TIMEOUT: "the backend did not answer in time",
    Reason.NO_ENDPOINT: "no endpoint of the backend is up",
    Reason.UNRESOLVED: "the names of the backend's endpoints have not been resolved",
    Reason.CIRCUIT_OPEN: "the backend has all the connections that it takes",
}

_LATE = (Reason.DIAL_TIMEOUT, Reason.REQUEST_TIMEOUT)


def _same_family(host: str, address: SocketAddress) -> bool:
    return isinstance(address, Address) and address.is_ipv6 is (":" in host)


class _Attempt:
    """A dial that is under way."""

    __slots__ = ("deadline", "place", "sock")

    def __init__(self, place: Place, sock: socket.socket, deadline: float) -> None:
        self.place = place
        self.sock = sock
        self.deadline = deadline


# What stands in place of a connection's own before its dial and after it, never written to: idle
# connections are many, and these would be a quarter of each.
_NO_ATTEMPTS: dict[int, _Attempt] = {}
_NO_PLACES: set[Place] = set()
_NO_RACE: list[Place] = []
_NOBODY: Iterator[Place] = iter(())


class Dialing:
    """The state DIAL of one connection; afterwards, where it was dialled to."""

    __slots__ = (
        "_attempts",
        "_connection",
        "_dials",
        "_failure",
        "_group",
        "_is_admitted",
        "_is_dialling",
        "_order",
        "_place",
        "_race",
        "_race_at",
        "_raced",
        "_remembered",
        "_rest",
        "_seconds",
        "_wait_until",
        "destination",
        "source",
    )

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._group: Group | None = None
        self._is_admitted = False  # counted in the group
        self._is_dialling = False  # counted there as well
        self._place: Place | None = None  # where it is connected to
        self._attempts = _NO_ATTEMPTS  # by descriptor
        self.destination: Address | None = None  # where an intercepted connection was going
        self.source = ""  # the address to dial with; "": this machine's own

    def choose(
        self,
        decision: Forward,
        request: Requested | None,
        client: str,
        hello: Hello | None,
        destination: Address | None = None,
        *,
        avoid: Place | None = None,
    ) -> None:
        """Take the endpoints of the decision's backend group, in their turn.

        `client` is the address, without a port, of who is served; "" when it has none. `request` is
        what an HTTP listener read, `hello` what a TLS listener did, `destination` where an
        intercepted connection was going. `avoid` is the last one to be tried.
        """
        connection = self._connection
        now = connection.worker.now
        self.destination = destination
        connection.record.route = decision.route.name
        connection.record.backend = decision.backend.name
        seconds = decision.route.timeouts.dial
        self._seconds = connection.listener.timeouts.dial if seconds is None else seconds
        self._group = group = connection.listener.groups[decision.backend.name]
        if group.backend.original:
            order = group.original(destination)
        else:
            order = group.order(request, client, hello, now)
        self._remembered = mine = group.remembered(request, now)
        self._order: Iterator[Place] = order
        if mine is not None:
            self._order = chain((mine,), (place for place in order if place is not mine))
        if avoid is not None:
            self._order = _at_last(self._order, avoid)
        self._failure: Reason | None = None
        self._dials = 0
        self._attempts = {}
        self._race = _NO_RACE
        self._race_at = 0.0
        self._raced = _NO_PLACES  # whom the race has reached
        self._rest = self._order  # who is left, when one is put back in front of them
        self._wait_until = 0.0  # for a socket that can have another's address; 0: not waited yet

    def resume(self, group: Group | None, endpoint: str) -> None:
        """It was dialled by another worker, which has died: count it as one of this one's."""
        if group is None:  # the policy has no such backend any more
            return
        self._group, self._is_admitted = group, True
        group.load.stay()
        places = (place for place in group.places if place.text == endpoint)
        self._place = self._remembered = next(places, None)
        if self._place is not None:
            self._place.stay()

    def may_retry(self) -> bool:
        """Whether the request may be sent once more, as far as the group goes; it counts then."""
        return self._group is not None and self._group.may_retry(self._connection.worker.now)

    @property
    def place(self) -> Place | None:
        """Where it is connected to."""
        return self._place

    @property
    def set_cookie(self) -> bytes | None:
        """The `Set-Cookie` line, without its line end, that the response has to bring; or None.

        The client brought no cookie that names the endpoint that it got.
        """
        if self._group is None or self._place is None or self._place is self._remembered:
            return None
        sticky = self._group.backend.sticky
        return None if sticky is None else cookies.set_cookie(sticky, self._place.token)

    @property
    def is_unix(self) -> bool:
        """Whether the backend's socket is none of TCP, which the kernel does not splice."""
        return self._place is not None and dial.must_ask(self._place.member.address)

    # ---- DIAL

    def start(self) -> None:
        """Dial endpoints until one takes the connection, or one of them takes its time."""
        if self._group is None:
            self._unreachable(Reason.DIAL_REFUSED)
        elif not self._group.admit():
            self._unreachable(Reason.CIRCUIT_OPEN)
        else:
            self._is_admitted = self._is_dialling = True
            self._next()

    def ready(self, fd: int, mask: int) -> None:
        """An attempt has come to an end, or the client has gone."""
        connection = self._connection
        attempt = self._attempts.get(fd)
        if attempt is None:
            if fd == connection.client.fileno() and mask & _GONE:
                connection.client_failed()
            return
        self._ask(attempt)
        if self._is_dialling and fd not in self._attempts:
            self._next()

    def timed_out(self) -> None:
        """Something is due: an attempt takes too long, or the next one is to begin beside it."""
        now = self._connection.worker.now
        if self._request_due <= now:
            self._unreachable(Reason.REQUEST_TIMEOUT)
            return
        for attempt in list(self._attempts.values()):
            if dial.must_ask(attempt.place.member.address):
                self._ask(attempt)
                if not self._is_dialling:
                    return
            if attempt.deadline <= now and attempt.sock.fileno() in self._attempts:
                self._drop(attempt)
                self._blame(attempt.place, Reason.DIAL_TIMEOUT, "timeout")
        if not self._attempts or (self._race and self._race_at <= now):
            self._next()
        else:
            self._schedule()

    def _next(self) -> None:
        """Dial until an attempt is under way, or nothing is left to be tried."""
        while (place := self._next_place()) is not None:
            if self._dial(place):
                return
        if self._attempts:
            self._schedule()
        else:
            self._unreachable(self._failure or self._nobody())

    def _next_place(self) -> Place | None:
        """Whom to dial next; it is counted as entered. None: nobody now."""
        group, now = self._group, self._connection.worker.now
        assert group is not None
        while self._race:
            place = self._race.pop(0)
            if place.at >= 0 and group.take(place):
                self._raced = {*self._raced, place}
                return place
        if self._attempts:
            return None
        is_retry = self._dials > 0
        if is_retry and self._dials - len(self._raced) > group.backend.retries.attempts:
            return None
        for place in self._order:
            if place in self._raced or place.at < 0:
                continue
            if not group.take(place):
                self._failure = self._failure or Reason.CIRCUIT_OPEN
                continue
            if is_retry and not group.may_retry(now):
                place.leave()
                return None
            self._race = group.racers(place, now)
            return place
        return None

    def _dial(self, place: Place) -> bool:
        """Begin an attempt; whether there is one, or it has even succeeded."""
        connection, address = self._connection, place.member.address
        self._dials += 1
        requests = connection.requests
        exchange = None if requests is None else requests.exchange
        if exchange is not None and self._reuse(place, exchange):
            return True
        sock = None
        try:
            sending, spare = connection.sending, None
            speaks = connection.requests is not None or (sending is not None and sending.speaks)
            if self.source and _same_family(self.source, address):
                spare = connection.worker.spares.take(self.source)
                if spare is None:
                    return self._wait_for_spare(place)
            sock = dial.start(address, speaks=speaks, sock=spare)
            connected = dial.progress(sock, address)
            if not connected and not dial.must_ask(address):
                connection.worker.register(sock.fileno(), select.EPOLLOUT, connection)
        except dial.DialError as error:
            if sock is not None:
                sock.close()
            place.leave()
            self._refused(place, error)
            return False
        except OSError:  # no descriptor, or none more in epoll: no other endpoint would fare better
            if sock is not None:
                sock.close()
            place.leave()
            self._failure = Reason.DESCRIPTORS
            self._order, self._race = _NOBODY, _NO_RACE
            return False
        if connected:
            self._won(place, sock, registered=False)
            return True
        now = connection.worker.now
        self._attempts[sock.fileno()] = _Attempt(place, sock, now + self._seconds)
        connection.watch(connection.client, 0)  # errors are always reported
        self._race_at = now + ATTEMPT_DELAY
        self._schedule()
        return True

    def _reuse(self, place: Place, exchange: Exchange) -> bool:
        """Take a connection that the endpoint has from another request; whether there is one."""
        connection = self._connection
        if exchange.fresh or not exchange.pools:
            return False
        wire = connection.worker.pool.take(place)
        if wire is None:
            return False
        connection.worker.hand_over(wire.sock.fileno(), connection.worker.pool, connection)
        connection.worker.view[Counter.REUSED] += 1
        self._settle()
        self._place = place
        exchange.backend = wire
        connection.take_backend(wire.sock, WATCH)
        connection.record.endpoint = place.text
        connection.record.reused = True
        connection.record.dial_ms = connection.record.head_ms
        connection.on(Event.REACHED)
        return True

    def _ask(self, attempt: _Attempt) -> None:
        """Find out how an attempt is doing."""
        place, sock = attempt.place, attempt.sock
        try:
            connected = dial.progress(sock, place.member.address)
        except dial.DialError as error:
            self._drop(attempt)
            self._refused(place, error)
            return
        if connected:
            del self._attempts[sock.fileno()]
            self._won(place, sock, registered=not dial.must_ask(place.member.address))

    def _wait_for_spare(self, place: Place) -> bool:
        """Try again in a while, when sockets have come; whether there is a point in it."""
        worker = self._connection.worker
        place.leave()
        self._dials -= 1
        self._wait_until = self._wait_until or worker.now + self._seconds
        if worker.now >= self._wait_until:
            self._failure = Reason.DESCRIPTORS
            self._order, self._race = _NOBODY, _NO_RACE
            return False
        self._order = chain((place,), self._rest)
        self._connection.watch(self._connection.client, 0)  # errors are always reported
        worker.calendar.set(self._connection, worker.now + SPARE_DELAY)
        return True

    def _won(self, place: Place, sock: socket.socket, *, registered: bool) -> None:
        connection, group = self._connection, self._group
        assert group is not None
        self._settle()
        self._place = place
        group.worked(place, Failure.DIAL)
        connection.take_backend(sock, select.EPOLLOUT if registered else None)
        connection.record.endpoint = place.text
        connection.record.reused = False
        connection.note_dialled()
        requests = connection.requests
        if requests is None:
            connection.on(Event.CONNECTED)
            return
        assert requests.exchange is not None
        wire = requests.exchange.backend = Wire(sock)
        wire.born = connection.worker.now
        connection.on(Event.REACHED)

    def _refused(self, place: Place, error: dial.DialError) -> None:
        if error.is_ours:
            self._failure = Reason.DIAL_REFUSED
        else:
            self._blame(place, Reason.DIAL_REFUSED, str(error.strerror).lower())

    def _blame(self, place: Place, reason: Reason, why: str) -> None:
        self._failure = reason
        assert self._group is not None
        self._group.failed(place, Failure.DIAL, why, self._connection.worker.now)

    def _drop(self, attempt: _Attempt) -> None:
        """Give an attempt up."""
        worker = self._connection.worker
        fd = attempt.sock.fileno()
        del self._attempts[fd]
        worker.bury(attempt.sock)
        attempt.place.leave()

    def _settle(self) -> None:
        """The dial is over, however it went."""
        for attempt in list(self._attempts.values()):
            self._drop(attempt)
        self._attempts, self._race, self._raced = _NO_ATTEMPTS, _NO_RACE, _NO_PLACES
        self._order = self._rest = _NOBODY
        if self._is_dialling:
            self._is_dialling = False
            assert self._group is not None
            self._group.load.row.end_dial()

    def _schedule(self) -> None:
        """When to look again."""
        connection = self._connection
        due = min(attempt.deadline for attempt in self._attempts.values())
        due = min(due, self._request_due)
        if self._race:
            due = min(due, self._race_at)
        if any(dial.must_ask(one.place.member.address) for one in self._attempts.values()):
            due = connection.worker.now
        connection.worker.calendar.set(connection, due)

    @property
    def _request_due(self) -> float:
        """When the route's time for the whole exchange is over, if it is for one."""
        requests = self._connection.requests
        exchange = None if requests is None else requests.exchange
        return math.inf if exchange is None else exchange.request_due

    def _nobody(self) -> Reason:
        assert self._group is not None
        return self._group.why_nobody()

    def _unreachable(self, reason: Reason) -> None:
        connection = self._connection
        self._settle()
        if connection.listener.protocol is not Protocol.HTTP:
            connection.abort(reason)
            return
        connection.end_with(reason)
        detail = _WHY.get(reason, "no endpoint of the backend takes connections")
        keep = connection.requests is not None and connection.requests.may_answer
        connection.reply_with(504 if reason in _LATE else 503, detail, keep=keep)
        connection.on(Event.UNREACHABLE)

    # ---- afterwards

    def lost_early(self) -> None:
        """The backend broke, or ended, before the client got a byte of it."""
        if self._group is not None and self._place is not None:
            now = self._connection.worker.now
            self._group.failed(self._place, Failure.EARLY, "no answer", now)

    def release(self, *, answered: bool) -> None:
        """The connection is over; `answered`: the backend sent something."""
        self._settle()
        del self._connection  # else each connection is a cycle, and garbage until one is looked for
        group, place = self._group, self._place
        if group is None:
            return
        if place is not None:
            if answered:
                group.worked(place, Failure.EARLY)
            place.leave()
            self._place = None
        if self._is_admitted:
            group.load.leave()
        self._group = None


def _at_last(order: Iterable[Place], avoided: Place) -> Iterator[Place]:
    """The same places, one of them behind the others."""
    found = False
    for place in order:
        if place is avoided:
            found = True
        else:
            yield place
    if found:
        yield avoided
