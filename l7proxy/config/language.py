"""The policy language: its keys, what each may hold, and what is made of them.

Everything the language knows stands in the tables below, one key a line. What a table reads becomes
a draft: the values that are sound, each with the place it came from. `references` then checks what
only the whole shows, and makes the policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from l7proxy.config import addresses, values
from l7proxy.config.bad import Bad
from l7proxy.config.nodes import Mapping, Node, Scalar
from l7proxy.config.schema import Choice, Fields, Key, ListOf, MapOf, Table, Text, Whole
from l7proxy.config.walker import At, Walker
from l7proxy.model import Address, Limits, PathMatch, PathType, Protocol, Timeouts


@dataclass(frozen=True, slots=True)
class ListenerDraft:
    """A listener as written; None for what is missing or wrong."""

    name: At[str]
    address: At[Address] | None
    protocol: Protocol | None
    limits: Limits
    timeouts: Timeouts


@dataclass(frozen=True, slots=True)
class RefDraft:
    """One entry of `backendRefs` as written."""

    name: At[str]
    weight: int


@dataclass(frozen=True, slots=True)
class RouteDraft:
    """A route as written. None for what is left out or wrong; `keys` tells which was written."""

    node: Node
    name: At[str] | None
    listeners: list[At[str]] | None
    hostnames: list[At[str]] | None
    matches: list[At[PathMatch]] | None
    backend_refs: list[At[RefDraft]] | None
    keys: dict[str, Scalar]


@dataclass(frozen=True, slots=True)
class BackendDraft:
    """A backend group as written."""

    name: At[str]
    endpoints: list[At[Address]] | None


@dataclass(frozen=True, slots=True)
class Draft:
    """A policy as written; a section that is missing or no list or map at all is None."""

    listeners: list[ListenerDraft] | None
    routes: list[RouteDraft] | None
    backends: list[BackendDraft] | None


def _refuse(bad: Callable[[str], Bad]) -> Callable[[Scalar], Bad | None]:
    """Quotes would not mend what YAML takes for a number here: say what is wrong with the text."""
    return lambda node: None if node.tag == "null" else bad(node.text)


_NAME = Text(values.name)
_HOSTNAME = Text(values.hostname)
_PATH = Text(values.path)
_LISTEN = Text(addresses.listen_address, _refuse(addresses.no_address))
_ENDPOINT = Text(addresses.endpoint_address, _refuse(addresses.no_address))
_DURATION = Text(values.duration, _refuse(values.no_duration))
_POSITIVE_DURATION = Text(values.positive_duration, _refuse(values.no_duration))

_LIMITS = Table(
    "`limits`",
    {
        "headBytes": Key(
            Whole(256, 1024 * 1024), "bytes of a request line and its headers; 431 beyond"
        ),
        "headers": Key(Whole(1, 10_000), "header fields of a request; 431 beyond"),
        "connections": Key(
            Whole(1, 10_000_000), "connections at once, over all workers; refused beyond"
        ),
    },
)

_TIMEOUTS = Table(
    "`timeouts`",
    {
        "head": Key(_POSITIVE_DURATION, "from the connection to its first complete head; then 408"),
        "dial": Key(_POSITIVE_DURATION, "one attempt to reach an endpoint; 504 after the last"),
        "idle": Key(_DURATION, "without a byte in either direction; then both sides are reset"),
        "overflow": Key(_DURATION, "a receiver takes nothing while bytes wait; then reset"),
    },
)

_LISTENER = Table(
    "a listener",
    {
        "address": Key(_LISTEN, 'where it listens: 127.0.0.1:8080, or "[::1]:8080"', required=True),
        "protocol": Key(Choice(Protocol, later=("TLS",)), "what it speaks; HTTP when left out"),
        "limits": Key(_LIMITS, "security limits"),
        "timeouts": Key(_TIMEOUTS, "how long it waits"),
    },
    later={"proxyProtocol": "remove it"},
    plain="address",
)

_PATH_TABLE = Table(
    "a path",
    {
        "type": Key(
            Choice(PathType, later=("RegularExpression",)),
            "how it is compared; PathPrefix when left out",
        ),
        "value": Key(_PATH, "the path, from its first `/`", required=True),
    },
)


@dataclass(frozen=True, slots=True)
class _PathReader:
    """`path: /x` is short for `path: {type: PathPrefix, value: /x}`."""

    def read(self, walker: Walker, node: Node, what: str) -> PathMatch | None:
        if not isinstance(node, Mapping):
            value = _PATH.read(walker, node, what)
            return None if value is None else PathMatch(PathType.PATH_PREFIX, value)
        fields = _PATH_TABLE.read(walker, node, what)
        path, path_type = _get(fields, "value"), _get(fields, "type")
        if fields is None or path is None or ("type" in fields.keys and path_type is None):
            return None
        return PathMatch(PathType.PATH_PREFIX if path_type is None else path_type.value, path.value)


_MATCH = Table(
    "a match",
    {"path": Key(_PathReader(), "a match is `path: /x`, a prefix", required=True)},
    later=dict.fromkeys(
        ("method", "headers", "queryParams"), "this version matches by hostname and path"
    ),
    empty="leave `matches` out to match every path",
    plain="path",
)


@dataclass(frozen=True, slots=True)
class _MatchReader:
    def read(self, walker: Walker, node: Node, what: str) -> PathMatch | None:
        path = _get(_MATCH.read(walker, node, what), "path")
        return None if path is None else path.value


_BACKEND_REF = Table(
    "a backendRef",
    {
        "name": Key(_NAME, "the name of a backend", required=True),
        "weight": Key(Whole(0, 1_000_000), "its share is weight / sum of weights; 1 when left out"),
    },
    plain="name",
)


@dataclass(frozen=True, slots=True)
class _BackendRefReader:
    def read(self, walker: Walker, node: Node, what: str) -> RefDraft | None:
        fields = _BACKEND_REF.read(walker, node, what)
        name, weight = _get(fields, "name"), _get(fields, "weight")
        return None if name is None else RefDraft(name, 1 if weight is None else weight.value)


_ROUTE = Table(
    "a route",
    {
        "name": Key(_NAME, "its name in logs and messages", required=True),
        "listeners": Key(
            ListOf(_NAME, "a listener's name", "leave it out for every listener"),
            "the listeners it takes part on; every one when left out",
        ),
        "hostnames": Key(
            ListOf(_HOSTNAME, "a hostname", "leave it out for every host"),
            "the hosts it is for, exact or *.example.com; every one when left out",
        ),
        "matches": Key(
            ListOf(_MatchReader(), "a match", "leave it out for every path", plain="path"),
            "one of these must match; every path when left out",
        ),
        "backendRefs": Key(
            ListOf(_BackendRefReader(), "a backendRef", "write [{name: NAME}]", plain="name"),
            "where it forwards to: [{name: NAME}]",
            required=True,
        ),
    },
    later={
        "splice": "every connection is spliced whole after its first request",
        **dict.fromkeys(
            ("respond", "redirect", "deny", "filters", "requestHeaders", "urlRewrite"),
            "this version only forwards, with `backendRefs`",
        ),
        "allow": "remove it",
        "priority": "the most specific route wins, then the earlier one",
        "timeouts": "set `timeouts` on the listener",
    },
)

_BACKEND = Table(
    "a backend",
    {
        "endpoints": Key(
            ListOf(_ENDPOINT, "an endpoint", "write [127.0.0.1:8080]"),
            "where it can be reached: [127.0.0.1:8080]",
            required=True,
        ),
    },
    later={"balance": "endpoints take turns (round robin)"},
)


@dataclass(frozen=True, slots=True)
class _RouteReader:
    def read(self, walker: Walker, node: Node, what: str) -> RouteDraft | None:
        fields = _ROUTE.read(walker, node, what)
        if fields is None:
            return None
        return RouteDraft(
            node=node,
            name=_get(fields, "name"),
            listeners=_value(fields, "listeners"),
            hostnames=_value(fields, "hostnames"),
            matches=_value(fields, "matches"),
            backend_refs=_value(fields, "backendRefs"),
            keys=dict(fields.keys),
        )


POLICY = Table(
    "a policy",
    {
        "listeners": Key(
            MapOf(_LISTENER, "at least one listener", _NAME),
            "write listeners: {web: {address: 127.0.0.1:8080}}",
            required=True,
        ),
        "routes": Key(
            ListOf(_RouteReader(), "a route", "write [{name: all, backendRefs: [{name: app}]}]"),
            "write routes: [{name: all, backendRefs: [{name: app}]}]",
            required=True,
        ),
        "backends": Key(
            MapOf(_BACKEND, "at least one backend", _NAME),
            "write backends: {app: {endpoints: [127.0.0.1:9000]}}",
            required=True,
        ),
    },
)


def read(walker: Walker, root: Node) -> Draft:
    """The draft of the policy in `root`; what is wrong is in the walker's problems."""
    fields = POLICY.read(walker, root, "a policy")
    listeners, routes, backends = (
        _value(fields, section) for section in ("listeners", "routes", "backends")
    )
    return Draft(
        listeners=None if listeners is None else [_listener(*one) for one in listeners],
        routes=None if routes is None else [at.value for at in routes],
        backends=None if backends is None else [_backend(*one) for one in backends],
    )


def _get(fields: Fields | None, key: str) -> At[Any] | None:
    return None if fields is None else fields.values.get(key)


def _value(fields: Fields | None, key: str) -> Any:
    at = _get(fields, key)
    return None if at is None else at.value


def _listener(name: At[str], fields: Fields | None) -> ListenerDraft:
    protocol = _get(fields, "protocol")
    wrong = fields is None or ("protocol" in fields.keys and protocol is None)
    limits, timeouts = _get(fields, "limits"), _get(fields, "timeouts")
    return ListenerDraft(
        name=name,
        address=_get(fields, "address"),
        protocol=None if wrong else (protocol.value if protocol else Protocol.HTTP),
        limits=Limits(**_renamed(limits, {"headBytes": "head_bytes"})),
        timeouts=Timeouts(**_renamed(timeouts, {})),
    )


def _renamed(fields: At[Fields] | None, names: dict[str, str]) -> dict[str, Any]:
    if fields is None:
        return {}
    return {names.get(key, key): at.value for key, at in fields.value.values.items()}


def _backend(name: At[str], fields: Fields | None) -> BackendDraft:
    return BackendDraft(name, _value(fields, "endpoints"))
