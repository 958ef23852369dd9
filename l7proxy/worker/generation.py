"""A policy as a worker uses it, and how it is built without keeping the loop from its work.

A policy comes in frames and is built by generators that yield after each small step. Whoever drives
one does so for a few milliseconds at a time: for 10,000 routes all of it takes about a second.

What belongs to the policy that is replaced goes as carefully as it came: Python frees a structure
of a hundred thousand objects in one stroke, and that is a pause like any other.
"""

from __future__ import annotations

import socket
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from l7proxy.access import RouteAccess, has_rules
from l7proxy.model import (
    AccessLogRules,
    Backend,
    Hello,
    Limits,
    Listener,
    Policy,
    Protocol,
    Route,
    Timeouts,
)
from l7proxy.net.interception import OwnAddresses
from l7proxy.net.messages import Prepare
from l7proxy.routing import Router, compile_slices
from l7proxy.worker.front import Front, compiling_front
from l7proxy.worker.groups import Group

if TYPE_CHECKING:
    from l7proxy.worker.loop import Worker

FREED_AT_ONCE = 100  # routes


Accesses = Mapping[int, RouteAccess]
"""The compiled access rules of each route that has some, by the `id` of its `Access`."""


@dataclass(slots=True)
class Current:
    """What decides about the connections of a socket: a reload replaces what stands in it.

    Connections whose head is still being read when that happens are decided by the new policy.
    """

    router: Router
    groups: Mapping[str, Group]
    accesses: Accesses

    def replace(self, new: Current) -> None:
        """Decide as `new` does."""
        self.router, self.groups, self.accesses = new.router, new.groups, new.accesses


@dataclass(slots=True, eq=False)
class OpenListener:
    """A listener at work in this worker. One that a reload has changed is another one."""

    worker: Worker
    row: int  # of the counters
    name: str
    protocol: Protocol
    limits: Limits
    timeouts: Timeouts
    current: Current
    front: Front
    sock: socket.socket
    passed: bool = False  # others opened it, and clients may have come before us
    successor: OpenListener | None = None  # what a reload has put in its place
    retired: bool = False  # a reload has put nothing there
    tick: int = -1

    @property
    def router(self) -> Router:
        """The routes, as they are now."""
        return self.current.router

    def admits(self, route: Route, client: str, hello: Hello | None = None) -> bool:
        """Whether the access rules of one of these routes let the client in."""
        if not has_rules(route.access):
            return True
        return self.current.accesses[id(route.access)].admit(client, hello)

    @property
    def groups(self) -> Mapping[str, Group]:
        """The backend groups that these routes lead to."""
        return self.current.groups

    def ready(self, _fd: int, _mask: int) -> None:
        """Connections wait to be accepted."""
        self.worker.accepting.accept(self)

    def on_deadline(self) -> None:
        """A pause is over."""
        self.worker.accepting.listen(self)


@dataclass(slots=True)
class Generation:
    """A policy, built. `fresh` are groups that no generation before it had."""

    prepare: Prepare
    listeners: tuple[Listener, ...]
    routes: list[Route]
    routers: dict[str, Router]
    fronts: dict[str, Front]
    groups: dict[str, Group]
    accesses: dict[int, RouteAccess]
    fresh: list[Group]
    access_log: AccessLogRules = field(default_factory=AccessLogRules)

    def abandon(self) -> None:
        """It is not going to be used."""
        for group in self.fresh:
            group.close()


def building(
    worker: Worker, policy: Policy, prepare: Prepare, sockets: Mapping[int, socket.socket]
) -> Generator[None, None, Generation]:
    """Build what `policy` says. Groups that there are and that did not change are taken over.

    `sockets` are those of `prepare` by number, others may be among them.
    """
    before = worker.accepting.generation.groups
    groups: dict[str, Group] = {}
    fresh: list[Group] = []
    try:
        for name, backend in policy.backends.items():
            group = before.get(name)
            if group is None or bare(group.backend) != bare(backend):
                group = worker.make_group(backend)
                fresh.append(group)
            groups[name] = group
            yield
        # each worker begins with another endpoint: else all of them would favour the first ones
        routers = yield from compile_slices(policy, start=worker.slot)
        yield
        accesses: dict[int, RouteAccess] = {}
        for route in policy.routes:
            if has_rules(route.access):
                accesses[id(route.access)] = yield from RouteAccess.building(route.access)
                yield
        own = OwnAddresses(sockets[number] for number in prepare.sockets)
        fronts = {}
        for listener, number in zip(policy.listeners.values(), prepare.sockets, strict=True):
            fronts[listener.name] = yield from compiling_front(listener, sockets[number], own)
            yield
    except BaseException:
        for group in fresh:
            group.close()
        raise
    listeners = tuple(policy.listeners.values())
    routes = list(policy.routes)
    return Generation(
        prepare, listeners, routes, routers, fronts, groups, accesses, fresh, policy.access_log
    )


def bare(backend: Backend) -> Backend:
    """The same without where it stands: moved by a line, a group is no other one."""
    endpoints = tuple(replace(one, location=None) for one in backend.endpoints)
    return replace(backend, location=None, endpoints=endpoints)


def freeing(old: Generation, kept: Mapping[str, Group]) -> Iterator[None]:
    """Close the groups of `old` that are not in `kept`, and let the rest of it go, step by step."""
    for name, group in old.groups.items():
        if kept.get(name) is not group:
            group.close()
            yield
    old.groups.clear()
    while old.routers:
        old.routers.popitem()
        yield
    while old.routes:
        del old.routes[-FREED_AT_ONCE:]
        yield
