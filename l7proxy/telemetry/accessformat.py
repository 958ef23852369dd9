"""A record of the access log as a line of a format string.

What a client sent is hostile here as well. A line is printable ASCII: control characters, bytes
beyond ASCII, quotes and backslashes are escaped, and spaces too where the format has no quotes
around, so that a value is always one field. Text from a client is latin-1 decoded, so that `\\xe9`
is the byte that it sent; names of a policy are UTF-8.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from l7proxy import logformat
from l7proxy.access import host_of
from l7proxy.logformat import HEADER, Part
from l7proxy.telemetry import sink

if TYPE_CHECKING:
    from l7proxy.telemetry.accesslog import Record

_MOST = 1400  # characters of one value, before they are escaped
_CUT = "..."

_UNSAFE = re.compile(r'[^\x20-\x7e]|["\\]')
_UNSAFE_BARE = re.compile(r'[^\x21-\x7e]|["\\]')

_SPACED = frozenset(("time_clf", "time_gmt"))  # their space is ours

Value = Callable[["Record"], str]


def compiled(text: str) -> Callable[[Record], bytes]:
    """What makes lines of a format: newline included, ASCII, at most `sink.CHUNK` bytes."""
    form = logformat.parse(text)
    pieces = [one if isinstance(one, str) else _piece(one) for one in form]
    literal = "".join("\0" if callable(one) else one.replace("{", "{{") for one in pieces)
    template = literal.replace("}", "}}").replace("\0", "{}")
    values = [one for one in pieces if callable(one)]
    fill = template.format

    def line(record: Record) -> bytes:
        found = fill(*[value(record) for value in values]).encode("utf-8", "backslashreplace")
        if len(found) >= sink.CHUNK:
            found = found[: sink.CHUNK - len(_CUT) - 1] + _CUT.encode()
        return found + b"\n"

    return line


def _piece(part: Part) -> Value:
    value = _header(part.argument) if part.name == HEADER else VALUES[part.name]
    unsafe = _UNSAFE if part.is_quoted or part.name in _SPACED else _UNSAFE_BARE
    search, sub = unsafe.search, unsafe.sub

    def safe(record: Record) -> str:
        text = value(record)
        if not text:
            return "-"
        if len(text) > _MOST:
            text = text[:_MOST] + _CUT
        return sub(_escape, text) if search(text) else text

    if part.adds_quotes:
        return lambda record: f'"{safe(record)}"'
    return safe


def _escape(match: re.Match[str]) -> str:
    char = match[0]
    if char in '"\\':
        return f"\\{char}"
    code = ord(char)
    if code < 256:
        return f"\\x{code:02x}"
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogatepass"))


def _header(name: str) -> Value:
    return lambda record: record.headers.get(name, "") if record.headers else ""


# ---- times


def _second(form: str) -> Callable[[float], str]:
    return lru_cache(maxsize=4)(
        lambda second: time.strftime(form, time.gmtime(second))  # in UTC, always
    )


_iso = _second("%Y-%m-%dT%H:%M:%S")
# %b follows the locale, which nobody sets here: C
_clf = _second("[%d/%b/%Y:%H:%M:%S +0000]")
_gmt = _second("%d/%b/%Y:%H:%M:%S +0000")
_plain = _second("%d/%b/%Y:%H:%M:%S")


def _with_ms(form: Callable[[float], str], moment: float) -> str:
    second = int(moment)
    return f"{form(second)}.{int((moment - second) * 1000):03d}"


def stamp(moment: float) -> str:
    """UTC, ISO 8601, to the millisecond."""
    return f"{_with_ms(_iso, moment)}Z"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _whole(value: float | None) -> str:
    return "-1" if value is None else str(int(value))


def _connect(record: Record) -> float | None:
    if record.dial_ms is None:
        return None
    return max(0.0, record.dial_ms - (record.head_ms or 0.0))


# ---- addresses and requests


def _port(address: str) -> str:
    return "" if host_of(address) == address else address.rpartition(":")[2]


def _version(record: Record) -> str:
    return f"HTTP/{record.version}" if record.version else ""


def _request(record: Record) -> str:
    if not record.method:
        return ""
    return f"{record.method} {record.path}{_query(record)} {_version(record)}".rstrip()


def _query(record: Record) -> str:
    return "" if record.query is None else f"?{record.query}"


_PID = lru_cache(maxsize=1)(lambda: str(os.getpid()))  # first asked for in a worker

VALUES: dict[str, Value] = {
    "time": lambda r: stamp(r.time),
    "time_clf": lambda r: _clf(int(r.time)),
    "time_ms": lambda r: _with_ms(_plain, r.time),
    "time_gmt": lambda r: _gmt(int(r.time)),
    "epoch": lambda r: str(int(r.time)),
    "epoch_ms": lambda r: str(int(r.time * 1000)),
    "worker": lambda r: str(r.worker),
    "pid": lambda _: _PID(),
    "listener": lambda r: r.listener,
    "client": lambda r: r.client,
    "client_ip": lambda r: host_of(r.client),
    "client_port": lambda r: _port(r.client),
    "proxy": lambda r: r.proxy,
    "destination": lambda r: r.destination,
    "route": lambda r: r.route,
    "backend": lambda r: r.backend,
    "endpoint": lambda r: r.endpoint,
    "endpoint_ip": lambda r: host_of(r.endpoint),
    "endpoint_port": lambda r: _port(r.endpoint),
    "method": lambda r: r.method,
    "host": lambda r: r.host,
    "path": lambda r: r.path,
    "uri": lambda r: f"{r.path}{_query(r)}",
    "query": _query,
    "version": _version,
    "request": _request,
    "sni": lambda r: r.sni,
    "alpn": lambda r: ",".join(r.alpn),
    "protocol": lambda r: r.protocol,
    "datapath": lambda r: r.datapath,
    "head_ms": lambda r: _ms(r.head_ms),
    "head_ms_int": lambda r: _whole(r.head_ms),
    "dial_ms": lambda r: _ms(r.dial_ms),
    "connect_ms_int": lambda r: _whole(_connect(r)),
    "first_byte_ms": lambda r: _ms(r.first_byte_ms),
    "splice_ms": lambda r: _ms(r.splice_ms),
    "total_ms": lambda r: _ms(r.total_ms),
    "total_ms_int": lambda r: _whole(r.total_ms),
    "total_us": lambda r: str(int((r.total_ms or 0.0) * 1000)),
    "total_s": lambda r: str(int((r.total_ms or 0.0) / 1000)),
    "bytes_in": lambda r: str(r.bytes_in),
    "bytes_out": lambda r: str(r.bytes_out),
    "bytes_out_clf": lambda r: str(r.bytes_out or ""),
    "kernel_in": lambda r: str(r.kernel_in),
    "kernel_out": lambda r: str(r.kernel_out),
    "overflows": lambda r: str(r.overflows),
    "reused": lambda r: "true" if r.reused else "",
    "status": lambda r: "" if r.status is None else str(r.status),
    "reason": lambda r: r.why,
    "rule": lambda r: r.rule,
    "state": lambda r: r.state,
    "rate": lambda r: f"{r.rate:g}",
    "ident": lambda _: "",
    "user": lambda _: "",
}
