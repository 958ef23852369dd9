"""What a match asks of a request besides host and path, and of a ClientHello besides the name.

- *method*: as sent; "The method token is case-sensitive" (RFC 9110, 9.1). A match without one is
  for every method but CONNECT.
- *headers*: a field that a request repeats is one value, joined with ", " (RFC 9110, 5.3: "by
  appending each subsequent field line value to the initial field line value in order, separated by
  a comma ... and optional whitespace"), cookies with "; " (RFC 9113, 8.2.3). So `x: 1` twice is
  `1, 1`, and no longer `1`: a client cannot hide a value behind another one.
- *queryParams*: names and values are compared as a form is read (WHATWG URL, 5.1): split at `&`,
  `+` is a space, "%61" is "a"; what is no percent-encoding stays. A parameter without `=` has the
  value "". Of one that is repeated "the first value of the param" counts, as HTTPQueryParamMatch
  recommends; servers differ there, so it is no place for a rule of access.
- *alpn*: the client offers one of these (RFC 7301).
- *destinations*: an intercepted connection was going to one of these. Who came to the listener
  itself was going nowhere else, and matches none.

`Exact` values are compared byte by byte, in their case; a regular expression has to match the whole
value. A header or a parameter that is not there matches nothing, not even `.*`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from l7proxy.access import Blocks
from l7proxy.model import (
    Address,
    Destination,
    Hello,
    Match,
    Request,
    Requested,
    ValueMatch,
    ValueType,
)
from l7proxy.patterns import Pattern, compile_pattern

CONNECT = "CONNECT"  # only a match that names this method takes a request of it

_NO_REQUEST = Request()
_NO_HELLO = Hello()
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")


class Facts:
    """What conditions ask for, read when it is asked for the first time."""

    __slots__ = ("_headers", "_query", "destination", "hello", "request")

    def __init__(
        self,
        request: Requested | None,
        hello: Hello | None = None,
        destination: Address | None = None,
    ) -> None:
        self.request = request or _NO_REQUEST
        self.hello = hello or _NO_HELLO
        self.destination = destination  # where an intercepted connection was going
        self._headers: dict[bytes, bytes] | None = None
        self._query: dict[bytes, bytes] | None = None

    def header(self, name: bytes) -> bytes | None:
        """The value of a field (its name in lower case), None when there is none."""
        headers = self._headers
        if headers is None:
            headers = self._headers = {}
            for key, value in self.request.headers:
                if key in headers:
                    joint = b"; " if key == b"cookie" else b", "
                    headers[key] = headers[key] + joint + value
                else:
                    headers[key] = value
        return headers.get(name)

    def parameter(self, name: bytes) -> bytes | None:
        """The value of a query parameter, None when there is none."""
        if self._query is None:
            self._query = parameters(self.request.query or "")
        return self._query.get(name)


def parameters(query: str) -> dict[bytes, bytes]:
    """The parameters of a query, each with its first value."""
    found: dict[bytes, bytes] = {}
    for part in query.encode("utf-8", "replace").split(b"&"):
        if part:
            name, _, value = part.partition(b"=")
            found.setdefault(_decoded(name), _decoded(value))
    return found


def _decoded(text: bytes) -> bytes:
    text = text.replace(b"+", b" ")
    return _ESCAPE.sub(lambda found: bytes((int(found[1], 16),)), text) if b"%" in text else text


@dataclass(frozen=True, slots=True)
class MethodIs:
    """The method, as it is."""

    method: str

    @property
    def criterion(self) -> str:
        """The key of the policy that says so."""
        return "method"

    def holds(self, facts: Facts) -> bool:
        """Whether it is."""
        return facts.request.method == self.method

    def why_not(self, facts: Facts) -> str:
        """A sentence for who wonders."""
        return f"its method is {self.method}, the request's {facts.request.method}"


@dataclass(frozen=True, slots=True)
class Value:
    """A header (`name` in lower case) or a query parameter has this value."""

    noun: str  # "header" or "query parameter"
    name: bytes
    wanted: bytes
    pattern: Pattern | None  # of a regular expression; None: exact

    @property
    def criterion(self) -> str:
        """The key of the policy that says so."""
        return "headers" if self.noun == "header" else "queryParams"

    def read(self, facts: Facts) -> bytes | None:
        """What the request has there."""
        name = self.name
        return facts.header(name) if self.noun == "header" else facts.parameter(name)

    def holds(self, facts: Facts) -> bool:
        """Whether it has."""
        value = self.read(facts)
        if self.pattern is None or value is None:
            return value == self.wanted
        return self.pattern.matches(value)

    def why_not(self, facts: Facts) -> str:
        """A sentence for who wonders."""
        value, name = self.read(facts), _shown(self.name)
        wanted = _shown(self.wanted)
        if value is None:
            return f"the request has no {self.noun} {name}"
        if self.pattern is None:
            return f"its {self.noun} {name} is {wanted}, the request's {_shown(value)}"
        return f"the {self.noun} {name} is {_shown(value)}, which {wanted} does not match"


@dataclass(frozen=True, slots=True)
class Offers:
    """A ClientHello offers one of these protocols."""

    protocols: tuple[str, ...]

    @property
    def criterion(self) -> str:
        """The key of the policy that says so."""
        return "alpn"

    def holds(self, facts: Facts) -> bool:
        """Whether it does."""
        return any(one in self.protocols for one in facts.hello.alpn)

    def why_not(self, facts: Facts) -> str:
        """A sentence for who wonders."""
        offered = ", ".join(facts.hello.alpn) or "none"
        return f"it is for ALPN {', '.join(self.protocols)}, the client offers {offered}"


class GoesTo:
    """An intercepted connection was going to one of these."""

    __slots__ = ("_every", "_of_port", "_shown")

    criterion = "destinations"

    def __init__(self, destinations: tuple[Destination, ...]) -> None:
        self._shown = ", ".join(map(str, destinations))
        self._every = Blocks(one.block for one in destinations if one.block and not one.port)
        by_port: dict[int, list[str | None]] = {}
        for one in destinations:
            if one.port is not None:
                by_port.setdefault(one.port, []).append(one.block)
        self._of_port = {  # None: every address
            port: None if None in blocks else Blocks(block for block in blocks if block)
            for port, blocks in by_port.items()
        }

    def holds(self, facts: Facts) -> bool:
        """Whether it was."""
        destination = facts.destination
        if destination is None:
            return False
        if destination.port in self._of_port:
            blocks = self._of_port[destination.port]
            if blocks is None or destination.host in blocks:
                return True
        return destination.host in self._every

    def why_not(self, facts: Facts) -> str:
        """A sentence for who wonders."""
        if facts.destination is None:
            return f"it is for connections that were going to {self._shown}, and this one came here"
        return f"it is for {self._shown}, and the connection was going to {facts.destination}"


Condition = MethodIs | Value | Offers | GoesTo


def _shown(value: bytes) -> str:
    return repr(value.decode("utf-8", "backslashreplace"))


def compile_conditions(match: Match) -> tuple[Condition, ...]:
    """All that has to hold; raises PatternError. Of two with one name the first counts."""
    conditions: list[Condition] = []
    if match.method is not None:
        conditions.append(MethodIs(match.method))
    conditions += _values("header", match.headers)
    conditions += _values("query parameter", match.query)
    if match.alpn:
        conditions.append(Offers(match.alpn))
    if match.destinations:
        conditions.append(GoesTo(match.destinations))
    return tuple(conditions)


def first_of_each(values: tuple[ValueMatch, ...], *, lower: bool) -> tuple[ValueMatch, ...]:
    """HTTPHeaderMatch: of equivalent names "only the first entry ... MUST be considered"."""
    if len(values) < 2:
        return values
    first: dict[str, ValueMatch] = {}
    for one in values:
        first.setdefault(one.name.lower() if lower else one.name, one)
    return tuple(first.values())


def _values(noun: str, values: tuple[ValueMatch, ...]) -> list[Condition]:
    header = noun == "header"
    return [
        Value(
            noun,
            (one.name.lower() if header else one.name).encode("utf-8"),
            one.value.encode("utf-8"),
            compile_pattern(one.value) if one.type is ValueType.REGULAR_EXPRESSION else None,
        )
        for one in first_of_each(values, lower=header)
    ]
