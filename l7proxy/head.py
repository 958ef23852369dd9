"""The head of a request: bytes in, a `Head` or a `BadRequest` out; and out to the backend.

    recv -> HeadReader.feed -> gate (raw bytes) -> h11 -> gate (meaning) -> Head -> serialise

h11 parses, and sees exactly one head: never a byte of a body, never an incomplete head, never
what the gate refused. What the backend gets is written from the parsed `Head`, not copied from
what came in.

What follows from splicing the connection after this head (the body, the whole response and later
requests pass between the two ends untouched):

- Framing is not ours to change: Content-Length, Transfer-Encoding, Expect and Trailer stay.
- The version that is sent is the client's, because the backend's answer goes to the client as it
  is: a client of HTTP/1.0 must not get chunks. RFC 9110 section 2.5 wants an intermediary to send
  its own version; here the backend talks with the client from the first byte of its answer on.
- Persistence is between those two as well: `close` is passed on, and so is the `keep-alive` of
  HTTP/1.0. RFC 9112 section 9.3, "A proxy server MUST NOT maintain a persistent connection with
  an HTTP/1.0 client", means proxies between which and the client Keep-Alive could get out of
  step; a splice has one connection on each side and they end together.
- Only the first request gets X-Forwarded-For and Via.

Where every request is routed and answered by itself (`kept`), none of that holds: the connection
to the backend is l7proxy's own and outlives the request. The head says HTTP/1.1 whatever the client
speaks (RFC 9112 section 2.3), nothing of `close` or `keep-alive`, and framing is written from what
was parsed: one Content-Length, or one `Transfer-Encoding: chunked`, or neither. Only a request that
names no host goes on as it came, in HTTP/1.0 and with `close`: RFC 9112 section 3.2 wants a Host in
HTTP/1.1, and many a server refuses an empty one.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import h11

from l7proxy import gate
from l7proxy.errors import BadRequest
from l7proxy.filters import Rewriting, twin
from l7proxy.forwarded import REWRITTEN, Fields, is_claim
from l7proxy.gate import Rule
from l7proxy.model import Limits
from l7proxy.responses import local_response
from l7proxy.target import choose_authority, parse_target

__all__ = ["Head", "HeadReader", "local_response", "serialise"]


class Head(NamedTuple):
    """A request line and its header fields, checked.

    (No dataclass: a frozen one of so many fields takes 2 us to make, each time.)

    `target` is what the backend gets: the path and the query, `*`, or `host:port` for CONNECT.
    `path` is the path as sent, neither decoded nor normalised; "/" for `*` and for CONNECT, whose
    paths RFC 9112 section 3.3 calls empty.
    """

    method: str
    target: str
    path: str
    query: str | None  # without "?"; "" when there is only the "?"
    host: str  # for comparison: see authority; "" when HTTP/1.0 sent none
    authority: str  # the value of Host for the backend, in the client's spelling
    version: str  # "1.0" or "1.1"
    headers: tuple[tuple[bytes, bytes], ...]  # names in lower case; order kept; all of them
    content_length: int | None
    chunked: bool
    upgrade: bytes | None  # the protocols of Upgrade that are passed on
    keep_alive: bool  # whether the client wants to keep the connection
    expect_continue: bool
    names: tuple[bytes, ...] = ()  # of `headers`, in the client's spelling
    options: frozenset[bytes] = frozenset()  # of Connection, in lower case

    @property
    def body_length(self) -> int | None:
        """Bytes of the body; None when its chunks tell.

        RFC 9112 section 6.3: "If this is a request message and none of the above are true, then
        the message body length is zero".
        """
        return None if self.chunked else self.content_length or 0

    def without_claims(self) -> Head:
        """The head without the fields that only a trusted proxy may send: see `forwarded`.

        What is not believed is not routed by either.
        """
        if not any(is_claim(name) for name, _ in self.headers):
            return self
        names = self.names or [name for name, _ in self.headers]
        kept = [
            (field, spelling)
            for field, spelling in zip(self.headers, names, strict=True)
            if not is_claim(field[0])
        ]
        return self._replace(
            headers=tuple(field for field, _ in kept),
            names=tuple(spelling for _, spelling in kept),
        )


class HeadReader:
    """Collects one head from any cut of the input; bounded by `limits`, linear in the input.

    `surplus` is what came after the head, `started` whether anything came at all.
    """

    __slots__ = (
        "_buffer",
        "_fields_at",
        "_limits",
        "_line",
        "_scanned",
        "_spent",
        "_start",
        "started",
        "surplus",
    )

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._buffer: gate.Buffer = b""
        self._scanned = 0  # bytes of the buffer that are known to be without flaw
        self._start = 0  # offset of the request line: after the empty line that is ignored
        self._line: gate.RequestLine | None = None
        self._fields_at = 0  # offset of the first field line, once there is a request line
        self._spent = False
        self.surplus = b""
        self.started = False

    def feed(self, data: bytes) -> Head | None:
        """Take the next bytes; return the head when it is complete, None when more is needed.

        Raises BadRequest as soon as the bytes cannot become a head that is let through. After
        that, and after a head, the reader is spent: RuntimeError. No data is no news, not the end
        of the stream.
        """
        if self._spent:
            raise RuntimeError("this reader has given its answer")
        if not data:
            return None
        self.started = True
        if isinstance(self._buffer, bytearray):
            self._buffer += data
        elif self._buffer:
            self._buffer = bytearray(self._buffer) + data
        else:
            self._buffer = data  # the usual case is a head in one read: no copy
        try:
            end = self._find_end()
            if end is None or self._line is None:
                return None
            self.surplus = bytes(self._buffer[end:])
            raw = bytes(self._buffer[self._start : end])
            head = parse(self._line, raw, self._fields_at - self._start, self._limits.headers)
        except BadRequest:
            self._retire()
            raise
        self._retire()
        return head

    def _retire(self) -> None:
        self._spent = True
        self._buffer = b""

    def _find_end(self) -> int | None:
        """Return the offset after the head, None when it is not complete; raise on a flaw.

        The earliest byte decides which flaw is reported, so that the cut makes no difference.
        """
        buffer, scanned = self._buffer, self._scanned
        start = self._start = 2 if buffer[:2] == b"\r\n" else 0  # see Rule.EMPTY_LINE
        limit = self._limits.head_bytes
        found = buffer.find(b"\r\n\r\n", max(start, scanned - 3), limit)
        stop = found + 4 if found >= 0 else min(len(buffer), limit)
        flaw = gate.find_flaw(buffer, scanned, stop)
        if self._line is None:
            self._check_request_line(start, flaw.known_at if flaw else stop)
        if flaw:
            gate.refuse_flaw(
                flaw,
                buffer,
                in_request_line=self._line is None,
                first_field=self._fields_at,
            )
        self._scanned = stop
        if found >= 0:
            return stop
        if stop < limit:
            return None
        if self._line is None:
            raise BadRequest(414, Rule.TARGET_TOO_LONG, f"no request line within {limit} bytes")
        raise BadRequest(431, Rule.HEAD_TOO_LARGE, f"the head is larger than {limit} bytes")

    def _check_request_line(self, start: int, stop: int) -> None:
        """Check the request line as far as `buffer[:stop]` shows it."""
        end = self._buffer.find(b"\r\n", max(start, self._scanned - 1), stop)
        if end >= 0:
            self._line = gate.parse_request_line(self._buffer[start:end])
            self._fields_at = end + 2
        elif stop > start and (start or stop > 1 or self._buffer[0] != 0x0D):
            # (A CR as the very first byte may yet become the empty line that is ignored.)
            gate.check_line_start(self._buffer[start : min(stop, start + gate.MAX_METHOD + 2)])


# Fields that decide something. Connection is parsed for each request that has it.
_WATCHED = frozenset(
    {
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"max-forwards",
        b"transfer-encoding",
        b"upgrade",
    }
)
_NONE: frozenset[bytes] = frozenset()
_HOP_COUNTED = ("OPTIONS", "TRACE")
_HTTP_ITSELF = (b"h2c", b"h2", b"http")
_PROTOCOL = re.compile(rb"%b(?:/%b)?" % (gate.TOKEN, gate.TOKEN))


def parse(line: gate.RequestLine, raw: bytes, fields_at: int, max_fields: int) -> Head:
    """Parse a whole head in which the gate found no flaw; raise BadRequest.

    `raw` is the head from the request line to the empty line; the fields start at `fields_at`.
    """
    method, raw_target, version = line
    spelled = gate.parse_fields(raw[fields_at:-2], max_fields)
    names = [name.lower() for name, _ in spelled]
    seen: dict[bytes, list[bytes]] = {}
    for name, (_, value) in zip(names, spelled, strict=True):
        if name in _WATCHED:
            seen.setdefault(name, []).append(value)
    get = seen.get
    length, chunked = gate.body_length(get(b"content-length"), get(b"transfer-encoding"), version)
    target = parse_target(method, raw_target)
    authority, host = choose_authority(target, get(b"host", []), version)
    options = gate.connection_options(seen[b"connection"]) if b"connection" in seen else _NONE
    fields = _parse_with_h11(raw, line, spelled)
    head = Head(
        method=method.decode("ascii"),
        target=target.path if target.query is None else f"{target.path}?{target.query}",
        path="/" if target.path == "*" else target.path,
        query=target.query,
        host=host,
        authority=authority.decode("ascii"),
        version=version,
        headers=tuple([(name, value) for name, (_, value) in zip(names, fields, strict=True)]),
        content_length=length,
        chunked=chunked,
        upgrade=_passed_upgrade(seen[b"upgrade"], options, version) if b"upgrade" in seen else None,
        keep_alive=b"close" not in options and (version == "1.1" or b"keep-alive" in options),
        expect_continue=b"expect" in seen and _expects_continue(seen[b"expect"], version),
        names=tuple([name for name, _ in fields]),
        options=options,
    )
    if method == b"CONNECT":
        return _tunnel(head)
    if b"max-forwards" in seen and head.method in _HOP_COUNTED:
        return _count_hop(head, seen[b"max-forwards"])
    return head


def _parse_with_h11(raw: bytes, line: gate.RequestLine, fields: gate.Fields) -> gate.Fields:
    """Return names as spelled and values of the fields as h11 reads the head.

    Two readers of one head have to agree: what h11 refuses, merges or reads differently from the
    gate is refused. A connection object for each head, since only its first step is wanted; fed
    with the whole head it costs one call.
    """
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(raw)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise BadRequest(400, Rule.PARSER, "malformed head") from error
    if not isinstance(event, h11.Request) or (event.method, event.target) != line[:2]:
        raise BadRequest(400, Rule.PARSER, "ambiguous request line")
    items = event.headers.raw_items()
    if items != fields and items != [  # h11 writes "chunked" in lower case, whatever was sent
        (name, value.lower() if name.lower() == b"transfer-encoding" else value)
        for name, value in fields
    ]:
        raise BadRequest(400, Rule.PARSER, "ambiguous header fields")
    return items


def _expects_continue(values: list[bytes], version: str) -> bool:
    if gate.list_elements(values) != [b"100-continue"]:
        raise BadRequest(417, Rule.EXPECT, "an expectation that nobody has to meet")
    # RFC 9110 section 10.1.1: "A server that receives a 100-continue expectation in an HTTP/1.0
    # request MUST ignore that expectation."
    return version == "1.1"


def _passed_upgrade(values: list[bytes], options: frozenset[bytes], version: str) -> bytes | None:
    """Return the protocols of Upgrade that the backend is offered, None when none are.

    RFC 9110 section 7.8: "A server MUST ignore an Upgrade header field that is received in an
    HTTP/1.0 request", and "A sender of Upgrade MUST also send an "Upgrade" connection option".
    What would turn the connection into HTTP of another version is not offered: h2c smuggles
    requests past every proxy that passes it (RFC 9113 section 3.1 has deprecated it).
    """
    if version == "1.0" or b"upgrade" not in options:
        return None
    protocols = [
        protocol
        for protocol in gate.list_elements(values, lower=False)
        if _PROTOCOL.fullmatch(protocol) and protocol.lower().partition(b"/")[0] not in _HTTP_ITSELF
    ]
    return b", ".join(protocols) or None


def _tunnel(head: Head) -> Head:
    """Return the head of a CONNECT as it goes on; raise BadRequest when it has a body."""
    if head.chunked or head.content_length:
        raise BadRequest(400, Rule.CONNECT, "CONNECT with a body")
    return head._replace(target=head.authority, path="/", upgrade=None)


def _count_hop(head: Head, values: list[bytes]) -> Head:
    """Return the head with Max-Forwards one lower; raise BadRequest when it must not go on."""
    if len(values) > 1 or not values[0].isdigit() or len(values[0]) > 9:
        raise BadRequest(400, Rule.MAX_FORWARDS, "malformed Max-Forwards")
    left = int(values[0])
    if left == 0:
        raise BadRequest(501, Rule.MAX_FORWARDS, "no answer of its own to TRACE and OPTIONS")
    headers = tuple(
        (name, b"%d" % (left - 1) if name == b"max-forwards" else value)
        for name, value in head.headers
    )
    return head._replace(headers=headers)


# Fields that end here or are written anew below. RFC 9110 section 7.6.1: "intermediaries SHOULD
# remove or replace fields that are known to require removal before forwarding". Of those it lists,
# Transfer-Encoding stays, since the body that it describes passes as it is.
_NOT_COPIED = frozenset(
    {
        b"connection",
        b"host",
        b"http2-settings",  # RFC 7540 section 3.2.1, goes with h2c
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",  # RFC 9110 section 11.7.2: for the first proxy that asked for it
        b"proxy-connection",
        b"te",
        b"upgrade",
    }
) | frozenset(REWRITTEN)
_NOT_COPIED_BUT_WRITTEN = _NOT_COPIED | {b"content-length", b"transfer-encoding"}
# By the client's version. RFC 9110 section 10.1.1: "A server that receives a 100-continue
# expectation in an HTTP/1.0 request MUST ignore that expectation", and this one becomes HTTP/1.1.
_NOT_KEPT = {"1.0": _NOT_COPIED_BUT_WRITTEN | {b"expect"}, "1.1": _NOT_COPIED_BUT_WRITTEN}


def serialise(
    head: Head,
    forwarded: Fields,
    *,
    trusted: bool = False,
    kept: bool = False,
    rewriting: Rewriting | None = None,
) -> bytes:
    """Return the head as the backend gets it, the empty line included.

    Host stands first (RFC 9110 section 7.2: "as the first field in the header section"), then the
    client's end-to-end fields in its order and spelling, then ours: `forwarded` is what stands for
    all of `forwarded.REWRITTEN` (see `ForwardedWriter`). Other `X-Forwarded-*` are passed on from
    trusted proxies only. `kept`: see the top. `rewriting` is what the route changes.
    """
    not_copied = _NOT_COPIED if not kept else _NOT_KEPT[head.version]
    if head.options:
        not_copied |= head.options
    target, authority = head.target, head.authority
    drop: frozenset[bytes] = frozenset()
    if rewriting is not None:
        if head.method == "CONNECT":
            if rewriting.authority:
                target = authority = f"{rewriting.authority}:{target.rpartition(':')[2]}"
        else:
            if rewriting.path is not None and target != "*":
                target = rewriting.path if head.query is None else f"{rewriting.path}?{head.query}"
            authority = rewriting.authority or authority
        if drop := rewriting.drop:
            forwarded = [field for field in forwarded if field[0].lower() not in drop]
        forwarded = [*forwarded, *rewriting.write]
    persistent = kept and bool(authority)
    version = "1.1" if persistent else head.version
    lines = [f"{head.method} {target} HTTP/{version}".encode("ascii")]
    if authority:
        lines.append(b"Host: " + authority.encode("ascii"))
    names = head.names or [name for name, _ in head.headers]
    for spelling, (name, value) in zip(names, head.headers, strict=True):
        if name in not_copied or (drop and twin(name) in drop):
            continue
        if trusted or not is_claim(name):
            lines.append(spelling + b": " + value)
    lines += [name + b": " + value for name, value in forwarded]
    options = []
    if kept:
        if head.chunked:
            lines.append(b"Transfer-Encoding: chunked")
        elif head.content_length is not None:
            lines.append(b"Content-Length: %d" % head.content_length)
    if persistent:
        pass
    elif kept or not head.keep_alive:
        options.append(b"close")
    elif head.version == "1.0":
        options.append(b"keep-alive")
    if head.upgrade:
        options.append(b"upgrade")
        lines.append(b"Upgrade: " + head.upgrade)
    if options:
        lines.append(b"Connection: " + b", ".join(options))
    return b"\r\n".join(lines) + b"\r\n\r\n"
