"""Which way the bytes of a route go, on a listener: what is read, relayed, and moved by the kernel.

What is told holds where the kernel splices (`l7proxy doctor`): where it does not, user space relays
whatever is the kernel's here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from l7proxy.model import Listener, Policy, Protocol, Route, Splice, UnixAddress

EACH = "each one is parsed, routed and written anew, of requests and of responses"
_FIRST = "the first request's is parsed, routed and written anew; nobody reads the later ones"
_KERNEL, _USER = "the kernel moves them", "user space relays them"
_BUDGET = (
    "the kernel moves those of 256 KiB and more, if their length is known; user space relays the"
    " others"
)
_SWITCHED = "after 101, or 2xx to CONNECT, the kernel moves everything"


@dataclass(frozen=True, slots=True)
class Ways:
    """In a few words each. A stream has neither heads of requests nor an upgrade: ""."""

    heads: str
    small: str  # bodies
    large: str  # bodies; of a stream all there is
    upgrade: str


def ways(policy: Policy, listener: Listener, route: Route, splice: Splice) -> Ways:
    """Where a route that forwards sends what comes on a listener; `splice` is never AUTO."""
    unix = _unix(policy, listener, route)
    if unix:
        splice = _RELAYED.get(splice, splice)
    if listener.protocol is not Protocol.HTTP:
        head = "the ClientHello is read, and goes on as it is"
        heads = head if listener.protocol is Protocol.TLS else "none are looked for"
        return Ways(heads, "", f"{_USER}{unix}" if splice is Splice.NEVER else _KERNEL, "")
    if splice is Splice.CONNECTION:
        return Ways(_FIRST, _KERNEL, _KERNEL, "the kernel moves everything")
    if splice is Splice.NEVER:
        return Ways(_FIRST, f"{_USER}{unix}", f"{_USER}{unix}", f"user space relays{unix}")
    if unix:
        return Ways(EACH, f"{_USER}{unix}", f"{_USER}{unix}", f"user space relays{unix}")
    if splice is Splice.UPGRADE:
        return Ways(EACH, _USER, _USER, _SWITCHED)
    return Ways(EACH, _USER, _BUDGET, _SWITCHED)


_RELAYED = {Splice.CONNECTION: Splice.NEVER}


def _unix(policy: Policy, listener: Listener, route: Route) -> str:
    """Why the kernel can move nothing; "" where it can, of some endpoints at the least."""
    if isinstance(listener.address, UnixAddress):
        return ": clients come by a unix socket"
    endpoints = [
        endpoint.address
        for ref in route.backend_refs
        if ref.weight and ref.name in policy.backends
        for endpoint in policy.backends[ref.name].endpoints
        if endpoint.weight
    ]
    if endpoints and all(isinstance(one, UnixAddress) for one in endpoints):
        return ": every endpoint is a unix socket"
    return ""


def as_dict(way: Ways) -> dict[str, str]:
    """For JSON: what there is."""
    values = (way.heads, way.small, way.large, way.upgrade)
    keys = ("heads", "smallBodies", "largeBodies" if way.small else "bytes", "upgrades")
    return {key: value for key, value in zip(keys, values, strict=True) if value}


def lines(found: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What `as_dict` has found, for people: bodies that all go the same way are told once."""
    same = found.get("smallBodies") == found.get("largeBodies")
    for key, value in found.items():
        if key == "smallBodies" and same:
            continue
        yield "bodies" if key == "largeBodies" and same else _NAMES.get(key, key), value


_NAMES = {"smallBodies": "small bodies", "largeBodies": "large bodies"}
