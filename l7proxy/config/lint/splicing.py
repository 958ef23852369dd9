"""What `splice: auto` chose and why, and where later requests of a connection are not looked at."""

from __future__ import annotations

from l7proxy.config.language import Draft, ListenerDraft, RouteDraft
from l7proxy.config.problems import Severity, quoted
from l7proxy.config.walker import Walker
from l7proxy.model import Listener, Policy, Protocol, Splice
from l7proxy.routing.splice import Auto, SpliceChoice

_WHOLE = (Splice.CONNECTION, Splice.NEVER)
_MEANS = {
    Splice.CONNECTION: "the whole connection is spliced after its first request",
    Splice.REQUEST: "every request of a connection is parsed and routed by itself",
}
_STREAM = "the stream is spliced once its backend has taken the connection"


def check(walker: Walker, draft: Draft, policy: Policy) -> None:
    """Notes for every `auto`, and warnings for what was written against its better knowledge."""
    routes = {route.name: written for route, written in draft.written(policy)}
    for listener, written in zip(policy.listeners.values(), draft.listeners or [], strict=True):
        auto = Auto(policy, listener)
        for route in policy.routes:
            auto.add(route)
        choice = auto.choice()
        left = [route.name for route in auto.forwarding if route.splice is Splice.AUTO]
        if left:
            _chosen(walker, written, listener, choice, left)
        if choice.mode is Splice.CONNECTION:
            continue
        for route in auto.forwarding:
            if route.splice in _WHOLE:
                _not_inspected(walker, routes[route.name], listener, route.splice, choice)


def _chosen(
    walker: Walker,
    written: ListenerDraft,
    listener: Listener,
    choice: SpliceChoice,
    names: list[str],
) -> None:
    shown = ", ".join(map(quoted, names[:3]))
    if len(names) > 3:
        shown += f" and {len(names) - 3:,} more"
    walker.warn(
        written.name.node,
        f"`splice: auto` is `{choice.mode}` on listener {quoted(listener.name)}, for {shown}:"
        f" {choice.why}",
        _MEANS[choice.mode] if listener.protocol is Protocol.HTTP else _STREAM,
        severity=Severity.NOTE,
    )


def _not_inspected(
    walker: Walker, route: RouteDraft, listener: Listener, splice: Splice, choice: SpliceChoice
) -> None:
    walker.warn(
        route.fields.keys["splice"],
        f"with `splice: {splice}` only the first request of a connection is looked at on listener"
        f" {quoted(listener.name)}, and {choice.why}",
        "write `splice: auto` or `request`, or give what differs a listener of its own",
    )
