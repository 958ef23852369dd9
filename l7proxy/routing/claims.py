"""Which requests a route asks for, and on which listeners it can get them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from l7proxy.model import (
    PASSTHROUGH,
    Destination,
    Filters,
    Listener,
    Match,
    PathMatch,
    PathType,
    Protocol,
    Route,
    ValueMatch,
)
from l7proxy.routing.conditions import first_of_each
from l7proxy.routing.hosts import HostSet, intersect
from l7proxy.routing.readings import equivalent

EVERY_PATH = PathMatch(PathType.PATH_PREFIX, "/")
_NO_FILTERS = Filters()


class Claim(NamedTuple):
    """A set of requests that one route can own. As it stands here: all of them.

    Two routes with the same claim on one listener tie, unless their priority differs, and the
    earlier one has it; claims that differ never tie.
    """

    host: str = ""  # a pattern, lower case; "" for every host
    path_type: PathType = PathType.PATH_PREFIX
    path: str = ""  # as compared, a prefix without its trailing slash
    method: str | None = None
    headers: frozenset[ValueMatch] = frozenset()
    query: frozenset[ValueMatch] = frozenset()
    alpn: frozenset[str] = frozenset()
    destinations: frozenset[Destination] = frozenset()


EVERYTHING = Claim()


def claims(route: Route) -> Iterator[tuple[Claim, int]]:
    """What the route would own if it were alone, each with the index of its match."""
    for index, match in enumerate(route.matches):
        for host in route.hostnames or ("",):
            yield claim(host, match), index


def claim(host: str, match: Match) -> Claim:
    """What one match asks for on one hostname."""
    return Claim(
        host.lower(),
        match.path.type,
        compared_path(match.path),
        match.method,
        frozenset(first_of_each(match.headers, lower=True)),
        frozenset(first_of_each(match.query, lower=False)),
        frozenset(match.alpn),
        frozenset(match.destinations),
    )


def compared_path(path: PathMatch) -> str:
    """A path of a policy as it is compared: its normal form; a regular expression as it stands."""
    if path.type is PathType.REGULAR_EXPRESSION:
        return path.value
    value = equivalent(path.value)
    return value.rstrip("/") if path.type is PathType.PATH_PREFIX else value


def applies(route: Route, listener: Listener) -> bool:
    """Whether `route` is for `listener`: some match of it asks for nothing it cannot know.

    What a listener cannot know, nobody can ask it: there is no path in a ClientHello, no ALPN in a
    request, and nothing at all in a stream of TCP. A stream can be forwarded or cut, but not
    answered or changed. Only a transparent listener gets connections that were going elsewhere.
    Whether its hostnames meet those of the listener is another question.
    """
    return next(_matches_for(route, listener), None) is not None


def taking_part(route: Route, listener: Listener) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The matches of a route that count on a listener, each with the hostnames that do."""
    hosts = hostnames_on(route, listener)
    if hosts:
        for index in _matches_for(route, listener):
            yield index, hosts


def _matches_for(route: Route, listener: Listener) -> Iterator[int]:
    if route.listeners and listener.name not in route.listeners:
        return
    protocol = listener.protocol
    if protocol is not Protocol.HTTP and _is_about_requests(route):
        return
    if protocol is Protocol.TCP and route.hostnames:
        return
    intercepts = listener.transparent is not None
    if not intercepts and any(ref.name == PASSTHROUGH for ref in route.backend_refs):
        return
    for index, match in enumerate(route.matches):
        if match.destinations and not intercepts:
            continue
        if protocol is Protocol.HTTP:
            counts = not match.alpn
        else:
            counts = _asks_no_request(match) and not (protocol is Protocol.TCP and match.alpn)
        if counts:
            yield index


def _is_about_requests(route: Route) -> bool:
    """Whether a route answers requests, or changes or counts them."""
    return (
        route.respond is not None
        or route.redirect is not None
        or route.filters != _NO_FILTERS
        or route.rate_limit is not None
        or route.retry is not None
        or route.timeouts.request is not None
    )


def _asks_no_request(match: Match) -> bool:
    every = match.path.type is PathType.PATH_PREFIX and compared_path(match.path) == ""
    return every and match.method is None and not match.headers and not match.query


def hostnames_on(route: Route, listener: Listener) -> tuple[str, ...]:
    """The hostnames of a route that can be asked for on a listener, ("",) for every one."""
    hosts = route.hostnames or ("",)
    if listener.protocol is Protocol.TCP or not listener.hostnames:
        return hosts
    return tuple(host for host in hosts if _served(host, listener.hostnames))


@lru_cache(maxsize=4096)
def _served(host: str, patterns: tuple[str, ...]) -> bool:
    """Whether a listener with these hostnames serves any host of the pattern."""
    if not host or host.startswith("*."):
        return any(intersect(host, other) for other in patterns)
    return host.lower() in _host_set(patterns)


@lru_cache(maxsize=64)
def _host_set(patterns: tuple[str, ...]) -> HostSet:
    return HostSet(patterns)


def takes_everything(route: Route) -> bool:
    """Whether every request and every stream matches."""
    return any(one == EVERYTHING for one, _ in claims(route))
