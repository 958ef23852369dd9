"""The policy in force as the admin server tells it, made in a process that is there for that only.

To unpack and write out thousands of routes takes seconds, and the supervisor has workers to look
after. What was made is kept until another policy is in force.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
from dataclasses import dataclass
from typing import Any

from l7proxy.config.writing import write
from l7proxy.errors import L7ProxyError
from l7proxy.model import Backend, Listener, Policy, Route
from l7proxy.net import bundle, channel
from l7proxy.net.channel import Channel
from l7proxy.routing import chosen
from l7proxy.supervisor.loading import aside
from l7proxy.supervisor.serving import Serving

SECONDS = 60.0


class Unshown(Exception):
    """It could not be made; the argument says why."""


@dataclass(frozen=True, slots=True)
class Made:
    """The child's message; what it has made comes along, sealed."""

    size: int


class Shower:
    """Makes it, once for each policy."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._made: tuple[int, bytes] | None = None

    async def show(self, serving: Serving, source: str) -> bytes:
        """The document, as JSON. Raises Unshown."""
        async with self._turn:
            number = serving.number
            if self._made is None or self._made[0] != number:
                policy = os.dup(serving.policy)  # another one may be in force before this is done
                try:
                    self._made = number, await _make(policy, number, source)
                finally:
                    os.close(policy)
            return self._made[1]


async def _make(policy: int, number: int, source: str) -> bytes:
    def body(control_fd: int) -> int:
        gc.disable()  # it would look through all routes again and again, and find nothing
        found = document(bundle.unpack(policy), number, source)
        data = json.dumps(found, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        sealed = channel.seal("shown", data)
        Channel(socket.socket(fileno=control_fd), ()).send(Made(len(data)), [sealed])
        return 0

    try:
        received = await aside(body, Made, seconds=SECONDS, keep=[policy])
        (sealed,) = received.fds
        try:
            return channel.unseal(sealed)
        finally:
            os.close(sealed)
    except TimeoutError:
        raise Unshown(f"it was not made within {SECONDS:g} s") from None
    except (L7ProxyError, OSError) as error:
        raise Unshown(f"it could not be made: {error}") from error


def document(policy: Policy, number: int, source: str) -> dict[str, Any]:
    """What `GET /policy` answers: the text of all of it, and where everything comes from."""
    choices = {one.name: chosen(policy, one) for one in policy.listeners.values()}
    return {
        "generation": number,
        "source": source,
        "policy": write(policy),
        "listeners": [_place(one) for one in policy.listeners.values()],
        "routes": [_route(route, list(policy.listeners), choices) for route in policy.routes],
        "backends": [_place(one) for one in policy.backends.values()],
    }


def _place(one: Listener | Route | Backend) -> dict[str, Any]:
    """Name, file and line; no place for what no file has: what transparent listeners bring."""
    location = one.location
    return {
        "name": one.name,
        "file": None if location is None else location.file,
        "line": None if location is None else location.line,
    }


def _route(route: Route, everywhere: list[str], choices: dict[str, Any]) -> dict[str, Any]:
    """`splice` and `why` are those of its first listener; `choices` has all of them."""
    found = [
        {"listener": name, "splice": str(choice.mode), "auto": choice.chosen, "why": choice.why}
        for name, routes in choices.items()
        if (choice := routes.get(route.name)) is not None
    ]
    first = found[0] if found else {"splice": None, "why": None}
    return {
        **_place(route),
        "does": _does(route),
        "backends": [ref.name for ref in route.backend_refs],
        "hostnames": list(route.hostnames),
        "listeners": list(route.listeners)
        or ([str(one["listener"]) for one in found] if found else everywhere),
        "splice": first["splice"],
        "why": first["why"],
        "choices": found,
    }


def _does(route: Route) -> str:
    if route.backend_refs:
        return "forward"
    if route.redirect is not None:
        return "redirect"
    return "deny" if route.deny else "respond"
