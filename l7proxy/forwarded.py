"""What requests tell of the hops before: whom to believe, and what the backend is told. Pure.

X-Forwarded-For, -Proto, -Host, -Port, X-Real-IP and Forwarded (RFC 7239) are claims. RFC 7239
section 8.1: "This information can be spoofed by any client or proxy". So they are read from trusted
proxies only; what anybody else wrote, in these or in any other `X-Forwarded-*`, goes no further.

The client's address is found from the right, where the nearest hop wrote: as long as an address is
a trusted proxy's, the one before it is believed. What comes from further left anybody can have
written. Only one field is read: X-Forwarded-For if there is one, else Forwarded. A trusted proxy
has to write or to drop both; one that passes a stranger's field on is not to be trusted.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from l7proxy.access import UNIX_CLIENT, Blocks, Trust
from l7proxy.authority import MAX_NAME
from l7proxy.model import FieldPolicy, ForwardedFields

Fields = list[tuple[bytes, bytes]]

MAX_HOPS = 64  # that are looked at, from the right

REWRITTEN = frozenset(
    {
        b"x-forwarded-for",
        b"x-forwarded-proto",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-real-ip",
        b"forwarded",
        b"via",
    }
)
"""Fields that are never copied: `ForwardedWriter.fields` tells them anew."""

_PREFIX = b"x-forwarded-"
_KNOWN = tuple(REWRITTEN - {b"via"})


# ---- reading


def parse_node(text: str) -> str | None:
    """The IP address of a hop, without port; None for what is none (`unknown`, `_hidden`, a name).

    RFC 7239 section 6: "node = nodename [ ":" node-port ]", an IPv6 address in brackets. Of
    X-Forwarded-For an IPv6 address without them too.
    """
    if len(text) > MAX_NAME:
        return None
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or (port and not _NODE_PORT.fullmatch(port)):
            return None
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
        if not _NODE_PORT.fullmatch(":" + port):
            return None
    else:
        host = text
    if "%" in host:
        return None
    try:
        return ipaddress.ip_address(host).compressed
    except ValueError:
        return None


_NODE_PORT = re.compile(r":(?:[0-9]{1,5}|_[A-Za-z0-9._-]+)")
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# RFC 7239 section 4: "forwarded-pair = token "=" value", "value = token / quoted-string".
_PAIR = re.compile(
    rb"(" + _TOKEN + rb")=(?:(" + _TOKEN + rb')|"((?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[\t -~])*)")'
)
_QUOTED_PAIR = re.compile(rb"\\(.)")


def parse_forwarded(value: bytes) -> list[dict[str, str]] | None:
    """The elements of a Forwarded field, names in lower case; None when it is malformed.

    RFC 7239 section 4: "Each parameter MUST NOT occur more than once per field-value."
    """
    elements: list[dict[str, str]] = []
    at, size = 0, len(value)
    element: dict[str, str] = {}
    while True:
        pair = _PAIR.match(value, at)
        if pair is not None:
            name = pair[1].decode("ascii").lower()
            if name in element:
                return None
            text = pair[2] if pair[2] is not None else _QUOTED_PAIR.sub(rb"\1", pair[3])
            element[name] = text.decode("latin-1")
            at = pair.end()
        while at < size and value[at] in b" \t":
            at += 1
        if at == size or value[at] == 0x2C:
            if element:
                elements.append(element)
            element = {}
            if at == size:
                return elements
        elif value[at] != 0x3B:
            return None
        at += 1
        while at < size and value[at] in b" \t":
            at += 1


def _hops(headers: tuple[tuple[bytes, bytes], ...]) -> list[str | None]:
    """The addresses of the hops as the request tells them, the nearest one last."""
    written = [value for name, value in headers if name == b"x-forwarded-for"]
    if written:
        parts = b",".join(written).rsplit(b",", MAX_HOPS)[-MAX_HOPS:]
        return [parse_node(part.strip(b" \t").decode("latin-1")) for part in parts]
    forwarded = [value for name, value in headers if name == b"forwarded"]
    elements = parse_forwarded(b",".join(forwarded)) if forwarded else None
    return [parse_node(element.get("for", "")) for element in (elements or [])[-MAX_HOPS:]]


def client_address(
    peer: str, headers: tuple[tuple[bytes, bytes], ...], trusted: Blocks | Trust
) -> str:
    """Who sent the request: the rightmost address that is no trusted proxy's.

    `peer` is who the connection is from. Where the trail ends, or holds something else than an
    address, the last address before it counts.
    """
    if peer not in trusted:
        return peer
    client = peer
    for hop in reversed(_hops(headers)):
        if hop is None:
            break
        client = hop
        if hop not in trusted:
            break
    return client


def came_to(
    scheme: str, port: int | None, headers: tuple[tuple[bytes, bytes], ...]
) -> tuple[str, int | None]:
    """Scheme and port that the client used, as trusted proxies tell it: where a redirect leads.

    `scheme` and `port` are those of this hop. The first value counts, which was written nearest to
    the client; the worst that a lie in it does is to redirect the liar. Where only the scheme is
    told, the port is None: that of this hop is none the client has seen.
    """
    told = _first(headers, b"x-forwarded-proto")
    if not told and (elements := parse_forwarded(_joined(headers, b"forwarded"))):
        told = elements[0].get("proto", "")
    if told.lower() in ("http", "https"):
        scheme, port = told.lower(), None
    said = _first(headers, b"x-forwarded-port")
    if _PORT.fullmatch(said) and 0 < int(said) < 65536:
        port = int(said)
    return scheme, port


_PORT = re.compile(r"[0-9]{1,5}")


def _joined(headers: tuple[tuple[bytes, bytes], ...], name: bytes) -> bytes:
    return b",".join(value for found, value in headers if found == name)


def _first(headers: tuple[tuple[bytes, bytes], ...], name: bytes) -> str:
    return _joined(headers, name).split(b",", 1)[0].strip(b" \t").decode("latin-1")


# ---- writing


@dataclass(frozen=True, slots=True)
class Hop:
    """This hop, as the backend is told of it."""

    peer: str  # who the connection is from, as an address, or "unix:"
    client: str  # see `client_address`
    trusted: bool  # whether `peer` is believed
    scheme: str  # http, or https where a trusted proxy says so
    port: int | None  # that the client came to; None on a unix socket


def _quote(node: str) -> str:
    """RFC 7239 section 6: an IPv6 address is in brackets, and so has to be quoted."""
    if node == UNIX_CLIENT:
        return "unknown"
    return f'"[{node}]"' if ":" in node else node


def _quote_host(host: str) -> str:
    return f'"{host}"' if ":" in host else host


class ForwardedWriter:
    """The fields of `ForwardedFields`, for one listener."""

    __slots__ = ("_fields", "_plain")

    def __init__(self, fields: ForwardedFields) -> None:
        self._fields = fields
        self._plain = fields == ForwardedFields()

    def fields(
        self,
        hop: Hop,
        headers: tuple[tuple[bytes, bytes], ...],
        *,
        authority: str,
        version: str,
    ) -> Fields:
        """What stands in place of the fields in `REWRITTEN`. Names as they are written.

        `authority` is the Host, `version` the version of HTTP that the client sent: RFC 9110
        section 7.6.3 wants the received one in Via.
        """
        said: dict[bytes, bytes] = {}
        for name, value in headers:
            if name in REWRITTEN and (hop.trusted or name == b"via") and value:
                said[name] = said[name] + b", " + value if name in said else value
        if self._plain and not said and hop.peer != UNIX_CLIENT and authority:
            return [  # what is usual, and so has to be cheap
                (b"X-Forwarded-For", hop.peer.encode("ascii")),
                (b"X-Forwarded-Proto", hop.scheme.encode("ascii")),
                (b"X-Forwarded-Host", authority.encode("ascii")),
                (b"Via", b"1.1 l7proxy" if version == "1.1" else b"1.0 l7proxy"),
            ]
        # A unix socket has no address: RFC 7239 section 6.2 has the word "unknown" for it.
        peer = "" if hop.peer == UNIX_CLIENT else hop.peer
        client = "" if hop.client == UNIX_CLIENT else hop.client
        policy = self._fields
        out: Fields = []
        _list(out, b"X-Forwarded-For", said, peer, policy.x_forwarded_for)
        _single(out, b"X-Forwarded-Proto", said, hop.scheme, policy.x_forwarded_proto)
        _single(out, b"X-Forwarded-Host", said, authority, policy.x_forwarded_host)
        if not self._plain or said:
            port = "" if hop.port is None else str(hop.port)
            _single(out, b"X-Forwarded-Port", said, port, policy.x_forwarded_port)
            _single(out, b"X-Real-IP", said, client, policy.x_real_ip)
            _list(out, b"Forwarded", said, self._element(hop, authority), policy.forwarded)
        _list(out, b"Via", said, f"{version} l7proxy", policy.via)
        return out

    def _element(self, hop: Hop, authority: str) -> str:
        if self._fields.forwarded not in (FieldPolicy.APPEND, FieldPolicy.SET):
            return ""
        host = f";host={_quote_host(authority)}" if authority else ""
        return f"for={_quote(hop.peer)}{host};proto={hop.scheme}"


def _list(
    out: Fields, name: bytes, said: dict[bytes, bytes], own: str, policy: FieldPolicy
) -> None:
    """A field to which each hop adds."""
    parts: list[bytes] = []
    if policy in (FieldPolicy.APPEND, FieldPolicy.PASS) and (before := said.get(name.lower())):
        parts.append(before)
    if policy in (FieldPolicy.APPEND, FieldPolicy.SET) and own:
        parts.append(own.encode("ascii"))
    if parts:
        out.append((name, b", ".join(parts)))


def _single(
    out: Fields, name: bytes, said: dict[bytes, bytes], own: str, policy: FieldPolicy
) -> None:
    """A field with one value: `append` keeps what a trusted proxy said."""
    value = b""
    if policy in (FieldPolicy.APPEND, FieldPolicy.PASS):
        value = said.get(name.lower(), b"")
    if not value and policy in (FieldPolicy.APPEND, FieldPolicy.SET):
        value = own.encode("ascii")
    if value:
        out.append((name, value))


def is_claim(name: bytes) -> bool:
    """Whether a field (name in lower case) is a claim that only a trusted proxy may make."""
    return name.startswith(_PREFIX) or name in _KNOWN
