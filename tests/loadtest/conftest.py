"""blast, built once, and an origin for the tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from ends import Origin, free_address

from loadtest import blast


@pytest.fixture(scope="session")
def program() -> Path:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    return blast.build()


@pytest.fixture
def origin(program: Path) -> Iterator[Origin]:
    http, echo = free_address(), free_address()
    with blast.origin(program, [http], [echo]) as child:
        yield Origin(http, echo, child)
