"""Requests made up from what policies ask for, to see what becomes of them.

Every match is asked for on each of its hostnames, as it stands and without its method, headers and
query, those of routes that changed before all others; then come the other combinations of hosts and
paths, and a host and a path that nobody named. A text that satisfies a regular expression is
guessed, and left out where the guess is wrong. Where a listener is transparent, all of it is asked
for each destination that a match names, and for one that none does.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from itertools import product

from l7proxy.model import (
    Address,
    Destination,
    Hello,
    Listener,
    Match,
    PathType,
    Policy,
    Protocol,
    Request,
    ValueMatch,
    ValueType,
)
from l7proxy.patterns import compile_pattern
from l7proxy.routing.claims import taking_part

Plain = Request | Hello | None
"""What a listener is asked: None on a TCP listener."""


@dataclass(frozen=True, slots=True)
class Intercepted:
    """The same, over a connection that was going elsewhere."""

    asked: Plain
    destination: Address


Asked = Plain | Intercepted

_NOWHERE = Address("192.0.2.1", 9)  # RFC 5737: an address for documentation


class Probes:
    """What one listener is asked, made up from two policies."""

    def __init__(self, sides: Sequence[tuple[Policy, Listener]], urgent: Container[str]) -> None:
        """Each side is a policy and its listener; both listeners speak the same protocol.

        What routes with a name in `urgent` ask for comes first.
        """
        self._urgent = urgent
        self._sides = sides
        self._protocol = sides[0][1].protocol
        self._hosts: dict[str, None] = {"unknown.example": None}
        self._paths: dict[str, None] = {"/": None, "/unknown": None}

    def all(self) -> Iterator[Asked]:
        """Each probe once; those of the matches first."""
        if all(listener.transparent is None for _, listener in self._sides):
            yield from self._plain()
            return
        destinations = list(dict.fromkeys(self._destinations()))
        for asked in self._plain():
            for destination in destinations:
                yield Intercepted(asked, destination)

    def _destinations(self) -> Iterator[Address]:
        for policy, listener in self._sides:
            for route in policy.routes:
                for index, _ in taking_part(route, listener):
                    yield from map(_within, route.matches[index].destinations)
        yield _NOWHERE

    def _plain(self) -> Iterator[Plain]:
        if self._protocol is Protocol.TCP:
            yield None
            return
        seen: set[Plain] = set()
        for asked in self._every():
            if asked not in seen:
                seen.add(asked)
                yield asked

    def _every(self) -> Iterator[Plain]:
        http = self._protocol is Protocol.HTTP
        for _, listener in self._sides:
            for host in listener.hostnames:
                self._hosts[_host(host)] = None
        for urgent, (policy, listener) in product((True, False), self._sides):
            for route in policy.routes:
                if (route.name in self._urgent) is not urgent:
                    continue
                for index, hosts in taking_part(route, listener):
                    for host in map(_host, hosts):
                        self._hosts[host] = None
                        yield from (
                            self._of(route.matches[index], host)
                            if http
                            else _hellos(route.matches[index], host)
                        )
        if http:
            for host, path in product(self._hosts, self._paths):
                yield Request(host=host, path=path)
        else:
            for host in (*self._hosts, ""):
                yield Hello(host)

    def _of(self, match: Match, host: str) -> Iterator[Request]:
        for path in _paths(match):
            self._paths[path] = None
            headers = [(one.name.encode(), _value(one)) for one in match.headers]
            query = [(one.name, _value(one)) for one in match.query]
            if any(value is None for _, value in (*headers, *query)):
                continue
            yield Request(
                match.method or "GET",
                host,
                path,
                "&".join(f"{_encoded(name)}={_encoded(value or '')}" for name, value in query)
                or None,
                tuple((name, (value or "").encode()) for name, value in headers),
            )
            yield Request(host=host, path=path)


def _hellos(match: Match, host: str) -> Iterator[Hello]:
    yield Hello(host, match.alpn)
    yield Hello(host)


def _within(destination: Destination) -> Address:
    """An address that a destination holds: the last one, which blocks inside of it rarely have."""
    host = _NOWHERE.host
    if destination.block is not None:
        host = str(ip_network(destination.block)[-1])
    return Address(host, destination.port or _NOWHERE.port)


def _host(pattern: str) -> str:
    """A host that a pattern matches and no other one names."""
    if pattern.startswith("*."):
        return f"any{pattern[1:].lower()}"
    return pattern.lower() or "unknown.example"


def _paths(match: Match) -> tuple[str, ...]:
    """Paths that a match takes: where a prefix ends, and behind that."""
    value = match.path.value
    if match.path.type is PathType.EXACT:
        return (value,)
    if match.path.type is PathType.PATH_PREFIX:
        plain = value.rstrip("/")
        return plain or "/", f"{plain}/any"
    guessed = _guess(value)
    return () if guessed is None else (guessed,)


def _value(wanted: ValueMatch) -> str | None:
    return _guess(wanted.value) if wanted.type is ValueType.REGULAR_EXPRESSION else wanted.value


# What stands for a piece of a pattern, in this order: enough for patterns as people write them.
_GUESSES = (
    (re.compile(r"\(\?[:i]*\)?|\^|\$"), ""),  # what matches nothing, or says how to match
    (re.compile(r"\(([^()|]*)\|[^()]*\)"), r"\1"),  # the first of several
    (re.compile(r"\\d|\[0-9\]"), "1"),
    (re.compile(r"\\w|\[[a-zA-Z^][^\]]*\]|(?<!\\)\.(?=[*+?{])"), "a"),
    (re.compile(r"(?<!\\)[*+?]\??"), ""),
    (re.compile(r"\{(\d+)[^}]*\}"), ""),
    (re.compile(r"(?<!\\)[()]"), ""),
    (re.compile(r"\\(.)"), r"\1"),
)


def _guess(pattern: str) -> str | None:
    """A text that a pattern matches, None where none was found."""
    text = pattern
    for piece, instead in _GUESSES:
        text = piece.sub(instead, text)
    return text if compile_pattern(pattern).matches(text.encode("utf-8")) else None


_PLAIN = re.compile(r"[A-Za-z0-9._~-]")


def _encoded(text: str) -> str:
    return "".join(
        char if _PLAIN.match(char) else "".join(f"%{byte:02X}" for byte in char.encode())
        for char in text
    )


def shown(asked: Asked) -> str:
    """A probe in one line: "GET http://api.example.com/v1 (x-canary: 1)"."""
    if isinstance(asked, Intercepted):
        return f"{shown(asked.asked)} to {asked.destination}"
    if asked is None:
        return "a connection"
    if isinstance(asked, Hello):
        alpn = f" (ALPN {', '.join(asked.alpn)})" if asked.alpn else ""
        return f"TLS {asked.sni or 'without a name'}{alpn}"
    query = "" if asked.query is None else f"?{asked.query}"
    headers = ", ".join(f"{name.decode()}: {value.decode()}" for name, value in asked.headers)
    extra = f" ({headers})" if headers else ""
    return f"{asked.method} http://{asked.host}{asked.path}{query}{extra}"
