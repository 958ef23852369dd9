"""What only the whole policy shows: references, duplicates, and what cannot go together.

Sections that could not be read are left alone: a name that is not there would only repeat their
error in other words.
"""

from __future__ import annotations

from l7proxy.config import rules
from l7proxy.config.language import BackendDraft, Draft, ListenerDraft, RefDraft, RouteDraft
from l7proxy.config.problems import quoted
from l7proxy.config.walker import At, Walker, did_you_mean
from l7proxy.model import Policy


def check(walker: Walker, draft: Draft) -> None:
    """Reports what does not fit together."""
    rules.listeners.check(walker, draft.listeners or [])
    _route_names(walker, draft.routes or [])
    listeners = {one.name.value: one for one in draft.listeners or []}
    backends = {one.name.value: one for one in draft.backends or []}
    for route in draft.routes or []:
        if draft.listeners is not None:
            _listeners_of(walker, route, listeners)
        if draft.backends is not None:
            _backends_of(walker, route, backends)
        _weights(walker, route)
    rules.routes.check(walker, draft)
    rules.backends.check(walker, draft)


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
        if ref.value not in known:
            _unknown(walker, ref, "listener", {key: one.name for key, one in known.items()})


def _backends_of(walker: Walker, route: RouteDraft, known: dict[str, BackendDraft]) -> None:
    for ref in route.backend_refs or []:
        if ref.value.name.value not in known and not ref.value.optional:
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
            route.fields.keys["backendRefs"],
            "every weight of this route is 0, so nothing could be forwarded",
            "give at least one backend a positive weight",
        )


def policy(walker: Walker, draft: Draft) -> Policy:
    """The policy of a draft; everything in it must have been found in order."""
    listeners = [one.listener for one in draft.listeners or [] if one.listener]
    backends = [one.backend for one in draft.backends or [] if one.backend]
    return Policy(
        listeners={one.name: one for one in listeners},
        routes=tuple(one.route for one in draft.routes or [] if one.route),
        backends={one.name: one for one in backends},
        source=walker.source.name,
    )
