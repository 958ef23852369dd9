"""What only the whole policy shows: references, duplicates, and what cannot go together.

Sections that could not be read are left alone: a name that is not there would only repeat their
error in other words.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from l7proxy.config import rules
from l7proxy.config.language import BackendDraft, Draft, ListenerDraft, RefDraft, RouteDraft
from l7proxy.config.language.routes import MAX_PRIORITY
from l7proxy.config.problems import quoted
from l7proxy.config.walker import At, Walker, did_you_mean
from l7proxy.model import (
    PASSTHROUGH,
    AccessLogRules,
    Backend,
    BackendRef,
    Filters,
    Listener,
    Match,
    Policy,
    Route,
    Unmatched,
)

UNMATCHED = "(unmatched)"
"""The route of what no other one takes on a transparent listener: no name that can be written."""


def check(walker: Walker, draft: Draft) -> None:
    """Reports what does not fit together."""
    rules.listeners.check(walker, draft.listeners or [])
    _route_names(walker, draft.routes or [])
    listeners = _Names("listener", draft.listeners or [])
    backends = _Names("backend", draft.backends or [])
    for route in draft.routes or []:
        if draft.listeners is not None:
            for listener in route.listeners or []:
                listeners.find(walker, listener)
        if draft.backends is not None:
            for ref in route.backend_refs or []:
                if not ref.value.optional and ref.value.name.value != PASSTHROUGH:
                    backends.find(walker, ref.value.name)
            _mirror(walker, route, backends)
        _weights(walker, route)
    rules.routes.check(walker, draft)
    rules.backends.check(walker, draft)
    rules.interception.check(walker, draft)


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


def _mirror(walker: Walker, route: RouteDraft, backends: _Names) -> None:
    filters: At[Filters] | None = route.fields.at("filters")
    if filters is None or filters.value.mirror is None:
        return
    node = walker.value(filters.node, "mirror") or filters.node
    for key in ("backendRef", "name"):
        node = walker.value(node, key) or node
    name = filters.value.mirror.backend
    if name == PASSTHROUGH:
        walker.error(
            node,
            "copies cannot go to where a connection was going: the request itself may go there",
            "name a backend of this policy",
        )
    else:
        backends.find(walker, At(name, node))


class _Names:
    """The names that a section gives."""

    def __init__(self, kind: str, things: Sequence[ListenerDraft | BackendDraft]) -> None:
        self._kind = kind
        self._known = {one.name.value: one.name for one in things}
        self._first = heapq.nsmallest(5, self._known)

    def find(self, walker: Walker, ref: At[str]) -> None:
        """Reports a name that is not given."""
        if ref.value in self._known:
            return
        meant = walker.guess(ref.value, self._known)
        message = f"no {self._kind} has the name {quoted(ref.value)}"
        if meant is not None:
            note = walker.note(f"{self._kind} {quoted(meant)}", self._known[meant].node)
            walker.error(ref.node, message, did_you_mean(meant), notes=(note,))
            return
        left = len(self._known) - len(self._first)
        more = f" and {left:,} more" if left else ""
        have = f"has {', '.join(map(quoted, self._first))}{more}" if self._first else "is empty"
        walker.error(ref.node, message, f"`{self._kind}s` {have}")


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
    """The policy of a draft; everything in it must have been found in order.

    What transparent listeners bring with them stands last: a backend, and a route to it for what no
    other one takes, which has no place in the file.
    """
    listeners = [one.listener for one in draft.listeners or [] if one.listener]
    backends = [one.backend for one in draft.backends or [] if one.backend]
    routes = [one.route for one in draft.routes or [] if one.route]
    if any(one.transparent is not None for one in listeners):
        backends.append(Backend(PASSTHROUGH, (), original=True))
        routes += _unmatched(listeners)
    return Policy(
        listeners={one.name: one for one in listeners},
        routes=tuple(routes),
        backends={one.name: one for one in backends},
        source=walker.source.name,
        access_log=draft.access_log or AccessLogRules(),
    )


def _unmatched(listeners: list[Listener]) -> list[Route]:
    names = tuple(
        one.name
        for one in listeners
        if one.transparent is not None and one.transparent.unmatched is Unmatched.PASSTHROUGH
    )
    if not names:
        return []
    last = Route(
        UNMATCHED,
        (Match(),),
        (BackendRef(PASSTHROUGH),),
        listeners=names,
        priority=-MAX_PRIORITY - 1,
    )
    return [last]
