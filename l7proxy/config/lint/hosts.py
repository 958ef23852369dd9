"""Routes and hostnames that no listener can lead to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from l7proxy.config.language import Draft
from l7proxy.config.nodes import Node
from l7proxy.config.problems import quoted
from l7proxy.config.walker import Walker
from l7proxy.model import Listener, Policy, Protocol, Route
from l7proxy.routing.claims import applies, hostnames_on


def wider(host: str) -> Iterator[str]:
    """The pattern itself, and every pattern that stands for all of its hosts; "" is every host.

    `*.example.com` is any number of labels and never `example.com` itself.
    """
    yield host
    name = host.removeprefix("*.").partition(".")[2]
    while name:
        yield f"*.{name}"
        name = name.partition(".")[2]
    if host:
        yield ""


def check(walker: Walker, draft: Draft, policy: Policy) -> None:
    """Warns about routes that no listener can lead to, and hostnames likewise."""
    for route, written in draft.written(policy):
        listeners = [one for one in policy.listeners.values() if can_get(route, one)]
        name = written.name.node if written.name else written.node
        if not listeners:
            _asks_in_vain(walker, route, policy, name)
            continue
        served = {host for one in listeners for host in hostnames_on(route, one)}
        lost = [at for at in written.hostnames or [] if at.value not in served]
        if lost and len(lost) == len(written.hostnames or []):
            walker.warn(
                name,
                f"route {quoted(route.name)} can never match: {_whose(listeners)} no host of it",
                "change its `hostnames` or those of the listener",
                notes=(walker.note("its hostnames", written.fields.keys["hostnames"]),),
            )
            continue
        for at in lost:
            walker.warn(
                at.node,
                f"{quoted(at.value)} is in vain: {_whose(listeners)} no such host",
                "remove it, or add it to the `hostnames` of the listener",
            )


def _whose(listeners: list[Listener]) -> str:
    if len(listeners) == 1:
        return f"listener {quoted(listeners[0].name)} serves"
    return "its listeners serve"


def can_get(route: Route, listener: Listener) -> bool:
    """Whether the route could take part on the listener, if that served all hosts."""
    return applies(route, replace(listener, hostnames=()))


def _asks_in_vain(walker: Walker, route: Route, policy: Policy, name: Node) -> None:
    spoken = {
        one.protocol
        for one in policy.listeners.values()
        if not route.listeners or one.name in route.listeners
    }
    if spoken == {Protocol.TCP}:
        walker.warn(
            name,
            f"route {quoted(route.name)} can never match: every listener speaks TCP, and it asks"
            " for a host or a path",
            "remove `hostnames` and `matches`, or add an HTTP listener",
        )
    else:
        walker.warn(
            name,
            f"route {quoted(route.name)} can never match: none of its listeners can tell what it"
            " asks for",
            "paths, methods, headers and queries are read on HTTP listeners, ALPN on TLS listeners",
        )
