"""One line for each connection, written when it has ended; by default a JSON object.

What a client sent is hostile: it reaches the log only through JSON's own escapes, so a line is
always printable ASCII, one object, and at most `sink.CHUNK` bytes. A field that would be longer
than its budget is cut and ends in U+2026, which no byte of a request can produce. `accessformat`
has the same rules for lines of another format.

Nobody waits for the log: lines that its reader does not take are kept up to `BACKLOG` bytes, then
dropped and counted.
"""

from __future__ import annotations

import os
import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from json.encoder import encode_basestring_ascii

from l7proxy import logformat
from l7proxy.errors import Reason
from l7proxy.model import AccessLogRules
from l7proxy.telemetry import accessformat, sink, writer
from l7proxy.telemetry.syslog import Syslog

_ROUND = 0.005  # seconds between two looks whether the last lines are written
BACKLOG = 256 * 1024  # bytes of lines that a worker keeps for a slow reader
_CUT = "\\u2026"

# Budgets of escaped characters, quotes included. Together with the keys and the numbers at their
# longest they stay below sink.CHUNK; a test builds that line.
_NAME = 160
_CLIENT = 80
_METHOD = 80
_HOST = 360
_PATH = 1400
_SNI = 260
_ALPN = 80
_RULE = 80

LIVE = "live"
"""The state in a record of a connection that goes on."""

_NORMAL = frozenset((Reason.DONE, Reason.LOCAL_REPLY))


@dataclass(slots=True)
class Record:
    """What the log tells of a connection; a worker fills it in as the connection goes on.

    `time` is in seconds since the epoch, at accept. `*_ms` count from accept; None when the point
    was never reached. Bytes are named by where they came from: `in` the client, `out` the backend;
    `kernel_*` is how many of those the kernel moved. Text from a client is latin-1 decoded.

    `client` is who is served; where a trusted proxy said who that is, `proxy` is the proxy's
    address. `destination` is where it was going when it was intercepted. `rule` names the rule that
    refused the connection's first bytes, or denied it. `rate` is the share of connections without
    an error that get a record, 1 in that of one with an error. `reused`: the backend's connection
    had served another request before. `query` (without `?`), `version` and `headers` (by names in
    lower case) are for formats that have them.
    """

    time: float
    worker: int
    listener: str
    client: str
    proxy: str = ""
    destination: str = ""
    route: str = ""
    backend: str = ""
    endpoint: str = ""
    method: str = ""
    host: str = ""
    path: str = ""
    sni: str = ""
    alpn: tuple[str, ...] = ()
    protocol: str = ""
    datapath: str = ""
    head_ms: float | None = None
    dial_ms: float | None = None
    first_byte_ms: float | None = None
    splice_ms: float | None = None
    total_ms: float | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    kernel_in: int = 0
    kernel_out: int = 0
    overflows: int = 0
    reused: bool = False
    status: int | None = None
    reason: Reason = Reason.DONE
    rule: str = ""
    state: str = ""
    rate: float = 1.0
    query: str | None = None
    version: str = ""
    headers: Mapping[str, str] | None = None

    @property
    def why(self) -> str:
        """Why the connection ended; empty while it goes on."""
        return "" if self.state == LIVE else self.reason


def encode(record: Record) -> bytes:
    """The record's line, newline included; at most `sink.CHUNK` bytes of ASCII."""
    r = record
    return (
        f'{{"time":"{accessformat.stamp(r.time)}","worker":{r.worker},"listener":{_name(r.listener)},'
        f'"client":{_text(r.client, _CLIENT)},"proxy":{_text(r.proxy, _CLIENT)},'
        f'"destination":{_text(r.destination, _CLIENT)},'
        f'"route":{_name(r.route)},'
        f'"backend":{_name(r.backend)},"endpoint":{_name(r.endpoint)},'
        f'"method":{_text(r.method, _METHOD)},"host":{_text(r.host, _HOST)},'
        f'"path":{_text(r.path, _PATH)},"sni":{_text(r.sni, _SNI)},'
        f'"alpn":{_text(",".join(r.alpn), _ALPN)},"protocol":{_name(r.protocol)},'
        f'"datapath":{_name(r.datapath)},"head_ms":{_ms(r.head_ms)},"dial_ms":{_ms(r.dial_ms)},'
        f'"splice_ms":{_ms(r.splice_ms)},"total_ms":{_ms(r.total_ms)},'
        f'"bytes_in":{r.bytes_in},"bytes_out":{r.bytes_out},'
        f'"kernel_in":{r.kernel_in},"kernel_out":{r.kernel_out},"overflows":{r.overflows},'
        f'"reused":{"true" if r.reused else "false"},'
        f'"status":{"null" if r.status is None else r.status},'
        f'"reason":{_name(r.why)},"rule":{_text(r.rule, _RULE)},"state":{_name(r.state)},'
        f'"rate":{r.rate:g}}}\n'
    ).encode("ascii")


class AccessLog:
    """Buffers lines and writes them in chunks. Without a sink it is off and costs nothing.

    Made in the supervisor, before the fork; each worker then has its own buffer.
    """

    def __init__(self, out: sink.Out | None) -> None:
        self._out = out
        self._encode: Callable[[Record], bytes] = encode
        self._sample = 1.0
        self._chance = random.Random()
        self._chunks: deque[bytes] = deque()
        self._last: list[bytes] = []
        self._last_size = 0
        self._size = 0
        self._failed = 0

    @classmethod
    def open(cls, where: str) -> AccessLog:
        """Open `-` (stdout), `off`, `syslog...`, or a path.

        Raises StartupError with what to do about it.
        """
        if where == "off":
            return cls(None)
        if where == "syslog" or where.startswith(("syslog:", "syslog?")):
            return cls(Syslog.open(where))
        return cls(writer.open_standard() if where == "-" else writer.open_path(where))

    # ---- what is written

    def follow(self, rules: AccessLogRules) -> frozenset[str]:
        """Write as a policy says from now on; the headers of requests that it asks for."""
        self._sample = rules.sample
        if rules.format == "json" or self._out is None:
            self._encode = encode
            return frozenset()
        self._encode = accessformat.compiled(rules.format)
        return logformat.headers(logformat.parse(rules.format))

    @property
    def is_on(self) -> bool:
        """Whether anything is written at all."""
        return self._out is not None

    @property
    def dropped(self) -> int:
        """Lines that were lost, because the buffer was full or the write failed."""
        return self._failed + (0 if self._out is None else self._out.lost)

    # ---- another file of the same name

    def reopen(self) -> tuple[str, int] | None:
        """After a rotation: the path, and a descriptor for the workers; None: it is no file.

        Raises StartupError when the path cannot be opened; the old file goes on then.
        """
        if not isinstance(self._out, writer.FileWriter) or not self._out.path:
            return None
        self._out.reopen()
        return self._out.path, self._out.fd

    def take(self, fd: int) -> None:
        """The same in a worker, with the descriptor that came; it is closed."""
        if isinstance(self._out, writer.FileWriter):
            self._out.take(fd)
        else:
            os.close(fd)

    # ---- lines

    @property
    def pending(self) -> bool:
        """Whether lines wait for `flush`."""
        return self._size > 0

    def write(self, record: Record) -> None:
        """Add a line, or none: see `AccessLogRules.sample`. Writes only when a chunk is whole."""
        out = self._out
        if out is None:
            return
        if self._sample < 1 and record.reason in _NORMAL and record.state != LIVE:
            if self._chance.random() >= self._sample:
                return
            record.rate = self._sample
        line = self._encode(record)
        if isinstance(out, Syslog):
            line = out.frame(line, is_error=record.reason not in _NORMAL)
        if self._size + len(line) > BACKLOG:
            self._failed += 1
            return
        if out.datagrams:
            self._chunks.append(line)
            self._size += len(line)
            return
        if self._last_size + len(line) > sink.CHUNK:
            self.flush()
        self._last.append(line)
        self._last_size += len(line)
        self._size += len(line)

    def flush(self) -> None:
        """Write what the reader takes now; the rest is kept. Never waits, never raises OSError."""
        if self._out is None:
            return
        if self._last:
            self._chunks.append(b"".join(self._last))
            self._last = []
            self._last_size = 0
        while self._chunks:
            chunk = self._chunks[0]
            try:
                if not self._out.put(chunk):
                    return
            except OSError:
                self._failed += chunk.count(b"\n")
            self._size -= len(chunk)
            self._chunks.popleft()
        try:
            self._out.finish()
        except OSError:
            self._failed += 1

    def close(self, seconds: float = 0.5) -> None:
        """Write the rest, with a little patience for the reader, and close."""
        if self._out is None:
            return
        self.flush()
        for _ in range(round(seconds / _ROUND)):  # no deadline: a process may be stopped meanwhile
            if not self._size and self._finished():
                break
            time.sleep(_ROUND)
            self.flush()
        self._failed += sum(chunk.count(b"\n") for chunk in self._chunks)
        self._out.close()
        self._failed += self._out.lost
        self._out = None

    def _finished(self) -> bool:
        try:
            return self._out is None or self._out.finish()
        except OSError:
            return True


def _text(text: str, budget: int) -> str:
    """A JSON string of at most `budget` characters, quotes included."""
    escaped = encode_basestring_ascii(text[:budget])
    if len(escaped) <= budget and len(text) <= budget:
        return escaped
    room = budget - len(_CUT)
    keep = min(len(text), budget)
    while len(escaped) > room:
        keep = min(keep - 1, keep * room // len(escaped))
        escaped = encode_basestring_ascii(text[:keep])
    return f'{escaped[:-1]}{_CUT}"'


@lru_cache(maxsize=2048)
def _name(text: str) -> str:
    """As `_text`, for the words of the policy and of l7proxy, which come again and again."""
    return _text(text, _NAME)


def _ms(value: float | None) -> str:
    return "null" if value is None else f"{value:.3f}"
