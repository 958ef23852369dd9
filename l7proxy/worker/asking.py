"""A request on its way to the backend: the head, and what follows it as far as the body goes.

A request that nobody can have got may be sent once more (RFC 9110 section 9.2.2): where a kept
connection had ended before it, where it is idempotent, and where all that was written of it is
still here (`replay`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from l7proxy.chunked import Chunked
from l7proxy.datapath.relay import SinkBroken, SourceBroken
from l7proxy.errors import BadRequest, Reason
from l7proxy.head import Head
from l7proxy.model import Limits, Side
from l7proxy.session import Event
from l7proxy.worker.bykernel import Fault, KernelTransfer, best_way
from l7proxy.worker.copying import IDEMPOTENT, REPLAY, copy_of, copying
from l7proxy.worker.requests import Requests
from l7proxy.worker.transfer import Body, Chunks, Cut, Pace, Sized, Transfer
from l7proxy.worker.wire import Wire

if TYPE_CHECKING:
    from l7proxy.worker.exchange import Exchange


class Asking:
    """The request of one exchange."""

    __slots__ = (
        "_body",
        "_exchange",
        "_head",
        "_outgoing",
        "_requests",
        "_transfer",
        "deaf",
        "replay",
        "sent",
        "unmet",
    )

    def __init__(
        self,
        exchange: Exchange,
        requests: Requests,
        head: Head,
        outgoing: bytes,
        surplus: bytes,
        keep: int,
    ) -> None:
        """See `Exchange`; `keep`: `copying.kept_of`. Raises BadRequest when the surplus is none."""
        self._exchange = exchange
        self._requests = requests
        self._head = outgoing
        body = _body(head, exchange.connection.listener.limits)
        self._body = body = body and copying(body, head, keep)
        if body is not None and surplus:
            outgoing += body.take(memoryview(surplus))
            surplus = body.surplus
        requests.pending = surplus
        self._outgoing = outgoing
        self._transfer: Transfer | KernelTransfer | None = None
        self.replay: bytes | None = None  # what was written, while it may be written once more
        self.sent = False  # all of it is in the backend's write queue
        self.deaf = False  # the backend takes nothing any more
        self.unmet = head.expect_continue and not self.is_read  # the client waits for a 100

    @property
    def is_read(self) -> bool:
        """Whether nothing of the request is to come from the client."""
        return self._body is None or self._body.done

    @property
    def body(self) -> bytes | None:
        """The body as it went on, if all of it was read, and a copy was kept."""
        return copy_of(self._body)

    @property
    def whole(self) -> bytes | None:
        """The request as it went on, likewise."""
        body = self.body
        return None if body is None else self._head + body

    def start(self, backend: Wire) -> None:
        """Begin to send it, on a connection that is there."""
        exchange, outgoing = self._exchange, self._outgoing
        idempotent = exchange.head.method in IDEMPOTENT
        is_small = len(outgoing) <= REPLAY
        self.replay = outgoing if backend.uses > 1 and idempotent and is_small else None
        self.sent = self.deaf = False
        if not self.is_read:
            assert self._body is not None
            scratch = exchange.connection.worker.body_scratch
            self._transfer = Transfer(self._requests.client, backend, self._body, scratch)
        try:
            if backend.write(outgoing) and isinstance(self._transfer, Transfer):
                self._choose_way(self._transfer)
        except SinkBroken:
            self._fall_on_deaf_ears()
            return
        self.go()

    def _choose_way(self, transfer: Transfer) -> Transfer | KernelTransfer:
        better = self._transfer = best_way(self._exchange, transfer)
        if better is not transfer:
            self.replay = None  # nobody knows how much the kernel has taken by now
        return better

    @property
    def is_lent(self) -> bool:
        """Whether the kernel moves the body now."""
        transfer = self._transfer
        return isinstance(transfer, KernelTransfer) and not transfer.keeps_reading

    def look(self) -> bool:
        """Account for what the kernel has moved; whether that was anything."""
        return isinstance(self._transfer, KernelTransfer) and self._transfer.look()

    def close(self) -> None:
        """Nothing of the request goes on any more. What was read beyond its end is the next one."""
        transfer, self._transfer = self._transfer, None
        if isinstance(transfer, KernelTransfer):
            transfer.close()
        if transfer is not None and transfer.body.done:
            self._requests.pending = transfer.body.surplus

    def give_up(self) -> None:
        """The backend has answered, and ended: what is left of the request is nobody's."""
        if not self.sent:
            self.deaf = True
            self.close()

    def again(self) -> None:
        """The same once more, on another connection: nobody has got it, or it may come twice."""
        request = self.whole if self.replay is None else self.replay
        assert request is not None
        self._outgoing, self.replay = request, None

    def ready(self) -> None:
        """The client has sent more; it is the next request's if this one is read."""
        if self._transfer is not None:
            self.go()

    def go(self) -> None:
        """Send on what there is, and what found no room before."""
        exchange, transfer, client = self._exchange, self._transfer, self._requests.client
        connection, backend = exchange.connection, exchange.backend
        assert backend is not None
        taken = client.taken + client.lent
        try:
            if transfer is not None:
                pace = transfer.pump()
                if pace is Pace.READ and isinstance(transfer, Transfer):
                    better = self._choose_way(transfer)
                    pace = pace if better is transfer else better.pump()
            else:
                pace = Pace.DONE if backend.flush() else Pace.ROOM
        except SinkBroken:
            self._fall_on_deaf_ears()
            return
        except SourceBroken:
            connection.client_failed()
            return
        except Fault as fault:
            connection.abort(fault.reason)
            return
        except Cut:
            connection.end_with(Reason.CLIENT_CLOSED)
            connection.on(Event.CLIENT_ERROR)
            return
        except BadRequest as error:
            exchange.refuse(error)
            return
        if client.taken + client.lent != taken:
            self.unmet = False
            self.replay = None
        exchange.note(pace)
        exchange.watch(client, self._transfer)
        if pace is Pace.DONE and not self.sent:
            self.sent = True
            if transfer is not None:
                self._finish(transfer)
            else:
                exchange.sent()
            exchange.check_over()

    def settle(self) -> None:
        """The backend answers: it may have got the last byte from the kernel just now.

        What is amiss is met again, and told of, by whoever goes on with the request.
        """
        transfer = self._transfer
        if isinstance(transfer, KernelTransfer):
            try:
                if transfer.pump() is Pace.DONE:
                    self._finish(transfer)
            except SinkBroken:  # what was taken for it is lost, so this is not found out again
                self.give_up()
            except (SourceBroken, Cut, Fault):
                pass

    def _finish(self, transfer: Transfer | KernelTransfer) -> None:
        self.sent = True
        self._requests.pending = transfer.body.surplus
        self._transfer = None
        self._exchange.watch(self._requests.client, None)
        self._exchange.sent()

    def _fall_on_deaf_ears(self) -> None:
        """The backend takes nothing any more; it may have answered before."""
        backend = self._exchange.backend
        assert backend is not None
        self.deaf = True
        self.close()
        backend.out = b""
        backend.more = True
        self._exchange.answering.hear()


def _body(head: Head, limits: Limits) -> Body | None:
    length = head.body_length
    if length is None:
        return Chunks(Chunked(Side.CLIENT, limits, without=head.options))
    return Sized(length) if length else None
