"""The words of l7proxy as types. Floor 0: imports nothing of l7proxy but `errors`.

One word per thing: client and backend are the two ends, a *side* is one socket of a pair, a
*direction* is the bytes that come from one side and go to the other, a *pair* is a client socket
and a backend socket that stand at the SOCKMAP indices `i` and `i ^ 1`.

Everything here is frozen: a policy is compiled once and shared by all workers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Protocol as Interface


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
    TLS = "TLS"  # the ClientHello is read, the stream passes through
    TCP = "TCP"


class Datapath(StrEnum):
    """What moves the bytes of a pair."""

    SOCKMAP = "sockmap"  # the kernel, by redirect
    SPLICE2 = "splice2"  # user space, by splice(2) through a pipe
    COPY = "copy"  # user space, by recv and send


# ---- addresses


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address. `host` is an IPv4 or IPv6 literal without brackets.

    For a listener `host` may be `*`: every address of both families, on one socket (dual stack).
    """

    host: str
    port: int

    @property
    def is_ipv6(self) -> bool:
        """Whether the host is an IPv6 literal."""
        return ":" in self.host

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if self.is_ipv6 else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A stream socket in the file system; a `path` that starts with `@` is an abstract name."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class NameAddress:
    """A DNS name and a port; resolved in the background, never in a worker. Endpoints only."""

    name: str  # lower case, without a trailing dot
    port: int

    def __str__(self) -> str:
        return f"{self.name}:{self.port}"


SocketAddress = Address | UnixAddress
"""What a socket can be bound to or connected to."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where in a policy something stands; line and column count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


# ---- matching (Kubernetes Gateway API v1, HTTPRoute)


class PathType(StrEnum):
    """How a path is compared (HTTPPathMatch)."""

    EXACT = "Exact"
    PATH_PREFIX = "PathPrefix"
    REGULAR_EXPRESSION = "RegularExpression"  # RE2 syntax; the whole path has to match


class ValueType(StrEnum):
    """How the value of a header or of a query parameter is compared."""

    EXACT = "Exact"
    REGULAR_EXPRESSION = "RegularExpression"  # RE2 syntax; the whole value has to match


@dataclass(frozen=True, slots=True)
class Destination:
    """Where an intercepted connection was going: addresses, and a port unless any will do.

    `block` is a CIDR block ("10.0.0.0/8"), None for every address of both families.
    """

    block: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        if self.block is None:
            return f"*:{self.port}"
        if self.port is None:
            return self.block
        return f"[{self.block}]:{self.port}" if ":" in self.block else f"{self.block}:{self.port}"


@dataclass(frozen=True, slots=True)
class PathMatch:
    """A path and how it is compared. `PathPrefix` compares by path element."""

    type: PathType
    value: str


@dataclass(frozen=True, slots=True)
class ValueMatch:
    """A header (`name` in lower case) or a query parameter (`name` as written)."""

    name: str
    value: str
    type: ValueType = ValueType.EXACT


@dataclass(frozen=True, slots=True)
class Match:
    """One entry of `matches`; its fields are ANDed, the entries of a route are ORed.

    `path`, `method`, `headers` and `query` are for HTTP listeners, `alpn` for TLS listeners: the
    client has to offer one of these protocols. `destinations` are for transparent listeners: one
    of them has to be where the connection was going.
    """

    path: PathMatch = PathMatch(PathType.PATH_PREFIX, "/")
    method: str | None = None
    headers: tuple[ValueMatch, ...] = ()  # each name once: the first one of a name counts
    query: tuple[ValueMatch, ...] = ()  # likewise
    alpn: tuple[str, ...] = ()
    destinations: tuple[Destination, ...] = ()
    location: Location | None = None


class Requested(Interface):
    """What routing looks at in a request. `head.Head` is one."""

    @property
    def method(self) -> str:
        """As sent; methods are case-sensitive."""

    @property
    def host(self) -> str:
        """Lower case, without port and trailing dot; "" when there is none."""

    @property
    def path(self) -> str:
        """As sent, without the query; "/" for `*`."""

    @property
    def query(self) -> str | None:
        """As sent, without "?"; None when there is none."""

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """All fields in their order; names in lower case."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request as routing sees it, for `explain`, `diff` and tests."""

    method: str = "GET"
    host: str = ""
    path: str = "/"
    query: str | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Hello:
    """What routing looks at in a ClientHello. `sni` is "" when the client sent none."""

    sni: str = ""  # lower case
    alpn: tuple[str, ...] = ()


# ---- what a route does


class Splice(StrEnum):
    """Which bytes are parsed, and which ones the kernel moves. See DESIGN in ARCHITECTURE.md."""

    AUTO = "auto"  # `connection` where every request has the same answer, else `request`
    CONNECTION = "connection"  # after the first request the whole connection
    REQUEST = "request"  # every head is parsed and routed, bodies on a byte budget
    UPGRADE = "upgrade"  # every head is parsed and routed; the kernel's only after a 101
    NEVER = "never"  # user space relays


PER_REQUEST = frozenset((Splice.REQUEST, Splice.UPGRADE))
"""Ways in which each request of a connection is routed by itself."""


@dataclass(frozen=True, slots=True)
class BackendRef:
    """A backend group that a route forwards to. `weight` / sum of weights is its share.

    `optional`: the group may be missing; its share is then answered with 500 (Gateway API v1,
    BackendRef: "the specified proportion of traffic MUST receive 500").
    """

    name: str
    weight: int = 1
    optional: bool = False


@dataclass(frozen=True, slots=True)
class StaticResponse:
    """An answer of l7proxy's own. `headers` as written; Content-Length is added when it is sent."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: str = ""


class PathModifierType(StrEnum):
    """How a path is replaced (HTTPPathModifier)."""

    REPLACE_FULL_PATH = "ReplaceFullPath"
    REPLACE_PREFIX_MATCH = "ReplacePrefixMatch"  # what the PathPrefix of the match covered


@dataclass(frozen=True, slots=True)
class PathModifier:
    """A new path, or a new beginning of it. The query stays."""

    type: PathModifierType
    value: str


@dataclass(frozen=True, slots=True)
class RedirectTo:
    """HTTPRequestRedirectFilter. What is None stays as it was in the request.

    `port` None: the well-known port of `scheme` if that is given, else the listener's.
    """

    scheme: str | None = None  # http, https
    hostname: str | None = None
    path: PathModifier | None = None
    port: int | None = None
    status: int = 302  # 301, 302, 303, 307, 308


@dataclass(frozen=True, slots=True)
class HeaderChanges:
    """HTTPHeaderFilter, names as written: `set` overwrites, `add` adds a value, `remove` removes.

    A name stands in one of the three only.
    """

    set: tuple[tuple[str, str], ...] = ()
    add: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UrlRewrite:
    """HTTPURLRewriteFilter: the Host and the path that the backend gets."""

    hostname: str | None = None
    path: PathModifier | None = None


@dataclass(frozen=True, slots=True)
class Mirror:
    """HTTPRequestMirrorFilter: requests that a second backend gets too; its answers are dropped."""

    backend: str  # the name of a group
    percent: int = 100  # of the requests


@dataclass(frozen=True, slots=True)
class Filters:
    """What is changed in a request and its response on their way, and who gets a copy."""

    request_headers: HeaderChanges | None = None
    url_rewrite: UrlRewrite | None = None
    response_headers: HeaderChanges | None = None
    mirror: Mirror | None = None


@dataclass(frozen=True, slots=True)
class Access:
    """Who is let through, decided after a route was chosen. An entry of `deny` beats `allow`.

    Clients are CIDR blocks ("10.0.0.0/8", "::1/128"), names of SNI are exact or "*.example.com".
    An empty `allow_*` allows everyone.
    """

    allow_clients: tuple[str, ...] = ()
    deny_clients: tuple[str, ...] = ()
    allow_sni: tuple[str, ...] = ()
    deny_sni: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RouteTimeouts:
    """Seconds; None: as the listener says. Zero turns `idle`, `overflow` and `request` off."""

    dial: float | None = None
    idle: float | None = None
    overflow: float | None = None
    request: float | None = None  # from a complete head to the end of its response; None: any time


class LimitBy(StrEnum):
    """Whose requests are counted together."""

    ROUTE = "route"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Requests that are let through, over all workers: `requests` in `per` seconds.

    `burst` are as many that may come at once, after a pause that was long enough.
    """

    requests: int
    burst: int
    per: float = 1.0
    by: LimitBy = LimitBy.ROUTE


@dataclass(frozen=True, slots=True)
class Retry:
    """HTTPRouteRetry (GEP-1731): when a request is sent once more, to another endpoint if any.

    Beyond `codes` that is done where the backend ended without a byte of a response. `backoff` is
    the least pause, in seconds.
    """

    codes: tuple[int, ...] = ()
    attempts: int = 1  # beyond the first
    backoff: float = 0.025


@dataclass(frozen=True, slots=True)
class Route:
    """What decides where a first request goes.

    `listeners` empty means every listener; `hostnames` empty means every host (on a TLS listener:
    every SNI). Exactly one of `backend_refs`, `respond`, `redirect` and `deny` says what it does.
    """

    name: str
    matches: tuple[Match, ...]
    backend_refs: tuple[BackendRef, ...] = ()
    hostnames: tuple[str, ...] = ()
    listeners: tuple[str, ...] = ()
    location: Location | None = None
    respond: StaticResponse | None = None
    redirect: RedirectTo | None = None
    deny: bool = False  # 403; on a stream a reset
    priority: int = 0  # a higher one wins over everything else
    filters: Filters = field(default_factory=Filters)
    timeouts: RouteTimeouts = field(default_factory=RouteTimeouts)
    splice: Splice = Splice.AUTO
    access: Access = field(default_factory=Access)
    rate_limit: RateLimit | None = None
    retry: Retry | None = None


# ---- backends


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server of a backend group, as the policy names it."""

    address: Address | UnixAddress | NameAddress
    weight: int = 1  # 0: gets nothing new
    location: Location | None = None

    def __str__(self) -> str:
        return str(self.address)


class BalanceType(StrEnum):
    """Which endpoint is next. All of them respect the endpoints' weights."""

    ROUND_ROBIN = "round_robin"
    LEAST_CONNECTIONS = "least_connections"
    RANDOM = "random"  # the less loaded one of two choices
    HASH = "hash"  # Maglev


class HashOn(StrEnum):
    """What `hash` looks at. Where a request has none of it, chance decides."""

    CLIENT = "client"  # the client's address
    HEADER = "header"
    COOKIE = "cookie"
    PATH = "path"
    SNI = "sni"


@dataclass(frozen=True, slots=True)
class Balance:
    """How a group balances. `key` names the header (lower case) or the cookie."""

    type: BalanceType = BalanceType.ROUND_ROBIN
    hash_on: HashOn | None = None
    key: str = ""


@dataclass(frozen=True, slots=True)
class Sticky:
    """A cookie of l7proxy's own that brings a client back to the endpoint that it had."""

    cookie: str
    ttl: float | None = None  # seconds; None: as long as the client's session
    path: str = "/"
    secure: bool = False


class ProbeType(StrEnum):
    """How an active health check looks at an endpoint."""

    TCP = "TCP"
    HTTP = "HTTP"


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """An active check. Times in seconds."""

    type: ProbeType = ProbeType.TCP
    path: str = "/"
    host: str = ""  # of the Host header; "": the endpoint's address
    statuses: tuple[tuple[int, int], ...] = ((200, 399),)  # inclusive ranges that are good
    body: str = ""  # has to stand in the first 64 KiB of the body
    interval: float = 10.0
    timeout: float = 2.0
    healthy: int = 2  # good answers in a row until it is healthy again
    unhealthy: int = 3  # bad ones until it is not


@dataclass(frozen=True, slots=True)
class Ejection:
    """Passive health: an endpoint that fails connections gets none for a while. Seconds."""

    failures: int = 3  # consecutive failed dials and early resets; 0 turns it off
    base: float = 5.0  # of the first ejection; doubled with each further one
    most: float = 300.0
    share: int = 100  # percent of the group that may be ejected at once; never the last endpoint


@dataclass(frozen=True, slots=True)
class Retries:
    """Further endpoints that are dialled when one fails."""

    attempts: int = 3  # beyond the first
    budget: int = 20  # percent of recent connections that may be retries; 10 are always allowed


@dataclass(frozen=True, slots=True)
class Circuit:
    """What a group takes at once, over all workers; 503 (a reset on a stream) beyond it."""

    connections: int | None = None
    pending: int | None = None  # connections that are being dialled
    endpoint_connections: int | None = None  # to each endpoint; the others are tried then


@dataclass(frozen=True, slots=True)
class Resolving:
    """How DNS names of a group are looked up. Seconds."""

    interval: float = 10.0


class ProxyVersion(StrEnum):
    """The PROXY protocol that a backend is spoken to with."""

    V1 = "v1"
    V2 = "v2"


PASSTHROUGH = "passthrough"
"""The backend that is there where a listener is transparent: wherever a connection was going."""


@dataclass(frozen=True, slots=True)
class Backend:
    """A backend group: endpoints that can stand in for each other.

    `original`: it has no endpoints, and stands for where an intercepted connection was going.
    """

    name: str
    endpoints: tuple[Endpoint, ...]
    location: Location | None = None
    balance: Balance = field(default_factory=Balance)
    sticky: Sticky | None = None
    health: HealthCheck | None = None
    ejection: Ejection = field(default_factory=Ejection)
    slow_start: float = 0.0  # seconds over which an endpoint that came back gets its full share
    retries: Retries = field(default_factory=Retries)
    circuit: Circuit = field(default_factory=Circuit)
    panic: int = 0  # percent: with fewer healthy endpoints health is ignored; 0: never
    resolving: Resolving = field(default_factory=Resolving)
    proxy_protocol: ProxyVersion | None = None
    original: bool = False


# ---- listeners


@dataclass(frozen=True, slots=True)
class Limits:
    """Security limits of a listener. A request beyond one is refused, never truncated."""

    head_bytes: int = 32 * 1024  # request line and headers together; 431 beyond
    headers: int = 100  # header fields; 431 beyond
    connections: int = 10_000  # at once, over all workers; beyond it: closed with a reset
    client_connections: int | None = None  # of one client address, likewise


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. Zero turns `idle` and `overflow` off; the others must be positive."""

    head: float = 10.0  # from accept to the complete head (slowloris); 408 beyond
    dial: float = 5.0  # one connect attempt; 504 beyond, when no other endpoint is left
    idle: float = 3600.0  # no byte in either direction: both sides are reset
    overflow: float = 300.0  # a receiver that takes nothing while bytes wait for it: reset
    keep_alive: float = 60.0  # between two requests: the client's connection is closed


class ProxyHeader(StrEnum):
    """Whether a connection may, or must, begin with a PROXY protocol header (v1 or v2)."""

    ACCEPT = "accept"
    REQUIRE = "require"


class FieldPolicy(StrEnum):
    """What the backend gets of a field that tells of the hops before it."""

    APPEND = "append"  # what a trusted proxy said, and this hop
    SET = "set"  # this hop only
    PASS = "pass"  # noqa: S105 - what a trusted proxy said, and nothing of this hop
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class ForwardedFields:
    """What a backend is told about the client. See `forwarded`.

    What a client that is no trusted proxy wrote into X-Forwarded-*, X-Real-IP or Forwarded is
    dropped in any case. `append` and `set` are the same for a field with one value (Proto, Host,
    Port): `append` keeps a trusted proxy's value, `set` writes this hop's.
    """

    x_forwarded_for: FieldPolicy = FieldPolicy.APPEND
    x_forwarded_proto: FieldPolicy = FieldPolicy.APPEND
    x_forwarded_host: FieldPolicy = FieldPolicy.APPEND
    x_forwarded_port: FieldPolicy = FieldPolicy.PASS
    x_real_ip: FieldPolicy = FieldPolicy.PASS
    forwarded: FieldPolicy = FieldPolicy.PASS
    via: FieldPolicy = FieldPolicy.APPEND


class Interception(StrEnum):
    """How connections that were going elsewhere come to a transparent listener."""

    REDIRECT = "redirect"  # NAT; where they were going is asked with SO_ORIGINAL_DST
    TPROXY = "tproxy"  # as they are; where they were going is the socket's own address


class Way(StrEnum):
    """Which connections of its network namespace a transparent listener takes."""

    INBOUND = "inbound"  # from elsewhere to an address of this namespace
    OUTBOUND = "outbound"  # from a process in this namespace to elsewhere
    BOTH = "both"


class Unmatched(StrEnum):
    """What becomes of an intercepted connection that no route matches."""

    PASSTHROUGH = "passthrough"  # it goes where it was going
    REFUSE = "refuse"  # as on other listeners


@dataclass(frozen=True, slots=True)
class Transparent:
    """How a listener gets connections that were going elsewhere, and which ones.

    Ports are those that the connections were going to. `except_blocks` are CIDR blocks of where
    outbound connections go and inbound ones come from; `except_users` names or numbers of users
    whose outbound connections are left alone. `keep_client_address`: backends are dialled with the
    client's own address as source.
    """

    mode: Interception
    direction: Way = Way.BOTH
    ports: tuple[int, ...] = ()  # empty: every port
    except_ports: tuple[int, ...] = ()
    except_blocks: tuple[str, ...] = ()
    except_users: tuple[str, ...] = ()
    unmatched: Unmatched = Unmatched.PASSTHROUGH
    keep_client_address: bool = False


@dataclass(frozen=True, slots=True)
class Listener:
    """An address that connections are accepted on."""

    name: str
    address: SocketAddress
    protocol: Protocol = Protocol.HTTP
    limits: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    location: Location | None = None
    mode: int | None = None  # of a unix socket's file; None: as the umask says
    hostnames: tuple[str, ...] = ()  # only these hosts (SNI on TLS); empty: every one
    proxy_protocol: ProxyHeader | None = None
    trusted_proxies: tuple[str, ...] = ()  # CIDR blocks
    forwarded: ForwardedFields = field(default_factory=ForwardedFields)
    allow: tuple[str, ...] = ()  # CIDR blocks of clients; empty: everyone
    deny: tuple[str, ...] = ()  # beats `allow`
    transparent: Transparent | None = None


@dataclass(frozen=True, slots=True)
class AccessLogRules:
    """What the access log has of whom.

    `format` is a format string (`logformat`), "json" for the objects. `sample` is the share, from 0
    to 1, of connections without an error that get a record; `live_every` is how often, in seconds,
    one that goes on gets one: 0 is never.
    """

    format: str = "json"
    sample: float = 1.0
    live_every: float = 0.0


@dataclass(frozen=True, slots=True)
class Policy:
    """A whole checked policy: every reference in it resolves, but for optional ones."""

    listeners: dict[str, Listener]
    routes: tuple[Route, ...]
    backends: dict[str, Backend]
    source: str = ""
    access_log: AccessLogRules = AccessLogRules()


# ---- decisions


@dataclass(frozen=True, slots=True)
class Forward:
    """A decision: to an endpoint of `backend`, because of `match` of `route`.

    `splice` is never AUTO here.
    """

    route: Route
    backend: Backend
    match: Match = field(default_factory=Match)
    splice: Splice = Splice.CONNECTION


@dataclass(frozen=True, slots=True)
class Redirect:
    """A decision: `route.redirect`, because of `match`; see `filters.redirect_location`."""

    route: Route
    match: Match


@dataclass(frozen=True, slots=True)
class Deny:
    """A decision: `route.deny`. 403; on a stream a reset."""

    route: Route


@dataclass(frozen=True, slots=True)
class Respond:
    """A decision: l7proxy answers by itself.

    Because of `route.respond` when `route` is given, else for want of a route or a reading.
    """

    status: int
    detail: str = ""
    route: Route | None = None


Decision = Forward | Redirect | Deny | Respond
