"""Connections to backends that wait for another request: bounded in number, in age and in use.

- A connection is put here only when its request was sent, and its response read, to the last byte
  and no further. What comes on it afterwards is nobody's response. RFC 9112 section 9.2: "If a
  client receives data on a connection that doesn't have outstanding requests, the client MUST NOT
  consider that data to be a valid response; the client SHOULD close the connection". So a byte,
  like an end, closes it. epoll tells of both; and it is looked at once more when it is taken.
- The one that was used last is taken first; so those that nobody needs grow old, and are closed.
- They are not counted as connections of their endpoint: balancing and circuits are about requests
  under way. (HAProxy counts so, too, for `maxconn`; Envoy's `max_connections` counts idle ones.)
  There are never more than were once under way at the same time.
- An endpoint that is not in the policy any more, or not in the DNS, gets nothing: its connections
  are closed at the next look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from l7proxy.net import dial
from l7proxy.telemetry.counters import Counter
from l7proxy.worker.groups import Place
from l7proxy.worker.wire import Wire

if TYPE_CHECKING:
    from l7proxy.worker.loop import Handler, Worker

MOST = 2048  # connections of a worker
IDLE = 30.0  # seconds; nginx keeps them for 60, HAProxy halves what is not used every 5
LIFE = 3600.0  # seconds since the dial, as nginx's keepalive_time
USES = 10_000  # requests
LOOK = 5.0  # seconds between two looks

_OUT_ONLY = 0x004  # EPOLLOUT: nothing has come


class Pool:
    """One worker's."""

    def __init__(self, worker: Worker) -> None:
        self.tick = -1
        self._worker = worker
        self._places: dict[Wire, Place] = {}  # who is here, the oldest first
        self._wires: dict[object, list[Wire]] = {}  # by `Place.key`, the oldest first
        self._by_fd: dict[int, Wire] = {}

    def __len__(self) -> int:
        return len(self._places)

    def take(self, place: Place) -> Wire | None:
        """A connection of this endpoint on which nothing has come, if there is one.

        Its events are the pool's until `Worker.hand_over`.
        """
        wires = self._wires.get(place.key)
        while wires:
            wire = wires[-1]
            self._forget(wire)
            if wire.is_quiet:
                return wire
            self._close(wire)
        return None

    def put(self, place: Place, wire: Wire, owner: Handler) -> None:
        """Keep a connection whose exchange has ended exactly, or close it; its events are ours."""
        worker = self._worker
        fd, now = wire.sock.fileno(), worker.now
        worker.hand_over(fd, owner, self)
        self._places[wire] = place
        self._wires.setdefault(place.key, []).append(wire)
        self._by_fd[fd] = wire
        wire.put_at = now
        worker.view[Counter.POOLED] += 1
        is_old = wire.uses >= USES or now - wire.born >= LIFE
        if place.is_gone or worker.is_stopping or is_old:
            self._drop(wire)
        elif len(self._places) > MOST:
            self._drop(next(iter(self._places)))
        if self.tick < 0:
            worker.calendar.set(self, now + LOOK)

    def ready(self, fd: int, mask: int) -> None:
        """Something has come on a connection that waits: nobody asked for it."""
        wire = self._by_fd.get(fd)
        if wire is not None and mask & ~_OUT_ONLY:
            self._drop(wire)

    def on_deadline(self) -> None:
        """Close what is old, and what nobody can be sent to any more."""
        until = self._worker.now - IDLE
        for wire, place in list(self._places.items()):
            if wire.put_at <= until or place.is_gone:
                self._drop(wire)
        if self._places:
            self._worker.calendar.set(self, self._worker.now + LOOK)

    def clear(self) -> None:
        """Close all of them."""
        for wire in list(self._places):
            self._drop(wire)

    def _forget(self, wire: Wire) -> None:
        place = self._places.pop(wire)
        self._worker.view[Counter.POOLED_ENDED] += 1
        wires = self._wires[place.key]
        wires.remove(wire)
        if not wires:
            del self._wires[place.key]
        del self._by_fd[wire.sock.fileno()]

    def _drop(self, wire: Wire) -> None:
        self._forget(wire)
        self._close(wire)

    def _close(self, wire: Wire) -> None:
        """In order: nothing is under way on it."""
        try:
            dial.deliver_on_close(wire.sock)
        except OSError:
            pass  # it is broken
        self._worker.bury(wire.sock)
