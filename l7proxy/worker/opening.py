"""From accept to a pair that can be opened: read the head, decide, send (`dialing` dials).

Holds only what is needed until then; it is dropped when the pair opens, so that an idle connection
is small.
"""

from __future__ import annotations

import select
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING

from l7proxy.errors import BadRequest, Reason
from l7proxy.head import Head, HeadReader, serialise
from l7proxy.model import Forward, Protocol, Respond, Side
from l7proxy.session import Event

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection

ANSWER_ROUNDS = 4  # buffers of a backend's first answer that are passed on before the splice
SURPLUS_ROUNDS = 16  # buffers that are read along before the splice; the trim covers what is left

_DONTWAIT = socket.MSG_DONTWAIT
_GONE = select.EPOLLERR | select.EPOLLHUP


class Opening:
    """The states HEAD and SEND of one connection; `Dialing` is DIAL."""

    __slots__ = (
        "_connection",
        "_full_read",
        "_outgoing",
        "_reader",
        "answer_ended",
        "held_answer",
    )

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._reader: HeadReader | None = None
        self._full_read = False  # the last read filled its buffer: there may be more
        self._outgoing = b""  # for the backend, not yet written
        self.answer_ended = False  # the backend has sent its answer and ended already
        self.held_answer = b""  # what the client had no room for, of a first answer

    # ---- HEAD

    def read_head(self) -> None:
        """Begin to read the first request."""
        connection = self._connection
        self._reader = HeadReader(connection.listener.limits)
        connection.set_deadline(connection.listener.timeouts.head)
        self.head_ready(Side.CLIENT, 0)

    def head_ready(self, _side: Side, _mask: int) -> None:
        """Read until the head is complete, or refused, or the client has no more for now."""
        connection, reader = self._connection, self._reader
        scratch = connection.worker.first_scratch
        assert reader is not None
        while True:
            try:
                n = connection.client.recv_into(scratch, 0, _DONTWAIT)
            except BlockingIOError:
                connection.watch(connection.client, select.EPOLLIN)
                return
            except OSError:
                connection.client_failed()
                return
            if n == 0:
                connection.end_with(Reason.CLIENT_CLOSED)
                connection.on(Event.CLIENT_END)
                return
            connection.early_in += n
            self._full_read = n == len(scratch)
            try:
                head = reader.feed(bytes(scratch[:n]))
            except BadRequest as error:
                connection.end_with(Reason.BAD_REQUEST)
                connection.reply_with(error.status, error.detail or error.rule)
                connection.on(Event.ANSWERED)
                return
            if head is not None:
                self._reader = None
                self._route(head, reader.surplus)
                return

    def _route(self, head: Head, surplus: bytes) -> None:
        connection, record = self._connection, self._connection.record
        record.head_ms = connection.elapsed()
        record.method, record.host, record.path = head.method, head.host, head.path
        decision = connection.listener.router.decide(head)
        if isinstance(decision, Respond):
            refused = decision.status == HTTPStatus.BAD_REQUEST
            connection.end_with(Reason.BAD_REQUEST if refused else Reason.LOCAL_REPLY)
            connection.reply_with(decision.status, decision.detail)
            connection.on(Event.ANSWERED)
            return
        assert isinstance(decision, Forward)
        connection.dialing.choose(decision, head, connection.client_host, None)
        self._outgoing = serialise(head, connection.client_host) + surplus
        connection.on(Event.ROUTED)

    # ---- SEND

    def send(self) -> None:
        """Write the head and what came with it, and what more is already there of a large body."""
        connection, backend = self._connection, self._connection.backend
        assert backend is not None
        rounds = SURPLUS_ROUNDS
        while True:
            while self._outgoing:
                try:
                    n = backend.send(self._outgoing, _DONTWAIT)
                except BlockingIOError:
                    connection.watch(backend, select.EPOLLOUT)
                    connection.watch(connection.client, 0)  # its body waits until there is room
                    connection.set_deadline(connection.listener.timeouts.overflow)
                    return
                except OSError:
                    self._backend_lost()
                    return
                connection.early_out += n
                self._outgoing = self._outgoing[n:]
            if not self._full_read or not rounds:
                break
            rounds -= 1
            if not self._read_surplus():
                return
        if self._take_first_answer():
            connection.on(Event.SENT)

    def send_ready(self, side: Side, mask: int) -> None:
        """There is room at the backend, or one of the two has gone."""
        if side is Side.BACKEND:
            self.send()
        elif mask & _GONE:
            self._connection.client_failed()

    def _read_surplus(self) -> bool:
        """Read more of the client, until it has nothing; False when the connection is over."""
        connection = self._connection
        scratch = connection.worker.first_scratch
        try:
            n = connection.client.recv_into(scratch, 0, _DONTWAIT)
        except BlockingIOError:
            n = 0
        except OSError:
            connection.client_failed()
            return False
        self._outgoing = bytes(scratch[:n])
        connection.early_in += n
        self._full_read = n == len(scratch)
        return True

    def _take_first_answer(self) -> bool:
        """Pass on what the backend has said already; False when the connection is over.

        Both sockets are to be read until EAGAIN before they are spliced. And a near backend has
        often answered by now, or even ended: then there is nothing to splice for.
        """
        connection, backend = self._connection, self._connection.backend
        scratch = connection.worker.first_scratch
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
                self.answer_ended = True
                return True
            connection.early_answer += n
            try:
                sent = connection.client.send(scratch[:n], _DONTWAIT)
            except BlockingIOError:
                sent = 0
            except OSError:
                connection.client_failed()
                return False
            if sent < n:
                self.held_answer = bytes(scratch[sent:n])
                return True
        return True

    def _backend_lost(self) -> None:
        """The backend broke before the pair was open."""
        connection = self._connection
        if not connection.early_answer:
            connection.dialing.lost_early()
        if connection.listener.protocol is Protocol.TCP or connection.early_answer:
            connection.abort(Reason.BACKEND_RESET)
            return
        connection.end_with(Reason.BACKEND_CLOSED)
        connection.reply_with(502, "the backend closed the connection before it had the request")
        connection.on(Event.BACKEND_ERROR)
