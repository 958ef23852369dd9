"""Which route answers: the routes of a listener, compiled. Pure.

The words and the precedence are those of the Kubernetes Gateway API v1, HTTPRoute. Of all routes
that match a request the winner has, in this order,

1. the most specific hostname: an exact one, then the longest wildcard, then none at all
   ("Characters in a matching non-wildcard hostname", then "Characters in a matching hostname");
2. an `Exact` path;
3. the longest `PathPrefix`;
4. the earliest place in the file.

The specification ranks *matching* rules. A hostname whose routes all miss the path is therefore
no dead end: the request falls through to the routes of a less specific hostname, and gets 404 only
when nothing at all matches. (Envoy picks a virtual host by name first and does not fall through;
who wants that writes a `PathPrefix /` route for the hostname.)

`PathPrefix` compares by path element: `/abc` matches `/abc`, `/abc/` and `/abc/x`, not `/abcd`; a
trailing slash in the pattern says nothing. `*.example.com` stands for one label or more, never for
`example.com` itself.

How a path is read
------------------
A path can be spelled in many ways, and the backend gets it as the client sent it. If routing read
it one way and the backend another, `/public/../admin` would pass as `/public` here and act as
`/admin` there. Three readings are known:

- *equivalent*: RFC 3986, 6.2.2: percent-encoded unreserved characters are the characters ("%7E" is
  "~", "%61" is "a"), hex digits have no case. By that RFC these spellings are the same URI, so this
  reading is what patterns and paths are always compared in. Nothing else is decoded.
- *resolved*: the same with "." and ".." removed as RFC 3986, 5.2.4 says.
- *lenient*: what servers are known to make of it besides: "%2F", "%5C" and "\\" are "/", empty
  elements vanish, "..;x" is "..", and then dots are removed.

They agree on nearly every request. Where they do not, they still may lead to the same route, and
then it does not matter who is right. If they lead to different routes, nobody can know which one
the backend would enforce: the request is refused with 400. So a sidecar with one route forwards
whatever it gets, and no spelling reaches one route's backend under another route's path.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from l7proxy.balance import WeightedTurns
from l7proxy.model import (
    BackendRef,
    Decision,
    Forward,
    Hello,
    Listener,
    PathMatch,
    PathType,
    Policy,
    Protocol,
    Requested,
    Respond,
    Route,
)

NOT_FOUND = Respond(404, "no route for this host and path")
NO_STREAM_ROUTE = Respond(404, "no route for this listener")
AMBIGUOUS = Respond(400, "the path can be read in ways that lead to different routes")
NO_WEIGHT = Respond(500, "every backend of this route has weight 0")
NO_BACKEND = Respond(500, "this route names a backend that is not there")

EVERY_PATH = PathMatch(PathType.PATH_PREFIX, "/")

Claim = tuple[str, PathType, str]
"""A set of requests that one route can own: (hostname pattern, "" for every host; type; path as
compared, a prefix without its trailing slash). Two routes with the same claim on one listener tie,
and the earlier one has it; claims that differ never tie."""


def applies(route: Route, listener: Listener) -> bool:
    """Whether `route` takes part on `listener`.

    On a TCP listener there is no host and no path to compare, so only a route that asks for neither
    takes part.
    """
    if route.listeners and listener.name not in route.listeners:
        return False
    return listener.protocol is not Protocol.TCP or takes_everything(route)


def takes_everything(route: Route) -> bool:
    """Whether every host and every path matches."""
    return not route.hostnames and any(
        _claim("", match.path) == _claim("", EVERY_PATH) for match in route.matches
    )


def claims(route: Route) -> Iterator[tuple[Claim, int]]:
    """What the route would own if it were alone, each with the index of its match."""
    for index, match in enumerate(route.matches):
        for host in route.hostnames or ("",):
            yield _claim(host, match.path), index


def _claim(host: str, path: PathMatch) -> Claim:
    value = equivalent(path.value)
    if path.type is PathType.PATH_PREFIX:
        value = value.rstrip("/")
    return host.lower(), path.type, value


_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_ENCODED_SLASH = re.compile(r"%2F|%5C|\\")
_DOTS_WITH_PARAMETER = re.compile(r"(?<=/)(\.\.?);[^/]*")


def equivalent(path: str) -> str:
    """The normal form of RFC 3986, 6.2.2.1 and 6.2.2.2, as far as percent-encodings go.

    2.3: "URIs that differ in the replacement of an unreserved character with its corresponding
    percent-encoded US-ASCII octet are equivalent"; 6.2.2.1: "the hexadecimal digits within a
    percent-encoding triplet (e.g., "%3a" versus "%3A") are case-insensitive".
    """
    return _ESCAPE.sub(_normal_escape, path) if "%" in path else path


def _normal_escape(escape: re.Match[str]) -> str:
    char = chr(int(escape[1], 16))
    return char if char in _UNRESERVED else escape[0].upper()


def _without_dots(path: str, *, keep_empty: bool) -> str:
    """RFC 3986, 5.2.4 by elements; `keep_empty` False drops empty elements as well."""
    elements = path.split("/")[1:]
    kept: list[str] = []
    for element in elements:
        if element == "..":
            del kept[-1:]
        elif element != "." and (element or keep_empty):
            kept.append(element)
    if elements[-1] in ("", ".", "..") and (not kept or kept[-1]):
        kept.append("")
    return "/" + "/".join(kept)


def readings(path: str) -> tuple[str, str, str]:
    """`path` as equivalent, resolved and lenient servers read it (see the top of this module)."""
    plain = equivalent(path)
    if not plain.startswith("/"):  # "*" of OPTIONS: it has no elements
        return plain, plain, plain
    slashes = _DOTS_WITH_PARAMETER.sub(r"\1", _ENCODED_SLASH.sub("/", plain))
    return (
        plain,
        _without_dots(plain, keep_empty=True),
        _without_dots(slashes, keep_empty=False),
    )


class _Choice:
    """What happens when a route wins: its backend group, or the one whose turn it is."""

    __slots__ = ("_decisions", "_turns")

    def __init__(self, route: Route, policy: Policy, start: int) -> None:
        refs: list[BackendRef] = [ref for ref in route.backend_refs if ref.weight > 0]
        self._decisions: list[Decision] = [
            Forward(route, policy.backends[ref.name]) if ref.name in policy.backends else NO_BACKEND
            for ref in refs
        ] or [NO_WEIGHT]
        self._turns = WeightedTurns([ref.weight for ref in refs], start) if len(refs) > 1 else None

    def take(self) -> Decision:
        return self._decisions[0 if self._turns is None else self._turns.take()]


class _Paths:
    """The paths of one hostname. Cost of `find`: the elements of the longest pattern, at most."""

    __slots__ = ("exact", "longest", "prefixes")

    def __init__(self) -> None:
        self.exact: dict[str, _Choice] = {}
        self.prefixes: dict[str, _Choice] = {}  # "/" is "" here, "/abc/" is "/abc"
        self.longest = 0

    def add(self, path_type: PathType, value: str, choice: _Choice) -> None:
        if path_type is PathType.EXACT:
            self.exact.setdefault(value, choice)
        else:
            self.prefixes.setdefault(value, choice)
            self.longest = max(self.longest, len(value))

    def find(self, path: str) -> _Choice | None:
        if (choice := self.exact.get(path)) is not None:
            return choice
        # A prefix can end only where an element ends. Looking no further than the longest pattern
        # bounds the work by the policy: a client cannot buy time with a path of a thousand slashes.
        end = len(path)
        if end > self.longest:
            end = path.rfind("/", 0, self.longest + 1)
        prefixes = self.prefixes
        while end > 0:
            if (choice := prefixes.get(path[:end])) is not None:
                return choice
            end = path.rfind("/", 0, end)
        return prefixes.get("")


class Router:
    """The compiled routes of one listener, for one worker.

    A decision costs a few dictionary look-ups, however many routes there are. It is pure but for
    one thing: a route with several `backendRefs` remembers whose turn it is.
    """

    __slots__ = ("_every_host", "_exact_hosts", "_longest", "_stream", "_wildcards")

    def __init__(self, routes: list[tuple[Route, _Choice]]) -> None:
        self._exact_hosts: dict[str, _Paths] = {}
        self._wildcards: dict[str, _Paths] = {}  # "*.example.com" is ".example.com" here
        self._every_host = _Paths()
        self._stream: _Choice | None = None
        for route, choice in routes:
            if self._stream is None and takes_everything(route):
                self._stream = choice
            for (host, path_type, value), _ in claims(route):
                self._paths_of(host).add(path_type, value, choice)
        self._longest = max(map(len, self._wildcards), default=0)

    def _paths_of(self, host: str) -> _Paths:
        if not host:
            return self._every_host
        if host.startswith("*."):
            return self._wildcards.setdefault(host[1:], _Paths())
        return self._exact_hosts.setdefault(host, _Paths())

    def decide(self, request: Requested) -> Decision:
        """What to do with a request: as its route says, or Respond with 404 or 400 (see the top).

        500 stands for backends that are not there, or have no weight.
        """
        host, path = request.host, request.path
        if "%" in path or "/." in path or "//" in path or "\\" in path:
            plain, *others = readings(path)
            choice = self._find(host, plain)
            for other in others:
                if other != plain and self._find(host, other) is not choice:
                    return AMBIGUOUS
        else:
            choice = self._find(host, path)
        return NOT_FOUND if choice is None else choice.take()

    def decide_stream(self, _hello: Hello | None = None) -> Decision:
        """What to do with a connection that has no head (a TCP listener).

        Forward by the first route that asks for no host and no path; Respond means that there is
        none, and since nobody can be answered on a bare stream, the connection is to be reset.
        """
        return NO_STREAM_ROUTE if self._stream is None else self._stream.take()

    def _find(self, host: str, path: str) -> _Choice | None:
        paths = self._exact_hosts.get(host)
        if paths is not None and (choice := paths.find(path)) is not None:
            return choice
        if self._wildcards:
            # Suffixes from the longest that any pattern has; never the whole host, which would be
            # the bare domain.
            at = host.find(".", max(1, len(host) - self._longest))
            while at > 0:
                paths = self._wildcards.get(host[at:])
                if paths is not None and (choice := paths.find(path)) is not None:
                    return choice
                at = host.find(".", at + 1)
        return self._every_host.find(path)


def compile_routers(policy: Policy, start: int = 0) -> dict[str, Router]:
    """A router for each listener of a checked policy, by the listener's name.

    A route on several listeners takes its turns over all of them. `start` lets workers begin at
    different turns: pass the worker's slot.
    """
    choices = [(route, _Choice(route, policy, start)) for route in policy.routes]
    return {
        listener.name: Router([(r, choice) for r, choice in choices if applies(r, listener)])
        for listener in policy.listeners.values()
    }
