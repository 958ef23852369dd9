"""One connection: feeds its session with what happened and carries out what is ordered.

The session (pure) decides; this module owns the two sockets. Both reset on close from the first
moment (the client's socket inherits that from the listening socket), until the connection is known
to be complete or the answer is our own: a stream that was cut must never look complete.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from l7proxy.datapath.sockmap import HalfSpliced
from l7proxy.errors import BadRequest, Reason
from l7proxy.head import Head, HeadReader, serialise
from l7proxy.model import Address, Forward, Protocol, Respond, Side
from l7proxy.net import dial
from l7proxy.responses import local_response
from l7proxy.session import (
    Command,
    Event,
    FlowCommand,
    FlowEvent,
    Session,
    State,
)
from l7proxy.telemetry.accesslog import Record
from l7proxy.telemetry.counters import Counter
from l7proxy.worker.relayed import OpenPair, RelayedPair
from l7proxy.worker.spliced import SplicedPair

if TYPE_CHECKING:
    from l7proxy.worker.loop import OpenListener, Worker

KEEPALIVE_AFTER = 30.0  # seconds; shorter connections are not worth the system calls
LINGER = 2.0  # seconds that a client has to read an answer of ours and to close
ANSWER_ROUNDS = 4  # buffers of a backend's first answer that are passed on before the splice
SURPLUS_ROUNDS = 16  # buffers that are read along before the splice; the trim covers what is left

_DONTWAIT = socket.MSG_DONTWAIT
_GONE = select.EPOLLERR | select.EPOLLHUP


class Connection:
    """A client, and from DIAL on its backend. Lives from accept to the access-log record."""

    __slots__ = (
        "_answer_ended",
        "_endpoints",
        "_full_read",
        "_masks",
        "_outgoing",
        "_reader",
        "_reply",
        "backend",
        "began",
        "client",
        "dial_failure",
        "early_answer",
        "early_in",
        "early_out",
        "endpoint",
        "held_answer",
        "listener",
        "pair",
        "record",
        "retry_at",
        "session",
        "splicer_index",
        "tick",
        "worker",
    )

    def __init__(
        self, worker: Worker, listener: OpenListener, client: socket.socket, address: Any
    ) -> None:
        """Take over an accepted socket; `address` is what accept(2) told of the client."""
        self.worker = worker
        self.listener = listener
        self.client = client
        self.backend: socket.socket | None = None
        self.session = Session()
        self.pair: OpenPair | None = None
        self.splicer_index = -1
        self.tick = -1
        self.retry_at = 0.0
        self.began = worker.now
        self.early_in = 0
        self.early_out = 0
        self.early_answer = 0  # bytes that the backend sent before the pair was open
        self.held_answer = b""  # of these, what the client had no room for
        self._answer_ended = False
        self.endpoint: Address | None = None
        self.dial_failure = Reason.DIAL_REFUSED
        self._endpoints: Iterator[Address] = iter(())
        self._outgoing = b""
        self._reply = b""
        self._reader: HeadReader | None = None
        self._full_read = False
        self._masks: list[int | None] = [None, None]  # what epoll watches, by side
        host, port = address[0], address[1]
        self.record = Record(
            time=worker.wall(),
            worker=worker.slot,
            listener=listener.name,
            client=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            protocol=listener.protocol,
        )

    # ---- events in, commands out

    def on(self, event: Event) -> None:
        """Tell the session what happened, and do what it orders."""
        before = self.session.state
        commands = self.session.on(event)
        if self.session.state is State.CLOSED and not self.record.state:
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
        else:
            _READY[self.session.state](self, side, mask)

    def on_deadline(self) -> None:
        """The deadline has passed."""
        state = self.session.state
        if state is State.HEAD:
            self.end_with(Reason.HEAD_TIMEOUT)
            self._prepare_reply(408, "the request's head did not arrive in time")
            self.on(Event.TIMEOUT)
        elif state is State.DIAL:
            self.dial_failure = Reason.DIAL_TIMEOUT
            self._drop_backend()
            self._dial()
        elif self.session.is_open:
            self._check_open()
        elif state is not State.CLOSED:
            if state is State.SEND:
                self.end_with(Reason.STALLED)
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

    # ---- HEAD

    def begin(self) -> None:
        """Start: read the first request, or dial at once where nothing is read."""
        if self.listener.protocol is Protocol.HTTP:
            self.on(Event.ACCEPTED_HTTP)
            return
        decision = self.listener.router.decide_stream()
        if isinstance(decision, Forward):  # else there is no endpoint to dial: refused
            self._choose(decision)
        self.on(Event.ACCEPTED_TCP)

    def _start_head(self) -> None:
        self._reader = HeadReader(self.listener.limits)
        self.worker.calendar.set(self, self.began + self.listener.timeouts.head)
        self._read_head()

    def _read_head(self) -> None:
        scratch = self.worker.first_scratch
        reader = self._reader
        assert reader is not None
        while self.session.state is State.HEAD:
            try:
                n = self.client.recv_into(scratch, 0, _DONTWAIT)
            except BlockingIOError:
                if self._masks[Side.CLIENT] is None:
                    self.watch(self.client, select.EPOLLIN)
                return
            except OSError:
                self.end_with(Reason.CLIENT_RESET)
                self.on(Event.CLIENT_ERROR)
                return
            if n == 0:
                self.end_with(Reason.CLIENT_CLOSED)
                self.on(Event.CLIENT_END)
                return
            self.early_in += n
            self._full_read = n == len(scratch)
            try:
                head = reader.feed(bytes(scratch[:n]))
            except BadRequest as error:
                self.end_with(Reason.BAD_REQUEST)
                self._prepare_reply(error.status, error.detail or error.rule)
                self.on(Event.ANSWERED)
                return
            if head is not None:
                self._route(head, reader.surplus)
                return

    def _head_ready(self, _side: Side, _mask: int) -> None:
        self._read_head()

    def _route(self, head: Head, surplus: bytes) -> None:
        self._reader = None
        record = self.record
        record.head_ms = self._elapsed()
        record.method, record.host, record.path = head.method, head.host, head.path
        decision = self.listener.router.decide(head.host, head.path)
        if isinstance(decision, Respond):
            refused = decision.status == HTTPStatus.BAD_REQUEST
            self.end_with(Reason.BAD_REQUEST if refused else Reason.LOCAL_REPLY)
            self._prepare_reply(decision.status, decision.detail)
            self.on(Event.ANSWERED)
            return
        self._choose(decision)
        self._outgoing = serialise(head, self._client_host())
        if surplus:
            self._outgoing += surplus
        self.on(Event.ROUTED)

    def _client_host(self) -> str:
        """The client's address without port, brackets and zone."""
        return self.record.client.rpartition(":")[0].strip("[]").partition("%")[0]

    def _choose(self, decision: Forward) -> None:
        self.record.route = decision.route.name
        self.record.backend = decision.backend.name
        self._endpoints = self.worker.balancers[decision.backend.name].order()

    # ---- DIAL

    def _dial(self) -> None:
        """Try endpoints until one takes the connection, or one of them takes its time."""
        for endpoint in self._endpoints:
            self.endpoint = endpoint
            try:
                self.backend = dial.start(endpoint)
                connected = dial.progress(self.backend, endpoint)
            except dial.DialError:
                self.dial_failure = Reason.DIAL_REFUSED
                self._drop_backend()
                continue
            except OSError:
                self.dial_failure = Reason.DESCRIPTORS
                break
            if connected:
                self._connected()
                return
            self.watch(self.backend, select.EPOLLOUT)
            self.watch(self.client, 0)  # errors are always reported
            self.worker.calendar.set(self, self.worker.now + self.listener.timeouts.dial)
            return
        self._unreachable()

    def _dial_ready(self, side: Side, mask: int) -> None:
        if side is Side.CLIENT:
            if mask & _GONE:
                self.end_with(Reason.CLIENT_RESET)
                self.on(Event.CLIENT_ERROR)
            return
        assert self.backend is not None and self.endpoint is not None  # noqa: PT018
        try:
            connected = dial.progress(self.backend, self.endpoint)
        except dial.DialError:
            self.dial_failure = Reason.DIAL_REFUSED
            self._drop_backend()
            self._dial()
            return
        if connected:
            self._connected()

    def _connected(self) -> None:
        self.record.dial_ms = self._elapsed()
        self.record.endpoint = str(self.endpoint)
        self.on(Event.CONNECTED)

    def _unreachable(self) -> None:
        self._endpoints = iter(())
        reason = self.dial_failure
        if self.listener.protocol is Protocol.TCP:
            self.abort(reason)
            return
        self.end_with(reason)
        if reason is Reason.DIAL_TIMEOUT:
            self._prepare_reply(504, "no endpoint of the backend answered in time")
        else:
            self._prepare_reply(503, "no endpoint of the backend takes connections")
        self.on(Event.UNREACHABLE)

    # ---- SEND

    def _start_send(self) -> None:
        self._endpoints = iter(())
        self._send()

    def _send(self) -> None:
        """Write the head and what came with it, and what more is already there of a large body."""
        backend = self.backend
        assert backend is not None
        rounds = SURPLUS_ROUNDS
        while True:
            while self._outgoing:
                try:
                    n = backend.send(self._outgoing, _DONTWAIT)
                except BlockingIOError:
                    self.watch(backend, select.EPOLLOUT)
                    self.watch(self.client, 0)  # its body may come: not read until there is room
                    self.worker.calendar.set(
                        self, self.worker.now + self.listener.timeouts.overflow
                    )
                    return
                except OSError:
                    self._backend_lost()
                    return
                self.early_out += n
                self._outgoing = self._outgoing[n:]
            if not self._full_read or not rounds:
                break
            rounds -= 1
            if not self._read_surplus():
                return
        if self._take_first_answer():
            self.on(Event.SENT)

    def _take_first_answer(self) -> bool:
        """Pass on what the backend has said already; False when the connection is over.

        Both sockets are to be read until EAGAIN before they are spliced. And a near backend has
        often answered by now, or even ended: then there is nothing to splice for.
        """
        backend, scratch = self.backend, self.worker.first_scratch
        assert backend is not None
        for _ in range(ANSWER_ROUNDS):
            try:
                n = backend.recv_into(scratch, 0, _DONTWAIT)
            except BlockingIOError:
                return True
            except OSError:
                self._backend_lost()
                return False
            if n == 0:
                self._answer_ended = True
                return True
            self.early_answer += n
            try:
                sent = self.client.send(scratch[:n], _DONTWAIT)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.end_with(Reason.CLIENT_RESET)
                self.on(Event.CLIENT_ERROR)
                return False
            if sent < n:
                self.held_answer = bytes(scratch[sent:n])
                return True
        return True

    def _read_surplus(self) -> bool:
        """Read more of the client, until it has nothing; False when the connection is over."""
        scratch = self.worker.first_scratch
        try:
            n = self.client.recv_into(scratch, 0, _DONTWAIT)
        except BlockingIOError:
            n = 0
        except OSError:
            self.end_with(Reason.CLIENT_RESET)
            self.on(Event.CLIENT_ERROR)
            return False
        self._outgoing = bytes(scratch[:n])
        self.early_in += n
        self._full_read = n == len(scratch)
        return True

    def _send_ready(self, side: Side, mask: int) -> None:
        if side is Side.BACKEND:
            self._send()
        elif mask & _GONE:
            self.end_with(Reason.CLIENT_RESET)
            self.on(Event.CLIENT_ERROR)

    def _backend_lost(self) -> None:
        """The backend broke before the pair was open."""
        if self.listener.protocol is Protocol.TCP or self.early_answer:
            self.abort(Reason.BACKEND_RESET)
            return
        self.end_with(Reason.BACKEND_CLOSED)
        self._prepare_reply(502, "the backend closed the connection before it had the request")
        self.on(Event.BACKEND_ERROR)

    # ---- SPLICED, RELAYED

    def _open(self) -> None:
        worker = self.worker
        worker.view[Counter.RELAYED_CLIENT] += self.early_in
        worker.view[Counter.RELAYED_BACKEND] += self.early_answer - len(self.held_answer)
        self._schedule_check()
        splicer = worker.splicer
        if splicer is None or self._answer_ended or self.held_answer:
            self.on(Event.REFUSED)
            return
        try:
            pair = SplicedPair(self, splicer)
        except OSError as error:
            worker.note_refused(error)
            if isinstance(error, HalfSpliced):
                self.splicer_index = error.index
            self.on(Event.REFUSED)
            return
        self.pair = pair
        self.splicer_index = pair.index
        worker.spliced[pair.index >> 1] = pair
        worker.view[Counter.SPLICES] += 1
        self._note_open()
        pair.start()

    def _relay(self) -> None:
        # splice(2) gets nothing out of a socket that is in the map already; and for what is left
        # of an answer that has ended, or had no room, a pipe is not worth it
        copy = self.splicer_index >= 0 or self._answer_ended or bool(self.held_answer)
        pair = RelayedPair(self, copy=copy)
        self.pair = pair
        self.worker.view[Counter.RELAYS] += 1
        self._note_open()

    def _note_open(self) -> None:
        assert self.pair is not None
        self.record.datapath = self.pair.datapath
        self.record.splice_ms = self._elapsed()

    def _pass_fin(self, side: Side) -> None:
        """Every byte from `side` is with the other side: half-close that one."""
        if side is Side.BACKEND and self._backend_was_silent():
            self._backend_silent()
            return
        if self.session.finished:
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
            self.end_with(Reason.BACKEND_RESET)
            self.on(Event.BACKEND_ERROR)

    def _backend_was_silent(self) -> bool:
        """Whether the client has got nothing yet, so that an answer of ours is still one."""
        if self.listener.protocol is not Protocol.HTTP or self.pair is None:
            return False
        return self.pair.silent()

    def _backend_silent(self) -> None:
        self.end_with(Reason.BACKEND_CLOSED)
        self._prepare_reply(502, "the backend closed the connection without an answer")
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
        seconds = self.listener.timeouts.overflow
        if seconds:
            self.worker.calendar.sooner(self, self.worker.now + seconds)

    def _schedule_check(self) -> None:
        idle = self.listener.timeouts.idle
        first = min(KEEPALIVE_AFTER, idle) if idle else KEEPALIVE_AFTER
        self.worker.calendar.set(self, self.worker.now + first)

    def _check_open(self) -> None:
        """Idle? Stalled? Neither is visible in the bytes, which l7proxy does not see."""
        assert self.pair is not None and self.backend is not None  # noqa: PT018
        timeouts, now = self.listener.timeouts, self.worker.now
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

    # ---- REPLY, LINGER

    def _prepare_reply(self, status: int, detail: str) -> None:
        self.record.status = status
        self._reply = local_response(status, detail, method=self.record.method or "GET")

    def _start_reply(self) -> None:
        self._drop_backend()
        dial.deliver_on_close(self.client)
        self.worker.calendar.set(self, self.worker.now + self.listener.timeouts.head)
        self._write_reply()

    def _write_reply(self) -> None:
        while self._reply:
            try:
                n = self.client.send(self._reply, _DONTWAIT)
            except BlockingIOError:
                self.watch(self.client, select.EPOLLOUT)
                return
            except OSError:
                self.end_with(Reason.CLIENT_RESET)
                self.on(Event.CLIENT_ERROR)
                return
            self._reply = self._reply[n:]
        self.on(Event.REPLIED)

    def _reply_ready(self, _side: Side, mask: int) -> None:
        if mask & select.EPOLLERR:
            self.end_with(Reason.CLIENT_RESET)
            self.on(Event.CLIENT_ERROR)
        else:
            self._write_reply()

    def _start_linger(self) -> None:
        """Half-close, then read on for a while.

        RFC 9112 9.6: closing at once, with bytes unread, makes the kernel send a reset, which may
        destroy the answer before the client has read it.
        """
        self.worker.calendar.set(self, self.worker.now + LINGER)
        try:
            self.client.shutdown(socket.SHUT_WR)
        except OSError:
            self.on(Event.CLIENT_ERROR)
            return
        self.watch(self.client, select.EPOLLIN | select.EPOLLRDHUP)
        self._discard()

    def _discard(self) -> None:
        scratch = self.worker.scratch
        for _ in range(4):
            try:
                n = self.client.recv_into(scratch, 0, _DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                self.on(Event.CLIENT_ERROR)
                return
            if n == 0:
                self.on(Event.CLIENT_END)
                return

    def _linger_ready(self, _side: Side, _mask: int) -> None:
        self._discard()

    # ---- the end

    def _reset(self) -> None:
        dial.reset_on_close(self.client)
        self._end()

    def _close(self) -> None:
        try:
            dial.deliver_on_close(self.client)
            if self.backend is not None:
                dial.deliver_on_close(self.backend)
        except OSError:
            pass  # a socket that is broken by now has nothing to deliver
        self._end()

    def _end(self) -> None:
        """Close both sockets, give everything back, write the record."""
        worker, record = self.worker, self.record
        worker.calendar.cancel(self)
        pair = self.pair
        if pair is not None:
            moved = pair.moved()
            record.bytes_in, record.bytes_out, record.kernel_in, record.kernel_out = moved
            pair.close()
            spliced = isinstance(pair, SplicedPair)
            worker.view[Counter.SPLICES_ENDED if spliced else Counter.RELAYS_ENDED] += 1
            self.pair = None
        else:
            record.bytes_in = self.early_in
        self._unwatch(self.client)
        worker.bury(self.client)
        self._drop_backend()
        if self.splicer_index >= 0:
            worker.release(self.splicer_index)
        record.total_ms = self._elapsed()
        worker.ended(self)

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
        side = Side.CLIENT if sock is self.client else Side.BACKEND
        known = self._masks[side]
        if known is None:
            self.worker.register(sock.fileno(), mask, self)
        elif anew or known != mask:
            self.worker.modify(sock.fileno(), mask)
        self._masks[side] = mask

    def _unwatch(self, sock: socket.socket) -> None:
        side = Side.CLIENT if sock is self.client else Side.BACKEND
        if self._masks[side] is not None:
            self._masks[side] = None
            self.worker.unregister(sock.fileno())

    def _drop_backend(self) -> None:
        if self.backend is not None:
            self._unwatch(self.backend)
            self.worker.bury(self.backend)
            self.backend = None

    def _elapsed(self) -> float:
        """Milliseconds since the accept."""
        return (self.worker.clock() - self.began) * 1000


_COMMANDS: dict[Command, Callable[[Connection], None]] = {
    Command.READ_HEAD: Connection._start_head,
    Command.DIAL: Connection._dial,
    Command.SEND: Connection._start_send,
    Command.OPEN: Connection._open,
    Command.RELAY: Connection._relay,
    Command.REPLY: Connection._start_reply,
    Command.LINGER: Connection._start_linger,
    Command.CLOSE: Connection._close,
    Command.RESET: Connection._reset,
}

_READY: dict[State, Callable[[Connection, Side, int], None]] = {
    State.HEAD: Connection._head_ready,
    State.DIAL: Connection._dial_ready,
    State.SEND: Connection._send_ready,
    State.REPLY: Connection._reply_ready,
    State.LINGER: Connection._linger_ready,
}
