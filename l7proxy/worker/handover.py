"""What another worker needs to know of a spliced pair, besides what the kernel knows itself.

The kernel has the sockets, TCP's counters, and in the mapped arrays the ledger. What is left is
constant from the splice on: what was moved before it, and what the log and the counters call the
connection by. It is written once, and for every pair that lasts, so in a form that costs little:
lines of text, and the numbers in the first of them as a struct in hexadecimal digits. Whoever reads
it may be another release.
`VERSION` changes with every change of its meaning; what has another one is not adopted.
"""

from __future__ import annotations

import struct
from json import dumps, loads
from math import isnan
from operator import attrgetter
from typing import TYPE_CHECKING

from l7proxy.errors import L7ProxyError
from l7proxy.model import Protocol, Timeouts
from l7proxy.telemetry.accesslog import Record
from l7proxy.telemetry.presence import NOWHERE

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection

VERSION = "2"

_TEXTS = (
    *("listener", "client", "proxy", "route", "backend", "endpoint", "protocol"),
    *("method", "host", "path", "sni", "datapath", "destination", "version"),
)
_TIMES = ("head_ms", "dial_ms", "first_byte_ms", "splice_ms")
_texts = attrgetter(*_TEXTS)
_times = attrgetter(*_TIMES)
_numbers = attrgetter(  # in the order of `_NUMBERS`
    *("early_in", "early_out", "early_answer", "before_in", "before_out", "number"),
    *("listener.row", "added", "presence", "brief", "upgrades", "began", "record.time"),
    *("timeouts.head", "timeouts.dial", "timeouts.idle", "timeouts.overflow"),
)
_NUMBERS = struct.Struct("<7Qqq??6d4d")  # and the times, NaN for none
_NONE = float("nan")
_HEADER = 300  # characters of a header's value
_PATH = 1400  # characters of a path, as in the log: longer ones are kept in part


class Unreadable(L7ProxyError):
    """A record of another version, or none at all."""


class Handed:
    """A record that was read: what the connection was, its `timeouts`, and the log's record."""

    __slots__ = (
        *("_added", "_began", "_brief", "_counts", "_upgrades"),
        *("counted", "record", "row", "timeouts"),
    )

    def __init__(self, text: str, slot: int) -> None:
        """Read what `pack` wrote, for the worker in this slot. Raises Unreadable."""
        version, *lines = text.split("\n")
        if version != VERSION:
            raise Unreadable(f"a record of version {version[:20]!r}")
        try:
            numbers, status, alpn, extras, *texts = lines
            values = _NUMBERS.unpack(bytes.fromhex(numbers))
            *self._counts, self.row, self._added, presence = values[:9]
            self._brief, self._upgrades = values[9:11]
            self._began, began_at, *timeouts = values[11:17]
            self.counted = presence != NOWHERE
            self.timeouts = Timeouts(*timeouts)
            self.record = record = Record(began_at, slot, texts[0], texts[1])
            for name, value in zip(_TEXTS, texts, strict=True):
                setattr(record, name, value)
            record.protocol = Protocol(record.protocol)
            for name, value in zip(_TIMES, values[17:], strict=True):
                setattr(record, name, None if isnan(value) else value)
            record.alpn = tuple(alpn.split("\t")) if alpn else ()
            record.status = int(status) if status else None
            record.query, record.headers = loads(extras) if extras else (None, None)
        except (ValueError, TypeError, IndexError, RecursionError, struct.error) as error:
            raise Unreadable(f"no record: {error}") from error

    @property
    def protocol(self) -> Protocol:
        """What the listener spoke."""
        return Protocol(self.record.protocol)

    def write_to(self, connection: Connection) -> None:
        """Make the connection what it was."""
        (
            connection.early_in,
            connection.early_out,
            connection.early_answer,
            connection.before_in,
            connection.before_out,
            connection.number,
        ) = self._counts
        connection.added = self._added
        connection.began = self._began
        connection.timeouts = self.timeouts
        connection.brief, connection.upgrades = self._brief, self._upgrades
        connection.record = self.record


def pack(connection: Connection) -> str:
    """The record of a connection whose pair is in the kernel."""
    record = connection.record
    times = [_NONE if one is None else one for one in _times(record)]
    numbers = _NUMBERS.pack(*_numbers(connection), *times).hex()
    texts = _texts(record)
    if len(record.path) > _PATH:
        texts = tuple(one[:_PATH] for one in texts)
    status = "" if record.status is None else str(record.status)
    alpn, extras = "\t".join(record.alpn), ""
    if record.query is not None or record.headers is not None:  # for formats that have them
        query = None if record.query is None else record.query[:_PATH]
        headers = {name: value[:_HEADER] for name, value in (record.headers or {}).items()}
        extras = dumps((query, headers if record.headers is not None else None))
    return "\n".join((VERSION, numbers, status, alpn, extras, *texts))
