"""The strict gate around the parser of request heads. Pure: bytes in, `BadRequest` or facts out.

Some facts about request smuggling, and what follows from them:

- It needs two readers of one head who disagree on where the message ends or whom it is for. The
  backend is a reader that we don't know, so whatever any reader is known to take in two ways is
  refused here. RFC 9112 section 11.2: "Request smuggling [...] is a technique that exploits
  differences in protocol parsing among various recipients to hide additional requests".
- After the first head the connection is spliced: a second request that is hidden behind it would
  reach the backend unread. So refusing is the only safe answer; repairing is not.
- h11 is lenient on purpose where the web is (bare LF, obs-fold, control characters in values,
  equal Content-Lengths). This gate stands before it and sees the raw bytes.

The rules come in two groups. Those on single bytes and on the request line are checked as the
bytes come in, in the order of the bytes: what can never become a valid head is refused at the
first byte that shows it (a TLS ClientHello at its first), and every way of cutting the input
gives the same answer. Those on fields are checked when the head is complete.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from l7proxy.errors import BadRequest

MAX_METHOD = 32  # bytes; the longest registered method has 17
USUAL = 64  # bytes of a Connection field that is remembered
MAX_LENGTH_DIGITS = 18  # of Content-Length: always below 2**63, whatever a backend counts in

Buffer = bytes | bytearray
Fields = list[tuple[bytes, bytes]]


class Rule(StrEnum):
    """Names of the rules; `BadRequest.rule` is one of them. Stable: logs and tests show them.

    400 unless another status is told.
    """

    # RFC 9110 section 5.5: "Field values containing CR, LF, or NUL characters are invalid and
    # dangerous [...] Field values containing other CTL characters are also invalid; however,
    # recipients MAY retain such characters". Stricter: none is retained but HTAB.
    CONTROL = "control"
    # RFC 9112 section 2.2: "a recipient MAY recognize a single LF as a line terminator and ignore
    # any preceding CR". Stricter: it is refused.
    BARE_LF = "bare-lf"
    # RFC 9112 section 2.2: "A recipient of such a bare CR MUST consider that element to be invalid
    # or replace each bare CR with SP".
    BARE_CR = "bare-cr"
    # The first byte of a TLS record that holds a ClientHello, where plain HTTP is spoken.
    TLS = "tls"
    # RFC 9112 section 2.2: "a server that is expecting to receive and parse a request-line SHOULD
    # ignore at least one empty line (CRLF) received prior to the request-line". Exactly one is.
    # (Two of them also open version 2 of the PROXY protocol.)
    EMPTY_LINE = "empty-line"
    # RFC 9112 section 3: "recipients MAY instead parse on whitespace-delimited word boundaries
    # [...] However, lenient parsing can result in request smuggling". Stricter: one SP each.
    REQUEST_LINE = "request-line"
    # 501. RFC 9112 section 3: "A server that receives a method longer than any that it implements
    # SHOULD respond with a 501".
    METHOD = "method"
    # RFC 9110 section 9.3.6: "A CONNECT request message does not have content." What follows its
    # head is the tunnel's; who reads a length there takes some of it for a body.
    CONNECT = "connect"
    # 505. The connection preface of RFC 9113 section 3.4: a client with "prior knowledge".
    HTTP2 = "http2"
    # 505. RFC 9110 section 15.6.6: "the server does not support, or refuses to support, the major
    # version of HTTP". Stricter: minor versions above 1 do not exist and are refused with it.
    VERSION = "version"
    # RFC 9112 section 3.2: "Recipients of an invalid request-line SHOULD respond with either a 400
    # [...] SHOULD NOT attempt to autocorrect". Which characters: see `target`.
    TARGET = "target"
    # 414. RFC 9112 section 3: "A server that receives a request-target longer than any URI it
    # wishes to parse MUST respond with a 414".
    TARGET_TOO_LONG = "target-too-long"
    # 431. RFC 6585 section 5: "both when the set of request header fields in total is too large,
    # and when a single header field is at fault".
    HEAD_TOO_LARGE = "head-too-large"
    # 431. Many small fields cost more to handle than their bytes say.
    TOO_MANY_FIELDS = "too-many-fields"
    # RFC 9112 section 2.2: "A recipient that receives whitespace between the start-line and the
    # first header field MUST either reject the message as invalid or consume each
    # whitespace-preceded line without further processing". It is refused.
    LEADING_WHITESPACE = "leading-whitespace"
    # RFC 9112 section 5.2: "A server that receives an obs-fold in a request message [...] MUST
    # either reject the message by sending a 400 (Bad Request) [...] or replace". It is refused.
    OBS_FOLD = "obs-fold"
    # RFC 9112 section 5: "field-line = field-name ":" OWS field-value OWS", the name a token.
    FIELD_LINE = "field-line"
    # RFC 9112 section 5.1: "A server MUST reject, with a response status code of 400 (Bad
    # Request), any received request message that contains whitespace between a header field name
    # and colon."
    SPACE_BEFORE_COLON = "space-before-colon"
    # CGI (RFC 3875 section 4.1.18) and WSGI turn `-` into `_`, so that `Content_Length` becomes
    # HTTP_CONTENT_LENGTH, and `X_Forwarded_For` the twin of what we vouch for. nginx drops every
    # such field in silence, HAProxy passes all; here only the twin of a guarded name is refused.
    FIELD_TWIN = "field-twin"
    # RFC 9112 section 6.3: "If a message is received without Transfer-Encoding and with an invalid
    # Content-Length header field, then the message framing is invalid [...] unless the field value
    # can be successfully parsed as a comma-separated list [...] and all values in the list are the
    # same." Stricter: no lists, no second field; no leading zeros (strtol reads those as octal);
    # not more than MAX_LENGTH_DIGITS.
    CONTENT_LENGTH = "content-length"
    # RFC 9112 section 6.1: "A server MAY reject a request that contains both Content-Length and
    # Transfer-Encoding". It is.
    LENGTH_AND_CHUNKED = "length-and-chunked"
    # RFC 9112 section 6.3: "If a Transfer-Encoding header field is present in a request and the
    # chunked transfer coding is not the final encoding, the message body length cannot be
    # determined reliably; the server MUST respond with the 400 (Bad Request) status code". 400
    # also for chunked twice (section 6.1: "A sender MUST NOT apply the chunked transfer coding
    # more than once") or with parameters (section 7.1: "Their presence SHOULD be treated as an
    # error"). 501 for another coding before it, section 6.1: "A server that receives a request
    # message with a transfer coding it does not understand SHOULD respond with 501".
    TRANSFER_ENCODING = "transfer-encoding"
    # RFC 9112 section 6.1: "A server or client that receives an HTTP/1.0 message containing a
    # Transfer-Encoding header field MUST treat the message as if the framing is faulty".
    CHUNKED_IN_1_0 = "chunked-in-1.0"
    # RFC 9112 section 3.2: "A server MUST respond with a 400 (Bad Request) status code to any
    # HTTP/1.1 request message that lacks a Host header field ...
    HOST_MISSING = "host-missing"
    # ... and to any request message that contains more than one Host header field line ...
    HOST_REPEATED = "host-repeated"
    # ... or a Host header field with an invalid field value." Also for the authority of an
    # absolute-form target. What is invalid: see `authority`.
    HOST = "host"
    # RFC 9112 section 3.2.2: "When a proxy receives a request with an absolute-form of
    # request-target, the proxy MUST ignore the received Host header field (if any) and instead
    # replace it". Stricter: if the two contradict each other, one of them is a lie.
    HOST_MISMATCH = "host-mismatch"
    # RFC 9110 section 7.6.1: "A sender MUST NOT send a connection option corresponding to a field
    # that is intended for all recipients of the content." Stripping one of the fields that are
    # guarded below would let a client take from a request what decides over it.
    CONNECTION = "connection"
    # 417. RFC 9110 section 10.1.1: "A server that receives an Expect field value containing a
    # member other than 100-continue MAY respond with a 417". It is refused: two readers that take
    # the field differently disagree on whether a body follows.
    EXPECT = "expect"
    # 400, or 501 at zero. RFC 9110 section 7.6.2: "Each intermediary that receives a TRACE or
    # OPTIONS request containing a Max-Forwards header field MUST check and update its value prior
    # to forwarding the request. If the received value is zero (0), the intermediary MUST NOT
    # forward the request". l7proxy has no answer of its own to give then.
    MAX_FORWARDS = "max-forwards"
    # h11 refused or read differently what every other rule let pass. No input is known that gets
    # here; if there is one, it goes no further.
    PARSER = "parser"


# Fields that are for the backend, or that we write or vouch for: no `Connection` option may name
# them, and no other spelling of them passes. The prefixes guard their whole families.
GUARDED = frozenset(
    {
        b"authorization",
        b"cache-control",
        b"cookie",
        b"date",
        b"expect",
        b"forwarded",
        b"host",
        b"max-forwards",
        b"origin",
        b"range",
        b"trailer",
        b"transfer-encoding",
        b"via",
        b"x-real-ip",
    }
)
GUARDED_PREFIXES = (b"content-", b"x-forwarded-")

_TCHAR = rb"!#$%&'*+\-.^_`|~0-9A-Za-z"  # RFC 9110 section 5.6.2, inside of []
TOKEN = rb"[" + _TCHAR + rb"]+"
_TOKEN = re.compile(TOKEN)
_METHOD = re.compile(rb"[" + _TCHAR + rb"]*")
_REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([\x21-\x7e\x80-\xff]+) HTTP/([0-9]\.[0-9])")
_FIELD_LINE = re.compile(rb"^(" + TOKEN + rb"):([^\r\n]*)\r\n", re.MULTILINE)
_SPACE_BEFORE_COLON = re.compile(TOKEN + rb"[ \t]+:")
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,%d}" % (MAX_LENGTH_DIGITS - 1))

# The bytes that may stand in a head: HTAB, LF, CR, SP to tilde, obs-text.
_TEXT = b"\t\n\r" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
# Each alternative ends with the byte at which it is known; `find_flaw` relies on that.
_FLAW = re.compile(
    rb"(?P<control>[\x00-\x08\x0b\x0c\x0e-\x1f\x7f])"
    rb"|(?P<lf>(?<!\r)\n)"
    rb"|(?P<cr>\r[^\n])"
    rb"|(?P<fold>\r\n[ \t])"
)


class RequestLine(NamedTuple):
    """The parts of a request line; `version` is "1.0" or "1.1"."""

    method: bytes
    target: bytes
    version: str


class Flaw(NamedTuple):
    """A byte sequence that no head may contain: the offset of the byte that shows it, and what."""

    known_at: int
    kind: str  # "control", "lf", "cr", "fold"


def find_flaw(buffer: Buffer, start: int, stop: int) -> Flaw | None:
    """Return the first flaw that is known from `buffer[:stop]` and was not from `buffer[:start]`.

    Looks at the two bytes before `start` again, since a flaw may be three bytes long. A CR at the
    very end is no flaw yet.
    """
    start = max(0, start - 2)
    piece = buffer[start:stop]
    lines = piece.count(b"\r\n")
    if (
        not piece.translate(None, _TEXT)
        and piece.count(b"\n") == lines == piece.count(b"\r")
        and b"\n " not in piece
        and b"\n\t" not in piece
    ):
        return None  # the quick way, five times as fast; its suspicions are looked into below
    match = _FLAW.search(buffer, start, stop)
    if match is None or match.lastgroup is None:
        return None
    return Flaw(match.end() - 1, match.lastgroup)


def refuse_flaw(flaw: Flaw, buffer: Buffer, *, in_request_line: bool, first_field: int) -> None:
    """Raise the BadRequest for a flaw; `first_field` is the offset of the first field line."""
    if flaw.kind == "lf":
        raise BadRequest(400, Rule.BARE_LF, "a line ends with LF instead of CR LF")
    if flaw.kind == "cr":
        raise BadRequest(400, Rule.BARE_CR, "CR without LF")
    if flaw.kind == "control":
        if flaw.known_at == 0 and buffer[0] == 0x16:
            raise BadRequest(400, Rule.TLS, "TLS was spoken to a plain HTTP port")
        raise BadRequest(400, Rule.CONTROL, "control character in the head")
    if in_request_line:
        raise BadRequest(400, Rule.REQUEST_LINE, "whitespace before the request line")
    if flaw.known_at == first_field:
        raise BadRequest(400, Rule.LEADING_WHITESPACE, "whitespace before the first header field")
    raise BadRequest(400, Rule.OBS_FOLD, "obsolete line folding")


def check_line_start(line: Buffer) -> None:
    """Raise BadRequest if no request line starts like this; `line` has no CR LF yet.

    Looks at the method and the space after it only, so it costs the same however long `line` is.
    """
    if line[:1] == b"\r":
        raise BadRequest(400, Rule.EMPTY_LINE, "more than one empty line before the request line")
    match = _METHOD.match(line, 0, MAX_METHOD + 1)
    length = match.end() if match else 0
    if length > MAX_METHOD:
        raise BadRequest(501, Rule.METHOD, f"the method is longer than {MAX_METHOD} bytes")
    if length < len(line) and (length == 0 or line[length] != 0x20):
        raise BadRequest(400, Rule.REQUEST_LINE, "malformed request line")


def parse_request_line(line: Buffer) -> RequestLine:
    """Take a whole request line apart; `line` is without CR LF."""
    match = _REQUEST_LINE.fullmatch(line)
    if match is None or match.end(1) > MAX_METHOD:
        if not line:
            line = b"\r"  # an empty line, as it looks when only its first byte has come
        check_line_start(line)
        raise BadRequest(400, Rule.REQUEST_LINE, "malformed request line")
    method, target, version = match.groups()
    if version not in (b"1.1", b"1.0"):
        if method == b"PRI" and target == b"*" and version == b"2.0":
            raise BadRequest(505, Rule.HTTP2, "HTTP/2 is not spoken here: use HTTP/1.1")
        raise BadRequest(505, Rule.VERSION, "only HTTP/1.0 and HTTP/1.1 are spoken here")
    return RequestLine(method, target, version.decode("ascii"))


def parse_fields(
    block: bytes, limit: int, *, guarded: Callable[[bytes], bool] | None = None
) -> Fields:
    """Return names as spelled and values of the field lines, each of which ends with CR LF.

    Raises BadRequest when there are more than `limit`, when one is malformed, or when one is the
    twin of a guarded field: one that `guarded` says yes to (`is_guarded` unless told otherwise).
    """
    count = block.count(b"\r\n")
    if count > limit:
        raise BadRequest(431, Rule.TOO_MANY_FIELDS, f"more than {limit} header fields")
    fields = [(name, value.strip(b" \t")) for name, value in _FIELD_LINE.findall(block)]
    if len(fields) != count:
        for line in block.split(b"\r\n"):
            if _SPACE_BEFORE_COLON.match(line):
                raise BadRequest(
                    400, Rule.SPACE_BEFORE_COLON, "whitespace between a field name and its colon"
                )
        raise BadRequest(400, Rule.FIELD_LINE, "malformed header field")
    guarded = guarded or is_guarded
    if b"_" in block and any(b"_" in name and guarded(name.lower()) for name, _ in fields):
        raise BadRequest(
            400, Rule.FIELD_TWIN, "a header field imitates another one with an underscore"
        )
    return fields


def is_guarded(name: bytes) -> bool:
    """Whether a field of this lower-case name, read with `-` for `_`, is guarded."""
    name = name.replace(b"_", b"-")
    return name in GUARDED or name.startswith(GUARDED_PREFIXES)


def body_length(
    lengths: list[bytes] | None, codings: list[bytes] | None, version: str
) -> tuple[int | None, bool]:
    """Return (content length or None, whether the body is chunked) from the two framing fields.

    The arguments are the values of every Content-Length and of every Transfer-Encoding field,
    None when there is none.
    """
    if codings:
        if version == "1.0":
            raise BadRequest(400, Rule.CHUNKED_IN_1_0, "Transfer-Encoding in HTTP/1.0")
        if lengths:
            raise BadRequest(
                400, Rule.LENGTH_AND_CHUNKED, "both Content-Length and Transfer-Encoding"
            )
        check_codings(codings)
        return None, True
    if not lengths:
        return None, False
    if len(lengths) > 1:
        raise BadRequest(400, Rule.CONTENT_LENGTH, "more than one Content-Length")
    if not _LENGTH.fullmatch(lengths[0]):
        raise BadRequest(400, Rule.CONTENT_LENGTH, "malformed Content-Length")
    return int(lengths[0]), False


def check_codings(values: list[bytes]) -> None:
    """Raise BadRequest unless the Transfer-Encoding fields say exactly `chunked`."""
    if len(values) == 1 and values[0].lower() == b"chunked":
        return
    codings = [coding.strip(b" \t").lower() for coding in b",".join(values).split(b",")]
    if codings[-1] != b"chunked" or codings.count(b"chunked") > 1:
        raise BadRequest(
            400, Rule.TRANSFER_ENCODING, "Transfer-Encoding does not end with one chunked"
        )
    raise BadRequest(501, Rule.TRANSFER_ENCODING, "only the transfer coding chunked is known")


def connection_options(values: list[bytes]) -> frozenset[bytes]:
    """Return the options of all Connection fields, in lower case."""
    value = b",".join(values)
    return _usual_options(value) if len(value) <= USUAL else _options(value)


def _options(value: bytes) -> frozenset[bytes]:
    options = list_elements([value])
    for option in options:
        if not _TOKEN.fullmatch(option):
            raise BadRequest(400, Rule.CONNECTION, "malformed Connection")
        if is_guarded(option):
            raise BadRequest(400, Rule.CONNECTION, "Connection names an end-to-end field")
    return frozenset(options)


_usual_options = lru_cache(maxsize=256)(_options)  # clients say the same few things: 3 us less


def list_elements(values: list[bytes], *, lower: bool = True) -> list[bytes]:
    """Return the elements of a comma-separated list that is spread over these field values.

    Empty elements are ignored, as RFC 9110 section 5.6.1.2 asks of recipients. Not for fields in
    which a quoted string may hold a comma.
    """
    joined = b",".join(values)
    elements = [e.strip(b" \t") for e in (joined.lower() if lower else joined).split(b",")]
    return [element for element in elements if element]
