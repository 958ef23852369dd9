"""Connections that wait for nothing but their next request, while the worker drains.

Nobody reads what goes through an open pair, so there is no `Connection: close` to be added to an
answer, and no way to see that one is complete. But TCP knows when each end last said something: a
kept-alive HTTP connection through which nothing has gone for a while, and whose last word was the
backend's, waits for its next request, or its answer pauses. Either way it is enough to tell the
backend that the client will send nothing more: a half-close. A server that is between two requests
closes then, and that end is passed on like any other; one that is in the middle of an answer
may finish it. It is the backend that ends the stream, where it means to: nothing is cut.

(Measured by jiffies: an answer within the same 4 ms as its request looks as old as that.)

What was asked to upgrade is no such connection, nor what user space cannot ask TCP about (a unix
socket), nor any protocol but HTTP: those have until the deadline.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from l7proxy.errors import Reason
from l7proxy.model import Protocol
from l7proxy.net.tcpinfo import tcp_info
from l7proxy.session import Event, Flow, State
from l7proxy.worker.timers import TICK

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection
    from l7proxy.worker.loop import Worker

_BATCH = 400  # connections that are looked at in one turn of the loop: two system calls each
_PAUSE = 0.5  # seconds between two looks at all of them
_MOVING = (Flow.KERNEL, Flow.USER)


class Farewell:
    """Goes round the connections of a worker that takes no new ones."""

    def __init__(self, worker: Worker, seconds: float) -> None:
        self.tick = -1
        self._worker = worker
        self._seconds = seconds
        self._left: list[Connection] = []

    def begin(self) -> None:
        """End what has not begun, and from now on what is quiet for so many seconds."""
        for connection in self._worker.connections():
            if connection.session.state is State.HEAD and connection.early_in == 0:
                connection.end_with(Reason.CLIENT_CLOSED)
                connection.on(Event.CLIENT_END)
        self._next(_PAUSE)

    def _next(self, seconds: float) -> None:
        self._worker.calendar.set(self, self._worker.now + seconds)

    def on_deadline(self) -> None:
        """Look at the next few."""
        if not self._left:
            self._left = self._worker.connections()
        batch, self._left = self._left[:_BATCH], self._left[_BATCH:]
        for connection in batch:
            if waits(connection, self._seconds):
                say_goodbye(connection)
        self._next(TICK if self._left else _PAUSE)


def waits(connection: Connection, seconds: float) -> bool:
    """Whether a connection has waited for its next request for so long, as far as TCP can tell."""
    pair, backend = connection.pair, connection.backend
    if pair is None or backend is None or not connection.session.is_open:
        return False
    if connection.listener.protocol is not Protocol.HTTP or connection.brief:
        return False
    if connection.upgrades or connection.dismissed or pair.silent():
        return False
    if any(flow not in _MOVING for flow in connection.session.flows):
        return False
    try:
        client, server = tcp_info(connection.client), tcp_info(backend)
    except OSError:
        return False
    heard = min(client.last_data_recv, server.last_data_recv)
    sent = min(client.last_data_sent, server.last_data_sent)
    return min(heard, sent) >= seconds * 1000 and server.last_data_recv <= client.last_data_recv


def say_goodbye(connection: Connection) -> None:
    """Tell the backend that nothing more comes: it ends the connection, between two requests."""
    assert connection.backend is not None
    connection.dismissed = True
    try:
        connection.backend.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # it is broken already: epoll tells
