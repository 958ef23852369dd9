"""Routes and requests in one line each, so that tables of cases can be read.

A match is the words that it asks for, in any order:

    /abc          PathPrefix        =/abc         Exact        ~/a.c   RegularExpression
    POST          method            version:two   header       v:~[12]   by regular expression
    ?animal=whale query parameter   ?v=~[12]      by regular expression

A route is `name [hostname ...] > match | match`, a request `[METHOD] [host]/path [name:value ...]`.
"""

from __future__ import annotations

import pytest

from l7proxy.model import (
    Address,
    Backend,
    BackendRef,
    Endpoint,
    Listener,
    Match,
    PathMatch,
    PathType,
    Policy,
    Request,
    Respond,
    Route,
    ValueMatch,
    ValueType,
)
from l7proxy.routing import Router, compile_routers

ADDRESS = Address("127.0.0.1", 80)


def match(text: str) -> Match:
    """One match; without a path it is `PathPrefix /`."""
    path = PathMatch(PathType.PATH_PREFIX, "/")
    method = None
    headers: list[ValueMatch] = []
    query: list[ValueMatch] = []
    for word in text.split():
        if word[0] == "/":
            path = PathMatch(PathType.PATH_PREFIX, word)
        elif word[0] == "=":
            path = PathMatch(PathType.EXACT, word[1:])
        elif word[0] == "~":
            path = PathMatch(PathType.REGULAR_EXPRESSION, word[1:])
        elif word[0] == "?":
            query.append(_value(*word[1:].split("=", 1)))
        elif ":" in word:
            headers.append(_value(*word.split(":", 1)))
        else:
            method = word
    return Match(path, method, tuple(headers), tuple(query))


def _value(name: str, value: str) -> ValueMatch:
    if value.startswith("~"):
        return ValueMatch(name, value[1:], ValueType.REGULAR_EXPRESSION)
    return ValueMatch(name, value)


def route(text: str) -> Route:
    """`name [hostname ...] > match | match`; a name such as `low@-5` has a priority."""
    who, _, matches = text.partition(">")
    name, *hosts = who.split()
    name, _, priority = name.partition("@")
    found = tuple(match(one) for one in matches.split("|"))
    refs = (BackendRef("app"),)
    return Route(name, found, refs, tuple(hosts), priority=int(priority or 0))


def routes(text: str) -> list[Route]:
    """One in each line."""
    return [route(line) for line in text.splitlines() if line.strip()]


def policy(*found: Route, hostnames: tuple[str, ...] = ()) -> Policy:
    """One HTTP listener, one backend for each name."""
    names = {ref.name for one in found for ref in one.backend_refs} | {"app"}
    backends = {name: Backend(name, (Endpoint(ADDRESS),)) for name in sorted(names)}
    return Policy({"web": Listener("web", ADDRESS, hostnames=hostnames)}, found, backends)


def router(*found: Route, hostnames: tuple[str, ...] = ()) -> Router:
    """The router of that listener."""
    return compile_routers(policy(*found, hostnames=hostnames))["web"]


def request(text: str) -> Request:
    """`[METHOD] [host]/path[?query] [header:value ...]`."""
    words = text.split()
    method = "GET" if "/" in words[0] else words.pop(0)
    host, slash, target = words.pop(0).partition("/")
    path, mark, query = f"{slash}{target}".partition("?")
    fields = [word.partition(":")[::2] for word in words]
    return Request(
        method,
        host,
        path,
        query if mark else None,
        tuple((name.lower().encode(), value.encode()) for name, value in fields),
    )


def winner(one: Router, asked: Request) -> str:
    """The name of the route, or the status."""
    found = one.find(asked)
    if found is None:
        return "404"
    return str(found.status) if isinstance(found, Respond) else found.route.name


def lines(cases: dict[str, tuple[str, str]]) -> list[object]:
    """Parameters of a test from a table of "request -> expected", by what it is about."""
    return [
        pytest.param(found, *map(str.strip, line.split("->")), id=f"{about}: {line.strip()}")
        for about, (found, table) in cases.items()
        for line in table.splitlines()
        if line.strip()
    ]
