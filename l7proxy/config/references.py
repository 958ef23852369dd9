"""What only the whole policy shows: references, duplicates, and what cannot go together.

Sections that could not be read are left alone: a name that is not there would only repeat their
error in other words.
"""

from __future__ import annotations

from l7proxy.config.language import BackendDraft, Draft, ListenerDraft, RefDraft, RouteDraft
from l7proxy.config.nodes import Node
from l7proxy.config.problems import quoted
from l7proxy.config.walker import At, Walker, did_you_mean
from l7proxy.model import (
    Address,
    Backend,
    BackendRef,
    Endpoint,
    Listener,
    Location,
    Match,
    Policy,
    Protocol,
    Route,
)
from l7proxy.routing import EVERY_PATH


def check(walker: Walker, draft: Draft) -> None:
    """Reports what does not fit together."""
    _listener_addresses(walker, draft.listeners or [])
    _route_names(walker, draft.routes or [])
    listeners = {one.name.value: one for one in draft.listeners or []}
    backends = {one.name.value: one for one in draft.backends or []}
    for route in draft.routes or []:
        if draft.listeners is not None:
            _listeners_of(walker, route, listeners)
        if draft.backends is not None:
            _backends_of(walker, route, backends)
        _weights(walker, route)


def _listener_addresses(walker: Walker, listeners: list[ListenerDraft]) -> None:
    first: dict[Address, ListenerDraft] = {}
    for listener in listeners:
        address = listener.address
        if address is None or address.value.port == 0:  # 0: the kernel finds a free one for each
            continue
        other = first.setdefault(address.value, listener)
        if other is not listener and other.address is not None:
            walker.error(
                address.node,
                f"listener {quoted(listener.name.value)} has the address of another one",
                "give each listener its own address or port",
                notes=(walker.note(f"{quoted(other.name.value)} has it", other.address.node),),
            )


def _route_names(walker: Walker, routes: list[RouteDraft]) -> None:
    first: dict[str, At[str]] = {}
    for route in routes:
        if route.name is None:
            continue
        other = first.setdefault(route.name.value, route.name)
        if other is not route.name:
            walker.error(
                route.name.node,
                f"a second route has the name {quoted(route.name.value)}",
                "logs and messages tell routes by their names: give each its own",
                notes=(walker.note("the first one", other.node),),
            )


def _listeners_of(walker: Walker, route: RouteDraft, known: dict[str, ListenerDraft]) -> None:
    for ref in route.listeners or []:
        listener = known.get(ref.value)
        if listener is None:
            _unknown(walker, ref, "listener", {key: one.name for key, one in known.items()})
        elif listener.protocol is Protocol.TCP:
            for key in ("hostnames", "matches"):
                if key in route.keys:
                    walker.error(
                        route.keys[key],
                        f"`{key}` cannot be compared on listener {quoted(ref.value)}, which speaks"
                        " TCP",
                        f"remove `{key}`, or take {quoted(ref.value)} out of `listeners`",
                        notes=(walker.note("the TCP listener", listener.name.node),),
                    )


def _backends_of(walker: Walker, route: RouteDraft, known: dict[str, BackendDraft]) -> None:
    for ref in route.backend_refs or []:
        if ref.value.name.value not in known:
            names = {key: one.name for key, one in known.items()}
            _unknown(walker, ref.value.name, "backend", names)


def _unknown(walker: Walker, ref: At[str], kind: str, known: dict[str, At[str]]) -> None:
    meant = walker.guess(ref.value, known)
    message = f"no {kind} has the name {quoted(ref.value)}"
    if meant is not None:
        note = walker.note(f"{kind} {quoted(meant)}", known[meant].node)
        walker.error(ref.node, message, did_you_mean(meant), notes=(note,))
        return
    names = sorted(known)
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    have = f"has {', '.join(map(quoted, names[:5]))}{more}" if names else "is empty"
    walker.error(ref.node, message, f"`{kind}s` {have}")


def _weights(walker: Walker, route: RouteDraft) -> None:
    refs = [ref.value for ref in route.backend_refs or []]
    first: dict[str, RefDraft] = {}
    for ref in refs:
        other = first.setdefault(ref.name.value, ref)
        if other is not ref:
            walker.error(
                ref.name.node,
                f"backend {quoted(ref.name.value)} stands twice in this route",
                "write it once, with the sum of the weights",
                notes=(walker.note("the first one", other.name.node),),
            )
    if refs and not any(ref.weight for ref in refs):
        walker.error(
            route.keys["backendRefs"],
            "every weight of this route is 0, so nothing could be forwarded",
            "give at least one backend a positive weight",
        )


def policy(walker: Walker, draft: Draft) -> Policy:
    """The policy of a draft; everything in it must have been found in order."""

    def location(node: Node) -> Location:
        return walker.source.place(node.start).location

    listeners = [
        Listener(
            name=one.name.value,
            address=one.address.value,
            protocol=one.protocol,
            limits=one.limits,
            timeouts=one.timeouts,
            location=location(one.name.node),
        )
        for one in draft.listeners or []
        if one.address is not None and one.protocol is not None
    ]
    routes = tuple(
        Route(
            name=one.name.value,
            matches=tuple(Match(at.value, location=location(at.node)) for at in one.matches or [])
            or (Match(EVERY_PATH, location=location(one.name.node)),),
            backend_refs=tuple(
                BackendRef(at.value.name.value, at.value.weight) for at in one.backend_refs or []
            ),
            hostnames=tuple(dict.fromkeys(at.value for at in one.hostnames or [])),
            listeners=tuple(dict.fromkeys(at.value for at in one.listeners or [])),
            location=location(one.name.node),
        )
        for one in draft.routes or []
        if one.name is not None
    )
    backends = [
        Backend(
            name=one.name.value,
            endpoints=tuple(
                Endpoint(at.value, location=location(at.node)) for at in one.endpoints or []
            ),
            location=location(one.name.node),
        )
        for one in draft.backends or []
    ]
    return Policy(
        listeners={one.name: one for one in listeners},
        routes=routes,
        backends={one.name: one for one in backends},
        source=walker.source.name,
    )
