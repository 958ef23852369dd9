"""An answer of our own, a response or a TLS alert: write it, give the client time to read."""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING

from l7proxy.model import Side
from l7proxy.net import dial
from l7proxy.session import Event

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection

LINGER = 2.0  # seconds that a client has to read the answer and to close
DISCARD_ROUNDS = 4  # buffers of a body that nobody wants, read at a time

_DONTWAIT = socket.MSG_DONTWAIT


class Reply:
    """The states REPLY and LINGER of one connection."""

    __slots__ = ("_connection", "_keep", "_left", "_size")

    def __init__(self, connection: Connection, answer: bytes, *, keep: bool = False) -> None:
        """`keep`: the client may send another request after the answer."""
        self._connection = connection
        self._left = answer
        self._size = len(answer)
        self._keep = keep

    def start(self) -> None:
        """Begin to write the answer. The backend, if there is one, has no part in it."""
        connection = self._connection
        connection.drop_backend()
        if not self._keep:
            dial.deliver_on_close(connection.client)
        connection.set_deadline(connection.listener.timeouts.head)
        self._write()

    def ready(self, _side: Side, mask: int) -> None:
        """There is room, or the client has gone."""
        if mask & select.EPOLLERR:
            self._connection.client_failed()
        else:
            self._write()

    def _write(self) -> None:
        connection = self._connection
        while self._left:
            try:
                n = connection.client.send(self._left, _DONTWAIT)
            except BlockingIOError:
                connection.watch(connection.client, select.EPOLLOUT)
                return
            except OSError:
                connection.client_failed()
                return
            self._left = self._left[n:]
        if self._keep:
            connection.replied(self._size)
        else:
            connection.on(Event.REPLIED)

    def linger(self) -> None:
        """Half-close, then read on for a while.

        RFC 9112 9.6: closing at once, with bytes unread, makes the kernel send a reset, which may
        destroy the answer before the client has read it.
        """
        connection = self._connection
        connection.set_deadline(LINGER)
        try:
            connection.client.shutdown(socket.SHUT_WR)
        except OSError:
            connection.on(Event.CLIENT_ERROR)
            return
        connection.watch(connection.client, select.EPOLLIN | select.EPOLLRDHUP)
        self.linger_ready(Side.CLIENT, 0)

    def linger_ready(self, _side: Side, _mask: int) -> None:
        """Read and forget what the client still sends, until it ends."""
        connection = self._connection
        for _ in range(DISCARD_ROUNDS):
            try:
                n = connection.client.recv_into(connection.worker.scratch, 0, _DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                connection.on(Event.CLIENT_ERROR)
                return
            if n == 0:
                connection.on(Event.CLIENT_END)
                return
