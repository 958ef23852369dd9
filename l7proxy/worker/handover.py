"""What another worker needs to know of a spliced pair, besides what the kernel knows itself.

The kernel has the sockets, TCP's counters, and in the mapped arrays the ledger. What is left is
constant from the splice on: what was moved before it, and what the log and the counters call the
connection by. It is written once, as JSON: whoever reads it may be another release, and is no more
gullible than it has to be. `VERSION` changes with every change of its meaning; what has another one
is not adopted.
"""

from __future__ import annotations

from json import JSONEncoder, loads
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from l7proxy.errors import L7ProxyError
from l7proxy.model import Protocol, Timeouts
from l7proxy.telemetry.accesslog import Record
from l7proxy.telemetry.presence import NOWHERE

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection

VERSION = 1

_RECORD = (
    *("time", "listener", "client", "proxy", "route", "backend", "endpoint", "protocol"),
    *("method", "host", "path", "sni", "alpn", "datapath", "status", "overflows"),
    *("head_ms", "dial_ms", "first_byte_ms", "splice_ms"),
    *("query", "version", "headers"),
)
_of_record = attrgetter(*_RECORD)
_of_connection = attrgetter(
    "early_in", "early_out", "early_answer", "added", "began", "listener.row"
)
_LONGEST = 1400  # characters of a path, as in the log: longer ones are kept in part
_HEADER = 300  # characters of a header's value, for formats that have it
_encode = JSONEncoder(separators=(",", ":"), check_circular=False).encode


class Unreadable(L7ProxyError):
    """A record of another version, or none at all."""


class Handed:
    """A record that was read: `fields` of the connection, its `timeouts`, and the log's record."""

    __slots__ = ("brief", "counted", "fields", "protocol", "record", "row", "timeouts", "upgrades")

    def __init__(self, text: str, slot: int) -> None:
        """Read what `pack` wrote, for the worker in this slot. Raises Unreadable."""
        try:
            version, *parts = loads(text)
            if version != VERSION:
                raise Unreadable(f"a record of version {version!r}")
            numbers, timeouts, flags, values = parts
            self.counted, self.brief, self.upgrades = map(bool, flags)
            *self.fields, self.row = map(_number, numbers)
            self.timeouts = Timeouts(*map(float, timeouts))
            found: dict[str, Any] = dict(zip(_RECORD, values, strict=True))
            self.protocol = found["protocol"] = Protocol(found["protocol"])
            found["alpn"] = tuple(map(str, found["alpn"]))
            if found["headers"] is not None:
                found["headers"] = {str(key): str(value) for key, value in found["headers"].items()}
            self.record = Record(worker=slot, **found)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise Unreadable(f"no record: {error}") from error

    def write_to(self, connection: Connection) -> None:
        """Make the connection what it was."""
        (
            connection.early_in,
            connection.early_out,
            connection.early_answer,
            connection.added,
            connection.began,
        ) = self.fields
        connection.timeouts = self.timeouts
        connection.brief, connection.upgrades = self.brief, self.upgrades
        connection.record = self.record


def pack(connection: Connection) -> str:
    """The record of a connection whose pair is in the kernel."""
    timeouts, record = connection.timeouts, _of_record(connection.record)
    if len(connection.record.path) + len(connection.record.query or "") > _LONGEST:
        record = tuple(one[:_LONGEST] if isinstance(one, str) else one for one in record)
    if connection.record.headers:  # the last one of them
        short = {name: value[:_HEADER] for name, value in connection.record.headers.items()}
        record = (*record[:-1], short)
    return _encode(
        (
            VERSION,
            _of_connection(connection),
            (timeouts.head, timeouts.dial, timeouts.idle, timeouts.overflow),
            (connection.presence != NOWHERE, connection.brief, connection.upgrades),
            record,
        )
    )


def _number(value: Any) -> Any:
    if type(value) not in (int, float) or value < 0:
        raise TypeError("no number")
    return value
