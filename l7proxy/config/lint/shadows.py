"""Routes and matches that never win, because another one takes the same requests before them.

A match is split into claims, one for each of its hostnames on each listener. A claim is lost when a
single other one covers it, takes every request that it would take, and goes before it for each:

- with the same priority only one that asks for exactly the same and stands earlier does. Whatever
  asks for less is less specific, and what is less specific comes later;
- with a higher priority everything does that asks for the same or less: a wildcard for its hosts, a
  prefix for what lies below it, and no header that the other one does not ask for.

A match all of whose claims are lost never wins. Two others that only together cover a claim are not
seen, so a warning is never a false one. Each claim costs a look-up for every wildcard and prefix
that could cover it, however many routes there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from l7proxy.config.language import Draft, RouteDraft
from l7proxy.config.lint.hosts import wider
from l7proxy.config.nodes import Node
from l7proxy.config.problems import quoted
from l7proxy.config.walker import Walker
from l7proxy.model import Listener, PathType, Policy, Protocol
from l7proxy.routing.claims import Claim, claim, taking_part

_LOOKED_AT = 64  # claims with one host and one path that are compared; a bound, not a rule

Spot = tuple[int, int]
"""Index of a route, and of a match in it."""


@dataclass(frozen=True, slots=True)
class _Asks:
    """A claim on a listener, and whose it is."""

    spot: Spot
    priority: int
    claim: Claim

    def takes_all_of(self, other: _Asks) -> bool:
        """Whether it asks for nothing that the other one does not; host and path are looked up."""
        mine, its = self.claim, other.claim
        return (
            mine.method in (None, its.method)
            and mine.headers <= its.headers
            and mine.query <= its.query
            and (not mine.alpn or (bool(its.alpn) and its.alpn <= mine.alpn))
            and (
                not mine.destinations
                or (bool(its.destinations) and its.destinations <= mine.destinations)
            )
        )


@dataclass(slots=True)
class _Board:
    """The claims on one listener, in the order of the file."""

    listener: Listener
    claims: list[_Asks] = field(default_factory=list)
    _first: dict[tuple[int, Claim], _Asks] = field(default_factory=dict)
    _urgent: dict[tuple[str, PathType, str], list[_Asks]] = field(default_factory=dict)

    def fill(self, policy: Policy) -> None:
        """Take the claims of all routes."""
        for index, route in enumerate(policy.routes):
            for at, hosts in taking_part(route, self.listener):
                self.claims += [
                    _Asks((index, at), route.priority, claim(host, route.matches[at]))
                    for host in hosts
                ]
        least = min((one.priority for one in self.claims), default=0)
        for one in self.claims:
            self._first.setdefault((one.priority, one.claim), one)
            if one.priority > least:
                same = self._urgent.setdefault(one.claim[:3], [])
                if len(same) < _LOOKED_AT:
                    same.append(one)

    def rival(self, asks: _Asks) -> _Asks | None:
        """Who takes all that it would take."""
        first = self._first[asks.priority, asks.claim]
        if first is not asks:
            return first
        if self._urgent:
            for host in wider(asks.claim.host):
                for path_type, path in _wider_paths(asks.claim.path_type, asks.claim.path):
                    for other in self._urgent.get((host, path_type, path), ()):
                        if other.priority > asks.priority and other.takes_all_of(asks):
                            return other
        return None


def _wider_paths(kind: PathType, value: str) -> Iterator[tuple[PathType, str]]:
    """The claim itself and every prefix that takes all of its paths."""
    yield kind, value
    if kind is not PathType.REGULAR_EXPRESSION:
        plain = value.rstrip("/")
        if kind is PathType.EXACT and plain:
            yield PathType.PATH_PREFIX, plain
        at = plain.rfind("/")
        while at > 0:
            yield PathType.PATH_PREFIX, plain[:at]
            at = plain.rfind("/", 0, at)
    if (kind, value) != (PathType.PATH_PREFIX, ""):
        yield PathType.PATH_PREFIX, ""


def check(walker: Walker, draft: Draft, policy: Policy) -> list[bool]:
    """Warns about them; for each listener whether any route takes part on it."""
    boards = [_Board(listener) for listener in policy.listeners.values()]
    rivals: dict[Spot, _Asks] = {}
    alive: set[Spot] = set()
    only_streams: set[Spot] = set()
    for board in boards:
        board.fill(policy)
        for asks in board.claims:
            rival = board.rival(asks)
            if rival is None:
                alive.add(asks.spot)
            elif asks.spot not in rivals:
                rivals[asks.spot] = rival
                if board.listener.protocol is Protocol.TCP:
                    only_streams.add(asks.spot)
    teller = _Teller(walker, policy, draft.routes or [])
    for index, (route, _) in enumerate(draft.written(policy)):
        lost = [
            (index, at)
            for at in range(len(route.matches))
            if (index, at) in rivals and (index, at) not in alive
        ]
        whole = len(lost) == len(route.matches)
        for spot in lost[:1] if whole else lost:
            teller.tell(spot, rivals[spot], whole=whole, stream=spot in only_streams)
    return [bool(board.claims) for board in boards]


@dataclass(frozen=True, slots=True)
class _Teller:
    walker: Walker
    policy: Policy
    routes: list[RouteDraft]

    def tell(self, spot: Spot, rival: _Asks, *, whole: bool, stream: bool) -> None:
        index, _ = spot
        route, other = self.policy.routes[index], self.policy.routes[rival.spot[0]]
        what = f"route {quoted(route.name)} can never match"
        if not whole:
            what = f"this match of route {quoted(route.name)} can never win"
        taker = "another match of it" if other is route else f"route {quoted(other.name)}"
        if other.priority > route.priority:
            path = other.matches[rival.spot[1]].path
            shown = f" ({path.type} {path.value})" if path.value != "/" else ""
            why = f"{taker}{shown} takes its requests first, with priority {other.priority}"
            hint = "remove it, or give it a priority that is as high"
        else:
            same = "all connections of its listeners" if stream else "the same requests"
            if rival.claim.destinations:
                same = "connections to the same destinations"
            why = f"{taker} takes {same} and stands first"
            hint = "remove it, move it up, or make it more specific"
        node = self._node(spot, whole=whole)
        note = self.walker.note("what stands first", self._node(rival.spot, whole=whole))
        self.walker.warn(node, f"{what}: {why}", hint, notes=(note,))

    def _node(self, spot: Spot, *, whole: bool) -> Node:
        written = self.routes[spot[0]]
        if not whole and written.matches:
            return written.matches[spot[1]].node
        return written.name.node if written.name else written.node
