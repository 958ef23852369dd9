"""Which requests of a connection are looked at, and where that matters."""

from __future__ import annotations

from l7proxy.config.language import Draft, ListenerDraft
from l7proxy.config.problems import quoted
from l7proxy.config.walker import Walker
from l7proxy.model import BackendRef, Listener, Policy, Protocol
from l7proxy.routing import applies, takes_everything


def check(walker: Walker, draft: Draft, policy: Policy) -> None:
    """Warns about each HTTP listener whose requests can have different answers."""
    for listener, written in zip(policy.listeners.values(), draft.listeners or [], strict=True):
        if listener.protocol is Protocol.HTTP:
            _told_apart(walker, written, listener, policy)


def _told_apart(walker: Walker, written: ListenerDraft, listener: Listener, policy: Policy) -> None:
    """Warns where later requests of a connection could have another answer than the first.

    Connections are spliced whole after their first request, so the later ones are not looked at.
    That is right exactly when every request has the same answer: one set of backends for all that
    matches, and something that matches everything, since 404 is an answer too.
    """
    answering = [route for route in policy.routes if applies(route, listener)]
    answers: dict[tuple[BackendRef, ...], str] = {}
    for route in answering:
        answers.setdefault(route.backend_refs, route.name)
    if not answering:
        return
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
        written.name.node,
        f"listener {quoted(listener.name)} routes only the first request of a connection"
        f" (`splice: connection`): later ones on it go the same way, {apart}",
        hint,
    )
