"""A policy as written: the values that are sound, each with the place that it came from.

What is made of a part that has problems is not to be used, only its places are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from l7proxy.config.nodes import Node
from l7proxy.config.schema import Fields
from l7proxy.config.walker import At
from l7proxy.model import (
    AccessLogRules,
    Backend,
    BackendRef,
    Endpoint,
    Listener,
    Match,
    Policy,
    Protocol,
    Route,
    SocketAddress,
    ValueMatch,
)


@dataclass(frozen=True, slots=True)
class ListenerDraft:
    """A listener as written; None for what is missing or wrong."""

    name: At[str]
    address: At[SocketAddress] | None
    protocol: Protocol | None
    fields: Fields
    listener: Listener | None


@dataclass(frozen=True, slots=True)
class RefDraft:
    """One entry of `backendRefs` as written."""

    name: At[str]
    weight: int
    optional: bool

    @property
    def ref(self) -> BackendRef:
        """What the policy has of it."""
        return BackendRef(self.name.value, self.weight, self.optional)


@dataclass(frozen=True, slots=True)
class MatchDraft:
    """One entry of `matches` as written; `headers` and `query` with the names given twice."""

    match: Match
    fields: Fields
    headers: tuple[At[ValueMatch], ...] = ()
    query: tuple[At[ValueMatch], ...] = ()


@dataclass(frozen=True, slots=True)
class RouteDraft:
    """A route as written. None for what is left out or wrong; `fields` tells which was written."""

    node: Node
    name: At[str] | None
    listeners: list[At[str]] | None
    hostnames: list[At[str]] | None
    matches: list[At[MatchDraft]] | None
    backend_refs: list[At[RefDraft]] | None
    fields: Fields
    route: Route | None


@dataclass(frozen=True, slots=True)
class BackendDraft:
    """A backend group as written."""

    name: At[str]
    endpoints: list[At[Endpoint]] | None
    fields: Fields
    backend: Backend | None


@dataclass(frozen=True, slots=True)
class Draft:
    """A policy as written; a section that is missing or no list or map at all is None."""

    listeners: list[ListenerDraft] | None
    routes: list[RouteDraft] | None
    backends: list[BackendDraft] | None
    access_log: AccessLogRules | None = None

    def written(self, policy: Policy) -> Iterator[tuple[Route, RouteDraft]]:
        """The policy's routes and how they were written. One that l7proxy adds stands behind."""
        routes = self.routes or []
        return zip(policy.routes[: len(routes)], routes, strict=True)
