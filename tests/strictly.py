"""A second reader of HTTP/1, which knows nothing of the first: no regular expressions, no leniency.

It accepts what a sender may generate by the grammar of RFC 9112 and RFC 9110, to the letter, and
raises for anything else. So it says two things about a case of the corpus: whether what came in was
compliant, and whether what went out is one message without a doubt.
"""

from __future__ import annotations

from typing import NamedTuple

DIGITS = b"0123456789"
HEX = DIGITS + b"abcdefABCDEF"
ALPHA = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
TOKEN = ALPHA + DIGITS + b"!#$%&'*+-.^_`|~"
UNRESERVED = ALPHA + DIGITS + b"-._~"
SUB_DELIMS = b"!$&'()*+,;="
PCHAR = UNRESERVED + SUB_DELIMS + b":@"
TEXT = bytes(range(0x21, 0x7F)) + bytes(range(0x80, 0x100)) + b" \t"
CODINGS = (b"gzip", b"x-gzip", b"deflate", b"compress", b"x-compress")

Field = tuple[bytes, bytes]


class Malformed(Exception):
    """No message that a sender may generate."""


class Incomplete(Exception):
    """The start of one, perhaps."""


class Message(NamedTuple):
    """One message: its first line in parts, its fields (names in lower case), its content."""

    start: tuple[bytes, bytes, bytes]
    fields: tuple[Field, ...]
    body: bytes
    trailers: tuple[Field, ...] = ()

    def values(self, name: bytes) -> list[bytes]:
        """Of every field of this name."""
        return [value for found, value in self.fields if found == name]


def _only(text: bytes, allowed: bytes, what: str) -> None:
    if text.strip(allowed) or not text:
        raise Malformed(f"{what}: {text!r}")


def _lines(data: bytes) -> tuple[list[bytes], bytes]:
    """The lines before the first empty one, and what follows that."""
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        _whole_lines(data)
        raise Incomplete
    lines = head.split(b"\r\n")
    for line in lines:
        if line.strip(TEXT):
            raise Malformed(f"a character that no line may hold: {line!r}")
    return lines, rest


def _whole_lines(data: bytes) -> None:
    """Check lines of which the last one may go on."""
    text = data.removesuffix(b"\r").replace(b"\r\n", b"")
    if text:
        _only(text, TEXT, "lines")


def _fields(lines: list[bytes]) -> tuple[Field, ...]:
    fields = []
    for line in lines:
        name, colon, value = line.partition(b":")
        _only(name, TOKEN, "field name")
        if not colon:
            raise Malformed(f"no colon: {line!r}")
        fields.append((name.lower(), value.strip(b" \t")))
    return tuple(fields)


def _values(fields: tuple[Field, ...], name: bytes) -> list[bytes]:
    return [value for found, value in fields if found == name]


def _list(fields: tuple[Field, ...], name: bytes) -> list[bytes]:
    """The elements of a list; RFC 9110 section 5.6.1.1: a sender generates no empty ones."""
    elements = []
    for value in _values(fields, name):
        if value:
            elements += [one.strip(b" \t") for one in value.split(b",")]
    return elements


def _options(fields: tuple[Field, ...], method: bytes) -> None:
    """Fields whose grammar matters here."""
    for option in _list(fields, b"connection"):
        _only(option, TOKEN, "connection option")
    for expectation in _list(fields, b"expect"):
        _only(expectation, TOKEN, "expectation")
    forwards = _values(fields, b"max-forwards")
    if method in (b"TRACE", b"OPTIONS") and forwards:
        if len(forwards) > 1:
            raise Malformed("several Max-Forwards")
        _only(forwards[0], DIGITS, "Max-Forwards")


def _framing(fields: tuple[Field, ...], version: bytes) -> int | bytes | None:
    """The length, b"chunked", or None when nothing tells."""
    lengths, codings = _values(fields, b"content-length"), _values(fields, b"transfer-encoding")
    if codings:
        if lengths or version != b"HTTP/1.1":
            raise Malformed("Transfer-Encoding where none may be")
        names = [one.strip(b" \t").lower() for one in b",".join(codings).split(b",")]
        if names[-1] != b"chunked" or any(one not in CODINGS for one in names[:-1]):
            raise Malformed(f"codings {names}")
        return b"chunked"
    if not lengths:
        return None
    if len(lengths) > 1:
        raise Malformed("several lengths")
    _only(lengths[0], DIGITS, "length")
    return int(lengths[0])


def _extensions(text: bytes) -> None:
    """What follows the size of a chunk."""
    while text:
        if text[:1] != b";":
            raise Malformed(f"extension {text!r}")
        at = 1
        while at < len(text) and text[at] in TOKEN:
            at += 1
        if at == 1:
            raise Malformed(f"extension {text!r}")
        text = text[at:]
        if text[:1] != b"=":
            continue
        text = text[1:]
        if text[:1] != b'"':
            at = 0
            while at < len(text) and text[at] in TOKEN:
                at += 1
            if at == 0:
                raise Malformed(f"extension {text!r}")
            text = text[at:]
            continue
        at = 1
        while text[at : at + 1] != b'"':
            if text[at : at + 1] == b"\\":
                at += 1
            if at >= len(text) or text[at] not in TEXT:
                raise Malformed(f"extension {text!r}")
            at += 1
        text = text[at + 1 :]


def _chunked(data: bytes) -> tuple[bytes, tuple[Field, ...], bytes]:
    """Content, trailer fields, rest."""
    body = b""
    while True:
        line, end, rest = data.partition(b"\r\n")
        at = 0
        while at < len(line) and line[at] in HEX:
            at += 1
        if end or at < len(line):
            _only(line[:at], HEX, "size of a chunk")
        if not end:
            _whole_lines(line)
            raise Incomplete
        _extensions(line[at:])
        size = int(line[:at], 16)
        if size == 0:
            if rest[:2] == b"\r\n":
                return body, (), rest[2:]
            lines, rest = _lines(rest)
            return body, _fields(lines), rest
        if len(rest) < size + 2:
            raise Incomplete
        if rest[size : size + 2] != b"\r\n":
            raise Malformed("no CR LF after a chunk")
        body += rest[:size]
        data = rest[size + 2 :]


def _percent(text: bytes, allowed: bytes) -> None:
    parts = text.split(b"%")
    for number, part in enumerate(parts):
        if number and (len(part) < 2 or part[0] not in HEX or part[1] not in HEX):
            raise Malformed(f"percent encoding: {text!r}")
        for char in part:
            if char not in allowed:
                raise Malformed(f"a character of a URI: {text!r}")


def _authority(text: bytes, *, port: bool = False) -> None:
    """RFC 3986: host [ ":" port ], by `port` with one."""
    if text.startswith(b"["):
        host, bracket, after = text.partition(b"]")
        if not bracket or not host[1:] or (after and after[:1] != b":"):
            raise Malformed(f"authority {text!r}")
        _only(host[1:], HEX + b":.", "IPv6 address")
        number = after[1:]
    else:
        host, _, number = text.partition(b":")
        _percent(host, UNRESERVED + SUB_DELIMS)
    if (port and not (host and number)) or number.strip(DIGITS):
        raise Malformed(f"authority {text!r}")


def _target(method: bytes, target: bytes, *, by_browser: bool) -> bytes | None:
    """Check a target; return its authority if it has one.

    `by_browser`: its characters may be those of the WHATWG URL standard.
    """
    if method == b"CONNECT":
        _authority(target, port=True)
        return target
    if target == b"*" and method == b"OPTIONS":
        return None
    authority = None
    for scheme in (b"http://", b"https://"):
        if target.lower().startswith(scheme):
            rest = target[len(scheme) :]
            ends = [at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0]
            end = min(ends, default=len(rest))
            authority, target = rest[:end], rest[end:]
            if not authority:
                raise Malformed("no host")
            _authority(authority)
            if not target.startswith(b"/"):
                target = b"/" + target
            break
    if not target.startswith(b"/"):
        raise Malformed(f"target {target!r}")
    path, _, query = target.partition(b"?")
    if by_browser:
        _only(target, bytes(range(0x21, 0x7F)), "target")
        return authority
    _percent(path, PCHAR + b"/")
    _percent(query, PCHAR + b"/?")
    return authority


def request(data: bytes, *, by_browser: bool = False) -> tuple[Message, bytes]:
    """The first request and what follows it; raises Malformed or Incomplete."""
    lines, rest = _lines(data)
    parts = lines[0].split(b" ")
    if len(parts) != 3:
        raise Malformed(f"request line {lines[0]!r}")
    method, target, version = parts
    _only(method, TOKEN, "method")
    if version not in (b"HTTP/1.0", b"HTTP/1.1"):
        raise Malformed(f"version {version!r}")
    fields = _fields(lines[1:])
    _options(fields, method)
    authority = _target(method, target, by_browser=by_browser)
    hosts = _values(fields, b"host")
    if len(hosts) > 1 or (not hosts and version == b"HTTP/1.1"):
        raise Malformed(f"{len(hosts)} hosts")
    if hosts:
        _authority(hosts[0])
        if authority is not None and hosts[0].lower() != authority.lower():
            raise Malformed("Host is not that of the target")
    length = _framing(fields, version)
    if method == b"CONNECT" and length:
        raise Malformed("CONNECT with content")
    start = (method, target, version)
    return _finish(start, fields, rest, 0 if length is None else length)


def _finish(
    start: tuple[bytes, bytes, bytes], fields: tuple[Field, ...], rest: bytes, length: int | bytes
) -> tuple[Message, bytes]:
    if isinstance(length, bytes):
        body, trailers, rest = _chunked(rest)
        return Message(start, fields, body, trailers), rest
    if len(rest) < length:
        raise Incomplete
    return Message(start, fields, rest[:length]), rest[length:]


def response(
    data: bytes, method: str, *, ended: bool, any_status: bool = False
) -> tuple[Message, bytes]:
    """The first response to a request of this method and what follows it.

    `ended`: the connection ended after `data`. `any_status`: it may be above 599.
    """
    if data[:7] != b"HTTP/1."[: len(data)]:
        raise Malformed("no HTTP/1")
    lines, rest = _lines(data)
    version, space, after = lines[0].partition(b" ")
    status, second, reason = after[:3], after[3:4], after[4:]
    if version not in (b"HTTP/1.0", b"HTTP/1.1") or space != b" " or second != b" ":
        raise Malformed(f"status line {lines[0]!r}")
    _only(status, DIGITS, "status")
    number = int(status)
    if len(status) != 3 or not 100 <= number <= (999 if any_status else 599):
        raise Malformed(f"status {status!r}")
    fields = _fields(lines[1:])
    _options(fields, b"")
    length = _framing(fields, version)
    start = (version, status, reason)
    if number < 200 or number == 204:
        if length is not None:
            raise Malformed("content where there is none")
        return Message(start, fields, b""), rest
    if method == "HEAD" or number == 304 or (method == "CONNECT" and number < 300):
        return Message(start, fields, b""), rest
    if length is None:
        if not ended:
            raise Incomplete
        return Message(start, fields, rest), b""
    return _finish(start, fields, rest, length)
