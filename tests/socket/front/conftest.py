"""One proxy for each datapath with the policy of `fronts`, and the backend of all its routes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fronts import POLICY
from peers import Backend, connect
from proxy import DATAPATHS, Proxy


class FrontHouse:
    """A proxy with this policy, and the backend of all its routes."""

    def __init__(self, proxy: Proxy, backend: Backend) -> None:
        self.proxy = proxy
        self.backend = backend


@pytest.fixture(scope="session", params=DATAPATHS)
def front_house(request: pytest.FixtureRequest) -> Iterator[FrontHouse]:
    backend = Backend()
    with Proxy(POLICY.format(app=backend.port), request.param) as proxy:
        yield FrontHouse(proxy, backend)
        proxy.stop()
    backend.close()


@pytest.fixture
def proxy(front_house: FrontHouse) -> Iterator[Proxy]:
    """The shared proxy; no connection and no internal error is left after the test."""
    with connect(front_house.proxy.address("web")) as last:
        port = last.port
    front_house.proxy.record(port)  # it comes behind those of the tests before
    front_house.proxy.forget_records()
    yield front_house.proxy
    stats = front_house.proxy.settled()
    assert stats["pairs"] == {"active": 0, "spliced": 0, "relayed": 0}
    assert stats["errors"]["internal"] == 0
    assert stats["workers"]["restarts"] == 0
    front_house.proxy.check_log()


@pytest.fixture
def backend(front_house: FrontHouse) -> Iterator[Backend]:
    """The shared backend; a script that failed fails the test."""
    yield front_house.backend
    front_house.backend.finish()
