"""One running proxy whose routes do something to each request of a connection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from peers import Backend, refusing_port
from proxy import Proxy, until

POLICY = """\
listeners:
  web: {{address: 127.0.0.1:0}}
  brief: {{address: 127.0.0.1:0, timeouts: {{keepAlive: 1s}}}}
routes:
  - name: changed
    matches: [{{path: /changed}}]
    filters:
      responseHeaders:
        set: {{Server: l7, X-New: "1"}}
        add: {{X-Hop: "2"}}
        remove: [X-Gone]
    backendRefs: [{{name: one}}]
  - name: timed
    matches: [{{path: /timed}}]
    timeouts: {{request: 1s}}
    backendRefs: [{{name: one}}]
  - name: counted
    matches: [{{path: /counted}}]
    rateLimit: {{requests: 2, per: 24h}}
    backendRefs: [{{name: one}}]
  - name: again
    matches: [{{path: /again}}]
    retry: {{codes: [503], attempts: 2, backoff: 10ms}}
    backendRefs: [{{name: both}}]
  - name: patient
    matches: [{{path: /patient}}]
    retry: {{codes: [503], attempts: 1, backoff: 500ms}}
    timeouts: {{request: 5s}}
    backendRefs: [{{name: one}}]
  - name: late
    matches: [{{path: /late}}]
    retry: {{codes: [503], attempts: 10, backoff: 400ms}}
    timeouts: {{request: 1s}}
    backendRefs: [{{name: one}}]
  - {{name: poor, matches: [{{path: /poor}}], retry: {{codes: [503], backoff: 1ms}}, backendRefs: [
      {{name: poor}}]}}
  - name: copied
    matches: [{{path: /copied}}]
    filters: {{mirror: two, requestHeaders: {{set: {{X-New: "1"}}}}, urlRewrite: {{path: /in}}}}
    backendRefs: [{{name: one}}]
  - name: few
    matches: [{{path: /few}}]
    filters: {{mirror: {{backendRef: {{name: two}}, percent: 20}}}}
    backendRefs: [{{name: one}}]
  - name: void
    matches: [{{path: /void}}]
    filters: {{mirror: void}}
    backendRefs: [{{name: one}}]
  - name: told
    matches: [{{path: /told}}]
    filters: {{mirror: told}}
    backendRefs: [{{name: one}}]
  - {{name: rest, backendRefs: [{{name: two}}]}}
backends:
  one: {{endpoints: ["127.0.0.1:{one}"], retries: {{budget: 100}}, ejection: {{failures: 0}}}}
  two: {{endpoints: ["127.0.0.1:{two}"]}}
  both: {{endpoints: ["127.0.0.1:{one}", "127.0.0.1:{two}"], ejection: {{failures: 0}}, retries: {{
    budget: 100}}}}
  void: {{endpoints: ["127.0.0.1:{void}"]}}
  told: {{endpoints: ["127.0.0.1:{two}"], proxyProtocol: v1}}
  poor: {{endpoints: ["127.0.0.1:{one}"], retries: {{budget: 0}}}}
"""


@dataclass
class House:
    """What is shared: a proxy, and the backends that its policy names."""

    proxy: Proxy
    one: Backend
    two: Backend


@pytest.fixture(scope="session")
def house() -> Iterator[House]:
    one, two = Backend(), Backend()
    with Proxy(POLICY.format(one=one.port, two=two.port, void=refusing_port()), "copy") as proxy:
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
    assert stats["errors"]["internal"] == 0
    house.proxy.check_log()


def _settle(house: House) -> None:
    """Nothing is under way: for copies of requests nobody waits, so they may come late."""

    def under_way() -> int:
        return sum(one["connections"] for one in house.proxy.stats()["backends"].values())

    until(lambda: not under_way(), "requests and copies are over")


@pytest.fixture
def one(house: House) -> Iterator[Backend]:
    """A backend; its connections are closed after the test."""
    yield house.one
    _settle(house)
    house.one.hang_up()
    house.one.finish()


@pytest.fixture
def two(house: House) -> Iterator[Backend]:
    """Another one."""
    yield house.two
    _settle(house)
    house.two.hang_up()
    house.two.finish()
