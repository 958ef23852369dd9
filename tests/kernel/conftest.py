from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from l7proxy.datapath.selftest import prove_kernel
from l7proxy.datapath.sockmap import Splicer, load_splicers

from .pairs import Pair


@pytest.fixture(autouse=True)
def _quiet_kernel(kernel_log) -> Iterator[None]:
    """Name the test that made the kernel complain."""
    kernel_log.alarms()
    yield
    assert not (alarms := kernel_log.alarms()), f"the kernel complained: {alarms}"


@pytest.fixture(scope="session")
def bounded() -> None:
    """Skips where 1-byte segments cost memory without a bound (Linux 6.1): l7proxy relays there."""
    for check in prove_kernel().checks:
        if check.name == "small segments" and not check.ok:
            pytest.skip(check.detail)


@pytest.fixture(scope="session")
def splicer() -> Iterator[Splicer]:
    """One worker's state, with room for 64 pairs."""
    (splicer,) = load_splicers(1, 64)
    splicer.start()
    yield splicer
    splicer.close()


@pytest.fixture
def pair(splicer: Splicer) -> Iterator[Callable[..., Pair]]:
    """Makes pairs, not yet spliced; all are closed afterwards and no event is left over."""
    made: list[Pair] = []

    def make(on: Splicer | None = None, **buffers: int) -> Pair:
        made.append(Pair(on or splicer, **buffers))
        return made[-1]

    yield make
    for one in made:
        one.close_all()
    splicer.events()
