"""What `splice: auto` comes to, for each route of a listener, and why.

`connection` puts the whole connection into the kernel after its first request, and nobody looks at
what follows. That is right exactly when every request of the listener gets the same answer, and the
answer is nothing that has to be done to each of them. Otherwise it is `request`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from l7proxy.access import Trust
from l7proxy.model import (
    BalanceType,
    Filters,
    HashOn,
    Listener,
    Policy,
    Protocol,
    Route,
    Splice,
)
from l7proxy.routing.claims import Claim, claim, taking_part

_NO_FILTERS = Filters()
_SHOWN = 3  # routes that a sentence names
_EACH_REQUEST = {
    HashOn.HEADER: "by a header",
    HashOn.COOKIE: "by a cookie",
    HashOn.PATH: "by the path",
}


@dataclass(frozen=True, slots=True)
class SpliceChoice:
    """What a route does on a listener (never `auto`), and why, as the rest of "because ...".

    `per_request` are the names of the routes between which later requests could differ.
    """

    mode: Splice
    why: str
    chosen: bool = True  # by `auto`
    per_request: tuple[str, ...] = ()


def chosen(policy: Policy, listener: Listener) -> Mapping[str, SpliceChoice]:
    """For each route that can forward on a listener, by its name."""
    auto = Auto(policy, listener)
    for route in policy.routes:
        auto.add(route)
    choice = auto.choice()
    return {
        route.name: choice
        if route.splice is Splice.AUTO
        else SpliceChoice(route.splice, "the route says so", chosen=False)
        for route in auto.forwarding
    }


class Auto:
    """Takes in the routes of a policy in their order, then tells what `auto` is on a listener."""

    __slots__ = ("_actions", "_listener", "_order", "_owners", "_policy", "forwarding")

    def __init__(self, policy: Policy, listener: Listener) -> None:
        self._policy = policy
        self._listener = listener
        self._order: dict[str, int] = {}  # place in the file, by name
        self._actions: dict[object, int] = {}
        self._owners: dict[Claim, tuple[int, int, Route]] = {}  # priority, action, who
        self.forwarding: list[Route] = []

    def add(self, route: Route) -> None:
        """The next route."""
        self._order[route.name] = len(self._order)
        if self._listener.protocol is not Protocol.HTTP:
            if route.backend_refs and any(taking_part(route, self._listener)):
                self.forwarding.append(route)
            return
        action = -1
        for index, hosts in taking_part(route, self._listener):
            if action < 0:
                action = self._actions.setdefault(_action(route), len(self._actions))
                if route.backend_refs:
                    self.forwarding.append(route)
            for host in hosts:
                wanted = claim(host, route.matches[index])
                owner = self._owners.get(wanted)
                if owner is None or owner[0] < route.priority:
                    self._owners[wanted] = (route.priority, action, route)

    def choice(self) -> SpliceChoice:
        """What `auto` is for every route of the listener."""
        listener = self._listener
        if listener.protocol is not Protocol.HTTP:
            why = f"what comes over {listener.protocol} has no requests to tell apart"
            return SpliceChoice(Splice.CONNECTION, why)
        everything = self._owners.get(Claim())
        floor = None if everything is None or listener.hostnames else everything[0]
        answers: dict[int, Route] = {}
        for priority, action, route in self._owners.values():
            if floor is None or priority >= floor:
                answers.setdefault(action, route)
        routes = sorted(answers.values(), key=lambda route: self._order[route.name])
        names = tuple(route.name for route in routes)
        if floor is not None and len(routes) > 1 and self._by_destination_alone():
            return self._of_one_destination(routes, names)
        if floor is None:
            why = f"later requests of a connection may match {_either(names)} or no route (404)"
            return SpliceChoice(Splice.REQUEST, why, per_request=names)
        if len(routes) > 1:
            why = f"later requests of a connection may match another route: {_either(names)}"
            return SpliceChoice(Splice.REQUEST, why, per_request=names)
        each = self._done_to_each(routes[0])
        if each is not None:
            return SpliceChoice(Splice.REQUEST, each, per_request=names)
        why = f"every request of listener `{listener.name}` has the same answer"
        return SpliceChoice(Splice.CONNECTION, why)

    def _by_destination_alone(self) -> bool:
        """Whether routes ask for nothing but where a connection was going, which never changes."""
        return all(one._replace(destinations=frozenset()) == Claim() for one in self._owners)

    def _of_one_destination(self, routes: list[Route], names: tuple[str, ...]) -> SpliceChoice:
        for route in routes:
            each = self._done_to_each(route)
            if each is not None:
                return SpliceChoice(Splice.REQUEST, each, per_request=names)
        why = "all requests of a connection were going to the same place, and have the same answer"
        return SpliceChoice(Splice.CONNECTION, why)

    def _done_to_each(self, route: Route) -> str | None:
        """What a route does that has to be done to each request of a connection."""
        if replace(route.filters, response_headers=None, mirror=None) != _NO_FILTERS:
            return f"the filters of route `{route.name}` change each request"
        if route.filters.response_headers is not None:
            return f"the filters of route `{route.name}` change each response"
        if route.filters.mirror is not None:
            return f"route `{route.name}` copies requests"
        if route.retry is not None:
            return f"route `{route.name}` sends requests once more"
        if route.timeouts.request:
            return f"route `{route.name}` limits the time of each request"
        if route.rate_limit is not None:
            return f"route `{route.name}` counts its requests"
        listener = self._listener
        shared = bool(Trust(listener))
        if shared and (listener.allow or listener.deny):
            return (
                f"a trusted proxy brings several clients, and listener `{listener.name}` does not"
                " let everyone in"
            )
        if shared and (route.access.allow_clients or route.access.deny_clients):
            return (
                f"a trusted proxy brings several clients, and route `{route.name}` does not let"
                " everyone in"
            )
        for ref in route.backend_refs:
            backend = self._policy.backends.get(ref.name)
            if backend is None or not ref.weight:
                continue
            balance = backend.balance
            hashed = balance.hash_on if balance.type is BalanceType.HASH else None
            if hashed in _EACH_REQUEST:
                return f"backend `{ref.name}` picks an endpoint {_EACH_REQUEST[hashed]}"
            if hashed is HashOn.CLIENT and shared:
                return (
                    f"a trusted proxy brings several clients, and backend `{ref.name}` picks an"
                    " endpoint by the client"
                )
            if backend.sticky is not None:
                return f"backend `{ref.name}` brings each client back to its endpoint by a cookie"
        return None


def _action(route: Route) -> object:
    """What a route does, so that two that do the same are equal."""
    return (
        route.backend_refs,
        route.respond,
        route.redirect,
        route.deny,
        route.filters,
        route.timeouts,
        route.access,
        route.rate_limit,
        route.retry,
    )


def _either(names: tuple[str, ...]) -> str:
    shown = [f"`{name}`" for name in names[:_SHOWN]]
    if len(names) > _SHOWN:
        shown.append(f"one of {len(names) - _SHOWN:,} more")
    return ", ".join(shown)
