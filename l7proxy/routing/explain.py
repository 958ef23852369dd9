"""Why a request goes where it goes: the winner, and for each other route why it is not.

Written as the rules stand in the specification: every match of every route is held against the
request, and the best one is taken. That takes time linear in the policy, and is another way to the
answer than the router's tables; a property test keeps the two together.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from l7proxy.model import (
    Address,
    Deny,
    Hello,
    Listener,
    Match,
    PathType,
    Policy,
    Protocol,
    Redirect,
    Requested,
    Respond,
    Route,
    Splice,
)
from l7proxy.routing import hosts
from l7proxy.routing.claims import compared_path, taking_part
from l7proxy.routing.conditions import CONNECT, Facts
from l7proxy.routing.readings import is_plain, readings
from l7proxy.routing.router import AMBIGUOUS, NO_STREAM_ROUTE, NO_TUNNEL, NOT_FOUND, agree
from l7proxy.routing.rules import NO_WEIGHT, Rule, decisions_of
from l7proxy.routing.splice import SpliceChoice, chosen

READINGS = ("equivalent", "resolved", "lenient")

Standing = tuple[int, tuple[int, int], tuple[int, int], int, int, int, int, int]
"""Priority, hostname, path, method or ALPN, headers, query, destination, place: the least wins."""


@dataclass(frozen=True, slots=True)
class Share:
    """How much of what a route gets goes to one backend group; the rest of 100 is rounding."""

    backend: str
    percent: float
    there: bool = True  # else its share is answered with 500


@dataclass(frozen=True, slots=True)
class Other:
    """A route that takes part and does not win.

    `criterion` is what it lost by: one of `listener`, `hostnames`, `path`, `method`, `headers`,
    `queryParams`, `alpn`, `destinations` where it does not match; where it does, one of
    `priority`, `hostnames`, `path`, `method`, `headers`, `queryParams`, `destinations`, `order`.
    """

    route: Route
    match: int  # index of the match that came nearest
    matched: bool
    criterion: str
    why: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What one way to read the path leads to; `route` is None when it is none."""

    name: str
    path: str
    route: str | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer of a listener to one request. `answer` is None for a forwarded one."""

    listener: str
    route: Route | None = None
    match: int | None = None  # index in the route's matches
    hostname: str = ""  # the pattern of the route that the host met; "" for every host
    shares: tuple[Share, ...] = ()
    splice: SpliceChoice | None = None
    answer: Respond | Redirect | Deny | None = None
    others: tuple[Other, ...] = ()
    readings: tuple[Reading, ...] = ()  # empty where there is only one way to read the path

    @property
    def forwards(self) -> bool:
        """Whether it goes to a backend group."""
        return self.answer is None


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A match of a route on one of its hostnames, held against the request."""

    rule: Rule
    match: int
    host: str
    standing: Standing
    missed: tuple[tuple[str, str], ...]  # (criterion, why)


@dataclass(slots=True)
class _Ballot:
    """Everything that takes part, for one reading of the path."""

    found: list[_Candidate] = field(default_factory=list)

    @property
    def winner(self) -> _Candidate | None:
        holding = [one for one in self.found if not one.missed]
        return min(holding, key=lambda one: one.standing, default=None)


def explain(
    policy: Policy,
    listener: Listener,
    asked: Requested | Hello | None,
    destination: Address | None = None,
) -> Explanation:
    """What `listener` answers and why.

    `asked` is a request on an HTTP listener, a ClientHello on a TLS listener, None on a TCP one;
    `destination` is where the connection was going if it was intercepted.
    Raises PatternError, as compiling the policy does.
    """
    hello = asked if isinstance(asked, Hello) else None
    request = None if isinstance(asked, Hello) else asked
    host, path = ("" if hello is None else hello.sni), ""
    if request is not None:
        host, path = request.host, request.path
    facts = Facts(request, hello, destination)
    paths = (path,) if is_plain(path) else readings(path)
    ballot = _ballot(policy, listener, host, paths[0], facts)
    winner = ballot.winner
    nothing = NOT_FOUND if listener.protocol is Protocol.HTTP else NO_STREAM_ROUTE
    if facts.request.method == CONNECT:
        nothing = NO_TUNNEL
    others = _others(ballot, winner)
    ways: tuple[Reading, ...] = ()
    if len(paths) > 1:
        others_win = (_ballot(policy, listener, host, one, facts).winner for one in paths[1:])
        winners = [winner, *others_win]
        ways = tuple(
            Reading(name, way, None if one is None else one.rule.route.name)
            for name, way, one in zip(READINGS, paths, winners, strict=True)
        )
        rules = [None if one is None else one.rule for one in winners]
        if not all(agree(rules[0], rules[kind], paths, kind) for kind in (1, 2)):
            return Explanation(listener.name, answer=AMBIGUOUS, others=others, readings=ways)
    if winner is None:
        return Explanation(listener.name, answer=nothing, others=others, readings=ways)
    route = winner.rule.route
    answer: Respond | Redirect | Deny | None = None
    shares = _shares(policy, route)
    if not shares:
        match = route.matches[winner.match]
        (decision,) = decisions_of(route, match, policy, Splice.NEVER)
        answer = decision if isinstance(decision, Respond | Redirect | Deny) else NO_WEIGHT
    return Explanation(
        listener.name,
        route,
        winner.match,
        winner.host,
        shares,
        chosen(policy, listener)[route.name] if shares else None,
        answer,
        others,
        ways,
    )


def _shares(policy: Policy, route: Route) -> tuple[Share, ...]:
    total = sum(ref.weight for ref in route.backend_refs)
    return tuple(
        Share(ref.name, 100 * ref.weight / total, ref.name in policy.backends)
        for ref in route.backend_refs
        if ref.weight
    )


def _ballot(policy: Policy, listener: Listener, host: str, path: str, facts: Facts) -> _Ballot:
    ballot = _Ballot()
    served = listener.protocol is Protocol.TCP or host in hosts.HostSet(listener.hostnames)
    who = "client" if listener.protocol is Protocol.TLS else "request"
    named = f"not {host}" if host else f"and the {who} names none"
    stranger = ("listener", f"listener {listener.name} serves other hosts only")
    for order, route in enumerate(policy.routes):
        for index, patterns in taking_part(route, listener):
            match = route.matches[index]
            rule = Rule(route, match, order, (), None)
            missed = [] if served else [stranger]
            if listener.protocol is Protocol.HTTP and not _path_matches(rule, path):
                missed.append(("path", f"its path is {_path(match)}, the request's {path}"))
            if match.method is None and facts.request.method == CONNECT:
                missed.append(("method", "it does not name CONNECT, as a match for it has to"))
            missed += [
                (condition.criterion, condition.why_not(facts))
                for condition in rule.conditions
                if not condition.holds(facts)
            ]
            for pattern in patterns:
                wrong = list(missed)
                if not hosts.matches(pattern, host):
                    wrong.insert(0, ("hostnames", f"its hostname is {pattern}, {named}"))
                ballot.found.append(
                    _Candidate(rule, index, pattern, _standing(rule, pattern), tuple(wrong))
                )
    return ballot


def _path_matches(rule: Rule, path: str) -> bool:
    if rule.pattern is not None:
        return rule.pattern.matches(path.encode("utf-8", "replace"))
    value = compared_path(rule.match.path)
    if rule.match.path.type is PathType.EXACT:
        return path == value
    return not value or path == value or path.startswith(f"{value}/")


def _standing(rule: Rule, pattern: str) -> Standing:
    kind = rule.match.path.type
    by_path = (
        (0, 0)
        if kind is PathType.EXACT
        else (1, 0)
        if kind is PathType.REGULAR_EXPRESSION
        else (2, -len(compared_path(rule.match.path)))
    )
    by_host = (2, 0) if not pattern else (1, -len(pattern)) if pattern[0] == "*" else (0, 0)
    priority, method, headers, query, destination, order = rule.rank
    return priority, by_host, by_path, method, headers, query, destination, order


def _others(ballot: _Ballot, winner: _Candidate | None) -> tuple[Other, ...]:
    """For each route but the winner's, in the order of the file, what it lost by."""
    nearest: dict[str, _Candidate] = {}
    for one in ballot.found:
        name = one.rule.route.name
        if winner is not None and name == winner.rule.route.name:
            continue
        other = nearest.get(name)
        if other is None or (len(one.missed), one.standing) < (len(other.missed), other.standing):
            nearest[name] = one
    return tuple(_other(one, winner) for one in nearest.values())


def _other(one: _Candidate, winner: _Candidate | None) -> Other:
    if one.missed or winner is None:
        criterion = one.missed[0][0]
        return Other(
            one.rule.route, one.match, False, criterion, "; ".join(w for _, w in one.missed)
        )
    criterion, why = _lost_by(one, winner)
    return Other(one.rule.route, one.match, True, criterion, why)


def _lost_by(one: _Candidate, winner: _Candidate) -> tuple[str, str]:
    """The first criterion in which the two differ, and how."""
    mine, its = one.rule.match, winner.rule.match
    at = next(
        at
        for at, pair in enumerate(zip(one.standing, winner.standing, strict=True))
        if pair[0] != pair[1]
    )
    return (
        (
            "priority",
            f"its priority is {one.rule.priority}, the winner's {winner.rule.priority}",
        ),
        (
            "hostnames",
            f"its hostname {one.host or '(every host)'} is less specific than {winner.host}",
        ),
        ("path", f"its path {_path(mine)} is less specific than {_path(its)}"),
        ("method", f"the winner asks for {_asked_first(its)} too"),
        ("headers", f"it compares {_count(mine.headers, 'header')}, the winner {len(its.headers)}"),
        (
            "queryParams",
            f"it compares {_count(mine.query, 'query parameter')}, the winner {len(its.query)}",
        ),
        ("destinations", "the winner is more specific about where the connection was going"),
        ("order", "it is as specific as the winner, and stands later"),
    )[at]


def _asked_first(match: Match) -> str:
    return f"ALPN {', '.join(match.alpn)}" if match.method is None else f"the method {match.method}"


def _count(values: tuple[object, ...], noun: str) -> str:
    return f"{len(values) or 'no'} {noun}{'' if len(values) == 1 else 's'}"


def _path(match: Match) -> str:
    return f"{match.path.type} {match.path.value}"
