"""Hostnames of policies against hosts and server names.

`*.example.com` stands for one label or more in front of `.example.com`, never for `example.com`
itself. Patterns are compared in lower case; hosts come that way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def matches(pattern: str, host: str) -> bool:
    """Whether `host` is what `pattern` says; "" is the pattern of every host."""
    pattern = pattern.lower()
    if pattern.startswith("*."):
        return len(host) >= len(pattern) and host.endswith(pattern[1:])
    return not pattern or host == pattern


def intersect(one: str, other: str) -> bool:
    """Whether there is a host that both patterns match.

    Gateway API v1, HTTPRouteSpec: "If both the Listener and HTTPRoute have specified hostnames, any
    HTTPRoute hostnames that do not match the Listener hostname MUST be ignored."
    """
    one, other = one.lower(), other.lower()
    if one.startswith("*.") and other.startswith("*."):
        return one.endswith(other[1:]) or other.endswith(one[1:])
    return matches(one, other) or matches(other, one)


def suffixes(host: str, longest: int) -> Iterator[str]:
    """What a wildcard can stand in front of, each with its dot, from the longest one.

    Looking no further than the longest pattern bounds the work by the policy. The whole host is not
    among them: that would be the bare domain.
    """
    at = host.find(".", max(1, len(host) - longest))
    while at > 0:
        yield host[at:]
        at = host.find(".", at + 1)


class HostSet:
    """Hostnames of a listener: `"a.example.com" in hosts`; empty, it holds every host."""

    __slots__ = ("_exact", "_longest", "_wildcards")

    def __init__(self, patterns: Iterable[str]) -> None:
        lower = [pattern.lower() for pattern in patterns]
        self._exact = frozenset(one for one in lower if not one.startswith("*."))
        self._wildcards = frozenset(one[1:] for one in lower if one.startswith("*."))
        self._longest = max(map(len, self._wildcards), default=0)

    def __contains__(self, host: str) -> bool:
        if host in self._exact or not (self._exact or self._wildcards):
            return True
        return any(one in self._wildcards for one in suffixes(host, self._longest))
