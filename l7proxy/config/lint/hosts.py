"""Hostname patterns that lie within each other, and hostnames that no listener serves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from l7proxy.config.language import Draft, RouteDraft
from l7proxy.config.nodes import Node
from l7proxy.config.problems import quoted
from l7proxy.config.walker import Walker
from l7proxy.model import Listener, Policy
from l7proxy.routing import applies


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


def served(host: str, hostnames: Sequence[str]) -> bool:
    """Whether a listener with these hostnames serves any host of the pattern."""
    if not hostnames or not host or any(one in hostnames for one in wider(host)):
        return True
    return host.startswith("*.") and any(one.endswith(host[1:]) for one in hostnames)


def check(walker: Walker, draft: Draft, policy: Policy) -> None:
    """Warns about routes that no listener can lead to, and hostnames likewise."""
    for route, written in zip(policy.routes, draft.routes or [], strict=True):
        listeners = [one for one in policy.listeners.values() if applies(route, one)]
        name = written.name.node if written.name else written.node
        if not listeners:
            _asks_in_vain(walker, written, name)
            continue
        lost = [
            at
            for at in written.hostnames or []
            if not any(served(at.value, one.hostnames) for one in listeners)
        ]
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


def _asks_in_vain(walker: Walker, route: RouteDraft, name: Node) -> None:
    said = quoted(route.name.value if route.name else "")
    walker.warn(
        name,
        f"route {said} can never match: every listener speaks TCP, and it asks for a host or a"
        " path",
        "remove `hostnames` and `matches`, or add an HTTP listener",
    )
