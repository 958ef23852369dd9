"""The compiled routes of one listener, and how they are compiled."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from l7proxy import filters
from l7proxy.filters import modified_path
from l7proxy.model import (
    PER_REQUEST,
    Address,
    Decision,
    Hello,
    Listener,
    Policy,
    Protocol,
    Requested,
    Respond,
    Splice,
)
from l7proxy.routing.claims import taking_part
from l7proxy.routing.conditions import CONNECT, Facts
from l7proxy.routing.hosts import HostSet
from l7proxy.routing.readings import is_plain, readings
from l7proxy.routing.rules import Rule, decisions_of, turns_of
from l7proxy.routing.splice import Auto
from l7proxy.routing.tables import Hosts

NOT_FOUND = Respond(404, "no route for this request")
NO_TUNNEL = Respond(501, "no route here takes CONNECT")
NO_STREAM_ROUTE = Respond(404, "no route for this listener")
AMBIGUOUS = Respond(400, "the path can be read in ways that lead to different routes")

SLICE = 200  # routes that are compiled between two yields; 1 to 3 ms


class Router:
    """The compiled routes of one listener, for one worker.

    A decision costs a few look-ups, however many hosts and prefixes there are; regular expressions,
    and rules that differ in nothing but headers and the like, are tried one by one. It is pure but
    for one thing: a route with several `backendRefs` remembers whose turn it is.

    A tunnel to wherever the client says (RFC 9110 section 9.3.6) is nothing that a route for every
    method means. So CONNECT has tables of its own, with the matches that name it.
    """

    __slots__ = ("_hosts", "_rules", "_tunnels", "per_request")

    def __init__(self, listener: Listener) -> None:
        tcp = listener.protocol is Protocol.TCP  # which has no host to restrict
        self._hosts = HostSet(() if tcp else listener.hostnames)
        self._rules = Hosts()
        self._tunnels = Hosts()
        self.per_request = False  # a route of it has each request of a connection routed by itself

    def add(self, hosts: tuple[str, ...], rule: Rule) -> None:
        """Take in a rule, before the first decision is asked for."""
        rules = self._tunnels if rule.match.method == CONNECT else self._rules
        for host in hosts:
            rules.add(host, rule)

    def decide(self, request: Requested, destination: Address | None = None) -> Decision:
        """What to do with a request: as its route says, or Respond with 404, 400 or 501.

        `destination` is where its connection was going, if it was intercepted. 400 is for a path
        that can be read in two ways (see `readings`), 500 for a route whose backends are not there
        or have no weight, 501 for a CONNECT that no route takes.
        """
        rule = self.find(request, destination)
        if rule is None:
            return NO_TUNNEL if request.method == CONNECT else NOT_FOUND
        return AMBIGUOUS if isinstance(rule, Respond) else rule.take()

    def find(self, request: Requested, destination: Address | None = None) -> Rule | Respond | None:
        """The rule that wins, AMBIGUOUS, or None. No turn is taken."""
        host, path = request.host, request.path
        if host not in self._hosts:
            return None
        facts = Facts(request, None, destination)
        rules = self._tunnels if request.method == CONNECT else self._rules
        if is_plain(path):
            return rules.find(host, path, facts)
        ways = readings(path)
        rule = rules.find(host, ways[0], facts)
        found, last = rule, ways[0]
        for kind in (1, 2):
            other = ways[kind]
            if other != last:
                found, last = rules.find(host, other, facts), other
            if not agree(rule, found, ways, kind):
                return AMBIGUOUS
        return rule

    def decide_stream(
        self, hello: Hello | None = None, destination: Address | None = None
    ) -> Decision:
        """What to do with a connection that has no head: what a TLS or a TCP listener got.

        Forward or Deny as the route says; Respond means that there is none, or that its backends
        are not there: nobody can be answered on a stream, so the connection is to be closed.
        """
        rule = self.find_stream(hello, destination)
        return NO_STREAM_ROUTE if rule is None else rule.take()

    def find_stream(
        self, hello: Hello | None = None, destination: Address | None = None
    ) -> Rule | None:
        """The rule that wins, or None. No turn is taken."""
        host = "" if hello is None else hello.sni
        if host not in self._hosts:
            return None
        return self._rules.find(host, "", Facts(None, hello, destination))


def agree(one: Rule | None, two: Rule | None, ways: Sequence[str], kind: int) -> bool:
    """Whether the plain reading of a path and another one of its `ways` lead to the same.

    `one` and `two` are the rules that they lead to, `kind` is the place of the other reading.
    """
    if one is None or two is None:
        return one is two
    if one.route is not two.route:
        return False
    if one.moves is None:
        return True
    # A backend that reads the path in that way reads what was rewritten; it has to come to the same
    # as if its reading of what the client sent had been.
    forwarded = modified_path(one.moves, one.match, ways[0])
    meant = modified_path(one.moves, two.match, ways[kind])
    return readings(forwarded)[kind] == readings(meant)[kind]


def compile_slices(policy: Policy, start: int = 0) -> Generator[None, None, dict[str, Router]]:
    """Compile a checked policy a little at a time: yields at least after each `SLICE` routes.

    The value of the generator is a router for each listener, by the listener's name. A route on
    several listeners takes its turns over all of them. `start` lets workers begin at different
    turns: pass the worker's slot. Raises ValueError (PatternError is one) for a policy that no
    check has let through.
    """
    turns = []
    work = 0
    for route in policy.routes:
        filters.guard(route)
        turns.append(turns_of(route, start))
        work += 1
        if not work % SLICE:
            yield
    routers: dict[str, Router] = {}
    for listener in policy.listeners.values():
        auto = Auto(policy, listener)
        for route in policy.routes:
            auto.add(route)
            work += 1
            if not work % SLICE:
                yield
        choice = auto.choice()
        yield
        del auto  # which holds a claim of every route: a few ms
        yield
        router = routers[listener.name] = Router(listener)
        for order, route in enumerate(policy.routes):
            splice = choice.mode if route.splice is Splice.AUTO else route.splice
            for index, hosts in taking_part(route, listener):
                router.per_request |= splice in PER_REQUEST
                match = route.matches[index]
                decisions = decisions_of(route, match, policy, splice)
                router.add(hosts, Rule(route, match, order, decisions, turns[order]))
            work += 1
            if not work % SLICE:
                yield
    return routers


def compile_routers(policy: Policy, start: int = 0) -> dict[str, Router]:
    """A router for each listener of a checked policy, by its name; see `compile_slices`."""
    slices = compile_slices(policy, start)
    while True:
        try:
            next(slices)
        except StopIteration as done:
            routers: dict[str, Router] = done.value
            return routers
