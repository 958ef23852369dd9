"""One running proxy for each datapath, which all tests here share, and its backend.

A test plays a script on `backend`, connects to a listener of `proxy`, and looks at both ends. After
each test every connection must be over: nothing may linger on in a worker.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from peers import Backend, Blackhole, refusing_port
from proxy import DATAPATHS, Proxy

POLICY = """\
listeners:
  web: {{address: 127.0.0.1:0}}
  raw: {{address: "127.0.0.1:0", protocol: TCP}}
  six: {{address: "[::1]:0"}}
  narrow: {{address: 127.0.0.1:0, limits: {{headBytes: 2048, headers: 10}}}}
  hasty: {{address: 127.0.0.1:0, timeouts: {{head: 500ms}}}}
  dialling: {{address: 127.0.0.1:0, timeouts: {{dial: 300ms}}}}
  patient: {{address: 127.0.0.1:0, timeouts: {{dial: 60s}}}}
  # more than a machine that stands still takes away from who does something now and then
  restless: {{address: 127.0.0.1:0, timeouts: {{idle: 4s, overflow: 4s}}}}
  lonely: {{address: 127.0.0.1:0, protocol: TCP}}
routes:
  - name: app
    listeners: [web, narrow, hasty, restless, six]
    splice: connection
    hostnames: [app.test]
    backendRefs: [{{name: app}}]
  - name: api
    listeners: [web]
    splice: connection
    hostnames: [api.test]
    matches: [{{path: {{type: Exact, value: /v1/health}}}}, {{path: /v2}}]
    backendRefs: [{{name: app}}]
  - name: down
    listeners: [web]
    splice: connection
    hostnames: [down.test]
    backendRefs: [{{name: down}}]
  - name: lame
    listeners: [web]
    splice: connection
    hostnames: [lame.test]
    backendRefs: [{{name: lame}}]
  - name: blackhole
    listeners: [dialling, patient]
    splice: connection
    hostnames: [blackhole.test]
    backendRefs: [{{name: blackhole}}]
  - name: slow-start
    listeners: [dialling]
    splice: connection
    hostnames: [slow-start.test]
    backendRefs: [{{name: slow-start}}]
  - name: raw
    listeners: [raw]
    backendRefs: [{{name: app}}]
  - name: lonely
    listeners: [lonely]
    backendRefs: [{{name: down}}]
backends:
  app: {{endpoints: ["127.0.0.1:{app}"]}}
  down: {{endpoints: ["127.0.0.1:{down}", "127.0.0.1:{down2}"]}}
  lame: {{endpoints: ["127.0.0.1:{down}", "127.0.0.1:{app}"]}}
  blackhole: {{endpoints: ["127.0.0.1:{blackhole}"]}}
  slow-start: {{endpoints: ["127.0.0.1:{blackhole}", "127.0.0.1:{app}"]}}
"""


@dataclass
class House:
    """What is shared: a proxy, and the backends that its policy names."""

    proxy: Proxy
    backend: Backend


@pytest.fixture(scope="session", params=DATAPATHS)
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    backend, blackhole = Backend(), Blackhole()
    policy = POLICY.format(
        app=backend.port, down=refusing_port(), down2=refusing_port(), blackhole=blackhole.port
    )
    with Proxy(policy, request.param) as proxy:
        yield House(proxy, backend)
        proxy.stop()
    blackhole.close()
    backend.close()


@pytest.fixture
def proxy(house: House) -> Iterator[Proxy]:
    """The shared proxy; no connection and no internal error is left after the test."""
    house.proxy.forget_records()
    yield house.proxy
    stats = house.proxy.settled()
    assert stats["pairs"] == {"active": 0, "spliced": 0, "relayed": 0}
    assert stats["errors"]["internal"] == 0
    assert stats["workers"]["restarts"] == 0
    house.proxy.check_log()


@pytest.fixture
def backend(house: House) -> Iterator[Backend]:
    """The shared backend; a script that failed fails the test."""
    yield house.backend
    house.backend.finish()
