"""The head of a backend's response: bytes in, a `Response` or a `BadResponse` out; and out again.

    recv -> ResponseReader.feed -> gate (raw bytes) -> h11 -> gate (meaning) -> Response -> out

As for requests (see `head`), h11 and the gate both read the head, and the client gets what was
parsed. A backend is trusted with what it says, not with where it ends: RFC 9112 section 11.1,
response splitting, and section 11.2, smuggling, work on responses too, and what is left over on a
kept connection answers another client's request. So a response whose length two readers could
take in two ways is refused, and so is all that h11 lets pass out of kindness.

Where it is not stricter than RFC 9112, for the sake of servers that exist: the space before an
absent reason may be missing, `Content-Length: 0` may stand in a 204 (it is dropped), and a status
need not be below 600 (clients have to treat 999 as 500, section 15 of RFC 9110).

The client gets HTTP/1.1 always, whatever version either end speaks: RFC 9110 section 6.2, "A server
SHOULD send a response version equal to the highest version to which the server is conformant that
has a major version less than or equal to the one received in the request". No Via is added to
responses: section 7.6.3 wants it of an HTTP-to-HTTP gateway "in each inbound request message" and
says it MAY be sent in responses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

import h11

from l7proxy import gate
from l7proxy.errors import BadRequest, BadResponse
from l7proxy.filters import twin
from l7proxy.gate import Rule
from l7proxy.model import HeaderChanges, Limits

CONTINUE = 100
SWITCHING_PROTOCOLS = 101
NO_CONTENT = 204
NOT_MODIFIED = 304


class ResponseRule(StrEnum):
    """Names of the rules that only responses have; the others are in `gate.Rule`."""

    # RFC 9112 section 4: "status-line = HTTP-version SP status-code SP [ reason-phrase ]". An
    # empty line before it is not ignored: it would be left over from the response before.
    STATUS_LINE = "status-line"
    # RFC 9110 section 8.6: "A server MUST NOT send a Content-Length header field in any response
    # with a status code of 1xx (Informational) or 204 (No Content)", RFC 9112 section 6.1 the same
    # of Transfer-Encoding. Who believes such a field waits for content or takes the next response
    # for it. A 304 and a response to HEAD may have them; they tell what a GET would get.
    NO_CONTENT = "no-content"
    # RFC 9110 section 7.8: "A server MUST NOT switch to a protocol that was not indicated by the
    # client", and one that sends 101 "MUST generate an Upgrade header field".
    UPGRADE = "unasked-upgrade"


class Response(NamedTuple):
    """A status line and its header fields, checked, and what RFC 9112 section 6.3 makes of them.

    `bodiless`: the head is all of it (HEAD, 1xx, 204, 304, CONNECT with 2xx), whatever its fields
    say. Else exactly one of `content_length`, `chunked` and `until_close` tells how long the body
    is. `keep_alive`: the backend takes another request on this connection after that body.
    """

    status: int
    reason: bytes
    version: str  # "1.0" or "1.1"
    headers: tuple[tuple[bytes, bytes], ...]  # names in lower case; order kept; all of them
    names: tuple[bytes, ...]  # of `headers`, as the backend spelled them
    content_length: int | None
    chunked: bool
    until_close: bool
    bodiless: bool
    keep_alive: bool
    upgrade: bytes | None  # the protocols of Upgrade, when the field counts
    options: frozenset[bytes] = frozenset()  # of Connection, in lower case

    @property
    def is_interim(self) -> bool:
        """Whether another response to the same request follows: 1xx, but not 101."""
        return self.status < 200 and self.status != SWITCHING_PROTOCOLS

    @property
    def body_length(self) -> int | None:
        """Bytes of the body; None when only its chunks or the end of the connection tell."""
        return 0 if self.bodiless else self.content_length


class ResponseReader:
    """Collects one response head from any cut of the input; bounded by `limits`, linear.

    `method` is the request's, `upgrade` what it offered in Upgrade (`Head.upgrade`). `surplus` is
    what came after the head, `started` whether anything came at all. For the next head (after an
    interim response) make another reader and feed it the surplus.
    """

    __slots__ = (
        "_buffer",
        "_fields_at",
        "_limits",
        "_line",
        "_method",
        "_scanned",
        "_spent",
        "_upgrade",
        "started",
        "surplus",
    )

    def __init__(
        self, method: str, limits: Limits = Limits(), *, upgrade: bytes | None = None
    ) -> None:
        self._method = method
        self._limits = limits
        self._upgrade = upgrade
        self._buffer: gate.Buffer = b""
        self._scanned = 0  # bytes of the buffer that are known to be without flaw
        self._line: re.Match[bytes] | None = None
        self._fields_at = 0  # offset of the first field line, once there is a status line
        self._spent = False
        self.surplus = b""
        self.started = False

    def feed(self, data: bytes) -> Response | None:
        """Take the next bytes; return the head when it is complete, None when more is needed.

        Raises BadResponse as soon as the bytes cannot become a head that is let through. After
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
            raw = bytes(self._buffer[:end])
            response = parse(
                self._line, raw, self._fields_at, self._limits.headers, self._method, self._upgrade
            )
        except BadRequest as error:
            self._retire()
            raise BadResponse(error.rule, error.detail) from None
        except BadResponse:
            self._retire()
            raise
        self._retire()
        return response

    def _retire(self) -> None:
        self._spent = True
        self._buffer = b""

    def _find_end(self) -> int | None:
        """Return the offset after the head, None when it is not complete; raise on a flaw.

        The earliest byte decides which flaw is reported, so that the cut makes no difference.
        """
        buffer, scanned = self._buffer, self._scanned
        limit = self._limits.head_bytes
        found = buffer.find(b"\r\n\r\n", max(0, scanned - 3), limit)
        stop = found + 4 if found >= 0 else min(len(buffer), limit)
        flaw = gate.find_flaw(buffer, scanned, stop)
        if self._line is None:
            self._check_status_line(flaw.known_at if flaw else stop)
        if flaw:
            gate.refuse_flaw(
                flaw,
                buffer,
                in_request_line=False,
                first_field=self._fields_at,
            )
        self._scanned = stop
        if found >= 0:
            return stop
        if stop < limit:
            return None
        raise BadResponse(Rule.HEAD_TOO_LARGE, f"the head is larger than {limit} bytes")

    def _check_status_line(self, stop: int) -> None:
        """Check the status line as far as `buffer[:stop]` shows it, and one byte further."""
        buffer = self._buffer
        start = bytes(buffer[: len(_START)])
        if start != _START and not _START.startswith(start):
            raise BadResponse(ResponseRule.STATUS_LINE, "this is no HTTP/1")
        end = buffer.find(b"\r\n", max(0, self._scanned - 1), stop)
        if end < 0:
            return
        self._line = _STATUS_LINE.fullmatch(buffer, 0, end)
        if self._line is None:
            raise BadResponse(ResponseRule.STATUS_LINE, "malformed status line")
        self._fields_at = end + 2


_START = b"HTTP/1."
# RFC 9112 section 4: "reason-phrase = 1*( HTAB / SP / VCHAR / obs-text )"; the gate has seen to it
# that there is nothing else.
_STATUS_LINE = re.compile(rb"HTTP/(1\.[01]) ([1-9][0-9]{2})(?: (.*))?", re.DOTALL)

_WATCHED = frozenset({b"connection", b"content-length", b"transfer-encoding", b"upgrade"})
_NONE: frozenset[bytes] = frozenset()
_FRAMING = (b"content-length", b"transfer-encoding")


def parse(
    line: re.Match[bytes],
    raw: bytes,
    fields_at: int,
    max_fields: int,
    method: str,
    offered: bytes | None,
) -> Response:
    """Parse a whole head in which the gate found no flaw; raise BadRequest or BadResponse.

    `raw` is the head with its empty line, the fields start at `fields_at`; `method` and `offered`
    are the request's.
    """
    version = line[1].decode("ascii")
    status = int(line[2])
    reason = line[3] or b""
    spelled = gate.parse_fields(raw[fields_at:-2], max_fields, guarded=_frames)
    names = [name.lower() for name, _ in spelled]
    seen: dict[bytes, list[bytes]] = {}
    for name, (_, value) in zip(names, spelled, strict=True):
        if name in _WATCHED:
            seen.setdefault(name, []).append(value)
    get = seen.get
    length, chunked = gate.body_length(get(b"content-length"), get(b"transfer-encoding"), version)
    options = _options(b",".join(seen[b"connection"])) if b"connection" in seen else _NONE
    fields = _parse_with_h11(raw, status, reason, spelled)

    upgrade = None
    if b"upgrade" in seen and b"upgrade" in options and version == "1.1":
        upgrade = b", ".join(gate.list_elements(seen[b"upgrade"], lower=False)) or None
    if status == SWITCHING_PROTOCOLS:
        _check_upgrade(upgrade, offered)

    if status < 200 or status == NO_CONTENT:
        if length or chunked:
            raise BadResponse(
                ResponseRule.NO_CONTENT, f"a response with status {status} that tells of content"
            )
        length, bodiless = None, True
    elif method == "CONNECT" and status < 300:
        # RFC 9110 section 9.3.6: "A client MUST ignore any Content-Length or Transfer-Encoding
        # header fields received in a successful response to CONNECT."
        length, chunked, bodiless = None, False, True
    else:
        bodiless = method == "HEAD" or status == NOT_MODIFIED
    until_close = not (bodiless or chunked or length is not None)
    return Response(
        status=status,
        reason=reason,
        version=version,
        headers=tuple([(name, value) for name, (_, value) in zip(names, fields, strict=True)]),
        names=tuple([name for name, _ in fields]),
        content_length=length,
        chunked=chunked,
        until_close=until_close,
        bodiless=bodiless,
        keep_alive=not until_close
        and b"close" not in options
        and (version == "1.1" or b"keep-alive" in options),
        upgrade=upgrade,
        options=options,
    )


def _frames(name: bytes) -> bool:
    """Whether a field, read with `-` for `_`, says where a message ends.

    Fewer than of requests: no server that turns `_` into `-` for its application reads responses.
    """
    return name.replace(b"_", b"-") in _FRAMING


@lru_cache(maxsize=256)  # backends say the same few things
def _options(value: bytes) -> frozenset[bytes]:
    options = gate.list_elements([value])
    for option in options:
        if not _TOKEN.fullmatch(option):
            raise BadResponse(Rule.CONNECTION, "malformed Connection")
    return frozenset(options)


_TOKEN = re.compile(gate.TOKEN)


def _check_upgrade(upgrade: bytes | None, offered: bytes | None) -> None:
    wanted = gate.list_elements([offered or b""])
    chosen = gate.list_elements([upgrade or b""])
    if not chosen or not set(chosen) <= set(wanted):
        raise BadResponse(ResponseRule.UPGRADE, "101 to a protocol that the client did not offer")


# h11 reads a final response without having sent a request (its table has a row for the server that
# answers before), and an interim one after it only. The latter is rare, the former costs half.
_ASKED = h11.Request(
    method="GET", target="/", headers=[("Host", ""), ("Connection", "upgrade"), ("Upgrade", "any")]
)


def _parse_with_h11(raw: bytes, status: int, reason: bytes, fields: gate.Fields) -> gate.Fields:
    """Return names as spelled and values of the fields as h11 reads the head.

    Two readers of one head have to agree: see `head`. Where the body ends is not asked of h11, so
    the method makes no difference to it.
    """
    connection = h11.Connection(h11.CLIENT)
    if status < 200:
        connection.send(_ASKED)
    connection.receive_data(raw)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise BadResponse(Rule.PARSER, "malformed head") from error
    if (
        not isinstance(event, (h11.Response, h11.InformationalResponse))
        or event.status_code != status
        or event.reason != reason
    ):
        raise BadResponse(Rule.PARSER, "ambiguous status line")
    items = event.headers.raw_items()
    if items != fields and items != [  # h11 writes "chunked" in lower case, whatever was sent
        (name, value.lower() if name.lower() == b"transfer-encoding" else value)
        for name, value in fields
    ]:
        raise BadResponse(Rule.PARSER, "ambiguous header fields")
    return items


# ---- on to the client


def framing(response: Response, client_version: str, keep_alive: bool) -> tuple[bool, bool]:
    """Return (whether the client gets chunks, whether its connection can be kept).

    `keep_alive` is whether it is to be kept, as far as the request goes (`Head.keep_alive`). A body
    without a length is sent in chunks, RFC 9112 section 6.1: "A server MUST NOT send a response
    containing Transfer-Encoding unless the corresponding request indicates HTTP/1.1 (or later)", so
    HTTP/1.0 is told its end by that of the connection.
    """
    if response.bodiless or response.content_length is not None:
        return False, keep_alive
    if client_version == "1.0":
        return False, False
    return True, keep_alive


# Fields that are written anew, or that are for l7proxy. RFC 9110 section 7.6.1.
_NOT_COPIED = frozenset(
    {
        b"connection",
        b"content-length",
        b"http2-settings",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)


def serialise_response(
    response: Response,
    *,
    client_version: str,
    keep_alive: bool,
    chunked: bool,
    changes: HeaderChanges | None = None,
    extra: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """Return the head as the client gets it, the empty line included.

    `chunked` and `keep_alive`: see `framing`. `changes` is what the route changes, `extra` what
    l7proxy adds (a cookie). Fields that tell where the message ends, and Connection, are written
    from what was parsed, and no change reaches them. Interim responses are for clients of HTTP/1.1
    only (RFC 9110 section 15.2) and say nothing about the connection.
    """
    not_copied = _NOT_COPIED | response.options if response.options else _NOT_COPIED
    lines = [b"HTTP/1.1 %d %b" % (response.status, response.reason)]
    drop, write = _changes(changes) if changes is not None else (_NONE, ())
    for spelling, (name, value) in zip(response.names, response.headers, strict=True):
        if name not in not_copied and not (drop and twin(name) in drop):
            lines.append(spelling + b": " + value)
    lines += [name + b": " + value for name, value in (*write, *extra)]
    # In a response to HEAD and in 304 the length is that of what GET gets. For chunked there is
    # no such use: RFC 9110 section 9.3.2 lets fields away that are known with the content only.
    if chunked and not response.bodiless:
        lines.append(b"Transfer-Encoding: chunked")
    elif response.content_length is not None:
        lines.append(b"Content-Length: %d" % response.content_length)
    if response.upgrade is not None and client_version == "1.1":
        lines.append(b"Upgrade: " + response.upgrade)
        close = b"" if keep_alive or response.status < 200 else b"close, "
        lines.append(b"Connection: " + close + b"upgrade")
    elif response.status >= 200:
        if not keep_alive:
            lines.append(b"Connection: close")
        elif client_version == "1.0":
            lines.append(b"Connection: keep-alive")
    return b"\r\n".join(lines) + b"\r\n\r\n"


@lru_cache(maxsize=256)
def _changes(
    changes: HeaderChanges,
) -> tuple[frozenset[bytes], tuple[tuple[bytes, bytes], ...]]:
    """Names that do not come through, as `twin` has them, and the fields that are written."""
    return (
        frozenset(
            twin(name.lower().encode("ascii"))
            for name in (*(name for name, _ in changes.set), *changes.remove)
        ),
        tuple(
            (name.encode("ascii"), value.encode("ascii"))
            for name, value in (*changes.set, *changes.add)
        ),
    )
