"""Whom a request is for: the request target and the Host field, checked together. Pure.

RFC 9112 section 3.2 has four forms of target. origin-form and absolute-form are taken and become
origin-form; asterisk-form is "only used for a server-wide OPTIONS request"; authority-form is
"only used for CONNECT requests".
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from l7proxy.authority import Authority, AuthorityError, parse_authority
from l7proxy.errors import BadRequest
from l7proxy.gate import Rule

# RFC 3986 section 3.3 allows less than this. What is left out here has led readers astray: " < >
# and #, which starts a fragment (part of no form of target), and in the path the backslash, which
# some servers read as a slash. What else is outside of RFC 3986 but inside of ASCII (^ ` { | } and
# the backslash in the query) is sent by browsers, which encode by the WHATWG URL standard.
_PATH_QUERY = re.compile(rb"(/[!$-;=@-\[\]-~]*)(?:\?([!$-;=?-~]*))?")
_ABSOLUTE = re.compile(rb"(https?)://([^/?]*)", re.IGNORECASE)


class Target(NamedTuple):
    """A request target. `path` is "*" for the asterisk-form, "" for the authority-form.

    `query` has no "?".
    """

    path: str
    query: str | None
    authority: bytes | None = None  # of an absolute-form or an authority-form
    default_port: int = 80  # of its scheme; of an authority-form its own port


def parse_target(method: bytes, target: bytes) -> Target:
    """Take a request target apart; raise BadRequest.

    RFC 9112 section 3.2.2: "a server MUST accept the absolute-form in requests". Only http and
    https are known.
    """
    if method == b"CONNECT":
        # RFC 9112 section 3.2.3: "authority-form = uri-host ":" port".
        port = _parse(target, "request target").port
        if port is None:
            raise BadRequest(400, Rule.TARGET, "the target of CONNECT is not host:port")
        return Target("", None, target, port)
    if target.startswith(b"/"):
        return Target(*_path_query(target))
    if target == b"*":
        if method != b"OPTIONS":
            raise BadRequest(400, Rule.TARGET, "the target * is for OPTIONS only")
        return Target("*", None)
    absolute = _ABSOLUTE.match(target)
    if absolute is None:
        raise BadRequest(400, Rule.TARGET, "the target is neither a path nor an http URI")
    authority, rest = absolute[2], target[absolute.end() :]
    port = 80 if len(absolute[1]) == len("http") else 443
    if not rest and method == b"OPTIONS":
        # RFC 9112 section 3.2.4: "If a proxy receives an OPTIONS request with an absolute-form of
        # request-target in which the URI has an empty path and no query component, then the last
        # proxy on the request chain MUST send a request-target of "*"".
        return Target("*", None, authority, port)
    if not rest.startswith(b"/"):
        # RFC 9112 section 3.2.1: "If the target URI's path component is empty, the client MUST
        # send "/" as the path within the origin-form".
        rest = b"/" + rest
    return Target(*_path_query(rest), authority, port)


def _path_query(text: bytes) -> tuple[str, str | None]:
    match = _PATH_QUERY.fullmatch(text)
    if match is None:
        raise BadRequest(400, Rule.TARGET, "the target holds a character that it may not")
    path, query = match.groups()
    if b"%00" in path:
        # Stricter than RFC 3986, 7.3 of which warns of it: to C it ends the name.
        raise BadRequest(400, Rule.TARGET, "the path holds an encoded NUL")
    return path.decode("ascii"), None if query is None else query.decode("ascii")


def choose_authority(target: Target, hosts: list[bytes], version: str) -> tuple[bytes, str]:
    """Return (the value of Host for the backend, the host for comparison).

    `hosts` are the values of every Host field. Both results are empty when a request of HTTP/1.0
    names no host. The value keeps the client's spelling, trailing dot and case included: some
    sign it (AWS Signature Version 4).
    """
    if len(hosts) > 1:
        raise BadRequest(400, Rule.HOST_REPEATED, "more than one Host")
    if not hosts and version == "1.1":
        raise BadRequest(400, Rule.HOST_MISSING, "no Host in an HTTP/1.1 request")
    named = _parse(hosts[0], "Host") if hosts else None
    if target.authority is None:
        return (hosts[0], named.host) if named else (b"", "")
    wanted = _parse(target.authority, "request target")
    if named and (
        named.host != wanted.host
        or (named.port or target.default_port) != (wanted.port or target.default_port)
    ):
        raise BadRequest(400, Rule.HOST_MISMATCH, "Host contradicts the request target")
    return target.authority, wanted.host


@lru_cache(maxsize=1024)  # clients name the same few hosts again and again
def _parse(value: bytes, where: str) -> Authority:
    try:
        return parse_authority(value.decode("latin-1"))  # only ASCII is let through there
    except AuthorityError as error:
        raise BadRequest(400, Rule.HOST, f"{where}: {error}") from None
