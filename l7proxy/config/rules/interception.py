"""What cannot go together with `transparent`, and what is nothing without it."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

from l7proxy.config.language import Draft, ListenerDraft, RouteDraft
from l7proxy.config.nodes import Node
from l7proxy.config.problems import quoted
from l7proxy.config.walker import Walker
from l7proxy.model import PASSTHROUGH, Address, Interception, Transparent, Way

_LOOPBACK = ("127.0.0.1", "::1")  # where nftables' `redirect` sends what a process here sends


def check(walker: Walker, draft: Draft) -> None:
    """Reports what does not fit together."""
    taken: dict[tuple[Way, int, bool], ListenerDraft] = {}
    for listener in draft.listeners or []:
        transparent = of(listener)
        if transparent is not None and listener.address is not None:
            _address(walker, listener, transparent)
            if isinstance(listener.address.value, Address):
                _taken(walker, listener, transparent, taken)
    for backend in draft.backends or []:
        if backend.name.value == PASSTHROUGH:
            walker.error(
                backend.name.node,
                f"the backend {quoted(PASSTHROUGH)} is there already: it is wherever an intercepted"
                " connection was going",
                "give this one another name",
            )
    if draft.listeners is not None:
        for route in draft.routes or []:
            _route(walker, route, draft.listeners)


def of(listener: ListenerDraft) -> Transparent | None:
    """What a listener intercepts."""
    found: Transparent | None = listener.fields.get("transparent")
    return found


def _address(walker: Walker, listener: ListenerDraft, transparent: Transparent) -> None:
    assert listener.address is not None
    address, node = listener.address.value, listener.fields.keys["transparent"]
    note = (walker.note("the address", listener.address.node),)
    if not isinstance(address, Address):
        message = "`transparent` is for TCP, and no TCP connection comes to a unix socket"
        walker.error(node, message, 'listen on a port, such as "*:15001"', notes=note)
        return
    if address.port == 0:
        walker.error(
            listener.address.node,
            "connections are sent to a port that has to be known, and port 0 is any",
            "write a port that is free, such as 15001",
            notes=(walker.note("what sends them", node),),
        )
    if transparent.mode is Interception.TPROXY or address.host == "*":
        return
    if ip_address(address.host).is_unspecified:
        return
    if transparent.direction is not Way.OUTBOUND:
        where = "the address of the interface that they come in at"
    elif address.host not in _LOOPBACK:
        where = "127.0.0.1 or ::1"
    else:
        return
    every = "[::]" if address.is_ipv6 else "0.0.0.0"
    walker.error(
        listener.address.node,
        f"connections that are redirected arrive at {where}, which is not {quoted(address.host)}",
        f'write "*:{address.port}", or "{every}:{address.port}" for one family',
        notes=(walker.note("what redirects them", node),),
    )


def _taken(
    walker: Walker,
    listener: ListenerDraft,
    transparent: Transparent,
    taken: dict[tuple[Way, int, bool], ListenerDraft],
) -> None:
    """Reports connections that two listeners would take."""
    both = (Way.INBOUND, Way.OUTBOUND)
    ways = both if transparent.direction is Way.BOTH else (transparent.direction,)
    assert listener.address is not None
    address = listener.address.value
    host = address.host if isinstance(address, Address) else "*"
    families = (False, True) if host == "*" else (":" in host,)
    spots = [
        (way, port, ipv6) for way in ways for port in transparent.ports or (0,) for ipv6 in families
    ]
    rival = next((spot for spot in spots if spot in taken), None)
    for spot in spots:
        taken.setdefault(spot, listener)
    if rival is None:
        return
    other, (way, port, _) = taken[rival], rival
    what = f"port {port}" if port else "every port"
    walker.error(
        listener.fields.keys["transparent"],
        f"listeners {quoted(other.name.value)} and {quoted(listener.name.value)} both take {way}"
        f" connections to {what}",
        "give one of them another `direction`, or other `ports`",
        notes=(walker.note(quoted(other.name.value), other.fields.keys["transparent"]),),
    )


def _route(walker: Walker, route: RouteDraft, listeners: list[ListenerDraft]) -> None:
    plain = {one.name.value: one for one in listeners if "transparent" not in one.fields.keys}
    named = [plain[at.value] for at in route.listeners or [] if at.value in plain]
    for what, node in _needs(route):
        if named and len(named) == len(route.listeners or []):
            walker.error(
                node,
                f"{what} is about connections that were going elsewhere, and listener"
                f" {quoted(named[0].name.value)} gets none",
                "write `transparent: redirect` in the listener, or name another one",
                notes=(walker.note("the listener", named[0].name.node),),
            )
        elif len(plain) == len(listeners):
            walker.error(
                node,
                f"{what} is about connections that were going elsewhere, and no listener gets such",
                "write `transparent: redirect` in the listener that does",
            )


def _needs(route: RouteDraft) -> Iterator[tuple[str, Node]]:
    for match in route.matches or []:
        if "destinations" in match.value.fields.keys:
            yield "`destinations`", match.value.fields.keys["destinations"]
            break
    for ref in route.backend_refs or []:
        if ref.value.name.value == PASSTHROUGH:
            yield f"the backend {quoted(PASSTHROUGH)}", ref.value.name.node
            break
