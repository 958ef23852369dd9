"""Endpoints of backend groups, and names that lead to them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from grouped import Stream, Zone
from servers import Server


@pytest.fixture
def streams() -> Iterator[list[Stream]]:
    opened: list[Stream] = []
    yield opened
    for one in opened:
        one.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that the workers and the prober can read too: they are another user."""
    with tempfile.TemporaryDirectory(prefix="l7proxy-") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.fixture
def two() -> Iterator[tuple[Server, Server]]:
    with Server("one") as one, Server("two") as two:
        yield one, two


@pytest.fixture
def streaming() -> Iterator[tuple[Server, Server]]:
    with Server("one", stream=True) as one, Server("two", stream=True) as two:
        yield one, two


@pytest.fixture
def zone(folder: Path) -> Zone:
    return Zone(folder)
