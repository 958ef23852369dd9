"""Listeners that do nothing, or trust too much."""

from __future__ import annotations

from ipaddress import ip_network

from l7proxy.config.language import Draft, ListenerDraft
from l7proxy.config.lint.access import unreachable
from l7proxy.config.problems import quoted
from l7proxy.config.walker import Walker
from l7proxy.model import Protocol

_UNSERVED = {
    Protocol.HTTP: (
        "it answers 404 to everything",
        "add it to the `listeners` of a route, or remove it",
    ),
    Protocol.TLS: (
        "its streams end with the alert unrecognized_name",
        "add it to the `listeners` of a route, or remove it",
    ),
    Protocol.TCP: (
        "its connections are reset",
        "add a route without `hostnames` and `matches`",
    ),
}
_MANY = 2  # bits of a prefix: a quarter of all addresses and more


def check(walker: Walker, draft: Draft) -> None:
    """Warns about what each listener says."""
    for listener in draft.listeners or []:
        _trust(walker, listener)
        fields = listener.fields
        unreachable(walker, fields.get("allow", []), fields.get("deny", []))


def without_route(walker: Walker, listener: ListenerDraft) -> None:
    """Warns about a listener that no route takes part on."""
    what, hint = _UNSERVED[listener.protocol or Protocol.HTTP]
    name = quoted(listener.name.value)
    walker.warn(listener.name.node, f"no route is for listener {name}: {what}", hint)


def _trust(walker: Walker, listener: ListenerDraft) -> None:
    """What a trusted proxy says about the client is believed, for access rules and logs."""
    for at in listener.fields.get("trustedProxies", []):
        if ip_network(at.value).prefixlen <= _MANY:
            walker.warn(
                at.node,
                f"{quoted(at.value)} in `trustedProxies` trusts clients themselves: each can claim"
                " any address",
                "write the blocks of your proxies only",
            )
