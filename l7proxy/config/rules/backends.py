"""What cannot go together in a backend, and with the listeners that forward to it."""

from __future__ import annotations

from collections.abc import Iterator

from l7proxy.config.language import BackendDraft, Draft, ListenerDraft, RouteDraft
from l7proxy.config.rules.routes import EVERY, possible
from l7proxy.config.walker import At, Walker
from l7proxy.model import Balance, HashOn, NameAddress, Protocol

_ASKS = {
    HashOn.HEADER: Protocol.HTTP,
    HashOn.COOKIE: Protocol.HTTP,
    HashOn.PATH: Protocol.HTTP,
    HashOn.SNI: Protocol.TLS,
}


def check(walker: Walker, draft: Draft) -> None:
    """Reports what does not fit together."""
    reached = _reached(walker, draft)
    for backend in draft.backends or []:
        _weights(walker, backend)
        _names(walker, backend)
        _asked(walker, backend, reached.get(backend.name.value, []))


def _weights(walker: Walker, backend: BackendDraft) -> None:
    endpoints = backend.endpoints
    if endpoints and not any(at.value.weight for at in endpoints):
        walker.error(
            backend.fields.keys["endpoints"],
            "every weight of this backend is 0, so nothing could be forwarded",
            "give at least one endpoint a positive weight",
        )


def _names(walker: Walker, backend: BackendDraft) -> None:
    node = backend.fields.keys.get("resolve")
    if node is None or not backend.endpoints:
        return
    if not any(isinstance(at.value.address, NameAddress) for at in backend.endpoints):
        walker.error(
            node,
            "`resolve` has no effect: no endpoint of this backend is a DNS name",
            "remove `resolve`",
        )


def _asked(
    walker: Walker, backend: BackendDraft, reached: list[tuple[RouteDraft, Protocol]]
) -> None:
    """What looks at requests, or at a ClientHello, on a backend that never gets to see one."""
    if not reached:
        return
    protocols = {protocol for _, protocol in reached}
    for key, asks, what in _looks(backend):
        if asks in protocols:
            continue
        route = reached[0][0]
        name = route.name
        said = "requests" if asks is Protocol.HTTP else "the SNI of a TLS listener"
        notes = () if name is None else (walker.note("a route that forwards to it", name.node),)
        walker.error(
            backend.fields.keys[key],
            f"{what} looks at {said}, and this backend gets {_got(protocols)} only",
            f"remove `{key}`, or forward to it from a listener that speaks {asks}",
            notes=notes,
        )


def _looks(backend: BackendDraft) -> Iterator[tuple[str, Protocol, str]]:
    balance: At[Balance] | None = backend.fields.at("balance")
    on = None if balance is None else balance.value.hash_on
    if on in _ASKS:
        yield "balance", _ASKS[on], f"`hash` on {on}"
    if "sticky" in backend.fields.keys:
        yield "sticky", Protocol.HTTP, "`sticky`"


def _got(protocols: set[Protocol]) -> str:
    names = {
        Protocol.HTTP: "requests",
        Protocol.TLS: "TLS streams",
        Protocol.TCP: "TCP streams",
    }
    return " and ".join(names[one] for one in Protocol if one in protocols)


def _reached(walker: Walker, draft: Draft) -> dict[str, list[tuple[RouteDraft, Protocol]]]:
    """What forwards to each backend: routes, with the protocols that they are reached by."""
    listeners = {one.name.value: one for one in draft.listeners or []}
    reached: dict[str, list[tuple[RouteDraft, Protocol]]] = {}
    for route in draft.routes or []:
        for protocol in _protocols(walker, route, listeners):
            for ref in route.backend_refs or []:
                reached.setdefault(ref.value.name.value, []).append((route, protocol))
    return reached


def _protocols(
    walker: Walker, route: RouteDraft, listeners: dict[str, ListenerDraft]
) -> set[Protocol]:
    """The protocols that the route is reached by; all of them where an error leaves it open."""
    if "listeners" in route.fields.keys:
        named = [listeners.get(at.value) for at in route.listeners or []]
    else:
        named = list(listeners.values())
    spoken = {None if one is None else one.protocol for one in named}
    if None in spoken or not spoken:
        return set(EVERY)
    able = possible(walker, route)
    return {one for one in spoken if one is not None and one in able}
