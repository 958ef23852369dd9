"""One connection: feeds its session with what happened and carries out what is ordered.

The session (pure) decides; this module owns the two sockets. Both reset on close from the first
moment (the client's socket inherits that from the listening socket), until the connection is known
to be complete or the answer is our own: a stream that was cut must never look complete.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from l7proxy.datapath.sockmap import HalfSpliced
from l7proxy.errors import Reason
from l7proxy.model import Forward, Protocol, Side
from l7proxy.net import dial
from l7proxy.responses import local_response
from l7proxy.session import Command, Event, Flow, FlowCommand, FlowEvent, Session, State
from l7proxy.telemetry.accesslog import Record
from l7proxy.telemetry.counters import Counter
from l7proxy.telemetry.metered import NOTHING, Moved
from l7proxy.telemetry.presence import NOWHERE
from l7proxy.worker.dialing import Dialing
from l7proxy.worker.first import FirstPair
from l7proxy.worker.front import peer_of
from l7proxy.worker.lastwords import last_words
from l7proxy.worker.opening import Opening
from l7proxy.worker.relayed import OpenPair, RelayedPair
from l7proxy.worker.reply import Reply
from l7proxy.worker.requests import Requests
from l7proxy.worker.sending import Sending
from l7proxy.worker.spliced import SplicedPair
from l7proxy.worker.wire import Wire

if TYPE_CHECKING:
    from l7proxy.head import Head
    from l7proxy.worker.exchange import Exchange
    from l7proxy.worker.generation import OpenListener
    from l7proxy.worker.groups import Place
    from l7proxy.worker.loop import Worker

_CLOSED = State.CLOSED  # a name of the module is read three times as fast as one of an Enum
_WHOLE = [Flow.USER, Flow.USER]
KEEPALIVE_AFTER = 30.0  # seconds; shorter connections are not worth the system calls


class Connection:
    """A client, and from DIAL on its backend. Lives from accept to the access-log record."""

    __slots__ = (
        "_masks",
        "added",
        "backend",
        "before_in",
        "before_out",
        "began",
        "brief",
        "client",
        "client_host",
        "copied",
        "dialing",
        "dismissed",
        "early_answer",
        "early_in",
        "early_out",
        "held_answer",
        "held_request",
        "listener",
        "metered",
        "number",
        "opening",
        "pair",
        "presence",
        "record",
        "reply",
        "requests",
        "retry_at",
        "sending",
        "session",
        "since",
        "spliceable",
        "splicer_index",
        "tick",
        "timeouts",
        "upgrades",
        "worker",
    )

    def __init__(
        self, worker: Worker, listener: OpenListener, client: socket.socket, address: Any
    ) -> None:
        """Take over an accepted socket; `address` is what accept(2) told of the client."""
        self.worker = worker
        self.listener = listener
        self.client = client
        self.number = 0  # an operator's name for it
        self.backend: socket.socket | None = None
        self.session = Session()
        self.pair: OpenPair | None = None
        self.splicer_index = -1
        self.tick = -1
        self.retry_at = 0.0
        self.began = self.since = worker.now  # `since`: of the request that the record is about
        self.requests: Requests | None = None  # where each is routed by itself
        self.before_in = self.before_out = 0  # bytes of requests that were logged before the splice
        self.metered = NOTHING  # of what its pair has moved, counted already by route and endpoint
        self.early_in = 0  # bytes that the client sent before the pair was open
        self.early_out = 0  # bytes that were written to the backend before
        self.early_answer = 0  # bytes that the backend sent before the pair was open
        self.added = 0  # bytes that were added to these on their way: a cookie
        self.held_answer = b""  # of these, what the client had no room for
        self.held_request = b""  # what the backend had no room for; not in `early_in`
        # splice(2) gets nothing out of a socket that is in the map already; and for what is left
        # of an answer that has ended, or had no room, a pipe is not worth it
        self.copied = False
        self.spliceable = not listener.front.is_unix  # the kernel may move the bytes
        self.brief = False  # the backend was asked to close when it has answered
        self.upgrades = False  # the client wishes to speak something else: see `farewell`
        self.dismissed = False  # the backend was told that nothing more comes: see `farewell`
        self.timeouts = listener.timeouts
        self.opening: Opening | None = Opening(self)
        self.sending: Sending | None = None
        self.dialing: Dialing = Dialing(self)
        self.reply: Reply | None = None
        self._masks: list[int | None] = [None, None]  # what epoll watches, by side
        self.presence = NOWHERE  # where this client is counted
        self.client_host, client_name = peer_of(address)
        """The address of who is served, without port and zone; "unix:" where it has none."""
        self.record = Record(
            time=worker.wall(),
            worker=worker.slot,
            listener=listener.name,
            client=client_name,
            protocol=listener.protocol,
        )

    # ---- events in, commands out

    def on(self, event: Event) -> None:
        """Tell the session what happened, and do what it orders."""
        session = self.session
        before = session.state
        commands = session.on(event)
        if session.state is _CLOSED and not self.record.state:
            self.record.state = before.value
        for command in commands:
            _COMMANDS[command](self)

    def flow(self, side: Side, event: FlowEvent) -> None:
        """The same for one direction of the open pair."""
        for command in self.session.on_flow(side, event):
            if command is FlowCommand.PASS_FIN:
                self._pass_fin(side)
            else:
                pair = self.pair
                assert isinstance(pair, SplicedPair)
                pair.command(side, command)

    def ready(self, fd: int, mask: int) -> None:
        """Epoll has reported `mask` for one of the sockets."""
        side = Side.CLIENT if fd == self.client.fileno() else Side.BACKEND
        if self.pair is not None and self.session.is_open:
            self.pair.ready(side, mask)
        elif self.session.state is State.DIAL:  # there may be several sockets
            self.dialing.ready(fd, mask)
        else:
            _READY[self.session.state](self, side, mask)

    def on_deadline(self) -> None:
        """The deadline has passed."""
        state = self.session.state
        if state is State.HEAD:
            self._opening.timed_out()
        elif state is State.DIAL:
            self.dialing.timed_out()
        elif state is State.EXCHANGE:
            self._exchange.on_deadline()
        elif state is State.IDLE:
            self._opening.idle_timed_out()
        elif self.session.is_open:
            self._check_open()
        elif state is not State.CLOSED:
            if state is State.SEND:
                self.end_with(Reason.STALLED)
            elif state is State.ANSWER:
                self.end_with(Reason.IDLE_TIMEOUT)
            self.on(Event.TIMEOUT)

    def abort(self, reason: Reason) -> None:
        """Reset whatever is open, because of `reason`."""
        if self.session.state is not State.CLOSED:
            self.end_with(reason)
            self.on(Event.ABORT)

    def end_with(self, reason: Reason) -> None:
        """Note why the connection ends, and in which state; the first reason counts."""
        if self.record.reason is Reason.DONE:
            self.record.reason = reason
            self.record.state = self.session.state.value

    def client_failed(self) -> None:
        """The client's socket is broken, and no pair is open."""
        self.end_with(Reason.CLIENT_RESET)
        self.on(Event.CLIENT_ERROR)

    # ---- HEAD: see `Opening`; DIAL: see `Dialing`; SEND, ANSWER: see `Sending`

    def begin(self) -> None:
        """Start: read what routes, or dial at once where nothing is read."""
        self._opening.begin()

    @property
    def _opening(self) -> Opening:
        assert self.opening is not None
        return self.opening

    @property
    def _sending(self) -> Sending:
        assert self.sending is not None
        return self.sending

    # ---- EXCHANGE, IDLE: see `Exchange`, `Requests`

    @property
    def _requests(self) -> Requests:
        assert self.requests is not None
        return self.requests

    @property
    def _exchange(self) -> Exchange:
        exchange = self._requests.exchange
        assert exchange is not None
        return exchange

    def may_keep(self, head: Head) -> bool:
        """Whether an answer of our own to this request, which was read, ends the connection not."""
        if self.worker.is_stopping or not head.keep_alive or head.version != "1.1":
            return False
        return self.requests is not None or self.listener.router.per_request

    def follow_reload(self) -> None:
        """The next request is for what the listener has become."""
        listener = self.listener
        while listener.successor is not None:
            listener = listener.successor
        if listener is not self.listener:
            self.worker.moved(self.listener.row, listener.row)
            self.listener = listener
            self.record.listener = listener.name

    def keep_backend(self, place: Place, wire: Wire) -> None:
        """An exchange has ended exactly: others may use its connection."""
        self.backend = None
        self._masks[Side.BACKEND] = None
        self.worker.lent.pop(wire.index, None)
        self.worker.pool.put(place, wire, self)

    def leave_client(self) -> None:
        """The client's last response is written: it gets the time to read it."""
        try:
            dial.deliver_on_close(self.client)
        except OSError:
            pass  # it is broken: the next call on it tells
        self.reply = Reply(self, b"")

    @property
    def rests(self) -> bool:
        """Whether it is kept, and nothing of the next request is known to have come."""
        requests = self.requests
        if self.session.state is not State.IDLE or requests is None:
            return False
        return not (requests.pending or requests.client.more)

    def hang_up(self) -> None:
        """No other request is awaited. One that is on its way must not reset what was answered."""
        self.leave_client()
        self.on(Event.TIMEOUT)

    def replied(self, count: int) -> None:
        """An answer of our own of so many bytes is written, and the client may go on."""
        requests = self._requests
        requests.account()
        self.release_backend(answered=False)
        self.reply = None
        requests.client.written += count
        requests.over()
        self.on(Event.KEPT)

    def redial(self, decision: Forward, head: Head, *, avoid: Place | None = None) -> None:
        """Choose an endpoint anew for the same request; `avoid` only if there is no other one."""
        source, destination = self.dialing.source, self.dialing.destination
        self.release_backend(answered=False)
        self.dialing.source = source
        self.dialing.choose(decision, head, self.client_host, None, destination, avoid=avoid)

    def release_backend(self, *, answered: bool) -> None:
        """A request is over: its endpoint has one fewer."""
        self.dialing.release(answered=answered)
        self.dialing = Dialing(self)

    def switch(self, backend: Wire, *, heard_before: int) -> None:
        """The exchange ends in another protocol: its pair is spliced, with what was not written."""
        requests = self._requests
        client = requests.client
        self.before_in, self.before_out = requests.taken_before, heard_before
        self.held_answer, self.held_request = client.out, backend.out
        self.early_in = client.taken - len(backend.out)
        self.early_out = backend.written
        self.early_answer = backend.taken
        self.added = client.written + len(client.out) - backend.taken
        if client.index >= 0 or backend.index >= 0:
            # by themselves in the map already; and splice(2) gets nothing out of such a socket
            self.spliceable, self.copied = False, True
        self.requests = self.opening = None
        self.client_host = ""
        self.worker.switched(self.record)
        self.upgrades, self.brief = True, False
        self._schedule_check()
        self.on(Event.SWITCHED)

    # ---- FIRST, SPLICED, RELAYED

    def _pass_first(self) -> None:
        self._sent()
        self.count_early()
        self.pair = FirstPair(self)
        self.worker.view[Counter.RELAYS] += 1
        self._note_open()

    def _sent(self) -> None:
        """SEND or ANSWER is over."""
        sending, self.sending = self._sending, None
        self.client_host = ""  # it has decided what it could; idle connections are many
        self.held_answer, self.held_request = sending.held_answer, sending.held_request
        self.copied = sending.answer_ended
        self._schedule_check()

    def count_early(self) -> None:
        """Count what was moved before a pair was open."""
        view = self.worker.view
        view[Counter.RELAYED_CLIENT] += self.early_in
        view[Counter.RELAYED_BACKEND] += max(0, self.early_answer - len(self.held_answer))

    def _open(self) -> None:
        worker = self.worker
        if self.sending is not None:  # from ANSWER
            self._sent()
            self.count_early()
        splicer = worker.splicer
        held = self.copied or bool(self.held_answer) or bool(self.held_request)
        if splicer is None or held or not self.may_splice:
            self.on(Event.REFUSED)
            return
        try:
            pair = SplicedPair(self, splicer)
        except OSError as error:
            worker.note_refused(error)
            self.spliceable = False
            if isinstance(error, HalfSpliced):
                self.splicer_index = error.index
                self.copied = True
            self.on(Event.REFUSED)
            return
        self.pair = pair
        self.splicer_index = pair.index
        worker.spliced[pair.index >> 1] = pair
        worker.metered.store(pair.index, self.metered)
        worker.view[Counter.SPLICES] += 1
        self._note_open()
        worker.keeping.add(pair)
        pair.start()

    def _adopt(self) -> None:
        """Go on with the pair where it is: `adopting` looks after the rest."""
        worker, index = self.worker, self.splicer_index
        assert worker.splicer is not None
        pair = SplicedPair(self, worker.splicer, index)
        pair.is_kept = True
        self.pair = pair
        self.metered = worker.metered.of(index)
        worker.spliced[index >> 1] = pair
        self._schedule_check()

    @property
    def may_splice(self) -> bool:
        """Whether the kernel may be asked to take the pair, for all that is known of it."""
        return self.spliceable and self.worker.splicer is not None and not self.dialing.is_unix

    @property
    def is_whole(self) -> bool:
        """Whether neither end of the open pair has ended: else the kernel would not take it."""
        return self.session.flows == _WHOLE

    def _relay(self) -> None:
        self.copied |= bool(self.held_answer) or bool(self.held_request)
        pair = RelayedPair(self, copy=self.copied)
        self.pair = pair
        self.worker.view[Counter.RELAYS] += 1
        self._note_open()

    def note_head(self) -> None:
        """What routes is complete."""
        record = self.record
        record.head_ms = self.elapsed()
        self.worker.meter.head(record.listener, record.head_ms)

    def note_dialled(self) -> None:
        """The backend is connected to."""
        record = self.record
        record.dial_ms = self.elapsed()
        self.worker.meter.dialled(record.backend, record.dial_ms - (record.head_ms or 0.0))

    def note_first_byte(self) -> None:
        """The first byte of the backend has come."""
        record = self.record
        record.first_byte_ms = self.elapsed()
        self.worker.meter.first_byte(record.backend, record.first_byte_ms - (record.dial_ms or 0.0))

    def _note_open(self) -> None:
        assert self.pair is not None
        self.record.datapath = self.pair.datapath
        self.record.splice_ms = self.elapsed()

    def _pass_fin(self, side: Side) -> None:
        """Every byte from `side` is with the other side: half-close that one."""
        if isinstance(self.pair, SplicedPair):
            self.pair.note_end(side)  # another worker could not tell it from a reset
        if side is Side.BACKEND and self._backend_was_silent():
            self._backend_silent()
            return
        if self.session.finished or (self.dismissed and side is Side.BACKEND):
            self.on(Event.FINISHED)
            return
        try:
            self.end(side.other).shutdown(socket.SHUT_WR)
        except OSError:
            self.broken(side.other)

    def broken(self, side: Side) -> None:
        """The socket of `side` failed: the other end must not see a clean end."""
        if not self.session.is_open:
            return
        if side is Side.CLIENT:
            self.end_with(Reason.CLIENT_RESET)
            self.on(Event.CLIENT_ERROR)
        elif self._backend_was_silent():
            self._backend_silent()
        else:
            if self.pair is not None and self.pair.silent() and not self._client_has_ended():
                self.dialing.lost_early()
            self.end_with(Reason.BACKEND_RESET)
            self.on(Event.BACKEND_ERROR)

    def _backend_was_silent(self) -> bool:
        """Whether the client has got nothing yet, so that an answer of ours is still one."""
        if self.listener.protocol is not Protocol.HTTP or self.pair is None:
            return False
        return self.pair.silent()

    def _client_has_ended(self) -> bool:
        """Whether nothing more comes of the client: that a backend hangs up then is no fault."""
        return self.session.flows[Side.CLIENT] in (Flow.DRAINING, Flow.FINISHED)

    def _backend_silent(self) -> None:
        if not last_words(self):
            self.dialing.lost_early()
            self.end_with(Reason.BACKEND_CLOSED)
            self.reply_with(502, "the backend closed the connection without an answer")
        self.on(Event.BACKEND_SILENT)

    def count_overflow(self) -> None:
        """A direction of the spliced pair is taken over by user space for a while."""
        self.record.overflows += 1
        self.worker.view[Counter.OVERFLOWS] += 1

    def look_again(self, delay: float) -> None:
        """Have `pair.again` called in `delay` seconds."""
        self.worker.look_again(self, delay)

    def expect_progress(self) -> None:
        """A receiver takes nothing: look after it when the overflow timeout has passed."""
        seconds = self.timeouts.overflow
        if seconds:
            self.worker.calendar.sooner(self, self.worker.now + seconds)

    def _schedule_check(self) -> None:
        idle = self.timeouts.idle
        first = min(KEEPALIVE_AFTER, idle) if idle else KEEPALIVE_AFTER
        self.worker.calendar.set(self, self.worker.now + first)

    def _check_open(self) -> None:
        """Idle? Stalled? Neither is visible in the bytes, which l7proxy does not see."""
        assert self.pair is not None and self.backend is not None  # noqa: PT018
        timeouts, now = self.timeouts, self.worker.now
        if now - self.began < 2 * KEEPALIVE_AFTER:
            try:
                dial.watch_for_dead_end(self.backend)
            except OSError:
                pass  # it is broken already: epoll tells
        due = []
        stalled = self.pair.stalled_since()
        if timeouts.overflow and stalled is not None:
            due.append(stalled + timeouts.overflow)
            if due[-1] <= now:
                self.end_with(Reason.STALLED)
                self.on(Event.TIMEOUT)
                return
        if timeouts.idle:
            due.append(self.pair.idle_since(now) + timeouts.idle)
            if due[-1] <= now:
                self.end_with(Reason.IDLE_TIMEOUT)
                self.on(Event.TIMEOUT)
                return
        if due:
            self.worker.calendar.set(self, min(due))

    # ---- REPLY, LINGER: see `Reply`

    def reply_with(self, status: int, detail: str, *, keep: bool = False) -> None:
        """Prepare a short response, which the session is going to order."""
        method = self.record.method or "GET"
        self.answer_with(
            status, local_response(status, detail, method=method, keep=keep), keep=keep
        )

    def answer_with(self, status: int | None, answer: bytes, *, keep: bool = False) -> None:
        """Prepare the answer that the session is going to order; `status` is that of a response.

        `keep`: the client may send another request after it.
        """
        self.record.status = status
        self.reply = Reply(self, answer, keep=keep)

    @property
    def _reply(self) -> Reply:
        assert self.reply is not None
        return self.reply

    # ---- the end

    @property
    def _is_kept(self) -> bool:
        """Whether close(2) does not end it: the supervisor has descriptors, too."""
        return isinstance(self.pair, SplicedPair) and self.pair.is_kept

    def _reset(self) -> None:
        dial.reset_on_close(self.client)
        if self._is_kept:
            dial.reset_now(self.client)
            if self.backend is not None:
                dial.reset_now(self.backend)
        self._end()

    def _close(self) -> None:
        try:
            dial.deliver_on_close(self.client)
            if self.backend is not None:
                dial.deliver_on_close(self.backend)
            if self._is_kept:
                self._shut()
        except OSError:
            pass  # a socket that is broken by now has nothing to deliver
        self._end()

    def _shut(self) -> None:
        """The FINs that close(2) would send."""
        for sock in (self.client, self.backend):
            if sock is not None:
                try:
                    sock.shutdown(socket.SHUT_WR)
                except OSError:
                    pass  # it was shut before, and its other end has closed as well

    def _end(self) -> None:
        """Close both sockets, give everything back, write the record."""
        worker, record = self.worker, self.record
        if self._is_kept:
            self._unwatch(self.client)
            self._unwatch(self.backend)
        worker.calendar.cancel(self)
        pair = self.pair
        if pair is not None:
            moved = self.moved(pair)
            record.bytes_in, record.bytes_out, record.kernel_in, record.kernel_out = moved
            pair.close()
            spliced = isinstance(pair, SplicedPair)
            worker.view[Counter.SPLICES_ENDED if spliced else Counter.RELAYS_ENDED] += 1
            self.pair = None
        elif self.requests is not None:
            self.requests.close()
        else:
            record.bytes_in, record.bytes_out = self.early_in, self.early_answer
        worker.bury(self.client)
        self.drop_backend()
        if self.splicer_index >= 0:
            worker.release(self.splicer_index)
        self.dialing.release(answered=record.bytes_out > 0)
        if self.presence != NOWHERE:
            worker.presence.leave(self.presence)
        self.opening = self.sending = self.reply = None
        if self.requests is not None:
            self.requests.exchange = None
        record.total_ms = self.elapsed()
        worker.ended(self)

    def moved(self, pair: OpenPair) -> Moved:
        """See `OpenPair.moved`; without the requests that were logged before."""
        up, down, kernel_up, kernel_down = pair.moved()
        return up - self.before_in, down - self.before_out, kernel_up, kernel_down

    # ---- sockets and epoll

    def end(self, side: Side) -> socket.socket:
        """The socket of one side of the open pair."""
        if side is Side.CLIENT:
            return self.client
        assert self.backend is not None
        return self.backend

    def watch(self, sock: socket.socket, mask: int, *, anew: bool = False) -> None:
        """Have epoll report `mask` for the socket, and errors in any case.

        `anew`: even if it does so already; it then looks at the socket again.
        """
        side = 0 if sock is self.client else 1
        known = self._masks[side]
        if known is None:
            self.worker.register(sock.fileno(), mask, self)
        elif anew or known != mask:
            self.worker.modify(sock.fileno(), mask)
        self._masks[side] = mask

    def take_backend(self, sock: socket.socket, mask: int | None) -> None:
        """Take a connected socket over; `mask`: what epoll watches it for, on our behalf."""
        self.backend = sock
        self._masks[Side.BACKEND] = mask

    def look_again_at(self) -> None:
        """The time that was asked for with `look_again` has come."""
        if self.pair is not None and self.session.is_open:
            self.pair.again()
        elif self.session.state is State.EXCHANGE:
            self._exchange.again()
        elif self.session.state is State.IDLE:
            self._opening.resume()

    def _unwatch(self, sock: socket.socket | None) -> None:
        """A descriptor that is closed stays in epoll while there is another one of its socket."""
        if sock is not None:
            self.worker.unwatch(sock.fileno(), self)

    def drop_backend(self, *, in_order: bool = False) -> None:
        """Give the backend's socket up, if there is one; `in_order`: nothing is to be cut off."""
        if self.backend is not None:
            if in_order:
                try:
                    dial.deliver_on_close(self.backend)
                except OSError:
                    pass  # it is broken
            if self._is_kept:
                dial.reset_now(self.backend)
                self._unwatch(self.backend)
            self.worker.bury(self.backend)
            self._masks[Side.BACKEND] = None
            self.backend = None

    def set_deadline(self, seconds: float) -> None:
        """Have `on_deadline` called in `seconds`, in place of any earlier deadline; 0: never."""
        if seconds:
            self.worker.calendar.set(self, self.worker.now + seconds)
        else:
            self.worker.calendar.cancel(self)

    def elapsed(self) -> float:
        """Milliseconds since the accept, or since the request began."""
        return (self.worker.clock() - self.since) * 1000


_COMMANDS: dict[Command, Callable[[Connection], None]] = {
    Command.READ_HEAD: lambda connection: connection._opening.read_head(),
    Command.DIAL: lambda connection: connection.dialing.start(),
    Command.SEND: lambda connection: connection._sending.send(),
    Command.READ_ANSWER: lambda connection: connection._sending.read_answer(),
    Command.FIRST: Connection._pass_first,
    Command.EXCHANGE: lambda connection: connection._exchange.start(),
    Command.BEGIN: lambda connection: connection._requests.begin(),
    Command.READ_NEXT: lambda connection: connection._opening.await_next(),
    Command.OPEN: Connection._open,
    Command.ADOPT: Connection._adopt,
    Command.RELAY: Connection._relay,
    Command.REPLY: lambda connection: connection._reply.start(),
    Command.LINGER: lambda connection: connection._reply.linger(),
    Command.CLOSE: Connection._close,
    Command.RESET: Connection._reset,
}

_READY: dict[State, Callable[[Connection, Side, int], None]] = {
    State.HEAD: lambda connection, side, mask: connection._opening.ready(side, mask),
    State.SEND: lambda connection, side, mask: connection._sending.send_ready(side, mask),
    State.ANSWER: lambda connection, side, mask: connection._sending.answer_ready(side, mask),
    State.EXCHANGE: lambda connection, side, mask: connection._exchange.ready(side, mask),
    State.IDLE: lambda connection, side, mask: connection._opening.next_ready(side, mask),
    State.REPLY: lambda connection, side, mask: connection._reply.ready(side, mask),
    State.LINGER: lambda connection, side, mask: connection._reply.linger_ready(side, mask),
}
