"""From a decision to a connected backend: which endpoint, and what if it does not answer."""

from __future__ import annotations

import select
from collections.abc import Iterator
from typing import TYPE_CHECKING

from l7proxy.errors import Reason
from l7proxy.model import Address, Forward, Hello, Protocol, Requested, Side
from l7proxy.net import dial
from l7proxy.session import Event

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection

_GONE = select.EPOLLERR | select.EPOLLHUP


class Dialing:
    """The state DIAL of one connection; afterwards, where it was dialled to."""

    __slots__ = ("_connection", "_dial_seconds", "_endpoint", "_endpoints", "_failure")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._dial_seconds = 0.0
        self._endpoint: Address | None = None
        self._endpoints: Iterator[Address] = iter(())
        self._failure = Reason.DIAL_REFUSED

    def choose(
        self,
        decision: Forward,
        request: Requested | None,  # noqa: ARG002
        client: str,  # noqa: ARG002
        hello: Hello | None,  # noqa: ARG002
    ) -> None:
        """Take the endpoints of the decision's backend group, in their turn.

        `client` is the address, without a port, of who is served; "" when it has none. `request` is
        what an HTTP listener read, `hello` what a TLS listener did.
        """
        connection = self._connection
        seconds = decision.route.timeouts.dial
        self._dial_seconds = connection.listener.timeouts.dial if seconds is None else seconds
        connection.record.route = decision.route.name
        connection.record.backend = decision.backend.name
        self._endpoints = connection.worker.balancers[decision.backend.name].order()

    def start(self) -> None:
        """Try endpoints until one takes the connection, or one of them takes its time."""
        connection = self._connection
        for endpoint in self._endpoints:
            self._endpoint = endpoint
            try:
                connection.backend = dial.start(endpoint)
                connected = dial.progress(connection.backend, endpoint)
            except dial.DialError:
                self._failure = Reason.DIAL_REFUSED
                connection.drop_backend()
                continue
            except OSError:
                self._failure = Reason.DESCRIPTORS
                break
            if connected:
                self._connected()
                return
            connection.watch(connection.backend, select.EPOLLOUT)
            connection.watch(connection.client, 0)  # errors are always reported
            connection.set_deadline(self._dial_seconds)
            return
        self._unreachable()

    def ready(self, side: Side, mask: int) -> None:
        """The attempt has come to an end, or the client has gone."""
        connection = self._connection
        if side is Side.CLIENT:
            if mask & _GONE:
                connection.client_failed()
            return
        assert connection.backend is not None
        assert self._endpoint is not None
        try:
            connected = dial.progress(connection.backend, self._endpoint)
        except dial.DialError:
            self._failure = Reason.DIAL_REFUSED
            connection.drop_backend()
            self.start()
            return
        if connected:
            self._connected()

    def timed_out(self) -> None:
        """This endpoint takes too long: the next one."""
        self._failure = Reason.DIAL_TIMEOUT
        self._connection.drop_backend()
        self.start()

    @property
    def set_cookie(self) -> bytes | None:
        """The `Set-Cookie` line, without its line end, that the response has to bring; or None."""
        return None

    def lost_early(self) -> None:
        """The backend broke, or ended, before the client got a byte of it."""

    def release(self, *, answered: bool) -> None:
        """The connection is over; `answered`: the backend sent something."""

    def _connected(self) -> None:
        connection = self._connection
        connection.record.dial_ms = connection.elapsed()
        connection.record.endpoint = str(self._endpoint)
        connection.on(Event.CONNECTED)

    def _unreachable(self) -> None:
        connection, reason = self._connection, self._failure
        if connection.listener.protocol is Protocol.TCP:
            connection.abort(reason)
            return
        connection.end_with(reason)
        if reason is Reason.DIAL_TIMEOUT:
            connection.reply_with(504, "no endpoint of the backend answered in time")
        else:
            connection.reply_with(503, "no endpoint of the backend takes connections")
        connection.on(Event.UNREACHABLE)
