"""A chunked body on its way through: strict in, and framed anew out. Pure.

Some facts about chunks, and what follows from them:

- Where a chunk ends is said by the sender in a line of text, which readers take in more ways than
  one: a size with a sign or `0x`, an extension with a bare LF in it, data without its CR LF. Each
  of these has smuggled requests. So what is not by the grammar is refused, and none of the sender's
  framing goes on: the data is put into chunks of our own.
- Extensions are gone with it. RFC 9112 section 7.1.1: "A recipient MUST ignore unrecognized chunk
  extensions", and "chunk extensions [...] are specific to each connection".
- The trailer section is read by the rules for a head, and a field of it is passed on only where it
  cannot be taken for one of the head. RFC 9110 section 6.5.1: "A sender MUST NOT generate a trailer
  field unless the sender knows the corresponding header field name's definition permits sending
  in trailers"; section 6.5.2: "it is possible for trailers to be discarded by intermediaries".
- What is held back is at most one line of sizes, or a trailer section that is within the limits of
  a head. Data is passed on as it comes.

RFC 9112 section 7.1:

    chunked-body = *chunk last-chunk trailer-section CRLF
    chunk        = chunk-size [ chunk-ext ] CRLF chunk-data CRLF
    last-chunk   = 1*("0") [ chunk-ext ] CRLF
    chunk-ext    = *( BWS ";" BWS chunk-ext-name [ BWS "=" BWS chunk-ext-val ] )

Stricter: no BWS, since section 5.6.3 of RFC 9110 says that "A sender MUST NOT generate BWS in
messages" and a space after a size is what two readers have disagreed about.
"""

from __future__ import annotations

import re
from enum import StrEnum

from l7proxy import gate
from l7proxy.errors import BadRequest, BadResponse
from l7proxy.forwarded import REWRITTEN, is_claim
from l7proxy.model import Limits, Side

MAX_SIZE_LINE = 256  # bytes: a size, its extensions and CR LF
MAX_SIZE_DIGITS = 16
MAX_SIZE = 2**63 - 1  # bytes; a larger size is a negative one to many a reader

LAST_CHUNK = b"0\r\n\r\n"


class ChunkRule(StrEnum):
    """Names of the rules on chunks; those on trailer fields are in `gate.Rule`. All 400."""

    # RFC 9112 section 7.1: "chunk-size = 1*HEXDIG", and: "Recipients MUST anticipate potentially
    # large hexadecimal numerals and prevent parsing errors due to integer conversion overflows".
    SIZE = "chunk-size"
    # Section 7.1.1. The value is a token or a quoted string, neither of which holds CR or LF.
    EXTENSION = "chunk-extension"
    # Section 7.1.1: "A recipient MUST [...] limit the total length of chunk extensions received".
    TOO_LONG = "chunk-line-too-long"
    # Section 7.1: "chunk-data CRLF". Who skips two bytes unseen reads another message.
    END = "chunk-end"


_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,%d})\r\n" % MAX_SIZE_DIGITS)
# RFC 9110 section 5.6.4.
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_EXTENSIONS = re.compile(rb"(?:;%b(?:=(?:%b|%b))?)*" % (gate.TOKEN, gate.TOKEN, _QUOTED))
_DIGITS = re.compile(rb"[0-9A-Fa-f]*")
_CRLF = b"\r\n"

# Beside what `gate` guards for all heads: RFC 9110 section 6.5.1 keeps out of trailers what is
# for "message framing [...], routing [...], request modifiers [...], authentication [...] or
# determining how to process the content", and section 7.6.1 what belongs to one connection.
_NOT_IN_TRAILERS = REWRITTEN | frozenset(
    {
        b"accept-encoding",
        b"age",
        b"authentication-info",
        b"connection",
        b"expires",
        b"http2-settings",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"keep-alive",
        b"location",
        b"pragma",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"retry-after",
        b"set-cookie",
        b"te",
        b"upgrade",
        b"vary",
        b"warning",
        b"www-authenticate",
    }
)


def chunk(data: bytes) -> bytes:
    """One chunk that holds `data`; nothing for no data, since an empty chunk would be the last."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


class Chunked:
    """Reads one chunked body in any cut and gives it framed anew.

    `side` is whom the body comes from: BadRequest is raised for a client, BadResponse for a
    backend, and nothing more may be fed then. `frame` False gives the bare data, for a reader that
    knows no chunks (HTTP/1.0); trailer fields are lost then. `without` names fields, in lower case,
    that the head's Connection made hop-by-hop. `limits` are those of heads, for the trailer
    section.

    `body_bytes` counts the data. When `done`, `surplus` is what came after the body.
    """

    __slots__ = (
        "_backend",
        "_frame",
        "_held",
        "_left",
        "_limits",
        "_scanned",
        "_trailing",
        "_without",
        "body_bytes",
        "done",
        "surplus",
    )

    def __init__(
        self,
        side: Side,
        limits: Limits = Limits(),
        *,
        frame: bool = True,
        without: frozenset[bytes] = frozenset(),
    ) -> None:
        self._backend = side is Side.BACKEND
        self._limits = limits
        self._frame = frame
        self._without = without
        self._left = 0  # bytes that are left of a chunk's data and its CR LF
        self._held: gate.Buffer = b""  # an incomplete line of sizes, or the trailer section
        self._trailing = False
        self._scanned = 0  # bytes of the trailer section that are known to be without flaw
        self.body_bytes = 0
        self.done = False
        self.surplus = b""

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; return what goes on now, which is nothing for mere framing.

        Raises BadRequest or BadResponse as soon as a line shows that it is malformed; RuntimeError
        when `done`.
        """
        if self.done:
            raise RuntimeError("this body is complete")
        pieces: list[bytes] = []
        try:
            tail = self._read(data, pieces)
        except BadRequest as error:
            if self._backend:
                raise BadResponse(error.rule, error.detail) from None
            raise
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self.body_bytes += len(body)
        if not self._frame:
            return body
        if not body:
            return tail
        return b"%x\r\n%b\r\n%b" % (len(body), body, tail)

    def _read(self, data: bytes, pieces: list[bytes]) -> bytes:
        """Append the data of the chunks to `pieces`; return the end of the body when it is there.

        `_left` counts the CR LF after the data with it, so that the three states of a chunk (in its
        data, before CR LF, before LF) are one number.
        """
        at, end, left = 0, len(data), self._left
        while at < end and not self._trailing:
            if left > 2:
                stop = min(at + left - 2, end)
                pieces.append(data[at:stop] if stop - at < end else data)
                left -= stop - at
                at = stop
            elif left:
                found = data[at : at + left]
                if not _CRLF.startswith(found, 2 - left):
                    raise BadRequest(400, ChunkRule.END, "no CR LF after the data of a chunk")
                left -= len(found)
                at += len(found)
            else:
                line = None if self._held else _SIZE_LINE.match(data, at)
                if line is not None:
                    at = line.end()
                    size = int(line[1], 16)
                else:
                    held = bytes(self._held) + data[at : at + MAX_SIZE_LINE]
                    found_at = held.find(b"\n", 0, MAX_SIZE_LINE)
                    if found_at < 0:
                        if len(held) >= MAX_SIZE_LINE:
                            raise BadRequest(400, ChunkRule.TOO_LONG, "a chunk's size line is long")
                        self._held = held
                        break
                    at += found_at + 1 - len(self._held)
                    self._held = b""
                    size = _parse_size_line(held[: found_at + 1])
                if size > MAX_SIZE:
                    raise BadRequest(400, ChunkRule.SIZE, "a chunk is too large")
                if size:
                    left = size + 2
                else:
                    self._trailing = True
                    self._held = _CRLF  # of the last chunk, so that the search below is simple
        self._left = left
        return self._read_trailers(data[at:]) if self._trailing else b""

    def _read_trailers(self, data: bytes) -> bytes:
        """Return the last chunk and the trailer section for the other side when it is complete."""
        held = self._held
        if isinstance(held, bytearray):
            held += data
        else:
            held = self._held = bytearray(held) + data
        limit = self._limits.head_bytes
        scanned = self._scanned
        found = held.find(b"\r\n\r\n", max(0, scanned - 3), limit)
        stop = self._scanned = found + 4 if found >= 0 else min(len(held), limit)
        if flaw := gate.find_flaw(held, scanned, stop):
            gate.refuse_flaw(flaw, held, in_request_line=False, first_field=2)
        if found < 0:
            if stop < limit:
                return b""
            raise BadRequest(
                431, gate.Rule.HEAD_TOO_LARGE, f"the trailer section is larger than {limit} bytes"
            )
        self.done = True
        self.surplus = bytes(held[stop:])
        self._held = b""
        if stop == 4:
            return LAST_CHUNK
        fields = gate.parse_fields(bytes(held[2 : stop - 2]), self._limits.headers)
        lines = [
            name + b": " + value + b"\r\n"
            for name, value in fields
            if is_trailer(name.lower()) and name.lower() not in self._without
        ]
        return b"0\r\n%b\r\n" % b"".join(lines)


def _parse_size_line(line: bytes) -> int:
    """The size of a chunk; `line` has its LF."""
    if not line.endswith(_CRLF):
        raise BadRequest(400, gate.Rule.BARE_LF, "the size of a chunk ends with LF alone")
    line = line[:-2]
    match = _DIGITS.match(line)
    digits = match[0] if match else b""
    if not 1 <= len(digits) <= MAX_SIZE_DIGITS:
        raise BadRequest(400, ChunkRule.SIZE, "malformed size of a chunk")
    if len(digits) < len(line):
        if line[len(digits)] != 0x3B:
            raise BadRequest(400, ChunkRule.SIZE, "malformed size of a chunk")
        if not _EXTENSIONS.fullmatch(line, len(digits)):
            raise BadRequest(400, ChunkRule.EXTENSION, "malformed extension of a chunk")
    return int(digits, 16)


def is_trailer(name: bytes) -> bool:
    """Whether a field of this lower-case name, read with `-` for `_`, passes as a trailer field."""
    name = name.replace(b"_", b"-")
    return not (name in _NOT_IN_TRAILERS or gate.is_guarded(name) or is_claim(name))
