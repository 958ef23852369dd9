"""Copies of requests, to a second backend: HTTPRequestMirrorFilter (Gateway API).

Nobody waits for them. A copy goes out once the request was read to its end, as the first backend
got it, over a connection of its own or one that was kept; its response is read to its end, so that
the connection can be kept, and dropped. Gateway API v1: "Responses from this backend MUST be
ignored by the Gateway."

All is bounded: a copy holds a head and at most `copying.REPLAY` bytes of a body, a worker has
`MOST` of them under way, each for `SECONDS`. What is beyond is lost, and counted. A copy counts as
a connection of its backend, for balancing, circuits and health.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from l7proxy.datapath.relay import SinkBroken, SourceBroken
from l7proxy.errors import BadResponse
from l7proxy.head import Head
from l7proxy.health import Failure
from l7proxy.model import Limits, Mirror
from l7proxy.net import dial
from l7proxy.response import ResponseReader
from l7proxy.telemetry.counters import Counter
from l7proxy.worker.answering import body_of
from l7proxy.worker.groups import Group, Place
from l7proxy.worker.transfer import Body, Cut
from l7proxy.worker.wire import WATCH, Wire

if TYPE_CHECKING:
    from l7proxy.worker.loop import Worker

log = logging.getLogger(__name__)

MOST = 256  # copies of a worker that are under way
SECONDS = 30.0  # from the dial to the end of the response
DROPPED = 256 * 1024  # bytes of a response that are read to keep a connection; it is closed beyond

_LIMITS = Limits()


class Mirrors:
    """The copies of one worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.under_way: set[Copy] = set()

    def wants(self, mirror: Mirror | None, head: Head) -> bool:
        """Whether this request is to be copied: one that becomes something else is not."""
        if mirror is None or head.method == "CONNECT" or head.upgrade is not None:
            return False
        return mirror.percent >= 100 or self._worker.chance() * 100 < mirror.percent

    def send(self, group: Group, head: Head, client: str, outgoing: bytes | None) -> None:
        """Send a copy of a request; `outgoing` is None where it was too large to have one."""
        worker = self._worker
        if outgoing is not None and len(self.under_way) < MOST:
            copy = Copy(worker, group, head, outgoing)
            if copy.begin(client):
                worker.view[Counter.MIRRORED] += 1
                return
        worker.view[Counter.MIRRORS_LOST] += 1


class Copy:
    """One copy: a request on its way, then its response."""

    __slots__ = (
        "_body",
        "_group",
        "_head",
        "_is_dialling",
        "_left",
        "_outgoing",
        "_place",
        "_reader",
        "_response_keeps",
        "_wire",
        "_worker",
        "tick",
    )

    def __init__(self, worker: Worker, group: Group, head: Head, outgoing: bytes) -> None:
        self.tick = -1
        self._worker = worker
        self._group = group
        self._head = head
        self._outgoing = outgoing
        self._is_dialling = False
        self._place: Place | None = None
        self._wire: Wire | None = None
        self._reader: ResponseReader | None = ResponseReader(head.method, _LIMITS)
        self._body: Body | None = None
        self._response_keeps = False
        self._left = DROPPED

    # ---- out

    def begin(self, client: str) -> bool:
        """Choose an endpoint and go there; whether there is one that can be dialled."""
        worker, group = self._worker, self._group
        order = group.order(self._head, client, None, worker.now)
        if not group.admit():
            return False
        self._place = next((one for one in order if one.at >= 0 and group.take(one)), None)
        worker.mirrors.under_way.add(self)
        worker.calendar.set(self, worker.now + SECONDS)
        if self._place is None or not self._connect(self._place):
            self._end(keep=False)
            return False
        return True

    def _connect(self, place: Place) -> bool:
        worker, address = self._worker, place.member.address
        wire = worker.pool.take(place) if self._pools else None
        if wire is not None:
            worker.hand_over(wire.sock.fileno(), worker.pool, self)
            self._wire = wire
            self._write()
            return True
        try:
            sock = dial.start(address, speaks=True)
        except OSError:
            self._refused(place)
            return False
        self._wire = wire = Wire(sock)
        wire.born = worker.now
        self._is_dialling = True
        worker.register(sock.fileno(), WATCH, self)
        if dial.must_ask(address):  # epoll says nothing of such an attempt
            self._go_on()
            return self._wire is not None and not self._is_dialling
        return True

    def _write(self) -> None:
        wire, self._is_dialling = self._wire, False
        assert wire is not None
        wire.uses += 1
        self._group.load.row.end_dial()
        outgoing, self._outgoing = self._outgoing, b""
        try:
            wire.write(outgoing)
        except SinkBroken:
            self._end(keep=False)

    # ---- what happens

    def ready(self, _fd: int, mask: int) -> None:
        """Epoll has reported `mask`."""
        try:
            if self._wire is not None:
                self._wire.note(mask)
                self._go_on()
        except Exception:  # a bug of ours must not cost more than a copy
            log.exception("internal error; a copy of a request is dropped")
            self._end(keep=False)

    def on_deadline(self) -> None:
        """It took too long."""
        self._end(keep=False)

    def _go_on(self) -> None:
        wire, place = self._wire, self._place
        assert wire is not None
        assert place is not None
        if self._is_dialling:
            try:
                if not dial.progress(wire.sock, place.member.address):
                    return
            except dial.DialError:
                self._refused(place)
                self._end(keep=False)
                return
            self._group.worked(place, Failure.DIAL)
            self._write()
        try:
            if self._wire is not None and wire.flush():
                self._hear(wire)
        except (BadResponse, Cut, SinkBroken, SourceBroken):
            self._end(keep=False)

    def _hear(self, wire: Wire) -> None:
        """Read the response, and drop it. Raises BadResponse, Cut, SourceBroken."""
        scratch = self._worker.body_scratch
        while wire.more:
            n = wire.read(scratch)
            if n < 0:
                return
            self._left -= n
            if n == 0 or self._left < 0 or self._is_over(bytes(scratch[:n])):
                self._end(keep=n > 0 and self._left >= 0)
                return

    def _is_over(self, data: bytes) -> bool:
        """Take bytes of the response; whether its end is among them. Raises BadResponse."""
        while self._reader is not None:
            response = self._reader.feed(data)
            if response is None:
                return False
            data = self._reader.surplus
            if response.is_interim:
                self._reader = ResponseReader(self._head.method, _LIMITS)
                continue
            self._reader = None
            self._response_keeps = response.keep_alive
            self._body = body_of(response, _LIMITS, chunked=False)
            if self._body is None:
                self._response_keeps &= not data
                return True
        assert self._body is not None
        self._body.take(memoryview(data))
        self._response_keeps &= not self._body.surplus
        return self._body.done

    # ---- the end

    def _refused(self, place: Place) -> None:
        self._group.failed(place, Failure.DIAL, "refused", self._worker.now)

    @property
    def _pools(self) -> bool:
        """Whether its connection may serve others: it tells of no client."""
        return self._group.backend.proxy_protocol is None

    def _end(self, *, keep: bool) -> None:
        """Give everything back; `keep`: the response was read to its end."""
        worker, wire, place = self._worker, self._wire, self._place
        if self not in worker.mirrors.under_way:
            return
        worker.mirrors.under_way.discard(self)
        worker.calendar.cancel(self)
        self._wire = None
        if wire is None or self._is_dialling:
            self._group.load.row.end_dial()
        if wire is not None:
            is_exact = keep and self._response_keeps and not (wire.out or wire.more or wire.ended)
            if is_exact and self._pools and place is not None:
                worker.pool.put(place, wire, self)
            else:
                worker.bury(wire.sock)
        if place is not None:
            place.leave()
        self._group.load.leave()
