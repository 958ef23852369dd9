"""The ClientHello of a TLS connection: bytes in, the server's name and the protocols out. Pure.

Nothing is changed and nothing is decrypted: what was read goes on to the backend as it came, and
the backend's TLS judges it again. So only what decides here is checked strictly, where a second
reader could see another name than this one; the rest of the hello is only measured.

What routes, and what does not:

- No `server_name`: routed without a name (`Hello.sni` is ""). So is an IP address in its place:
  RFC 6066 section 3, "Literal IPv4 and IPv6 addresses are not permitted in "HostName"".
- With Encrypted Client Hello the name is the outer one, that of the client-facing server. RFC 9849
  section 1: the sensitive name is inside the `encrypted_client_hello` extension, which only that
  server can open; everybody on the way sees the public name.
- GREASE (RFC 8701) is whatever it stands for: an unknown extension, an unknown protocol.
- Upper case and a trailing dot are no difference: RFC 6066 has the name "without a trailing dot"
  and "DNS hostnames are case-insensitive".
- A name that is no DNS name (a NUL in it, a space, bytes beyond ASCII), two names, and an extension
  that stands twice are refused: two readers could take two names from it.
- What follows the ClientHello (early data, more handshake) is the backend's.
- A ClientHello in the format of SSL 2.0 is refused, and whatever else is not TLS.
"""

from __future__ import annotations

import re
from enum import StrEnum

from l7proxy.authority import AuthorityError, normalise_host
from l7proxy.errors import BadHello
from l7proxy.model import Hello

LEAST_LIMIT = 16 * 1024  # bytes; hellos with post-quantum key shares take two to four KiB

UNRECOGNIZED_NAME = 112  # RFC 6066 section 3
ACCESS_DENIED = 49  # RFC 8446 section 6.2, as the next
INTERNAL_ERROR = 80


class Rule(StrEnum):
    """Names of the rules; `BadHello.rule` is one of them. Stable: logs and tests show them."""

    # RFC 8446 section 5.1: the first record is a handshake record. And: "Handshake messages MUST
    # NOT be interleaved with other record types."
    NOT_TLS = "not-tls"
    # RFC 8446 appendix E.5: "Implementations are NOT RECOMMENDED to accept an SSL version 2.0
    # compatible CLIENT-HELLO". It is not.
    SSLV2 = "sslv2"
    # RFC 8446 section 5.1: "legacy_record_version [...] MUST be ignored for all purposes". Only its
    # second byte is: no version of TLS has had another first one than 3.
    RECORD_VERSION = "record-version"
    # RFC 8446 section 5.1: "The length MUST NOT exceed 2^14 bytes. An endpoint that receives a
    # record that exceeds this length MUST terminate the connection with a "record_overflow"
    # alert."
    RECORD_SIZE = "record-size"
    # RFC 8446 section 5.1: "Implementations MUST NOT send zero-length fragments of Handshake
    # types, even if those fragments contain padding."
    EMPTY_RECORD = "empty-record"
    # RFC 8446 section 4.1.2: "When a client first connects to a server, it is REQUIRED to send the
    # ClientHello as its first TLS message."
    NOT_A_HELLO = "not-a-hello"
    # More than the limit, in records or by its own account.
    TOO_LARGE = "hello-too-large"
    # RFC 8446 section 6.2, decode_error: "some field was out of the specified range or the length
    # of the message was incorrect".
    SYNTAX = "hello-syntax"
    # RFC 8446 section 4.2: "There MUST NOT be more than one extension of the same type in a given
    # extension block."
    EXTENSION_REPEATED = "extension-repeated"
    # RFC 6066 section 3: "The ServerNameList MUST NOT contain more than one name of the same
    # name_type."
    NAME_REPEATED = "name-repeated"
    # RFC 6066 section 3: ""HostName" contains the fully qualified DNS hostname of the server".
    NAME = "name"


_ALERTS = {
    Rule.NOT_TLS: 10,  # unexpected_message
    Rule.SSLV2: 70,  # protocol_version
    Rule.RECORD_VERSION: 70,
    Rule.RECORD_SIZE: 22,  # record_overflow
    Rule.EMPTY_RECORD: 10,
    Rule.NOT_A_HELLO: 10,
    Rule.TOO_LARGE: 47,  # illegal_parameter
    Rule.SYNTAX: 50,  # decode_error
    Rule.EXTENSION_REPEATED: 47,
    Rule.NAME_REPEATED: 47,
    Rule.NAME: 47,
}

_HANDSHAKE = 22
_CLIENT_HELLO = 1
_RECORD_HEADER = 5
_MESSAGE_HEADER = 4
_MAX_FRAGMENT = 1 << 14
_SERVER_NAME = 0
_ALPN = 16
_HOST_NAME = 0

# Letters of all kinds of numbers an address can be written in; 127.1 and 0x7f.1 are none of DNS.
_ADDRESS_LIKE = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")


def alert(description: int) -> bytes:
    """The record of a fatal alert. RFC 8446 section 6: level fatal (2), then the description."""
    return bytes((21, 3, 3, 0, 2, 2, description))


class HelloReader:
    """Collects a ClientHello from any cut of the input; bounded by `limit`, linear in the input.

    `taken` is all that was fed: what the backend gets.
    """

    __slots__ = ("_at", "_fragment_left", "_limit", "_message", "_spent", "taken")

    def __init__(self, limit: int = LEAST_LIMIT) -> None:
        """`limit` is in bytes, records' headers included; it is at least LEAST_LIMIT."""
        self._limit = max(limit, LEAST_LIMIT)
        self._at = 0  # bytes of `taken` that were looked at
        self._fragment_left = 0  # bytes of the record's fragment that are yet to come
        self._message = bytearray()
        self._spent = False
        self.taken = bytearray()

    def feed(self, data: bytes) -> Hello | None:
        """Take the next bytes; return the hello when it is complete, None when more is needed.

        Raises BadHello as soon as the bytes cannot become one that is let through. After that, and
        after a hello, the reader is spent: RuntimeError.
        """
        if self._spent:
            raise RuntimeError("this reader has given its answer")
        self.taken += data
        try:
            hello = self._advance()
        except BadHello:
            self._spent = True
            raise
        self._spent = hello is not None
        return hello

    def _advance(self) -> Hello | None:
        taken, limit = self.taken, self._limit
        while True:
            if not self._fragment_left:
                header = taken[self._at : min(self._at + _RECORD_HEADER, limit)]
                length = _fragment_length(header)
                if length is None:
                    break
                self._at += _RECORD_HEADER
                self._fragment_left = length
            piece = taken[self._at : min(self._at + self._fragment_left, limit)]
            if not piece:
                break
            self._at += len(piece)
            self._fragment_left -= len(piece)
            self._message += piece
            end = _message_end(self._message, limit)
            if end is not None and len(self._message) >= end:
                return parse(bytes(self._message[_MESSAGE_HEADER:end]))
        if len(taken) >= limit:
            raise _bad(Rule.TOO_LARGE, f"no whole ClientHello within {limit} bytes")
        return None


def _bad(rule: Rule, detail: str) -> BadHello:
    return BadHello(rule, _ALERTS[rule], detail)


def _fragment_length(header: bytes | bytearray) -> int | None:
    """The length that a record's header tells, None while it is not complete."""
    if not header:
        return None
    if header[0] != _HANDSHAKE:
        if header[0] & 0x80 and len(header) < 3:
            return None  # the length of SSL 2.0 has two bytes, its message type is the third
        if header[0] & 0x80 and header[2] == _CLIENT_HELLO:
            raise _bad(Rule.SSLV2, "a hello of SSL 2.0")
        raise _bad(Rule.NOT_TLS, "not a TLS handshake record")
    if len(header) > 1 and header[1] != 3:
        raise _bad(Rule.RECORD_VERSION, "not a version of TLS")
    if len(header) < _RECORD_HEADER:
        return None
    length = header[3] << 8 | header[4]
    if length > _MAX_FRAGMENT:
        raise _bad(Rule.RECORD_SIZE, "a record of more than 16384 bytes")
    if not length:
        raise _bad(Rule.EMPTY_RECORD, "an empty handshake record")
    return length


def _message_end(message: bytearray, limit: int) -> int | None:
    """How long the handshake message is with its header, None while that is not known."""
    if message[0] != _CLIENT_HELLO:
        raise _bad(Rule.NOT_A_HELLO, "a handshake that does not begin with a ClientHello")
    if len(message) < _MESSAGE_HEADER:
        return None
    end = _MESSAGE_HEADER + int.from_bytes(message[1:_MESSAGE_HEADER])
    if end > limit:
        raise _bad(Rule.TOO_LARGE, f"a ClientHello of more than {limit} bytes")
    return end


class _Fields:
    """A cursor over TLS presentation language (RFC 8446 section 3)."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def __bool__(self) -> bool:
        return self.at < len(self.data)

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        piece = self.data[self.at : self.at + size]
        if len(piece) < size:
            raise _bad(Rule.SYNTAX, "a field goes beyond its end")
        self.at += size
        return piece

    def vector(self, length_bytes: int, least: int = 0) -> bytes:
        """A vector with its length in front, `<least..>`."""
        content = self.take(int.from_bytes(self.take(length_bytes)))
        if len(content) < least:
            raise _bad(Rule.SYNTAX, "a field is shorter than it may be")
        return content

    def end(self) -> None:
        """Nothing may follow."""
        if self:
            raise _bad(Rule.SYNTAX, "bytes after the last field")


def parse(body: bytes) -> Hello:
    """The ClientHello whose message body this is; raises BadHello.

    RFC 8446 section 4.1.2: legacy_version, random[32], legacy_session_id<0..32>,
    cipher_suites<2..2^16-2>, legacy_compression_methods<1..2^8-1>, extensions<8..2^16-1>; in
    TLS 1.2 the extensions may be missing (RFC 5246 section 7.4.1.2).
    """
    fields = _Fields(body)
    fields.take(2 + 32)
    if len(fields.vector(1)) > 32:
        raise _bad(Rule.SYNTAX, "a session id of more than 32 bytes")
    if len(fields.vector(2, 2)) % 2:
        raise _bad(Rule.SYNTAX, "half a cipher suite")
    fields.vector(1, 1)
    if not fields:
        return Hello()
    extensions = _Fields(fields.vector(2))
    fields.end()
    seen: set[int] = set()
    sni = ""
    alpn: tuple[str, ...] = ()
    while extensions:
        kind = int.from_bytes(extensions.take(2))
        data = extensions.vector(2)
        if kind in seen:
            raise _bad(Rule.EXTENSION_REPEATED, f"extension {kind} stands twice")
        seen.add(kind)
        if kind == _SERVER_NAME:
            sni = _server_name(data)
        elif kind == _ALPN:
            alpn = _protocols(data)
    return Hello(sni, alpn)


def _server_name(data: bytes) -> str:
    """The host name of a `server_name` extension; "" when there is none.

    RFC 6066 section 3: names of an unknown type begin with a 16-bit length too, so that they can
    be passed over.
    """
    fields = _Fields(data)
    names = _Fields(fields.vector(2, 1))
    fields.end()
    host: bytes | None = None
    while names:
        kind = names.take(1)[0]
        name = names.vector(2, 1)
        if kind != _HOST_NAME:
            continue
        if host is not None:
            raise _bad(Rule.NAME_REPEATED, "more than one host name")
        host = name
    return "" if host is None else _host(host)


def _host(name: bytes) -> str:
    try:
        text = name.decode("ascii").lower()
        if ":" in text or _ADDRESS_LIKE.fullmatch(text.removesuffix(".")):
            return ""
        return normalise_host(text)
    except (UnicodeDecodeError, AuthorityError):
        raise _bad(Rule.NAME, "the server name is no DNS name") from None


def _protocols(data: bytes) -> tuple[str, ...]:
    """The protocols of an ALPN extension, in the client's order, as latin-1.

    RFC 7301 section 3.1: "Empty strings MUST NOT be included and byte strings MUST NOT be
    truncated."
    """
    fields = _Fields(data)
    names = _Fields(fields.vector(2, 2))
    fields.end()
    found: list[str] = []
    while names:
        found.append(names.vector(1, 1).decode("latin-1"))
    return tuple(found)
