"""Which path and method of the admin server is whose."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from l7proxy.admin.message import Answer, Problem, Request

Handler: TypeAlias = Callable[[Request], Awaitable[Answer]]
"""Answers a request, or raises Problem. It may take its time, but never blocks."""


@dataclass(frozen=True, slots=True)
class Route:
    """One path and method. `body`: bytes of a body that are read; `is_public`: without a token."""

    method: str
    path: str
    handler: Handler
    body: int = 0
    is_public: bool = False


@dataclass(slots=True)
class _Place:
    segments: tuple[str, ...]
    methods: dict[str, Route] = field(default_factory=dict)

    def match(self, segments: list[str]) -> dict[str, str] | None:
        if len(segments) != len(self.segments):
            return None
        found = {}
        for wanted, segment in zip(self.segments, segments, strict=True):
            if wanted[:1] == "{":
                found[wanted[1:-1]] = segment
            elif wanted != segment:
                return None
        return found


class Router:
    """All paths. `HEAD` is there wherever `GET` is."""

    def __init__(self) -> None:
        self._places: dict[str, _Place] = {}

    def add(
        self, method: str, path: str, handler: Handler, *, body: int = 0, is_public: bool = False
    ) -> None:
        """Have `handler` answer this method on this path; `{name}` stands for one segment of it.

        `body`: bytes of a request body that may come, and are read. `is_public`: nobody needs the
        token for it, so it must tell next to nothing.
        """
        place = self._places.setdefault(path, _Place(tuple(path.split("/"))))
        if method in place.methods:
            raise ValueError(f"{method} {path} is somebody's already")
        place.methods[method] = Route(method, path, handler, body, is_public)

    def routes(self) -> Iterator[Route]:
        """All that there is, in the order in which it was added."""
        for place in self._places.values():
            yield from place.methods.values()

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """Whose it is, and what stands for the names in the path. Raises Problem."""
        segments = path.split("/")
        for place in self._places.values():
            arguments = place.match(segments)
            if arguments is None:
                continue
            route = place.methods.get("GET" if method == "HEAD" else method)
            if route is None:
                allowed = _allowed(place)
                raise Problem(405, f"{path} takes {allowed}", (("Allow", allowed),))
            return route, arguments
        raise Problem(404, f"there is no such path; there are {', '.join(self._places)}")


def _allowed(place: _Place) -> str:
    methods = list(place.methods)
    if "GET" in methods:
        methods.insert(methods.index("GET") + 1, "HEAD")
    return ", ".join(methods)
