"""What a route changes in a request on its way, and where it sends one that it redirects. Pure.

The rules are those of HTTPHeaderFilter, HTTPURLRewriteFilter and HTTPRequestRedirectFilter (Gateway
API v1). Three things they leave open:

- Header changes come last, after the fields that l7proxy writes by itself: a route that sets
  `X-Forwarded-For` or removes `Via` has its way. A client cannot undo them by naming such a field
  in `Connection`.
- What is set or removed is not let in as its twin either. RFC 3875 (CGI), 4.1.18: "The HTTP header
  field name is converted to upper case, has all occurrences of "-" replaced with "_"", and so to
  many a server `X_User` is `X-User`.
- What frames a message or belongs to one connection is out of their reach: see `forbidden_header`.
- A path is compared in its normal form but goes on as the client spelled it. What a prefix covered
  is told by its elements, whose number every spelling shares.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from l7proxy.model import (
    HeaderChanges,
    Match,
    PathModifier,
    PathModifierType,
    PathType,
    RedirectTo,
    Requested,
    Route,
)

WELL_KNOWN_PORTS = {"http": 80, "https": 443}

# RFC 9110, 5.6.2: token = 1*tchar
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# RFC 9110, 5.5: "Field values containing CR, LF, or NUL characters are invalid and dangerous"; no
# other control character but the tab is allowed either, and a line is sent in ASCII.
_VALUE = re.compile(r"[\t\x20-\x7e]*")

_PATH = re.compile(r"/[!-\"$->@-~]*")  # what may stand in a request line, without ? and #
_HOST = re.compile(r"[A-Za-z0-9._-]+")

_CONNECTION = "it belongs to one connection, and l7proxy writes its own"
_FRAMING = "it says where a message ends, and l7proxy passes it on as it is"
_FORBIDDEN = {
    "connection": _CONNECTION,
    "content-length": _FRAMING,
    "expect": "the client and the backend agree on it before the body is sent",
    "host": "use `urlRewrite.hostname`",
    "http2-settings": _CONNECTION,
    "keep-alive": _CONNECTION,
    "proxy-connection": _CONNECTION,
    "te": _CONNECTION,
    "trailer": _FRAMING,
    "transfer-encoding": _FRAMING,
    "upgrade": _CONNECTION,
}


@dataclass(frozen=True, slots=True)
class Rewriting:
    """What is different in the head that a backend gets. None: as it would be without."""

    path: str | None = None  # without the query
    authority: str | None = None  # the value of Host
    drop: frozenset[bytes] = frozenset()  # fields that do not come through, as `twin` has them
    write: tuple[tuple[bytes, bytes], ...] = ()  # fields that are written behind the others


def twin(name: bytes) -> bytes:
    """A field name in lower case, with `-` for `_`: what servers may take for the same field."""
    return name.replace(b"_", b"-")


def forbidden_header(name: str) -> str | None:
    """Why a route cannot change the header `name`, in any case of its letters; None when it can.

    RFC 9112, 6.3 and 11.2: two readers that disagree on where a message ends are how requests are
    smuggled, so no policy may write what says so.
    """
    return _FORBIDDEN.get(name.lower())


def guard(route: Route) -> None:
    """Raise ValueError when the filters of a route are not fit to be applied.

    The policy language has refused such a route with its place; this keeps one that was made
    otherwise from reaching a backend.
    """
    for changes in (route.filters.request_headers, route.filters.response_headers):
        if changes is not None:
            _guard_headers(changes)
    rewrite = route.filters.url_rewrite
    redirect = route.redirect
    for change in (rewrite, redirect):
        if change is None:
            continue
        if change.hostname is not None and not _HOST.fullmatch(change.hostname):
            raise ValueError(f"route {route.name}: not a host: {change.hostname!r}")
        if (path := change.path) is None:
            continue
        prefix = path.type is PathModifierType.REPLACE_PREFIX_MATCH
        if not _PATH.fullmatch(path.value) and not (prefix and not path.value):
            raise ValueError(f"route {route.name}: not a path to write: {path.value!r}")
        if prefix and any(match.path.type is not PathType.PATH_PREFIX for match in route.matches):
            raise ValueError(f"route {route.name}: ReplacePrefixMatch without a PathPrefix")


def _guard_headers(changes: HeaderChanges) -> None:
    for name in (*(name for name, _ in (*changes.set, *changes.add)), *changes.remove):
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"not a header name: {name!r}")
        if (why := forbidden_header(name)) is not None:
            raise ValueError(f"the header {name} cannot be changed: {why}")
    for name, value in (*changes.set, *changes.add):
        if not _VALUE.fullmatch(value):
            raise ValueError(f"not a value of the header {name}: {value!r}")


def rewrite(request: Requested, route: Route, match: Match) -> Rewriting | None:
    """What `route` changes in a request that `match` of it matched; None when nothing."""
    filters = route.filters
    changes, url = filters.request_headers, filters.url_rewrite
    if changes is None and url is None:
        return None
    path = authority = None
    if url is not None:
        authority = url.hostname
        if url.path is not None:
            path = modified_path(url.path, match, request.path)
    if changes is None:
        return Rewriting(path, authority)
    return Rewriting(
        path,
        authority,
        frozenset(
            twin(name.lower().encode("ascii"))
            for name in (*(name for name, _ in changes.set), *changes.remove)
        ),
        tuple(
            (name.encode("ascii"), value.encode("ascii"))
            for name, value in (*changes.set, *changes.add)
        ),
    )


def modified_path(modifier: PathModifier, match: Match, path: str) -> str:
    """`path` as HTTPPathModifier says; the query is not part of it.

    ReplacePrefixMatch works by elements, as the match does, and ignores a trailing slash of the
    match and of the replacement: of /foo/bar, matched by /foo, both /xyz and /xyz/ make /xyz/bar.
    """
    if modifier.type is PathModifierType.REPLACE_FULL_PATH:
        return modifier.value
    covered = match.path.value.rstrip("/").count("/")
    rest = path.split("/", covered + 1)[covered + 1 :]
    value = modifier.value
    if not rest:  # nothing behind what was matched, not even a slash
        return value or "/"
    return f"{value.rstrip('/')}/{rest[0]}"


def redirect_location(
    redirect: RedirectTo, match: Match, request: Requested, scheme: str, listener_port: int | None
) -> str | None:
    """The value of Location, an absolute URI with the query of the request.

    `scheme` is what the client used; `listener_port` None stands for a listener without ports.
    None comes back when neither the route nor the request (of HTTP/1.0) names a host: there is
    nowhere to send the client to.

    HTTPRequestRedirectFilter: "If redirect scheme is not-empty, the redirect port MUST be the
    well-known port associated with the redirect scheme"; "If redirect scheme is empty, the redirect
    port MUST be the Gateway Listener port"; and a well-known port of the scheme is left out.
    """
    host = redirect.hostname or request.host
    if not host:
        return None
    port = redirect.port
    if port is None and redirect.scheme is None:
        port = listener_port
    scheme = redirect.scheme or scheme
    authority = f"[{host}]" if ":" in host else host
    if port is not None and port != WELL_KNOWN_PORTS.get(scheme):
        authority = f"{authority}:{port}"
    path = request.path
    if redirect.path is not None:
        path = modified_path(redirect.path, match, path)
    query = "" if request.query is None else f"?{request.query}"
    return f"{scheme}://{authority}{path}{query}"
