"""The keys of a backend."""

from __future__ import annotations

from l7proxy.config import addresses
from l7proxy.config.language.balance import BALANCE, STICKY
from l7proxy.config.language.common import DURATION, MAX_WEIGHT, refuse
from l7proxy.config.language.drafts import BackendDraft
from l7proxy.config.language.health import (
    CIRCUIT,
    EJECTION,
    HEALTH_CHECK,
    RESOLVE,
    RETRIES,
)
from l7proxy.config.nodes import Node
from l7proxy.config.readers import Choice, Text, Whole
from l7proxy.config.schema import (
    Fields,
    Key,
    Kinds,
    ListOf,
    Made,
    Table,
    arguments,
)
from l7proxy.config.walker import At, Walker
from l7proxy.model import (
    Address,
    Backend,
    Endpoint,
    NameAddress,
    ProxyVersion,
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
