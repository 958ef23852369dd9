"""Entries that stand twice in a list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from l7proxy.config.problems import quoted
from l7proxy.config.walker import At, Walker


def repeated(walker: Walker, what: str, entries: Sequence[At[Any]]) -> None:
    """Warns about entries that are written alike, but for the first."""
    first: dict[str, At[Any]] = {}
    for at in entries:
        other = first.setdefault(str(at.value), at)
        if other is not at:
            walker.warn(
                at.node,
                f"{quoted(str(at.value))} stands twice in {what}",
                "remove one of them",
                notes=(walker.note("the first one", other.node),),
            )
