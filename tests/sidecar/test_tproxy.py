"""Connections that TPROXY assigns: their addresses stay as they are, and so may the client's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pod import FAR, OUTSIDE, POD, Pod, dribble, exchange
from proxy import Proxy

pytestmark = pytest.mark.net

POLICY = """\
listeners:
  out: {address: "*:15101", protocol: TCP, transparent: {mode: tproxy, direction: outbound}}
  out-odd:
    address: "127.0.0.1:15102"
    protocol: TCP
    transparent: {mode: tproxy, direction: outbound, ports: [7100]}
  in: {address: "*:15106", protocol: TCP, transparent: {mode: tproxy, direction: inbound}}
  in-kept:
    address: "*:15107"
    protocol: TCP
    transparent: {mode: tproxy, direction: inbound, ports: [8002, 8003], keepClientAddress: true}
routes:
  - {name: named, matches: [{destinations: ["*:8003"]}], listeners: [in-kept],
     backendRefs: [{name: app}]}
  - {name: near, matches: [{destinations: ["203.0.113.0/24:1", "[fd78::/64]:1"]}], listeners: [out],
     backendRefs: [{name: db}]}
  - {name: odd, listeners: [out-odd], backendRefs: [{name: db}]}
backends:
  db: {endpoints: [10.77.1.1:7001]}
  app: {endpoints: [10.77.1.2:8001]}
"""


@pytest.fixture(
    scope="module", params=[pytest.param("sockmap", marks=pytest.mark.kernel), "splice2"]
)
def proxy(pod: Pod, request: pytest.FixtureRequest) -> Iterator[Proxy]:
    with pod.intercepting(POLICY, request.param) as proxy:
        yield proxy


@pytest.fixture(scope="module", autouse=True)
def _servers(pod: Pod) -> None:
    for family in (4, 6):
        pod.serve(f"app{family}", pod.pod, POD[family], 8001)
        pod.serve(f"kept{family}", pod.pod, POD[family], 8002)
        pod.serve(f"far{family}", pod.outside, FAR[family], 9001)
    pod.serve("db", pod.outside, OUTSIDE[4], 7001)


@pytest.mark.parametrize("family", [4, 6])
def test_outbound_goes_where_it_was_going(pod: Pod, proxy: Proxy, family: int) -> None:
    client = pod.dial(pod.pod, FAR[family], 9001)
    mine = client.getsockname()[1]
    answer = exchange(client)
    assert (answer.whole, answer.name, answer.near) == (True, f"far{family}", FAR[family])
    record = proxy.record(mine)
    assert (record["listener"], record["backend"]) == ("out", "passthrough")
    shown = FAR[4] if family == 4 else f"[{FAR[6]}]"
    assert record["destination"] == record["endpoint"] == f"{shown}:9001"


@pytest.mark.parametrize("host", ["203.0.113.200", "fd78::77"])
def test_outbound_is_routed_by_where_it_was_going(pod: Pod, proxy: Proxy, host: str) -> None:
    answer = exchange(pod.dial(pod.pod, host, 1))
    assert (answer.whole, answer.name) == (True, "db")


def test_a_port_has_a_listener_of_its_own(pod: Pod, proxy: Proxy) -> None:
    client = pod.dial(pod.pod, "203.0.113.200", 7100)
    mine = client.getsockname()[1]
    answer = exchange(client)
    assert (answer.whole, answer.name) == (True, "db")
    assert proxy.record(mine)["listener"] == "out-odd"


@pytest.mark.parametrize("family", [4, 6])
def test_inbound_goes_to_the_application(pod: Pod, proxy: Proxy, family: int) -> None:
    client = pod.dial(pod.outside, POD[family], 8001)
    mine = client.getsockname()[1]
    answer = exchange(client)
    assert (answer.whole, answer.name, answer.near) == (True, f"app{family}", POD[family])
    record = proxy.record(mine)
    assert (record["listener"], record["backend"]) == ("in", "passthrough")


@pytest.mark.parametrize("family", [4, 6])
def test_the_application_sees_the_client(pod: Pod, proxy: Proxy, family: int) -> None:
    kernel = rounds = 0
    # a busy machine may have the client end before its pair is spliced
    while rounds < 3 or (proxy.datapath == "sockmap" and not kernel and rounds < 30):
        rounds += 1
        client = pod.dial(pod.outside, POD[family], 8002)
        mine = client.getsockname()[1]
        answer = exchange(client, sent=dribble(client))
        assert (answer.whole, answer.name) == (True, f"kept{family}")
        assert (answer.peer, answer.near) == (OUTSIDE[family], POD[family])
        record = proxy.record(mine)
        assert (record["listener"], record["reason"]) == ("in-kept", "done")
        kernel += record["kernel_in"]
    assert (kernel > 0) == (proxy.datapath == "sockmap")


def test_a_backend_of_the_policy_sees_the_client(pod: Pod, proxy: Proxy) -> None:
    answer = exchange(pod.dial(pod.outside, POD[4], 8003))
    assert (answer.whole, answer.name, answer.peer) == (True, "app4", OUTSIDE[4])


@pytest.mark.parametrize("family", [4, 6])
def test_others_see_the_proxy(pod: Pod, proxy: Proxy, family: int) -> None:
    assert exchange(pod.dial(pod.outside, POD[family], 8001)).peer == POD[family]


@pytest.mark.parametrize("family", [4, 6])
def test_the_application_to_itself_is_left_alone(pod: Pod, proxy: Proxy, family: int) -> None:
    accepted = proxy.stats()["connections"]["accepted"]
    assert exchange(pod.dial(pod.pod, POD[family], 8001)).peer == POD[family]
    assert proxy.stats()["connections"]["accepted"] == accepted


def test_who_connects_to_the_listener_itself_is_refused(pod: Pod, proxy: Proxy) -> None:
    for place, host, port in (
        (pod.pod, "127.0.0.1", 15101),
        (pod.outside, POD[4], 15106),
        (pod.outside, POD[6], 15101),
    ):
        record = proxy.record(pod.cut(place, host, port))
        assert (record["reason"], record["rule"]) == ("loop", "own-listener")
