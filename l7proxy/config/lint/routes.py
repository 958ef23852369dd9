"""What a route says twice or in vain."""

from __future__ import annotations

from l7proxy.access import Trust
from l7proxy.config.language import Draft, RouteDraft
from l7proxy.config.lint.access import unreachable
from l7proxy.config.lint.repeated import repeated
from l7proxy.config.problems import Severity, quoted
from l7proxy.config.schema import Fields
from l7proxy.config.walker import At, Walker
from l7proxy.forwarded import is_claim
from l7proxy.model import Policy, ValueMatch
from l7proxy.routing.hosts import intersect


def check(walker: Walker, draft: Draft, policy: Policy) -> None:
    """Warns about what each route says."""
    trusting = {one.name for one in policy.listeners.values() if Trust(one)}
    for route in draft.routes or []:
        repeated(walker, "`listeners`", route.listeners or [])
        repeated(walker, "`hostnames`", route.hostnames or [])
        for match in route.matches or []:
            _first_counts(walker, "header", match.value.headers)
            _first_counts(walker, "query parameter", match.value.query)
        _unbelieved(walker, route, trusting)
        _access(walker, route)
        _names(walker, route)
        _missing(walker, route, policy)


def _unbelieved(walker: Walker, route: RouteDraft, trusting: set[str]) -> None:
    """Matches on a field that only a trusted proxy may send, where nobody is trusted."""
    named = {at.value for at in route.listeners or []}
    if trusting & named or (trusting and not named):
        return
    for match in route.matches or []:
        for at in match.value.headers:
            if is_claim(at.value.name.encode()):
                walker.warn(
                    at.node,
                    f"this match never holds: {quoted(at.value.name)} is dropped unless a trusted"
                    " proxy sends it, and nobody is trusted here",
                    "name the proxies in `trustedProxies` of the listener",
                )


def _first_counts(walker: Walker, what: str, written: tuple[At[ValueMatch], ...]) -> None:
    """Gateway API v1: "only the first entry with an equivalent header name MUST be considered"."""
    first: dict[str, At[ValueMatch]] = {}
    for at in written:
        other = first.setdefault(at.value.name, at)
        if other is not at:
            walker.warn(
                at.node,
                f"the {what} {quoted(at.value.name)} is named twice in this match, and only the"
                " first one counts",
                "remove one of them",
                notes=(walker.note("the first one", other.node),),
            )


def _access(walker: Walker, route: RouteDraft) -> None:
    allow, deny = route.fields.get("allow"), route.fields.get("deny")
    if isinstance(allow, Fields) and isinstance(deny, Fields):
        unreachable(walker, allow.get("clients", []), deny.get("clients", []))


def _names(walker: Walker, route: RouteDraft) -> None:
    """Names in SNI that are let in, on a route for other names."""
    allow = route.fields.get("allow")
    hostnames = [at.value for at in route.hostnames or []]
    if not isinstance(allow, Fields) or not hostnames:
        return
    for at in allow.get("sni", []):
        if not any(intersect(at.value, host) for host in hostnames):
            walker.warn(
                at.node,
                f"{quoted(at.value)} in `allow` lets nobody in: the route is for other names",
                "remove it, or add it to `hostnames`",
                notes=(walker.note("its hostnames", route.fields.keys["hostnames"]),),
            )


def _missing(walker: Walker, route: RouteDraft, policy: Policy) -> None:
    for at in route.backend_refs or []:
        if at.value.optional and at.value.name.value not in policy.backends:
            walker.warn(
                at.value.name.node,
                f"backend {quoted(at.value.name.value)} is not there: its share of the requests is"
                " answered with 500",
                severity=Severity.NOTE,
            )
