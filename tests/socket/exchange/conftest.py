"""One running proxy for each datapath, whose listeners route each request by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from peers import Backend, refusing_port
from proxy import DATAPATHS, Proxy, until

POLICY = """\
listeners:
  web: {{address: 127.0.0.1:0}}
  upgrade: {{address: 127.0.0.1:0}}
  # more than a machine that stands still takes away from who does something in time
  hasty: {{address: 127.0.0.1:0, timeouts: {{head: 4s}}}}
  restless: {{address: 127.0.0.1:0, timeouts: {{idle: 4s, overflow: 1s}}}}
routes:
  - name: one
    listeners: [web, hasty, restless]
    splice: request
    matches: [{{path: /one}}]
    backendRefs: [{{name: one}}]
  - name: two
    listeners: [web, hasty, restless]
    splice: request
    matches: [{{path: /two}}, {{method: CONNECT}}]
    backendRefs: [{{name: two}}]
  - name: down
    listeners: [web]
    splice: request
    matches: [{{path: /down}}]
    backendRefs: [{{name: down}}]
  - name: whole
    listeners: [web]
    splice: connection
    matches: [{{path: /whole}}]
    backendRefs: [{{name: one}}]
  - name: upgrade
    listeners: [upgrade]
    splice: upgrade
    backendRefs: [{{name: one}}]
backends:
  one: {{endpoints: ["127.0.0.1:{one}"]}}
  two: {{endpoints: ["127.0.0.1:{two}"]}}
  down: {{endpoints: ["127.0.0.1:{down}"]}}
"""


@dataclass
class House:
    """What is shared: a proxy, and the backends that its policy names."""

    proxy: Proxy
    one: Backend
    two: Backend


@pytest.fixture(scope="session", params=DATAPATHS)
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    one, two = Backend(), Backend()
    policy = POLICY.format(one=one.port, two=two.port, down=refusing_port())
    with Proxy(policy, request.param) as proxy:
        yield House(proxy, one, two)
        proxy.stop()
    one.close()
    two.close()


@pytest.fixture
def proxy(house: House) -> Iterator[Proxy]:
    """The shared proxy; no connection and no internal error is left after the test."""
    house.proxy.forget_records()
    yield house.proxy
    until(lambda: not house.proxy.stats()["requests"]["pooled"], "the backends have hung up")
    stats = house.proxy.settled()
    assert stats["pairs"] == {"active": 0, "spliced": 0, "relayed": 0}
    assert stats["errors"]["internal"] == 0
    assert stats["workers"]["restarts"] == 0
    house.proxy.check_log()


@pytest.fixture
def one(house: House) -> Iterator[Backend]:
    """The backend of route `one`; its connections are closed after the test."""
    yield house.one
    house.one.hang_up()
    house.one.finish()


@pytest.fixture
def two(house: House) -> Iterator[Backend]:
    """The same of route `two`."""
    yield house.two
    house.two.hang_up()
    house.two.finish()
