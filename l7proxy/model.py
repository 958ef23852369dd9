"""The words of l7proxy as types. Floor 0: imports nothing of l7proxy but `errors`.

One word per thing: client and backend are the two ends, a *side* is one socket of a pair, a
*direction* is the bytes that come from one side and go to the other, a *pair* is a client socket
and a backend socket that stand at the SOCKMAP indices `i` and `i ^ 1`.

Everything here is frozen: a policy is compiled once and shared by all workers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum


class Side(IntEnum):
    """One socket of a pair; also the parity of its SOCKMAP index.

    A direction is named by the side that its bytes come *from*.
    """

    CLIENT = 0
    BACKEND = 1

    @property
    def other(self) -> Side:
        """The side at index `i ^ 1`."""
        return Side.BACKEND if self is Side.CLIENT else Side.CLIENT


class Protocol(StrEnum):
    """What a listener speaks."""

    HTTP = "HTTP"
    TCP = "TCP"


class Datapath(StrEnum):
    """What moves the bytes of a pair."""

    SOCKMAP = "sockmap"  # the kernel, by redirect
    SPLICE2 = "splice2"  # user space, by splice(2) through a pipe
    COPY = "copy"  # user space, by recv and send


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address. `host` is an IPv4 or IPv6 literal without brackets."""

    host: str
    port: int

    @property
    def is_ipv6(self) -> bool:
        """Whether the host is an IPv6 literal."""
        return ":" in self.host

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if self.is_ipv6 else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Location:
    """Where in a policy something stands; line and column count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class PathType(StrEnum):
    """How a path is compared (Kubernetes Gateway API v1, HTTPPathMatch)."""

    EXACT = "Exact"
    PATH_PREFIX = "PathPrefix"


@dataclass(frozen=True, slots=True)
class PathMatch:
    """A path and how it is compared. `PathPrefix` compares by path element."""

    type: PathType
    value: str


@dataclass(frozen=True, slots=True)
class Match:
    """One entry of `matches`; its fields are ANDed, the entries of a route are ORed."""

    path: PathMatch
    location: Location | None = None


@dataclass(frozen=True, slots=True)
class BackendRef:
    """A backend group that a route forwards to. `weight` / sum of weights is its share."""

    name: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Route:
    """What decides where a first request goes.

    `listeners` empty means every listener; `hostnames` empty means every host.
    """

    name: str
    matches: tuple[Match, ...]
    backend_refs: tuple[BackendRef, ...]
    hostnames: tuple[str, ...] = ()
    listeners: tuple[str, ...] = ()
    location: Location | None = None


@dataclass(frozen=True, slots=True)
class Backend:
    """A backend group: endpoints that can stand in for each other."""

    name: str
    endpoints: tuple[Address, ...]
    location: Location | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Security limits of a listener. A request beyond one is refused, never truncated."""

    head_bytes: int = 32 * 1024  # request line and headers together; 431 beyond
    headers: int = 100  # header fields; 431 beyond
    connections: int = 10_000  # at once, over all workers; beyond it: closed with a reset


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. Zero turns a timeout off, except `head` and `dial`, which must be positive."""

    head: float = 10.0  # from accept to the complete head (slowloris); 408 beyond
    dial: float = 5.0  # one connect attempt; 504 beyond, when no other endpoint is left
    idle: float = 3600.0  # no byte in either direction: both sides are reset
    overflow: float = 300.0  # a receiver that takes nothing while bytes wait for it: reset


@dataclass(frozen=True, slots=True)
class Listener:
    """An address that connections are accepted on."""

    name: str
    address: Address
    protocol: Protocol = Protocol.HTTP
    limits: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    location: Location | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """A whole checked policy: every reference in it resolves."""

    listeners: dict[str, Listener]
    routes: tuple[Route, ...]
    backends: dict[str, Backend]
    source: str = ""


@dataclass(frozen=True, slots=True)
class Forward:
    """A decision: to an endpoint of `backend`, because of `route`."""

    route: Route
    backend: Backend


@dataclass(frozen=True, slots=True)
class Respond:
    """A decision: l7proxy answers by itself."""

    status: int
    detail: str = ""


Decision = Forward | Respond
