"""Names of servers: `host[:port]` of a request. Pure.

RFC 9110 section 7.2: `Host = uri-host [ ":" port ]`; RFC 3986 section 3.2.2: a host is an IP
literal in brackets, an IPv4 address or a registered name. Two readers that take one spelling for
two hosts are how a request gets past a proxy's rules, so this reads less than RFC 3986 allows:

- a name is of letters, digits, `-` and `_` in labels of 1 to 63 bytes, 253 in all; no percent
  encoding, no sub-delimiters, no raw UTF-8 (an internationalised name comes as `xn--...`);
- a name whose last label is a number is an IPv4 address or nothing: `127.1`, `0x7f.0.0.1` and
  `1.2.3.04` are refused, which resolvers read as addresses, each in its own way;
- an IPv6 address has no zone (RFC 6874 is for one host's own use), and IPvFuture is refused;
- a port is 1 to 65535 in decimal, without leading zeros; `host:` is refused.

For comparison a host is lower case, without the trailing dot of a fully qualified name, and an
IPv6 address is in its shortest form without brackets.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache

from l7proxy.errors import L7ProxyError

MAX_NAME = 253  # RFC 1035 section 2.3.4: 255 octets on the wire, 253 as text

_LABEL = r"[A-Za-z0-9_-]{1,63}"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_PORT = re.compile(r"0|[1-9][0-9]{0,4}")
# DIGIT of the RFCs is ASCII only; str.isdigit() and \d are not.


class AuthorityError(L7ProxyError, ValueError):
    """Not a host. `str()` says what is wrong and never repeats the input."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A host in the form that is compared, and the port if one was written."""

    host: str
    port: int | None = None


def normalise_host(text: str) -> str:
    """Return the host in the form that is compared; an IPv6 address may stand in brackets.

    Raises AuthorityError. No wildcard: `*.example.com` is a pattern, not a host.
    """
    if text.startswith("["):
        if not text.endswith("]"):
            raise AuthorityError("the IPv6 address is not closed by ']'")
        return _ipv6(text[1:-1])
    if ":" in text:
        return _ipv6(text)
    return _name(text)


def parse_authority(text: str) -> Authority:
    """Parse `host[:port]` of a Host field or of an absolute-form target.

    Raises AuthorityError; an empty host too. RFC 9110 section 4.2.1: "A recipient that processes
    such a URI reference [with an empty host identifier] MUST reject it as invalid."
    """
    if text.startswith("["):
        literal, bracket, rest = text[1:].partition("]")
        if not bracket:
            raise AuthorityError("the IPv6 address is not closed by ']'")
        if rest and not rest.startswith(":"):
            raise AuthorityError("only ':' and a port may follow ']'")
        return Authority(_ipv6(literal), _port(rest[1:]) if rest else None)
    name, colon, port = text.partition(":")
    return Authority(_name(name), _port(port) if colon else None)


@lru_cache(maxsize=1024)  # clients name the same few hosts again and again
def _name(text: str) -> str:
    """A registered name or an IPv4 address, lower case and without the trailing dot."""
    name = text[:-1] if text.endswith(".") else text
    if not name:
        raise AuthorityError("the host is empty")
    if len(name) > MAX_NAME:
        raise AuthorityError(f"the host is longer than {MAX_NAME} characters")
    if not _NAME.fullmatch(name):
        if "@" in name:
            raise AuthorityError("user information before '@' is not allowed")
        if not all(name.split(".")):
            raise AuthorityError("the host has an empty label")
        if any(len(label) > 63 for label in name.split(".")):
            raise AuthorityError("the host has a label of more than 63 characters")
        raise AuthorityError("the host may hold letters, digits, '-', '_' and '.' only")
    if _NUMBER.fullmatch(name, name.rfind(".") + 1):
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError:
            raise AuthorityError("not an IPv4 address of four decimal numbers") from None
    return name.lower()


def _ipv6(text: str) -> str:
    if "%" in text:
        raise AuthorityError("an IPv6 zone ('%') is not allowed")
    try:
        return ipaddress.IPv6Address(text).compressed
    except ValueError:
        raise AuthorityError("not an IPv6 address") from None


def _port(text: str) -> int:
    if not _PORT.fullmatch(text) or not 1 <= int(text) <= 65535:
        raise AuthorityError("the port must be a number from 1 to 65535")
    return int(text)
