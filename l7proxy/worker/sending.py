"""The request's way to the backend, and the first of the answer: until the pair can be opened.

The states SEND and ANSWER. What is here is dropped when the pair opens, so that an idle connection
is small.

ANSWER is for what needs the response's head: a cookie to be added. The backend may answer only when
it has the whole request, so the rest of it is passed on meanwhile.
"""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING

from l7proxy.answer import AnswerReader, is_whole
from l7proxy.errors import Reason
from l7proxy.model import Protocol, Side
from l7proxy.session import Event
from l7proxy.telemetry.counters import Counter
from l7proxy.worker.lastwords import last_words

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection

ANSWER_ROUNDS = 4  # buffers of a backend's first answer that are passed on before the splice
SURPLUS_ROUNDS = 16  # buffers that are read along before the splice; the trim covers what is left

_DONTWAIT = socket.MSG_DONTWAIT
_GONE = select.EPOLLERR | select.EPOLLHUP


class Sending:
    """The states SEND and ANSWER of one connection."""

    __slots__ = (
        "_answer",
        "_client_ended",
        "_connection",
        "_full_read",
        "_outgoing",
        "_said",
        "answer_ended",
        "held_answer",
        "held_request",
    )

    def __init__(
        self,
        connection: Connection,
        outgoing: bytes,
        *,
        full_read: bool,
    ) -> None:
        """`outgoing` is what the backend gets first.

        `full_read`: the client may have sent more than was read.
        """
        self._connection = connection
        self._outgoing = outgoing
        self._full_read = full_read
        self._answer: AnswerReader | None = None
        self._client_ended = False
        self._said = b""  # what the backend has said, from ANSWER on
        self.answer_ended = False  # the backend has sent its answer and ended already
        self.held_answer = b""  # what the client had no room for, of a first answer
        self.held_request = b""  # what the backend had no room for

    @property
    def speaks(self) -> bool:
        """Whether there is something to be written to the backend."""
        return bool(self._outgoing)

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
                    connection.set_deadline(connection.timeouts.overflow)
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
        cookie = connection.dialing.set_cookie
        if cookie is not None and connection.listener.protocol is Protocol.HTTP:
            self._answer = AnswerReader(cookie)
            connection.on(Event.AWAITED)
        else:
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
        self._keep(scratch[:n])
        self._full_read = n == len(scratch)
        return True

    def _keep(self, data: memoryview) -> None:
        """Take bytes of the client on."""
        self._connection.early_in += len(data)
        self._outgoing += bytes(data)

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
            if not connection.early_answer:
                connection.note_first_byte()
            connection.early_answer += n
            if self._answer is not None:
                self._said += scratch[:n]
            sent = self._write_client(scratch[:n])
            if sent is None:
                return False
            if sent < n:
                self.held_answer = bytes(scratch[sent:n])
                return True
        return True

    def _write_client(self, data: memoryview | bytes) -> int | None:
        """Write to the client; how much it took, None when the connection is over."""
        try:
            return self._connection.client.send(data, _DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            self._connection.client_failed()
            return None

    def _backend_lost(self, *, ended: bool = False) -> None:
        """The backend broke, or `ended`, before the pair was open."""
        connection = self._connection
        is_http = connection.listener.protocol is Protocol.HTTP
        if is_http and self._has_answered():
            connection.on(Event.BACKEND_ERROR)
            return
        if not connection.early_answer:
            connection.dialing.lost_early()
        if not is_http or connection.early_answer:
            connection.abort(Reason.BACKEND_RESET)
            return
        connection.end_with(Reason.BACKEND_CLOSED)
        what = "without an answer" if ended else "before it had the request"
        connection.reply_with(502, f"the backend closed the connection {what}")
        connection.on(Event.BACKEND_ERROR)

    def _has_answered(self) -> bool:
        """Whether its answer is whole all the same; what the client has not got of it is ready."""
        connection = self._connection
        if not connection.early_answer:
            return last_words(connection)
        if not is_whole(self._said, connection.record.method or "GET"):
            return False
        connection.end_with(Reason.BACKEND_CLOSED)
        connection.answer_with(None, self.held_answer)
        return True

    # ---- ANSWER

    def read_answer(self) -> None:
        """Begin to wait for the head of the response."""
        self._read_backend()

    def answer_ready(self, side: Side, mask: int) -> None:
        """One of the two has bytes, or room, or has gone."""
        if side is Side.CLIENT:
            # EPOLLHUP: both ways are shut, and it would be told of for ever
            if mask & _GONE:
                self._connection.client_failed()
            else:
                self._pass_request()
        elif mask & ~select.EPOLLOUT:
            self._read_backend()
        else:
            self._pass_request()

    def _rearm(self) -> None:
        """Watch for what can go on now. The deadline counts from the last time that it did."""
        connection, backend = self._connection, self._connection.backend
        assert backend is not None
        blocked = bool(self._outgoing)
        connection.watch(backend, select.EPOLLIN | (select.EPOLLOUT if blocked else 0))
        # the end of a client is seen again by the pair
        wanted = not blocked and not self._client_ended
        connection.watch(connection.client, select.EPOLLIN if wanted else 0)
        timeouts = connection.timeouts
        connection.set_deadline(timeouts.overflow if blocked else timeouts.idle)

    def _pass_request(self) -> None:
        """Pass on the rest of the request, as far as it has come and goes."""
        connection, backend = self._connection, self._connection.backend
        scratch = connection.worker.first_scratch
        assert backend is not None
        for _ in range(ANSWER_ROUNDS):
            while self._outgoing:
                try:
                    n = backend.send(self._outgoing, _DONTWAIT)
                except BlockingIOError:
                    self._rearm()
                    return
                except OSError:
                    self._outgoing = b""
                    self._client_ended = True
                    self._read_backend()  # it may have answered before it broke
                    return
                connection.early_out += n
                self._outgoing = self._outgoing[n:]
            if self._client_ended:
                break
            try:
                n = connection.client.recv_into(scratch, 0, _DONTWAIT)
            except BlockingIOError:
                break
            except OSError:
                connection.client_failed()
                return
            self._client_ended = n == 0
            self._keep(scratch[:n])
        self._rearm()

    def _read_backend(self) -> None:
        """Read the response until its head is through, and open the pair then."""
        connection, backend = self._connection, self._connection.backend
        scratch, answer = connection.worker.first_scratch, self._answer
        assert backend is not None
        assert answer is not None
        for _ in range(ANSWER_ROUNDS):
            try:
                n = backend.recv_into(scratch, 0, _DONTWAIT)
            except BlockingIOError:
                break
            except OSError:
                self._backend_lost(ended=True)
                return
            if n == 0 and not connection.early_answer:
                self._backend_lost(ended=True)
                return
            if not connection.early_answer:
                connection.note_first_byte()
            self.answer_ended = n == 0
            connection.early_answer += n
            said = bytes(scratch[:n])
            self._said += said
            out = answer.feed(said) if n else answer.end()
            if not self.held_answer and out:
                sent = self._write_client(out)
                if sent is None:
                    return
                out = out[sent:]
            self.held_answer += out
            if answer.done:
                self._answered(answer)
                return
        self._rearm()

    def _answered(self, answer: AnswerReader) -> None:
        """The client has the head of the response, or as much of it as it takes."""
        connection = self._connection
        if answer.odd:
            connection.worker.view[Counter.ODD_ANSWERS] += 1
        connection.added = answer.added
        if self.held_answer or self.answer_ended or self._take_first_answer():
            # What the backend has no room for, of the request, goes on with the pair.
            self.held_request = self._outgoing
            connection.early_in -= len(self._outgoing)
            connection.on(Event.ANSWER_SEEN)
