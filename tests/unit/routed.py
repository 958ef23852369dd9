"""Routes of prefixes and exact paths, and the name of the one that answers."""

from __future__ import annotations

from l7proxy.model import (
    Address,
    Backend,
    BackendRef,
    Endpoint,
    Forward,
    Listener,
    Match,
    PathMatch,
    PathType,
    Policy,
    Protocol,
    Request,
    Respond,
    Route,
)
from l7proxy.routing import Router, compile_routers

EXACT, PREFIX = PathType.EXACT, PathType.PATH_PREFIX
TCP = Listener("raw", Address("127.0.0.1", 9), Protocol.TCP)
WEB = Listener("web", Address("127.0.0.1", 80))


def route(
    name: str,
    *paths: str,
    hosts: tuple[str, ...] = (),
    listeners: tuple[str, ...] = (),
    refs: tuple[BackendRef, ...] = (BackendRef("app"),),
) -> Route:
    """A path that begins with `=` is Exact, any other a prefix; none is PathPrefix /."""
    matches = tuple(
        Match(PathMatch(EXACT, path[1:]) if path[0] == "=" else PathMatch(PREFIX, path))
        for path in paths or ("/",)
    )
    return Route(name, matches, refs, hosts, listeners)


def policy(*routes: Route, listeners: tuple[Listener, ...] = ()) -> Policy:
    web = Listener("web", Address("127.0.0.1", 80))
    names = {ref.name for one in routes for ref in one.backend_refs} | {"app"}
    return Policy(
        listeners={one.name: one for one in listeners or (web,)},
        routes=routes,
        backends={name: Backend(name, (Endpoint(Address("127.0.0.1", 9000)),)) for name in names},
    )


def router(*routes: Route) -> Router:
    return compile_routers(policy(*routes))["web"]


def decided(one: Router, host: str, path: str) -> str:
    """The name of the route, or the status."""
    decision = one.decide(Request(host=host, path=path))
    if isinstance(decision, Respond):
        return str(decision.status)
    assert isinstance(decision, Forward)
    return decision.route.name
