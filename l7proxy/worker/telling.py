"""What an operator wants to know of the connections, told a few of them at a time.

A worker may have tens of thousands of connections. To look at one takes up to two system calls, for
TCP knows when data moved last; so the loop goes on in between, and what is told is of the moments
in which it was looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any

from l7proxy.access import host_of
from l7proxy.net.messages import ConnectionRow, Connections, ListConnections
from l7proxy.net.tcpinfo import tcp_info
from l7proxy.session import Flow, State

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection
    from l7proxy.worker.loop import Worker

STEP = 16  # connections that are looked at before the loop may go on
ROWS = 48  # of one message: none is longer than 1 KiB, and a message has 64
_SLACK = 1_024  # connections that are kept beyond those wanted, before they are sorted

_RELAYED = frozenset((State.FIRST, State.RELAYED, State.EXCHANGE))


def telling(worker: Worker, asked: ListConnections) -> Generator[Connections | None, None, None]:
    """The answer in parts; None where there is none yet."""
    key = SORTS[asked.sort]
    first = itemgetter(0)
    kept: list[tuple[Any, Connection]] = []
    total = 0
    for count, connection in enumerate(worker.connections()):
        if count % STEP == 0:
            yield None
        if connection.session.state is State.CLOSED or not _fits(connection, asked.only):
            continue
        total += 1
        kept.append((key(connection), connection))
        if len(kept) >= asked.limit + _SLACK:
            kept.sort(key=first, reverse=asked.reverse)
            del kept[asked.limit :]
    kept.sort(key=first, reverse=asked.reverse)
    del kept[asked.limit :]
    rows: list[ConnectionRow] = []
    for count, (_, connection) in enumerate(kept):
        if count % STEP == 0:
            yield None
        if connection.session.state is not State.CLOSED:
            rows.append(_row(connection))
        if len(rows) == ROWS:
            yield Connections(asked.inquiry, tuple(rows), total, is_last=False)
            rows.clear()
    yield Connections(asked.inquiry, tuple(rows), total, is_last=True)


def _fits(connection: Connection, only: dict[str, str]) -> bool:
    return all(
        _is_client(connection, value) if name == "client" else FIELDS[name](connection) == value
        for name, value in only.items()
    )


def _is_client(connection: Connection, value: str) -> bool:
    """An address, or an address and a port."""
    client = connection.record.client
    return value in (client, host_of(client))


def _way(connection: Connection) -> str | None:
    """Who moves the bytes now; None where no pair is open."""
    session, requests = connection.session, connection.requests
    if requests is not None and requests.exchange is not None and requests.exchange.is_lent:
        return "kernel"
    if session.state is State.SPLICED:
        return "relay" if Flow.OVERFLOW in session.flows else "kernel"
    return "relay" if session.state in _RELAYED else None


def _age(connection: Connection) -> float:
    return connection.worker.clock() - connection.began


def _idle(connection: Connection) -> float:
    """Seconds since a byte has moved."""
    now = connection.worker.clock()
    try:
        if connection.pair is not None:
            return max(0.0, now - connection.pair.idle_since(now))
        info = tcp_info(connection.client)
        return min(now - connection.began, info.last_data_recv / 1000)
    except OSError:  # a unix socket, which knows nothing of the kind
        return now - connection.began


def _moved(connection: Connection) -> tuple[int, int, int]:
    """Bytes to the backend and to the client, and how many of both the kernel has moved."""
    pair, requests = connection.pair, connection.requests
    if requests is not None:
        if requests.exchange is not None:
            requests.exchange.look()
        client = requests.client
        kernel = client.lent + client.given
        return client.taken + client.lent, client.written + client.given, kernel
    if pair is None:
        return connection.early_in, connection.early_answer, 0
    to_backend, to_client, kernel_in, kernel_out = pair.moved()
    return to_backend, to_client, kernel_in + kernel_out


FIELDS: dict[str, Callable[[Connection], str | None]] = {
    "state": attrgetter("session.state"),
    "way": _way,
    "listener": attrgetter("record.listener"),
    "route": attrgetter("record.route"),
    "backend": attrgetter("record.backend"),
    "endpoint": attrgetter("record.endpoint"),
    "client": attrgetter("record.client"),
}
"""What connections can be chosen by."""

SORTS: dict[str, Callable[[Connection], Any]] = {
    "age": _age,
    "idle": _idle,
    "bytes": lambda connection: sum(_moved(connection)[:2]),
    "to_backend": lambda connection: _moved(connection)[0],
    "to_client": lambda connection: _moved(connection)[1],
    "kernel": lambda connection: _moved(connection)[2],
    **{name: get for name, get in FIELDS.items() if name != "way"},
}
"""What they can be told in the order of."""


def _row(connection: Connection) -> ConnectionRow:
    record = connection.record
    to_backend, to_client, kernel = _moved(connection)
    return ConnectionRow(
        number=connection.number,
        listener=record.listener,
        route=record.route,
        backend=record.backend,
        endpoint=record.endpoint,
        client=record.client,
        state=connection.session.state.value,
        way=_way(connection),
        age=round(_age(connection), 3),
        idle=round(_idle(connection), 3),
        to_backend=to_backend,
        to_client=to_client,
        kernel=kernel,
    )
