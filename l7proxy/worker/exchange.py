"""One request on its way to a backend, and its response on its way back: the state EXCHANGE.

Both heads were parsed, and are written anew; bodies go on as far as their framing says, and not a
byte further. Both ways are open at the same time (`asking`, `answering`): a backend may answer
before it has the whole request, a client may wait for `100 Continue`.

What has to hold, whatever either end does:

- A response goes to the request that asked for it. So a connection to a backend has one request at
  a time, and goes to the pool only if request and response have both ended exactly, and nothing
  else has come. Anything odd closes it.
- A body that was cut never looks complete. Both sockets reset on close until all is well, and a
  request is always framed by a length or by chunks.
- Once the client has the head of the final response there is no answer of our own any more: then
  what fails resets it.

When the response is through and the request is not, its rest goes on as long as the backend takes
it: it may be read with care. The client was told `close` then.
"""

from __future__ import annotations

import math
import select
from typing import TYPE_CHECKING

from l7proxy.datapath.relay import SinkBroken
from l7proxy.errors import BadRequest, BadResponse, Reason
from l7proxy.head import Head
from l7proxy.model import Datapath, Forward, Side, Splice
from l7proxy.net.tcpinfo import tcp_info
from l7proxy.response import Response, serialise_response
from l7proxy.session import Event, State
from l7proxy.telemetry.counters import Counter
from l7proxy.worker import retrying
from l7proxy.worker.answering import Answering
from l7proxy.worker.asking import Asking
from l7proxy.worker.bykernel import QUIET, KernelTransfer
from l7proxy.worker.requests import Requests
from l7proxy.worker.transfer import Pace, Transfer
from l7proxy.worker.wire import READABLE, WATCH, Wire

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection

LOOKS_AT_ONCE = 8  # without a pause: a kworker is quick, a timer is not
LOOK_LATER = 0.001  # seconds

_GONE = select.EPOLLERR | select.EPOLLHUP
_PRI, _OUT = select.EPOLLPRI, select.EPOLLOUT
_EXCHANGE = State.EXCHANGE


class Exchange:
    """One request and its response."""

    __slots__ = (
        "_active",
        "_began",
        "_counted_in",
        "_counted_out",
        "_heard_before",
        "_lent_in",
        "_lent_out",
        "_looks",
        "_requests",
        "_retry_at",
        "answering",
        "asking",
        "backend",
        "connection",
        "decision",
        "fresh",
        "head",
        "may_lend",
        "mirrored",
        "pools",
        "retries",
    )

    def __init__(
        self,
        connection: Connection,
        requests: Requests,
        head: Head,
        decision: Forward,
        outgoing: bytes,
        surplus: bytes,
        keep: int = 0,
    ) -> None:
        """`outgoing`: the head as the backend gets it; `surplus`: what came after it, not all ours.

        `keep`: so many bytes of the body may be kept, see `copying`.

        Raises BadRequest when that is no body.
        """
        self.connection = connection
        self.head = head
        self.decision = decision
        self.backend: Wire | None = None  # set by `Dialing`
        self.fresh = False  # it has to be dialled: the pool's was stale
        self.pools = True  # its connection may serve others
        self.mirrored: bytes | None = None  # the head of a copy that is to go elsewhere as well
        self.retries = 0  # how often it was sent once more, as the route says
        self._retry_at: float | None = None  # when it is to be
        self._requests = requests
        self._began = self._active = connection.worker.now
        self._counted_in = self._counted_out = 0
        self._lent_in, self._lent_out = requests.client.lent, 0  # before
        self._looks = 0  # for what is on its way inside the kernel, since something last moved
        self.may_lend = decision.splice is Splice.REQUEST  # bodies, to the kernel
        self._heard_before = 0  # bytes that the backend's connection had brought for others
        self.asking = Asking(self, requests, head, outgoing, surplus, keep)
        self.answering = Answering(self, requests.client)

    def start(self) -> None:
        """Send the request: the backend is there."""
        connection, backend = self.connection, self.backend
        assert backend is not None
        backend.uses += 1
        self._heard_before = backend.taken
        self._lent_out = backend.lent
        self._active = connection.worker.now
        connection.watch(connection.client, WATCH)
        connection.watch(backend.sock, WATCH)
        due = self._due()
        if due:
            connection.worker.calendar.sooner(connection, min(due)[0])
        self.asking.start(backend)

    def ready(self, side: Side, mask: int) -> None:
        """Epoll has reported `mask` for one of the two sockets."""
        connection, client, backend = self.connection, self._requests.client, self.backend
        if mask & _PRI:
            connection.abort(Reason.URGENT_DATA)
        elif side is Side.CLIENT:
            if mask & _GONE:  # EPOLLHUP: both ways are shut, and this end did not shut its own
                connection.client_failed()
                return
            client.note(mask)
            if backend is None:  # between two attempts: all of the request is here
                return
            if mask & READABLE:
                self.asking.ready()
            if mask & _OUT and client.out and self.goes_on:
                self.answering.go()
        elif backend is not None:
            backend.note(mask)
            if mask & _OUT and backend.out:
                self.asking.go()
            if mask & READABLE and self.goes_on and self.backend is backend:
                self.answering.hear()

    def again(self) -> None:
        """A turn was over, and the others had theirs; or it is time for another attempt."""
        if self._retry_at is not None:
            left = self._retry_at - self.connection.worker.now
            if left > 0:
                self.connection.look_again(left)
            else:
                self._retry()
            return
        self.asking.ready()
        if self.goes_on:
            self.answering.again()

    @property
    def goes_on(self) -> bool:
        """Whether this is still what the connection does."""
        return self.connection.session.state is _EXCHANGE and self._requests.exchange is self

    def note(self, pace: Pace) -> None:
        """One of the two ways has moved, or cannot."""
        connection = self.connection
        if pace is Pace.TURN:
            connection.look_again(0.0)
        if pace is Pace.SOON:
            if not self._looks:
                connection.expect_progress()
            self._looks += 1
            connection.look_again(0.0 if self._looks <= LOOKS_AT_ONCE else LOOK_LATER)
        else:
            self._looks = 0
            self._active = connection.worker.now
        begins = self._requests.client.note_stuck(connection.worker.now)
        if self.backend is not None:
            begins |= self.backend.note_stuck(connection.worker.now)
        if begins:
            connection.expect_progress()

    # ---- through the kernel

    @property
    def is_lent(self) -> bool:
        """Whether the kernel moves a body now."""
        return self.asking.is_lent or self.answering.is_lent

    def look(self) -> bool:
        """Account for what the kernel has moved by now; whether that was anything."""
        moved = self.asking.look()
        return self.answering.look() or moved

    def watch(self, source: Wire, transfer: Transfer | KernelTransfer | None) -> None:
        """Watch a source for what its transfer needs to know."""
        connection = self.connection
        if isinstance(transfer, KernelTransfer):
            connection.watch(source.sock, WATCH if transfer.keeps_reading else QUIET)
        else:
            connection.watch(source.sock, WATCH)
            if source.index >= 0:
                connection.worker.lent.pop(source.index, None)

    def close(self) -> None:
        """Nothing goes on any more: neither socket is anybody's sink after this."""
        self.asking.close()
        self.answering.close()

    # ---- what goes wrong

    def backend_gone(self) -> None:
        """The backend has ended, or broke, before the final head was complete."""
        connection = self.connection
        if not self.answering.heard and self.asking.replay is not None:
            connection.worker.view[Counter.STALE] += 1
            self._redial()
            return
        connection.dialing.lost_early()
        if not self.answering.heard and self.retry(None):
            return
        connection.end_with(Reason.BACKEND_CLOSED)
        self._answer_with(502, "the backend closed the connection without an answer")

    def _redial(self) -> None:
        """Send the request once more, on a connection of its own."""
        connection = self.connection
        self.asking.again()
        self.fresh = True
        self.backend = None
        connection.drop_backend()
        connection.redial(self.decision, self.head)
        connection.on(Event.STALE)

    def sent(self) -> None:
        """All of the request is on its way: it is time for its copy."""
        head, self.mirrored = self.mirrored, None
        mirror = self.decision.route.filters.mirror
        if head is None or mirror is None:
            return
        connection, body = self.connection, self.asking.body
        connection.worker.mirrors.send(
            connection.listener.groups[mirror.backend],
            self.head,
            connection.client_host,
            None if body is None else head + body,
        )

    @property
    def is_blocked(self) -> bool:
        """Whether the client has no room for what was said to it: an interim response."""
        return bool(self._requests.client.out)

    def retry(self, status: int | None) -> bool:
        """Whether the request is sent once more, in a while, in place of this response to it.

        None stands for no response at all.
        """
        wait = retrying.once_more(self, status)
        if wait is None:
            return False
        connection = self.connection
        self.asking.close()  # what is left of it was for the one that is dropped
        self.account()
        self._counted_out = 0
        self.backend = None
        connection.drop_backend()
        self.answering = Answering(self, self._requests.client)
        self._retry_at = connection.worker.now + wait
        connection.look_again(wait)
        return True

    def _retry(self) -> None:
        connection, avoided = self.connection, self.connection.dialing.place
        self._retry_at = None
        self.asking.again()
        connection.redial(self.decision, self.head, avoid=avoided)
        connection.on(Event.STALE)

    def refuse(self, error: BadRequest) -> None:
        """What the client sends is no body."""
        connection = self.connection
        connection.end_with(Reason.BAD_REQUEST)
        connection.record.rule = error.rule
        if self.answering.response is not None:
            connection.on(Event.CLIENT_ERROR)
        else:
            self._answer_with(error.status, error.detail or error.rule)

    def refuse_response(self, error: BadResponse) -> None:
        """What the backend says is ambiguous."""
        connection = self.connection
        connection.end_with(Reason.BAD_RESPONSE)
        connection.record.rule = error.rule
        if self.answering.response is not None:
            connection.on(Event.BACKEND_ERROR)
        else:
            self._answer_with(502, "the backend's response is malformed")

    @property
    def may_keep(self) -> bool:
        """Whether the client may go on after an answer of ours: its request was read."""
        return self.asking.is_read and self.connection.may_keep(self.head)

    def _answer_with(self, status: int, detail: str) -> None:
        """Answer in the backend's place, which has no part in it any more."""
        connection = self.connection
        self.close()
        if self._requests.client.out:  # half of an interim response: nothing fits behind it
            connection.on(Event.BACKEND_ERROR)
            return
        connection.reply_with(status, detail, keep=self.may_keep)
        connection.on(Event.ANSWERED)

    # ---- the end

    def check_over(self) -> None:
        """Whether that was all: the response is with the client, and the request with the backend.

        Or nobody waits for the rest of that: the backend takes it no more, or the client was never
        told to go on.
        """
        asking = self.asking
        if not self.answering.done or self._requests.client.out:
            return
        if asking.sent or asking.deaf or asking.unmet:
            self._over()

    def _over(self) -> None:
        connection, requests, backend = self.connection, self._requests, self.backend
        answering, is_sent = self.answering, self.asking.sent
        response = answering.response
        assert backend is not None
        assert response is not None
        self.close()
        self.account()
        place = connection.dialing.place
        connection.release_backend(answered=True)
        is_exact = is_sent and not (answering.spoilt or backend.ended)
        if is_exact and backend.more:  # the last bytes filled the buffer, so there may be others
            is_exact = backend.is_quiet
            backend.more = not is_exact
        if is_exact and response.keep_alive and self.pools and place is not None:
            connection.keep_backend(place, backend)
        else:
            connection.drop_backend(in_order=is_sent)
        requests.over()
        if answering.keeps and is_sent:
            connection.on(Event.EXCHANGED)
        else:
            connection.leave_client()
            connection.on(Event.LAST)

    def switch(self, response: Response, rest: bytes) -> None:
        """The two speak something else from now on. Raises BadResponse, SinkBroken."""
        connection, requests, backend = self.connection, self._requests, self.backend
        assert backend is not None
        if not self.asking.sent:
            raise BadResponse("early-switch", "the backend did not wait for the request")
        self.answering.response = response
        requests.client.write(
            serialise_response(
                response, client_version=self.head.version, keep_alive=True, chunked=False
            )
            + rest
        )
        try:
            backend.write(requests.pending)
        except SinkBroken:
            connection.end_with(Reason.BACKEND_RESET)
            connection.on(Event.BACKEND_ERROR)
            return
        requests.pending = b""
        self.close()
        self.account()
        connection.switch(backend, heard_before=self._heard_before)

    def account(self) -> None:
        """Bring the record, and the counters of what user space moves, up to date."""
        record, view = self.connection.record, self.connection.worker.view
        record.kernel_in = self._requests.client.lent - self._lent_in
        relayed_in, relayed_out = self._requests.taken, self._counted_out
        if self.backend is not None:
            record.kernel_out = self.backend.lent - self._lent_out
            relayed_out = self.backend.taken - self._heard_before
            by_kernel = record.kernel_in or record.kernel_out
            record.datapath = Datapath.SOCKMAP if by_kernel else Datapath.COPY
        record.bytes_in = relayed_in + record.kernel_in
        record.bytes_out = relayed_out + record.kernel_out
        view[Counter.RELAYED_CLIENT] += relayed_in - self._counted_in
        view[Counter.RELAYED_BACKEND] += relayed_out - self._counted_out
        self._counted_in, self._counted_out = relayed_in, relayed_out

    # ---- time

    def _due(self) -> list[tuple[float, Reason]]:
        """When the exchange has taken too long, and why that would be."""
        timeouts, route = self.connection.timeouts, self.decision.route.timeouts
        due = []
        stuck = [
            wire.stuck_since
            for wire in (self._requests.client, self.backend)
            if wire is not None and wire.stuck_since is not None
        ]
        if self._looks:  # inside the kernel something waits for a receiver
            stuck.append(self._moved_last())
        if timeouts.overflow and stuck:
            due.append((min(stuck) + timeouts.overflow, Reason.STALLED))
        elif timeouts.idle:
            if self._active + timeouts.idle <= self.connection.worker.now:
                self._active = self._moved_last()
            due.append((self._active + timeouts.idle, Reason.IDLE_TIMEOUT))
        if route.request:
            due.append((self.request_due, Reason.REQUEST_TIMEOUT))
        return due

    @property
    def request_due(self) -> float:
        """When the route's time for the whole of it is over."""
        return self._began + (self.decision.route.timeouts.request or math.inf)

    def _moved_last(self) -> float:
        """When a byte has moved last, as far as is known; TCP knows what the kernel has moved."""
        found = self._active
        for wire in (self._requests.client, self.backend):
            if wire is None:
                continue
            try:
                info = tcp_info(wire.sock)
            except OSError:  # broken, which epoll tells; or no TCP, and then user space moves all
                continue
            ago = min(info.last_data_sent, info.last_data_recv) / 1000
            found = max(found, self.connection.worker.now - ago)
        return found

    def on_deadline(self) -> None:
        """Look whether it has taken too long; the deadline may be from before it began."""
        connection = self.connection
        if self.look():
            self._active = connection.worker.now  # or a little before: nobody saw it
        due = self._due()
        if not due:
            return
        when, reason = min(due)
        if when > connection.worker.now:
            connection.worker.calendar.set(connection, when)
            return
        connection.end_with(reason)
        if self.answering.response is not None or reason is Reason.STALLED:
            connection.on(Event.TIMEOUT)
        else:
            self._answer_with(504, "the backend did not answer in time")
