"""A connection whose requests are routed one by one: what goes on from one request to the next.

The client's wire, what it has sent beyond the request that is under way, and what is needed to make
the next record. A connection that has begun like this goes on like this: a later request whose
route says `splice: connection` is exchanged as well, which is always right.

A record is written for each request, when its response is through. What ends a connection between
two requests concerns none of them: it is counted, and not logged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from l7proxy.telemetry.accesslog import Record
from l7proxy.telemetry.presence import NOWHERE
from l7proxy.worker.wire import Wire

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection
    from l7proxy.worker.exchange import Exchange


class Requests:
    """What a connection has from its first request that is not spliced whole."""

    __slots__ = (
        "_admitted",
        "_connection",
        "_host",
        "_name",
        "_proxy",
        "client",
        "count",
        "exchange",
        "idle_since",
        "pending",
        "rests",
        "taken_before",
    )

    def __init__(
        self, connection: Connection, *, host: str, name: str, proxy: str, admitted: bool
    ) -> None:
        """`host`, `name` and `proxy` are of who is connected, whatever a request says of others.

        `admitted`: the rules on clients were applied to that one.
        """
        self._connection = connection
        self._host = host
        self._name = name
        self._proxy = proxy
        self._admitted = admitted
        self.client = Wire(connection.client, taken=connection.early_in)
        self.exchange: Exchange | None = None
        self.pending = b""  # what the client has sent beyond the request that is under way
        self.taken_before = 0  # bytes of the client that belong to requests that are over
        self.rests = False  # nothing of a request is under way, and each is logged
        self.idle_since = 0.0
        self.count = 0  # requests that are over

    def begin(self) -> None:
        """The first byte of another request is there."""
        connection = self._connection
        self.rests = False
        connection.since = connection.worker.now
        connection.record.time = connection.worker.wall()

    def over(self) -> None:
        """The request's response is with the client: log it, and be ready for the next one."""
        connection = self._connection
        worker, record = connection.worker, connection.record
        record.total_ms = connection.elapsed()
        if not record.state:
            record.state = connection.session.state.value
        worker.exchanged(record)
        self.count += 1
        self.exchange = None
        self.taken_before = self.client.taken - len(self.pending)
        self.rests = True
        self.idle_since = worker.now
        connection.record = Record(
            time=record.time,
            worker=worker.slot,
            listener=connection.listener.name,
            client=self._name,
            proxy=self._proxy,
            destination=record.destination,
            protocol=record.protocol,
        )
        if not self._admitted:  # each request tells anew for whom it is
            connection.client_host = self._host
            if connection.presence != NOWHERE:
                worker.presence.leave(connection.presence)
                connection.presence = NOWHERE

    def account(self) -> None:
        """Note in the record what was moved of the request that is under way."""
        if self.exchange is not None:
            self.exchange.account()
        else:
            self._connection.record.bytes_in = self.taken

    def close(self) -> None:
        """The connection is over."""
        if self.exchange is not None:
            self.exchange.close()
        self.account()

    @property
    def may_answer(self) -> bool:
        """Whether the client may go on after an answer of ours to the request under way."""
        exchange = self.exchange
        return exchange is not None and exchange.may_keep

    @property
    def taken(self) -> int:
        """Bytes of the client that belong to the request under way, or to the one just read."""
        return self.client.taken - len(self.pending) - self.taken_before
