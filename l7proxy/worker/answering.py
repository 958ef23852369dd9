"""A response on its way to the client: interim heads, the final one, and the body behind it.

What the backend sends beyond its response spoils its connection: nobody asked for it, and on a kept
connection it would answer the next request.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from l7proxy.chunked import Chunked
from l7proxy.datapath.relay import SinkBroken, SourceBroken
from l7proxy.errors import BadResponse, Reason
from l7proxy.model import Limits, Side
from l7proxy.response import Response, ResponseReader, framing, serialise_response
from l7proxy.session import Event
from l7proxy.worker.bykernel import Fault, KernelTransfer, best_way
from l7proxy.worker.transfer import TURN, Body, Chunks, Cut, Pace, Sized, Transfer, UntilEnd
from l7proxy.worker.wire import Wire

if TYPE_CHECKING:
    from l7proxy.worker.exchange import Exchange


class Answering:
    """The response of one exchange."""

    __slots__ = (
        "_client",
        "_exchange",
        "_reader",
        "_transfer",
        "done",
        "heard",
        "keeps",
        "response",
        "spoilt",
    )

    def __init__(self, exchange: Exchange, client: Wire) -> None:
        self._exchange = exchange
        self._client = client
        self._reader = self._new_reader()
        self._transfer: Transfer | KernelTransfer | None = None
        self.response: Response | None = None  # the final one, once the client has its head
        self.heard = False  # a byte of the backend has come
        self.done = False  # all of it was taken, and written as far as it goes
        self.keeps = False  # the client was told that it may send another request
        self.spoilt = False  # the backend's connection is not to be used again

    def _new_reader(self) -> ResponseReader:
        head = self._exchange.head
        limits = self._exchange.connection.listener.limits
        return ResponseReader(head.method, limits, upgrade=head.upgrade)

    def hear(self) -> None:
        """Read what the backend says, and pass it on."""
        exchange = self._exchange
        connection, backend = exchange.connection, exchange.backend
        assert backend is not None
        scratch = connection.worker.first_scratch
        rounds = 0
        while exchange.goes_on and not self._client.out:
            if self._transfer is not None:
                self.go()
                return
            if self.done:
                self.spoilt = True  # whatever it is, nobody asked for it
                if backend.ended:
                    exchange.asking.give_up()
                exchange.check_over()
                return
            rounds += 1
            if rounds > TURN:  # interim responses without an end
                exchange.note(Pace.TURN)
                return
            try:
                n = backend.read(scratch)
            except SourceBroken:
                n = 0
            if n < 0:
                if backend.more:  # it is reset, and was not read to its end
                    exchange.note(Pace.SOON)
                return
            if n == 0:
                exchange.backend_gone()
                return
            if not self.heard:
                self.heard = True
                connection.note_first_byte()
            exchange.note(Pace.READ)
            try:
                self._take(bytes(scratch[:n]))
            except BadResponse as error:
                exchange.refuse_response(error)
                return
            except SinkBroken:
                connection.client_failed()
                return
            if not backend.more or exchange.backend is not backend:
                return

    def go(self) -> None:
        """Pass on what there is of the body, and what found no room before."""
        exchange, transfer = self._exchange, self._transfer
        connection = exchange.connection
        try:
            if transfer is not None:
                pace = transfer.pump()
                if pace is Pace.READ and isinstance(transfer, Transfer):
                    self._transfer = best_way(exchange, transfer)
                    if self._transfer is not transfer:
                        pace = self._transfer.pump()
            else:
                pace = Pace.DONE if self._client.flush() else Pace.ROOM
        except SinkBroken:
            connection.client_failed()
            return
        except (SourceBroken, Cut):
            connection.end_with(Reason.BACKEND_RESET)
            connection.on(Event.BACKEND_ERROR)
            return
        except BadResponse as error:
            exchange.refuse_response(error)
            return
        except Fault as fault:
            connection.abort(fault.reason)
            return
        exchange.note(pace)
        if transfer is not None and exchange.backend is not None:
            exchange.watch(exchange.backend, None if pace is Pace.DONE else self._transfer)
        if pace is not Pace.DONE:
            return
        if transfer is not None:
            self._transfer = None
            self._end_of(transfer.body)
        if self.done:
            exchange.check_over()
        else:  # it was an interim response that had no room
            self.hear()

    def again(self) -> None:
        """A turn was over, and the others had theirs."""
        backend = self._exchange.backend
        if self._transfer is not None:
            self.go()
        elif backend is not None and backend.more and not self.done:
            self.hear()

    @property
    def is_lent(self) -> bool:
        """Whether the kernel moves the body now."""
        transfer = self._transfer
        return isinstance(transfer, KernelTransfer) and not transfer.keeps_reading

    def look(self) -> bool:
        """Account for what the kernel has moved; whether that was anything."""
        return isinstance(self._transfer, KernelTransfer) and self._transfer.look()

    def close(self) -> None:
        """Nothing of the response goes on any more."""
        if isinstance(self._transfer, KernelTransfer):
            self._transfer.close()
        self._transfer = None

    # ---- heads

    def _take(self, data: bytes) -> None:
        """Take bytes up to the end of the final head. Raises BadResponse, SinkBroken."""
        exchange, head = self._exchange, self._exchange.head
        while data:
            response = self._reader.feed(data)
            if response is None:
                return
            data = self._reader.surplus
            if not response.is_interim:
                self._begin(response, data)
                return
            self._reader = self._new_reader()
            if response.status == HTTPStatus.CONTINUE:
                exchange.asking.unmet = False
            if head.version == "1.1":  # RFC 9110 section 15.2: not to a client of HTTP/1.0
                self._client.write(
                    serialise_response(
                        response, client_version="1.1", keep_alive=True, chunked=False
                    )
                )

    def _begin(self, response: Response, rest: bytes) -> None:
        """The final head is complete. Raises BadResponse, SinkBroken."""
        exchange, head = self._exchange, self._exchange.head
        connection = exchange.connection
        if exchange.retry(response.status):
            return
        connection.record.status = response.status
        is_tunnel = head.method == "CONNECT" and response.status < HTTPStatus.MULTIPLE_CHOICES
        if is_tunnel or response.status == HTTPStatus.SWITCHING_PROTOCOLS:
            exchange.switch(response, rest)
            return
        exchange.asking.settle()
        wanted = head.keep_alive and exchange.asking.sent and not connection.worker.is_stopping
        chunked, self.keeps = framing(response, head.version, wanted)
        out = serialise_response(
            response,
            client_version=head.version,
            keep_alive=self.keeps,
            chunked=chunked,
            changes=exchange.decision.route.filters.response_headers,
            extra=self._cookie(),
        )
        body = body_of(response, connection.listener.limits, chunked=chunked)
        if body is not None and rest:
            out += body.take(memoryview(rest))
        if body is not None and not body.done:
            assert exchange.backend is not None
            scratch = connection.worker.body_scratch
            self._transfer = Transfer(exchange.backend, self._client, body, scratch)
        else:
            self._end_of(body, rest)
        self.response = response
        self._client.write(out)
        exchange.note(Pace.ROOM if self._client.out else Pace.READ)
        if self.done:
            exchange.check_over()
        elif isinstance(self._transfer, Transfer):
            self._transfer = best_way(exchange, self._transfer)
            if not isinstance(self._transfer, Transfer):
                self.go()

    def _end_of(self, body: Body | None, rest: bytes = b"") -> None:
        backend = self._exchange.backend
        self.done = True
        self.spoilt |= bool(rest if body is None else body.surplus)
        if backend is not None and backend.ended:  # of which nothing tells again
            self._exchange.asking.give_up()

    def _cookie(self) -> list[tuple[bytes, bytes]]:
        cookie = self._exchange.connection.dialing.set_cookie
        if cookie is None:
            return []
        name, _, value = cookie.partition(b": ")
        return [(name, value)]


def body_of(response: Response, limits: Limits, *, chunked: bool) -> Body | None:
    """The body as the client gets it: in chunks, or not."""
    length = response.body_length
    if length is not None:
        return Sized(length) if length else None
    if response.chunked:
        return Chunks(Chunked(Side.BACKEND, limits, frame=chunked, without=response.options))
    return UntilEnd(frame=chunked)
