"""A pair whose bytes user space moves: for now, or for its whole life.

For now, while much comes at once: a receiver that is slower than its sender would make the kernel
pass what it can't redirect, and what it has passed can only be copied (`overflow`). splice(2) moves
such a stream at two thirds of that cost. So the kernel gets the pair when it is *calm*: a few turns
in a row have found room for all that was there, which was not much, so the receiver keeps up. For
its whole life where there is no kernel for it, or the kernel has refused it.

EPOLLHUP cannot be masked and stays while a socket is shut both ways, so open pairs are watched
edge-triggered. Each edge is followed up until EAGAIN, or until `Want.TURN` asks for another turn.

Urgent data is refused, as in a spliced pair. An urgent byte that was read before epoll told of it
went on as data (`keep_urgent_inline`): nothing is lost without a word.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Protocol

from l7proxy.datapath.relay import BUFFER, Channel, SinkBroken, SourceBroken, Want
from l7proxy.errors import Reason
from l7proxy.model import Datapath, Side
from l7proxy.session import Event, Flow, FlowEvent
from l7proxy.telemetry.counters import Counter

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection

RELAYED = (Counter.RELAYED_CLIENT, Counter.RELAYED_BACKEND)
"""The counter of what user space moved, by the side that it came from."""

BY_REFERENCE = (Counter.SPLICE2_CLIENT, Counter.SPLICE2_BACKEND)
"""The same of what splice(2) moved of it."""

QUIET = BUFFER // 2  # bytes; a turn that moves more, or finds no room, is not calm
CALM = 8  # calm turns in a row, after which the kernel may have the pair

_GOES_ON = (Want.READ, Want.TURN)
_MASK = select.EPOLLIN | select.EPOLLPRI | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET


class OpenPair(Protocol):
    """What `Connection` asks of an open pair, whatever moves its bytes."""

    datapath: Datapath

    def ready(self, side: Side, mask: int) -> None:
        """Epoll reported `mask` for the socket of `side`."""

    def again(self) -> None:
        """The pair asked to be looked at again, and the time has come."""

    def idle_since(self, now: float, /) -> float:
        """When a byte last moved, in seconds of the worker's clock."""

    def stalled_since(self) -> float | None:
        """Since when a receiver has taken nothing of what waits for it; None: none does."""

    def moved(self) -> tuple[int, int, int, int]:
        """Bytes: from the client, from the backend, and how many of each the kernel moved."""

    def silent(self) -> bool:
        """Whether nothing of the backend has reached the client, or is on its way to it."""

    def close(self) -> None:
        """Give back what the pair holds. Both sockets are closed, or about to be."""


class RelayedPair:
    """A pair whose bytes user space moves, until it is calm where the kernel may have it."""

    __slots__ = (
        "_active",
        "_calm",
        "_channels",
        "_connection",
        "_held",
        "_stuck",
        "_wants",
        "datapath",
    )

    def __init__(self, connection: Connection, *, copy: bool) -> None:
        """Relay by copying if `copy`, else as the worker's datapath says."""
        self._connection = connection
        client, backend = connection.client, connection.backend
        assert backend is not None
        relays = connection.worker.relays
        self._held = len(connection.held_answer)  # of what the backend had sent before
        self.datapath = Datapath.COPY if copy else relays.datapath
        channels: list[Channel]
        if self.datapath is Datapath.COPY:
            answer = relays.copy(backend, client)
            answer.hold(connection.held_answer)
            connection.held_answer = b""
            request = relays.copy(client, backend)
            request.hold(connection.held_request)
            connection.held_request = b""
            channels = [request, answer]
        else:
            client.setblocking(False)
            channels = [relays.splice2(client, backend), relays.splice2(backend, client)]
        self._channels = channels
        self._wants = [Want.READ, Want.READ]
        self._stuck: list[float | None] = [None, None]  # since when a sink has had no room
        self._active = connection.worker.now
        self._calm = 0  # turns in a row, of either direction
        # Anew: an exchange watched both for the same, and an edge of that time is not told again.
        connection.watch(client, _MASK, anew=True)
        connection.watch(backend, _MASK, anew=True)

    def ready(self, side: Side, mask: int) -> None:
        """See `OpenPair.ready`."""
        if mask & select.EPOLLERR:
            self._connection.broken(side)
            return
        if mask & select.EPOLLPRI:
            self._connection.abort(Reason.URGENT_DATA)
            return
        if mask & ~select.EPOLLOUT:
            self._pump(side)
        if mask & select.EPOLLOUT and self._connection.session.is_open:
            self._pump(side.other)

    def again(self) -> None:
        """See `OpenPair.again`."""
        for side in Side:
            if self._wants[side] is Want.TURN and self._connection.session.is_open:
                self._pump(side)

    def _pump(self, side: Side) -> None:
        connection = self._connection
        if connection.pair is not self or connection.session.flows[side] is Flow.FINISHED:
            return
        channel = self._channels[side]
        before = channel.written
        try:
            want = channel.pump()
        except SourceBroken:
            connection.broken(side)
            return
        except SinkBroken:
            connection.broken(side.other)
            return
        except OSError:  # no pipe to be had, so none is held: copying needs no descriptor
            self._channels[side] = connection.worker.relays.copy(
                connection.end(side), connection.end(side.other), after=channel
            )
            self._pump(side)
            return
        self._wants[side] = want
        moved = channel.written - before
        if moved:
            if side and not before and not connection.early_answer:
                connection.note_first_byte()
            connection.worker.view[RELAYED[side]] += moved
            if channel.by_reference:
                connection.worker.view[BY_REFERENCE[side]] += moved
            self._active = connection.worker.now
            self._stuck[side] = None
        if want is Want.WRITE and self._stuck[side] is None:
            self._stuck[side] = connection.worker.now
            connection.expect_progress()
        if want is Want.TURN:
            connection.look_again(0.0)
        if want in _GOES_ON and moved <= QUIET:  # many little pieces make a turn, too
            self._note_calm(moved)
            return
        if want is Want.END:
            connection.session.on_flow(side, FlowEvent.FIN)
            # every byte was written by this process, in order: nothing is under way
            connection.flow(side, FlowEvent.BALANCED)
        self._calm = 0

    def _note_calm(self, moved: int) -> None:
        """A turn found room for all that was there, which was not much."""
        self._calm += moved > 0
        if self._calm >= CALM:
            connection = self._connection
            held = any(channel.holds for channel in self._channels)
            if connection.may_splice and connection.is_whole and not held:
                self._leave_to_kernel()

    def _leave_to_kernel(self) -> None:
        connection = self._connection
        up, down = self._channels
        connection.early_in += up.written
        connection.early_out += up.written
        connection.early_answer += down.written - self._held
        connection.worker.view[Counter.RELAYS_ENDED] += 1
        self.close()
        connection.pair = None
        connection.copied = False
        connection.on(Event.CALM)

    def idle_since(self, _now: float) -> float:
        """See `OpenPair.idle_since`."""
        return self._active

    def stalled_since(self) -> float | None:
        """See `OpenPair.stalled_since`."""
        return min((since for since in self._stuck if since is not None), default=None)

    def moved(self) -> tuple[int, int, int, int]:
        """See `OpenPair.moved`."""
        up, down = self._channels
        connection = self._connection
        answered = connection.early_answer - self._held + down.written
        return connection.early_in + up.written, answered, 0, 0

    def silent(self) -> bool:
        """See `OpenPair.silent`."""
        return not self._connection.early_answer and not self._channels[Side.BACKEND].taken

    def close(self) -> None:
        """See `OpenPair.close`."""
        for channel in self._channels:
            channel.close()
