"""One match of one route on one listener: when it holds, how it ranks, what comes of it."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_network

from l7proxy.balance import WeightedTurns
from l7proxy.model import (
    Decision,
    Deny,
    Destination,
    Forward,
    Match,
    PathModifierType,
    PathType,
    Policy,
    Redirect,
    Respond,
    Route,
    Splice,
)
from l7proxy.patterns import Pattern, compile_pattern
from l7proxy.routing.conditions import Facts, compile_conditions

NO_WEIGHT = Respond(500, "every backend of this route has weight 0")
NO_BACKEND = Respond(500, "this route names a backend that is not there")

Rank = tuple[int, int, int, int, int, int]
"""Priority, method or ALPN, headers, query, destination, place: the least one is the best."""


class Rule:
    """One match of one route, compiled."""

    __slots__ = (
        "_decisions",
        "_turns",
        "conditions",
        "match",
        "moves",
        "pattern",
        "priority",
        "rank",
        "route",
    )

    def __init__(
        self,
        route: Route,
        match: Match,
        order: int,
        decisions: tuple[Decision, ...],
        turns: WeightedTurns | None,
    ) -> None:
        """`order` is the place of the route in the file. Raises PatternError."""
        self.route = route
        self.match = match
        self.priority = route.priority
        self.conditions = compile_conditions(match)
        self.pattern: Pattern | None = None
        if match.path.type is PathType.REGULAR_EXPRESSION:
            self.pattern = compile_pattern(match.path.value)
        self.rank = rank(route, match, order)
        rewrite = route.filters.url_rewrite
        modifier = None if rewrite is None else rewrite.path
        # What it forwards depends on the path that matched.
        self.moves = (
            modifier
            if modifier is not None and modifier.type is PathModifierType.REPLACE_PREFIX_MATCH
            else None
        )
        self._decisions = decisions
        self._turns = turns

    def holds(self, facts: Facts) -> bool:
        """Whether all holds that it asks for besides host and path."""
        return all(condition.holds(facts) for condition in self.conditions)

    def take(self) -> Decision:
        """What comes of it; a route with several backend groups gives one in its turn."""
        return self._decisions[0 if self._turns is None else self._turns.take()]


def rank(route: Route, match: Match, order: int) -> Rank:
    """How a match ranks among those of one hostname and one path; the least is the best.

    Gateway API v1, HTTPRouteRule: "Method match", then "Largest number of header matches", then
    "Largest number of query param matches"; ALPN stands where the method does. Of destinations one
    with a port is more specific, then the longer prefix; of several the least specific one counts.
    """
    return (
        -route.priority,
        -(match.method is not None or bool(match.alpn)),
        -len({one.name.lower() for one in match.headers}),
        -len({one.name for one in match.query}),
        -min(map(_specificity, match.destinations), default=0),
        order,
    )


@lru_cache(maxsize=4096)
def _specificity(destination: Destination) -> int:
    """More than 0; that of 0.0.0.0/0 is that of ::/96, which is as many addresses."""
    bits = 0
    if destination.block is not None:
        network = ip_network(destination.block)
        bits = 1 + network.prefixlen + 128 - network.max_prefixlen
    return bits + (256 if destination.port is not None else 0)


def turns_of(route: Route, start: int) -> WeightedTurns | None:
    """Whose turn it is among the backend groups of a route; None where there is no choice."""
    weights = [ref.weight for ref in route.backend_refs if ref.weight > 0]
    return WeightedTurns(weights, start) if len(weights) > 1 else None


def decisions_of(
    route: Route, match: Match, policy: Policy, splice: Splice
) -> tuple[Decision, ...]:
    """What a route can come to, in the order of its backend groups that have a weight.

    BackendRef: weight 0 gets "no traffic", and a group that is not there 500 for its share.
    """
    if route.redirect is not None:
        return (Redirect(route, match),)
    if route.respond is not None:
        return (Respond(route.respond.status, route=route),)
    if route.deny:
        return (Deny(route),)
    return tuple(
        Forward(route, policy.backends[ref.name], match, splice)
        if ref.name in policy.backends
        else NO_BACKEND
        for ref in route.backend_refs
        if ref.weight > 0
    ) or (NO_WEIGHT,)
