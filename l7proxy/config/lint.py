"""What is legal and surely wrong, or true and easily forgotten: the warnings of `check`."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address

from l7proxy.config.language import Draft, ListenerDraft, RouteDraft
from l7proxy.config.problems import quoted
from l7proxy.config.walker import At, Walker
from l7proxy.model import Address, BackendRef, Listener, PathType, Policy, Protocol, Route
from l7proxy.routing import Claim, applies, claims, takes_everything


@dataclass(frozen=True, slots=True)
class _Owners:
    """Who owns which claim on one listener: (index of the route, index of its match)."""

    listener: Listener
    first: dict[Claim, tuple[int, int]] = field(default_factory=dict)


def check(walker: Walker, draft: Draft, policy: Policy) -> None:
    """Reports warnings about a policy without errors; `draft` knows where everything stands."""
    listeners, routes = draft.listeners or [], draft.routes or []
    _repeated(walker, draft)
    _unused_backends(walker, draft, policy)
    _loops(walker, draft)
    owners = [_owners(one, policy) for one in policy.listeners.values()]
    _never_wins(walker, routes, policy, owners)
    for one, written in zip(owners, listeners, strict=True):
        if not one.first:
            _without_route(walker, written)
        elif one.listener.protocol is Protocol.HTTP:
            _told_apart(walker, written, one, policy)


def _repeated(walker: Walker, draft: Draft) -> None:
    lists = [
        *((f"`{key}`", getattr(r, key)) for r in draft.routes or [] for key in _LISTS),
        *(("`endpoints`", backend.endpoints) for backend in draft.backends or []),
    ]
    for what, entries in lists:
        first: dict[str, At[object]] = {}
        for at in entries or []:
            other = first.setdefault(str(at.value), at)
            if other is not at:
                walker.warn(
                    at.node,
                    f"{quoted(str(at.value))} stands twice in {what}",
                    "remove one of them",
                    notes=(walker.note("the first one", other.node),),
                )


_LISTS = ("listeners", "hostnames")


def _unused_backends(walker: Walker, draft: Draft, policy: Policy) -> None:
    used = {ref.name for route in policy.routes for ref in route.backend_refs}
    for backend in draft.backends or []:
        if backend.name.value not in used:
            walker.warn(
                backend.name.node,
                f"no route forwards to backend {quoted(backend.name.value)}",
                "remove it, or name it in the `backendRefs` of a route",
            )


def _loops(walker: Walker, draft: Draft) -> None:
    by_port: dict[int, list[tuple[ListenerDraft, Address]]] = {}
    for listener in draft.listeners or []:
        if listener.address is not None and isinstance(listener.address.value, Address):
            bound = listener.address.value
            by_port.setdefault(bound.port, []).append((listener, bound))
    for backend in draft.backends or []:
        for at in backend.endpoints or []:
            endpoint = at.value.address
            if not isinstance(endpoint, Address):
                continue
            for listener, bound in by_port.get(endpoint.port, []):
                if _reaches(endpoint, bound) and listener.address is not None:
                    note = walker.note("the listener", listener.address.node)
                    walker.warn(
                        at.node,
                        f"this endpoint is listener {quoted(listener.name.value)} itself, and"
                        " connections would go round in circles",
                        "write the address of the application",
                        notes=(note,),
                    )


def _reaches(endpoint: Address, listener: Address) -> bool:
    """Whether who dials `endpoint` surely meets `listener`; ports are known to be equal."""
    if endpoint.host == listener.host:
        return True
    host = ip_address(endpoint.host)
    if listener.host == "*":
        return host.is_loopback
    bound = ip_address(listener.host)
    # An IPv6 socket bound to :: takes IPv4 as well or not, as it was asked to: not sure.
    return bound.is_unspecified and host.is_loopback and host.version == bound.version


def _owners(listener: Listener, policy: Policy) -> _Owners:
    owners = _Owners(listener)
    for index, route in enumerate(policy.routes):
        if applies(route, listener):
            for claim, match in claims(route):
                owners.first.setdefault(_as_seen(claim, listener), (index, match))
    return owners


def _as_seen(claim: Claim, listener: Listener) -> Claim:
    """On a stream every route claims everything."""
    return ("", PathType.PATH_PREFIX, "") if listener.protocol is Protocol.TCP else claim


def _never_wins(
    walker: Walker, routes: list[RouteDraft], policy: Policy, owners: list[_Owners]
) -> None:
    won = {place for one in owners for place in one.first.values()}
    for index, (route, written) in enumerate(zip(policy.routes, routes, strict=True)):
        taking_part = [one for one in owners if applies(route, one.listener)]
        name_node = written.name.node if written.name else written.node
        if not taking_part:
            walker.warn(
                name_node,
                f"route {quoted(route.name)} can never match: every listener speaks TCP, and it"
                " asks for a host or a path",
                "remove `hostnames` and `matches`, or add an HTTP listener",
            )
            continue
        lost = [at for at in range(len(route.matches)) if (index, at) not in won]
        whole = len(lost) == len(route.matches)
        for at in lost[:1] if whole else lost:
            rival_index, rival_match = _rival(route, at, taking_part)
            rival, rival_written = policy.routes[rival_index], routes[rival_index]
            if whole:
                node, what = name_node, f"route {quoted(route.name)} can never match"
                note_node = rival_written.name.node if rival_written.name else rival_written.node
            else:
                node = written.matches[at].node if written.matches else name_node
                what = f"this match of route {quoted(route.name)} can never win"
                note_node = (
                    rival_written.matches[rival_match].node
                    if rival_written.matches
                    else rival_written.node
                )
            stream = all(one.listener.protocol is Protocol.TCP for one in taking_part)
            same = "all connections of its listeners" if stream else "the same requests"
            walker.warn(
                node,
                f"{what}: {_taker(rival, route)} takes {same} and stands first",
                "remove it, move it up, or make it more specific",
                notes=(walker.note("what stands first", note_node),),
            )


def _taker(rival: Route, route: Route) -> str:
    return "another match of it" if rival is route else f"route {quoted(rival.name)}"


def _rival(route: Route, match: int, taking_part: list[_Owners]) -> tuple[int, int]:
    """Who owns the first claim of that match on the first listener."""
    claim = next(claim for claim, at in claims(route) if at == match)
    return taking_part[0].first[_as_seen(claim, taking_part[0].listener)]


def _without_route(walker: Walker, listener: ListenerDraft) -> None:
    if listener.protocol is Protocol.TCP:
        walker.warn(
            listener.name.node,
            f"no route is for listener {quoted(listener.name.value)}: its connections are reset",
            "add a route without `hostnames` and `matches`",
        )
    else:
        walker.warn(
            listener.name.node,
            f"no route is for listener {quoted(listener.name.value)}: it answers 404 to everything",
            "add it to the `listeners` of a route, or remove it",
        )


def _told_apart(walker: Walker, listener: ListenerDraft, owners: _Owners, policy: Policy) -> None:
    """Warns where later requests of a connection could have another answer than the first.

    Connections are spliced whole after their first request, so the later ones are not looked at.
    That is right exactly when every request has the same answer: one set of backends for all that
    matches, and something that matches everything, since 404 is an answer too.
    """
    answering = [
        policy.routes[index] for index in dict.fromkeys(i for i, _ in owners.first.values())
    ]
    answers: dict[tuple[BackendRef, ...], str] = {}
    for route in answering:
        answers.setdefault(route.backend_refs, route.name)
    rest = not any(takes_everything(route) for route in answering)
    if len(answers) == 1 and not rest:
        return
    names = [quoted(name) for name in answers.values()]
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
    if len(names) > 1:
        apart = f"whichever of the routes {shown} they match" + (", or none (404)" if rest else "")
        hint = "where that matters, give each of these routes a listener of its own"
    else:
        apart = f"even those that route {shown} does not match (404)"
        hint = "where that matters, let the backend check host and path itself"
    walker.warn(
        listener.name.node,
        f"listener {quoted(listener.name.value)} routes only the first request of a connection"
        f" (`splice: connection`): later ones on it go the same way, {apart}",
        hint,
    )
