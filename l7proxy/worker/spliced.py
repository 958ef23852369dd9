"""A pair in the kernel: user space watches for its end, and steps in when bytes are passed.

Some facts about epoll and the SOCKMAP, and what follows:

- A socket in the map calls `saved_data_ready` for every segment, also for those that the kernel
  redirected. With EPOLLIN in the mask each of them wakes the worker; with EPOLLRDHUP alone none
  does (the wait-queue key has no RDHUP bit). So a spliced socket is watched for its end only, and
  a ring-buffer event says when bytes were passed to user space.
- EPOLLHUP cannot be masked and stays while a socket is shut both ways: edge-triggered, as ever.
- epoll says EPOLLIN for bytes that recv(2) does not give yet, when they queue behind data that is
  being sent to the same socket. The kernel's `passed` counter tells that they come: a timer looks
  again.
"""

from __future__ import annotations

import select
from enum import Enum
from typing import TYPE_CHECKING

from l7proxy.datapath.relay import SinkBroken, SourceBroken
from l7proxy.datapath.sockmap import URGENT, Splicer
from l7proxy.errors import Reason
from l7proxy.ledger import Ledger, Step
from l7proxy.model import Datapath, Side
from l7proxy.net.tcpinfo import tcp_info
from l7proxy.session import Flow, FlowCommand, FlowEvent
from l7proxy.telemetry.counters import Counter
from l7proxy.worker.overflow import Moved, Overflow

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection

RETRY_FIRST = 0.0009  # seconds until bytes on their way inside the kernel are looked for again
RETRY_AT_ONCE = 8  # looks without a pause, before that: a kworker is quick, a timer is not
RETRY_LAST = 0.05

TURN = 4  # moves of an overflow before others have their turn

_WATCH = select.EPOLLRDHUP | select.EPOLLET
_MOVE = _WATCH | select.EPOLLIN | select.EPOLLOUT  # while user space has a direction for longer


class Pace(Enum):
    """How to go on after a step."""

    AT_ONCE = "at once"
    SOON = "soon"  # bytes are on their way inside the kernel: a timer looks again
    TURN = "turn"  # there is more, but others have their turn first
    MORE = "more"  # when epoll says that more has come
    ROOM = "room"  # when epoll says that the sink has room


class SplicedPair:
    """A pair in the kernel. User space watches for its end, and steps in when bytes are passed."""

    __slots__ = (
        "_delay",
        "_ledgers",
        "_looks",
        "_overflows",
        "_splicer",
        "_stuck",
        "connection",
        "datapath",
        "index",
        "is_kept",
    )

    def __init__(self, connection: Connection, splicer: Splicer, index: int = -1) -> None:
        """Put the pair into the kernel. Raises OSError when the kernel does not take it.

        With an `index` it is there already: see `adopting`.
        """
        client, backend = connection.client, connection.backend
        assert backend is not None
        connection.watch(client, _WATCH)
        connection.watch(backend, _WATCH)
        if index < 0:
            index = splicer.splice(client.fileno(), backend.fileno())
        self.index = index
        self.is_kept = False  # the supervisor has duplicates of the sockets
        self.datapath = Datapath.SOCKMAP
        self.connection = connection
        self._splicer = splicer
        answer = connection.early_answer
        self._ledgers = (
            Ledger(connection.early_in, connection.early_out),
            Ledger(answer, answer + connection.added),
        )
        self._overflows: list[Overflow | None] = [None, None]
        self._stuck: list[float | None] = [None, None]  # since when a sink has had no room
        self._delay = RETRY_FIRST
        self._looks = 0  # since something last moved

    # ---- taken over from another worker: see `adopting`

    def ended_well(self, side: Side) -> bool:
        """Whether the socket of `side`, which is closed altogether, has seen both ends."""
        ledger = self._read_ledger(side)
        ledger.written = self._splicer.relayed(self.index + side)
        received = tcp_info(self.connection.end(side)).bytes_received
        return self._splicer.ended(self.index + side.other) and ledger.judged(received)

    def recall(self, side: Side) -> bool:
        """Go on from what was published of the direction; whether user space has it."""
        index, ledger = self.index + side, self._ledgers[side]
        ledger.written = self._splicer.relayed(index)
        return self._splicer.passed(index) != ledger.written

    def resume(self, side: Side, *, received: int, unread: int, queued: int) -> int:
        """Go on where another worker was; how many bytes it has written and not taken.

        `received` and `queued` are the two TCP counters (`Ledger.step`), `unread` what the source
        holds. Below zero: so many were taken that nobody has any more.
        """
        ledger = self._read_ledger(side)
        ledger.written += max(0, queued - ledger.expected_in_queue)
        owed = ledger.written - (received - unread - ledger.early_in - ledger.redirected)
        self._overflow(side).resume(owed)
        return owed

    def is_sound(self, side: Side) -> bool:
        """Whether no more is written than was passed."""
        return self._ledgers[side].written <= self._ledgers[side].passed

    def go_on(self, side: Side) -> None:
        """Do what the direction needs."""
        if self._splicer.relayed(self.index + side) != self._splicer.passed(self.index + side):
            self.connection.flow(side, FlowEvent.PASSED)
        else:
            self.on_event(side)

    # ---- in the kernel

    def note_end(self, side: Side) -> None:
        """The end of the direction is about to be passed on."""
        self._splicer.set_ended(self.index + side)

    def start(self) -> None:
        """Look after what the kernel passed while the pair went in."""
        for side in Side:
            self.on_event(side)

    def on_event(self, side: int) -> None:
        """The kernel passed bytes of the direction from `side`, or gave it up."""
        side = Side(side)
        if not self.connection.session.is_open:
            return
        index = self.index + side
        broken = self._splicer.broken(index)
        if broken:
            urgent = broken & URGENT
            self.connection.abort(Reason.URGENT_DATA if urgent else Reason.DATAPATH)
        elif self._splicer.passed(index) != self._ledgers[side].written:
            self.connection.flow(side, FlowEvent.PASSED)

    def ready(self, side: Side, mask: int) -> None:
        """See `OpenPair.ready`."""
        connection = self.connection
        if mask & select.EPOLLERR:
            connection.broken(side)
            return
        if (
            mask & (select.EPOLLRDHUP | select.EPOLLHUP)
            and connection.session.flows[side] is not Flow.FINISHED
        ):
            connection.flow(side, FlowEvent.FIN)
        if mask & select.EPOLLIN and connection.session.is_open and self._stuck[side] is None:
            self._follow(side)
        if mask & select.EPOLLOUT and connection.session.is_open:
            toward = side.other  # the direction that writes to this socket
            if self._stuck[toward] is not None:
                self._follow(toward)

    def again(self) -> None:
        """See `OpenPair.again`."""
        for side in Side:
            if self.connection.session.is_open and self._stuck[side] is None:
                self._follow(side)

    def command(self, side: Side, command: FlowCommand) -> None:
        """Carry out what the session ordered for one direction, `PASS_FIN` excepted."""
        if command is FlowCommand.RELAY_PASSED:
            self.connection.count_overflow()
            self._overflow(side).begin()
        self._follow(side)

    def _follow(self, side: Side) -> None:
        """Do what the direction needs until it flows, finishes, or has to wait."""
        connection = self.connection
        source, sink = connection.end(side), connection.end(side.other)
        pace, turns = Pace.AT_ONCE, 0
        while pace is Pace.AT_ONCE:
            fin = connection.session.flows[side] is Flow.DRAINING
            if not fin and connection.session.flows[side] is not Flow.OVERFLOW:
                return
            # TCP_INFO takes the source's lock: a verdict that ran before is visible after it, and
            # one that runs after it sees the `relayed` that was stored before. So `passed` is read
            # after it; else a first pass could slip between our store and our read, unannounced.
            received = tcp_info(source).bytes_received
            ledger = self._read_ledger(side)
            queued = tcp_info(sink).queued
            step = ledger.step(fin=fin, received=received, queued=queued)
            if step is Step.WAIT:
                pace = Pace.SOON
            elif step is Step.RELAY or self._splicer.relayed(self.index + side) != ledger.written:
                turns += 1
                pace = self._relay(side, ledger) if turns <= TURN else Pace.TURN
            elif step is Step.FLOW:
                self._settled(side)
                connection.flow(side, FlowEvent.CAUGHT_UP)
                self._rest()
                return
            else:
                self._settled(side)
                connection.worker.view[Counter.DRAINS] += 1
                connection.flow(side, FlowEvent.BALANCED)
                return
        if not connection.session.is_open:
            return
        if pace is Pace.SOON:
            self._looks += 1
            pause = self._looks > RETRY_AT_ONCE
            connection.look_again(self._delay if pause else 0.0)
            if pause:
                self._delay = min(self._delay * 2, RETRY_LAST)
        elif pace is Pace.TURN:
            connection.look_again(0.0)

    def _read_ledger(self, side: Side) -> Ledger:
        """The direction's ledger, with the kernel's counters as they are now.

        `redirected` is read last: it stands still once bytes are passed. Read first, it could miss
        what was redirected just before that pass, and user space would overtake it.
        """
        ledger, index = self._ledgers[side], self.index + side
        passed = self._splicer.passed(index)
        ledger.read_kernel(self._splicer.redirected(index), passed)
        return ledger

    def _relay(self, side: Side, ledger: Ledger) -> Pace:
        """One step of an overflow."""
        connection = self.connection
        overflow = self._overflow(side)
        written = ledger.written
        try:
            pace = self._move(side, ledger, overflow)
        except SourceBroken:
            connection.broken(side)
            return Pace.ROOM
        except SinkBroken:
            connection.broken(side.other)
            return Pace.ROOM
        if ledger.written != written:
            self._delay = RETRY_FIRST
            self._looks = 0
        if pace is not Pace.ROOM:
            self._stuck[side] = None
        elif self._stuck[side] is None or ledger.written != written:
            self._stuck[side] = connection.worker.now
            connection.expect_progress()
        return pace

    def _move(self, side: Side, ledger: Ledger, overflow: Overflow) -> Pace:
        if ledger.written != ledger.passed or overflow.owes:
            moved = overflow.move()
            if moved is Moved.PART:
                overflow.freeze()
                return self._await_room(side)
            return Pace.SOON if moved is Moved.NOTHING else Pace.AT_ONCE
        overflow.push()
        overflows = self.connection.session.flows[side] is Flow.OVERFLOW
        if overflows and overflow.is_bulk:
            self.connection.watch(self.connection.end(side), _MOVE)
            # what was passed before that is found now, and what comes after it is told
            return Pace.MORE if self._read_ledger(side).caught_up else Pace.AT_ONCE
        self._splicer.set_relayed(self.index + side, ledger.written)
        return Pace.AT_ONCE

    def _rest(self) -> None:
        """Watch both sockets for their ends only, unless user space still has a direction."""
        if all(flow in (Flow.KERNEL, Flow.FINISHED) for flow in self.connection.session.flows):
            for side in Side:
                self.connection.watch(self.connection.end(side), _WATCH)

    def _await_room(self, side: Side) -> Pace:
        """The sink's queue is full: come back when epoll says that there is room.

        Asking epoll anew makes the kernel look now, and remember that somebody waits (`tcp_poll`
        sets SOCK_NOSPACE). It says so at two thirds of the limit.
        """
        self.connection.watch(self.connection.end(side.other), _MOVE, anew=True)
        return Pace.ROOM

    def _overflow(self, side: Side) -> Overflow:
        overflow = self._overflows[side]
        if overflow is None:
            overflow = Overflow(self.connection, side, self._ledgers[side])
            self._overflows[side] = overflow
        return overflow

    def _settled(self, side: Side) -> None:
        """User space has nothing more to do for the direction, for now."""
        # were this not published, the kernel would pass on and on and announce nothing
        assert self._splicer.relayed(self.index + side) == self._ledgers[side].written
        self._delay = RETRY_FIRST
        self._looks = 0

    def idle_since(self, now: float) -> float:
        """See `OpenPair.idle_since`. TCP knows when data moved last; l7proxy does not see it."""
        infos = [tcp_info(self.connection.end(side)) for side in Side]
        silent = min(min(info.last_data_recv, info.last_data_sent) for info in infos)
        return now - silent / 1000

    def stalled_since(self) -> float | None:
        """See `OpenPair.stalled_since`."""
        return min((since for since in self._stuck if since is not None), default=None)

    def moved(self) -> tuple[int, int, int, int]:
        """See `OpenPair.moved`."""
        up, down = self._read_ledger(Side.CLIENT), self._read_ledger(Side.BACKEND)
        return up.total, down.total, up.redirected, down.redirected

    def silent(self) -> bool:
        """See `OpenPair.silent`."""
        index = self.index + Side.BACKEND
        if self._ledgers[Side.BACKEND].early_in:
            return False
        return self._splicer.redirected(index) == self._splicer.passed(index) == 0

    def close(self) -> None:
        """See `OpenPair.close`: the index is free again only once both sockets are closed."""
