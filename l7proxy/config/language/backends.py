"""The keys of a backend."""

from __future__ import annotations

from enum import StrEnum

from l7proxy.config import addresses, httpvalues, values
from l7proxy.config.language.common import DURATION, MAX_WEIGHT, duration, refuse
from l7proxy.config.language.drafts import BackendDraft
from l7proxy.config.language.health import (
    CIRCUIT,
    EJECTION,
    HEALTH_CHECK,
    RESOLVE,
    RETRIES,
)
from l7proxy.config.nodes import Node
from l7proxy.config.readers import Choice, Flag, Text, Whole
from l7proxy.config.schema import (
    Fields,
    Key,
    Kinds,
    ListOf,
    Made,
    Record,
    Table,
    arguments,
)
from l7proxy.config.walker import At, Walker
from l7proxy.model import (
    Address,
    Backend,
    Balance,
    BalanceType,
    Endpoint,
    HashOn,
    NameAddress,
    ProxyVersion,
    Sticky,
    UnixAddress,
)

MAX_ENDPOINTS = 10_000  # security limit: of one group

# ---- endpoints

EndpointAddress = Address | UnixAddress | NameAddress

ENDPOINT_ADDRESS: Text[EndpointAddress] = Text(
    addresses.endpoint_address,
    refuse(addresses.no_address),
    kind="an address to connect to",
    pattern=r"^([A-Za-z0-9._-]+:[0-9]{1,5}|\[[0-9A-Fa-f:.]+\]:[0-9]{1,5}|unix:[/@].+)$",
    examples=("127.0.0.1:9000", "[::1]:9000", "db.internal:5432", "unix:/run/app.sock"),
)


def _address_alone(walker: Walker, address: EndpointAddress, node: Node) -> Endpoint:
    return Endpoint(address, location=walker.location(node))


def _endpoint(walker: Walker, fields: Fields, _node: Node) -> Endpoint | None:
    address = fields.at("address")
    if address is None:
        return None
    return Endpoint(address.value, fields.get("weight", 1), walker.location(address.node))


_ADDRESS_ALONE: Made[EndpointAddress, Endpoint] = Made(ENDPOINT_ADDRESS, _address_alone)
ENDPOINT = Kinds(
    scalar=_ADDRESS_ALONE,
    mapping=Made(
        Table(
            "an endpoint",
            {
                "address": Key(
                    ENDPOINT_ADDRESS,
                    "Where it can be reached: an IP address or a DNS name with a port,"
                    " `unix:/path`, or `unix:@name` for an abstract socket. Names are resolved"
                    " again and again in the background, and all their addresses are used.",
                    required=True,
                    hint="such as address: 127.0.0.1:8080",
                ),
                "weight": Key(
                    Whole(0, MAX_WEIGHT),
                    "Its share of the connections, in proportion to the other weights; with 0 it"
                    " gets no new ones.",
                    default="1",
                ),
            },
            foreign={"host": "write `address`", "port": "the port stands in `address`"},
        ),
        _endpoint,
    ),
)


# ---- balance


class _Plain(StrEnum):
    """What stands in `balance` as a word alone."""

    ROUND_ROBIN = "round_robin"
    LEAST_CONNECTIONS = "least_connections"
    RANDOM = "random"


class _HashOn(StrEnum):
    """What stands in `hash` as a word alone."""

    CLIENT = "client"
    PATH = "path"
    SNI = "sni"


_HASH_KEY = "`hash`"


def _hash_key(walker: Walker, fields: Fields, node: Node) -> Balance | None:
    if len(fields.keys) > 1:
        walker.error(node, "`hash` is on a header or on a cookie, not on both", "remove one")
        return None
    for key, on in (("header", HashOn.HEADER), ("cookie", HashOn.COOKIE)):
        if (at := fields.at(key)) is not None:
            return Balance(BalanceType.HASH, on, at.value)
    return None


COOKIE = Text(
    httpvalues.cookie_name,
    kind="a cookie's name",
    pattern=f"^{httpvalues.TOKEN}$",
    most=httpvalues.MAX_COOKIE_NAME,
    examples=("session",),
)
HASH = Kinds(
    scalar=Made(
        Choice(
            _HashOn,
            alone={
                "header": "say which one: {hash: {header: x-user}}",
                "cookie": "say which one: {hash: {cookie: session}}",
            },
            docs={
                "client": "the client's address",
                "path": "the path of the request",
                "sni": "the name that a TLS client asks for",
            },
        ),
        lambda _walker, word, _node: Balance(BalanceType.HASH, HashOn(word)),
    ),
    mapping=Made(
        Table(
            _HASH_KEY,
            {
                "header": Key(
                    Text(
                        httpvalues.header_name_to_match,
                        kind="a header name",
                        pattern=f"^{httpvalues.TOKEN}$",
                        most=httpvalues.MAX_HEADER_NAME,
                        examples=("x-user",),
                    ),
                    "The value of this header field.",
                ),
                "cookie": Key(COOKIE, "The value of this cookie."),
            },
            empty="write {header: NAME} or {cookie: NAME}",
        ),
        _hash_key,
    ),
)


def _hash(_walker: Walker, fields: Fields, _node: Node) -> Balance | None:
    balance: Balance | None = fields.get("hash")
    return balance


BALANCE = Kinds(
    scalar=Made(
        Choice(
            _Plain,
            alone={"hash": "say on what: {hash: client}, or {hash: {header: x-user}}"},
            docs={
                "round_robin": "endpoints take turns",
                "least_connections": "the one with the fewest connections for its weight",
                "random": "the less loaded of two that chance picks",
            },
        ),
        lambda _walker, word, _node: Balance(BalanceType(word)),
    ),
    mapping=Made(
        Table(
            "`balance`",
            {
                "hash": Key(
                    HASH,
                    "What is alike goes to the same endpoint (Maglev: when one of n endpoints"
                    " leaves, no more than its share moves). On `client`, `path`, `sni`,"
                    " `{header: NAME}` or `{cookie: NAME}`; where a request has none of it, chance"
                    " decides.",
                    required=True,
                    hint="such as {hash: client}",
                ),
            },
        ),
        _hash,
    ),
)


# ---- sticky


def _cookie_prefix(walker: Walker, fields: Fields) -> None:
    """RFC 6265bis, 4.1.3: what browsers ask of cookies whose names begin so."""
    cookie = fields.at("cookie")
    if cookie is None:
        return
    name, path = cookie.value.lower(), fields.get("path", "/")
    wanted = []
    if name.startswith(("__secure-", "__host-")) and not fields.get("secure", False):
        wanted.append("`secure: true`")
    if name.startswith("__host-") and path != "/":
        wanted.append("`path: /`")
    if wanted:
        prefix = cookie.value[: cookie.value.index("-") + 1]
        walker.error(
            cookie.node,
            f"browsers refuse a cookie that begins with `{prefix}` without {' and '.join(wanted)}",
            f"add {' and '.join(wanted)}, or choose another name",
        )


STICKY = Record(
    Table(
        "`sticky`",
        {
            "cookie": Key(
                COOKIE,
                "The name of a cookie that l7proxy sets, and that brings a client back to the"
                " endpoint it had. It tells nothing about the endpoint.",
                required=True,
                hint="the name of the cookie: cookie: session",
            ),
            "ttl": Key(
                duration(values.duration_of("1s", "576h"), "1h"),
                "How long browsers keep the cookie.",
                default="as long as the browser's session",
            ),
            "path": Key(
                Text(
                    httpvalues.cookie_path,
                    kind="a path",
                    pattern="^/",
                    most=values.MAX_PATH,
                    examples=("/",),
                ),
                "The path that browsers send the cookie to.",
                default="/",
            ),
            "secure": Key(
                Flag(), "Whether browsers send the cookie over HTTPS only.", default="false"
            ),
        },
        short="cookie",
    ),
    Sticky,
    check=_cookie_prefix,
)


# ---- the whole

BACKEND = Table(
    "a backend",
    {
        "endpoints": Key(
            ListOf(ENDPOINT, "an endpoint", "write [127.0.0.1:8080]", most=MAX_ENDPOINTS),
            "The servers, each an address or `{address, weight}`.",
            required=True,
            hint="where it can be reached: [127.0.0.1:8080]",
        ),
        "balance": Key(
            BALANCE,
            "Which endpoint is next, by `round_robin`, `least_connections`, `random` or"
            " `{hash: ...}`. All of them respect weights and health.",
            default="round_robin",
        ),
        "sticky": Key(
            STICKY,
            "A cookie of l7proxy's own brings a client back to the endpoint that it had. A text"
            " alone is the name of the cookie.",
            default="no cookie",
        ),
        "healthCheck": Key(
            HEALTH_CHECK,
            "Active checks: each endpoint is looked at again and again, and gets no connections"
            " while it is not healthy. `TCP` or `HTTP` alone is its `type`.",
            default="no checks",
        ),
        "ejection": Key(
            EJECTION,
            "Passive health: an endpoint that fails connections gets none for a while.",
        ),
        "slowStart": Key(
            DURATION,
            "How long an endpoint that came back takes to get its full share.",
            default="0s",
        ),
        "retries": Key(
            RETRIES,
            "Further endpoints that are dialled when one cannot be reached. A number alone is"
            " `attempts`.",
        ),
        "circuit": Key(
            CIRCUIT, "What the backend takes at once. More is refused, and does not queue."
        ),
        "panic": Key(
            Whole(0, 100, "percent"),
            "With fewer healthy endpoints than this percentage, health is ignored and all of them"
            " are used: it is likelier that the checks are wrong. 0: never.",
            default="0",
        ),
        "resolve": Key(
            RESOLVE,
            "How the DNS names among the endpoints are looked up. A duration alone is the"
            " `interval`.",
        ),
        "proxyProtocol": Key(
            Choice(ProxyVersion, docs={"v1": "as text", "v2": "in binary"}),
            "Each connection to an endpoint begins with a header of the PROXY protocol that tells"
            " who the client is.",
            default="no such header",
        ),
    },
    foreign={
        "servers": "write `endpoints`",
        "address": "write endpoints: [ADDRESS]",
        "timeouts": "`timeouts` stand on the listener or in a route",
        "loadBalancer": "write `balance`",
    },
)


def backend(walker: Walker, name: At[str], fields: Fields | None) -> BackendDraft:
    """The backend of that name, None where it is no map at all."""
    if fields is None:
        return BackendDraft(name, None, Fields({}, {}, name.node), None)
    endpoints = fields.get("endpoints")
    made = None
    if endpoints:
        names = {"healthCheck": "health", "resolve": "resolving"}
        values_ = arguments(fields, names)
        made = Backend(name=name.value, location=walker.location(name.node), **values_)
    return BackendDraft(name=name, endpoints=endpoints, fields=fields, backend=made)
