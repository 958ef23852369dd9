"""What another worker needs to know of a spliced pair, besides what the kernel knows itself.

The kernel has the sockets, TCP's counters, and in the mapped arrays the ledger. What is left is
constant from the splice on: what was moved before it, and what the log and the counters call the
connection by. It is written once, and for every pair that lasts, so in a form that costs little:
the version, numbers as a struct, lines of text. It is written out by hand for the same reason: an
attribute that stands in the code is found three times as fast as one that `attrgetter` looks for.
Whoever reads it may be another release.
`VERSION` changes with every change of its meaning; what has another one is not adopted.
"""

from __future__ import annotations

import struct
from json import dumps, loads
from math import isnan
from typing import TYPE_CHECKING

from l7proxy.errors import L7ProxyError
from l7proxy.model import Protocol, Timeouts
from l7proxy.telemetry.accesslog import Record
from l7proxy.telemetry.presence import NOWHERE

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection

VERSION = "3"

_TEXTS = (
    *("listener", "client", "proxy", "route", "backend", "endpoint", "protocol"),
    *("method", "host", "path", "sni", "datapath", "destination", "version"),
)
_TIMES = ("head_ms", "dial_ms", "first_byte_ms", "splice_ms")
_NUMBERS = struct.Struct("<7Qqq??6d4d")  # in the order of `pack`; times are NaN for none
_HEAD = len(VERSION) + _NUMBERS.size
_VERSION = VERSION.encode()
_ERRORS = "surrogatepass"  # a unix socket's name may be anything
_NONE = float("nan")
_HEADER = 300  # characters of a header's value
_PATH = 1400  # characters of a path, as in the log: longer ones are kept in part
_LONG = 2 * _PATH  # ... of all the texts together, before each is kept in part


class Unreadable(L7ProxyError):
    """A record of another version, or none at all."""


class Handed:
    """A record that was read: what the connection was, its `timeouts`, and the log's record."""

    __slots__ = (
        *("_added", "_began", "_brief", "_counts", "_upgrades"),
        *("counted", "record", "row", "timeouts"),
    )

    def __init__(self, data: bytes, slot: int) -> None:
        """Read what `pack` wrote, for the worker in this slot. Raises Unreadable."""
        if not data.startswith(_VERSION):
            raise Unreadable(f"a record of version {data[: len(_VERSION)]!r}")
        try:
            values = _NUMBERS.unpack(data[len(_VERSION) : _HEAD])
            *texts, status, alpn, extras = data[_HEAD:].decode("utf-8", _ERRORS).split("\n")
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


def pack(connection: Connection) -> bytes:
    """The record of a connection whose pair is in the kernel."""
    record, timeouts = connection.record, connection.timeouts
    head_ms, dial_ms = record.head_ms, record.dial_ms
    first_byte_ms, splice_ms = record.first_byte_ms, record.splice_ms
    numbers = _NUMBERS.pack(
        connection.early_in,
        connection.early_out,
        connection.early_answer,
        connection.before_in,
        connection.before_out,
        connection.number,
        connection.listener.row,
        connection.added,
        connection.presence,
        connection.brief,
        connection.upgrades,
        connection.began,
        record.time,
        timeouts.head,
        timeouts.dial,
        timeouts.idle,
        timeouts.overflow,
        _NONE if head_ms is None else head_ms,
        _NONE if dial_ms is None else dial_ms,
        _NONE if first_byte_ms is None else first_byte_ms,
        _NONE if splice_ms is None else splice_ms,
    )
    texts = (  # as `_TEXTS`
        record.listener,
        record.client,
        record.proxy,
        record.route,
        record.backend,
        record.endpoint,
        record.protocol,
        record.method,
        record.host,
        record.path,
        record.sni,
        record.datapath,
        record.destination,
        record.version,
        "" if record.status is None else str(record.status),
        "\t".join(record.alpn) if record.alpn else "",
    )
    text = "\n".join(texts)
    if len(text) > _LONG:
        text = "\n".join([one[:_PATH] for one in texts])
    extras = ""
    if record.query is not None or record.headers is not None:  # for formats that have them
        extras = _extras(record)
    return _VERSION + numbers + f"{text}\n{extras}".encode("utf-8", _ERRORS)


def _extras(record: Record) -> str:
    query = None if record.query is None else record.query[:_PATH]
    headers = {name: value[:_HEADER] for name, value in (record.headers or {}).items()}
    return dumps((query, headers if record.headers is not None else None))
