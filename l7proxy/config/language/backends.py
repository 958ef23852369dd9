"""The keys of a backend."""

from __future__ import annotations

from l7proxy.config import addresses
from l7proxy.config.language.common import refuse
from l7proxy.config.language.drafts import BackendDraft
from l7proxy.config.nodes import Node
from l7proxy.config.readers import Text
from l7proxy.config.schema import Fields, Key, ListOf, Made, Table, arguments
from l7proxy.config.walker import At, Walker
from l7proxy.model import Address, Backend, Endpoint, NameAddress, UnixAddress

EndpointAddress = Address | UnixAddress | NameAddress

ENDPOINT_ADDRESS: Text[EndpointAddress] = Text(
    addresses.endpoint_address, refuse(addresses.no_address)
)


def _endpoint(walker: Walker, address: EndpointAddress, node: Node) -> Endpoint:
    return Endpoint(address, location=walker.location(node))


ENDPOINT: Made[EndpointAddress, Endpoint] = Made(ENDPOINT_ADDRESS, _endpoint)

BACKEND = Table(
    "a backend",
    {
        "endpoints": Key(
            ListOf(ENDPOINT, "an endpoint", "write [127.0.0.1:8080]"),
            "where it can be reached: [127.0.0.1:8080]",
            required=True,
        ),
    },
    later={"balance": "endpoints take turns (round robin)"},
)


def backend(walker: Walker, name: At[str], fields: Fields | None) -> BackendDraft:
    """The backend of that name, None where it is no map at all."""
    if fields is None:
        return BackendDraft(name, None, Fields({}, {}, name.node), None)
    endpoints = fields.get("endpoints")
    return BackendDraft(
        name=name,
        endpoints=endpoints,
        fields=fields,
        backend=Backend(
            name=name.value, location=walker.location(name.node), **arguments(fields, {})
        )
        if endpoints
        else None,
    )
