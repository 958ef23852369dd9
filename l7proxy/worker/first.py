"""The first bytes of a pair, both ways, in user space: many a connection is over with them.

To splice a pair takes a dozen system calls, to end it another dozen, and a kworker has to send what
it redirects. For a request and a short answer that is more than all else that a connection costs,
so a pair is spliced only once it lasts: the backend has answered, has no more for now and was not
asked to end then. Where there is more to move than a little the relay has it first (`relayed`).

Sockets are watched edge-triggered. epoll(7): "the condition that the read/write I/O space is
exhausted can also be detected by checking the amount of data read from / written to the target file
descriptor": a read that does not fill the buffer needs no other one to see EAGAIN. An end that was
there already is in the mask (EPOLLRDHUP), one that comes later is an edge of its own.

Before a splice there is that other read all the same: the kernel takes no pair of which an end has
ended, and an answer and the end after it often come together.
"""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING

from l7proxy.errors import Reason
from l7proxy.model import Datapath, Side
from l7proxy.session import Event, Flow, FlowEvent
from l7proxy.telemetry.counters import Counter

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection

LITTLE = 16 * 1024
"""Bytes of the first answer that are passed on before the splice, and of the client's until there
is an answer: `Worker.little_scratch`. A socket that is new has room for so many."""

_MASK = select.EPOLLIN | select.EPOLLPRI | select.EPOLLRDHUP | select.EPOLLET
_ENDED = select.EPOLLRDHUP | select.EPOLLHUP
_ERR, _PRI = select.EPOLLERR, select.EPOLLPRI
_DONTWAIT = socket.MSG_DONTWAIT


class FirstPair:
    """An open pair (`OpenPair`) until it is over, or lasts, or somebody has no room.

    It counts in the connection's `early_*`, as what was moved before it.
    """

    __slots__ = ("_active", "_connection", "_moved_up", "datapath")

    def __init__(self, connection: Connection) -> None:
        self.datapath = Datapath.COPY
        self._connection = connection
        self._moved_up = 0
        self._active = connection.worker.now
        assert connection.backend is not None
        connection.watch(connection.client, _MASK, anew=True)
        connection.watch(connection.backend, _MASK, anew=True)

    def ready(self, side: Side, mask: int) -> None:
        """See `OpenPair.ready`."""
        connection = self._connection
        if mask & _ERR:
            connection.broken(side)
        elif mask & _PRI:
            connection.abort(Reason.URGENT_DATA)
        elif connection.session.flows[side] is not Flow.FINISHED:
            if side:
                self._answer(bool(mask & _ENDED))
            else:
                self._request(bool(mask & _ENDED))

    def _request(self, ended: bool) -> None:
        """Pass on what the client sends."""
        connection = self._connection
        scratch = connection.worker.little_scratch
        backend = connection.backend
        assert backend is not None
        self._active = connection.worker.now
        while True:
            try:
                n = connection.client.recv_into(scratch, 0, _DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                connection.broken(Side.CLIENT)
                return
            if not n:
                self._ended(Side.CLIENT)
                return
            sent = self._write(backend, Side.BACKEND, scratch[:n])
            if sent < 0:
                return
            connection.early_out += sent
            connection.early_in += sent
            connection.worker.view[Counter.RELAYED_CLIENT] += sent
            if sent < n:
                connection.held_request = bytes(scratch[sent:n])
                self._blocked()
                return
            self._moved_up += n
            if self._moved_up >= len(scratch) and not ended:
                self._goes_on()
                return
            if n < len(scratch) and not ended:
                return

    def _answer(self, ended: bool) -> None:
        """Pass on what the backend says."""
        connection = self._connection
        scratch = connection.worker.little_scratch
        backend, client = connection.backend, connection.client
        assert backend is not None
        self._active = connection.worker.now
        while True:
            try:
                n = backend.recv_into(scratch, 0, _DONTWAIT)
            except BlockingIOError:
                if connection.early_answer and not connection.brief and connection.is_whole:
                    self._over()
                    connection.on(Event.LASTS)
                return
            except OSError:
                connection.broken(Side.BACKEND)
                return
            if not n:
                self._ended(Side.BACKEND)
                return
            sent = self._write(client, Side.CLIENT, scratch[:n])
            if sent < 0:
                return
            if not connection.early_answer:
                connection.note_first_byte()
            connection.early_answer += n
            connection.worker.view[Counter.RELAYED_BACKEND] += sent
            if sent < n:
                connection.held_answer = bytes(scratch[sent:n])
                self._blocked()
                return
            if ended:
                continue
            if connection.early_answer >= len(scratch):
                self._goes_on()
                return
            if connection.brief and n < len(scratch):
                return

    def _write(self, sink: socket.socket, side: Side, data: memoryview) -> int:
        """How much the socket of `side` took; below zero when the connection is over."""
        try:
            return sink.send(data, _DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            self._connection.broken(side)
            return -1

    def _over(self) -> None:
        self._connection.worker.view[Counter.RELAYS_ENDED] += 1
        self._connection.pair = None

    def _goes_on(self) -> None:
        """There is more to move than a little."""
        if self._connection.is_whole:
            self._over()
            self._connection.on(Event.MUCH)
        else:
            self._blocked()

    def _blocked(self) -> None:
        self._over()
        self._connection.on(Event.BLOCKED)

    def _ended(self, side: Side) -> None:
        connection = self._connection
        connection.session.on_flow(side, FlowEvent.FIN)
        # every byte was written by this process, in order: nothing is under way
        connection.flow(side, FlowEvent.BALANCED)

    def again(self) -> None:
        """See `OpenPair.again`. It never asks for that."""

    def idle_since(self, _now: float) -> float:
        """See `OpenPair.idle_since`."""
        return self._active

    def stalled_since(self) -> float | None:
        """See `OpenPair.stalled_since`: who has no room is relayed."""
        return None

    def moved(self) -> tuple[int, int, int, int]:
        """See `OpenPair.moved`."""
        return self._connection.early_in, self._connection.early_answer, 0, 0

    def silent(self) -> bool:
        """See `OpenPair.silent`."""
        return not self._connection.early_answer

    def close(self) -> None:
        """See `OpenPair.close`."""
