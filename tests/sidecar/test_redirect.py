"""Connections that are redirected: in and out, of both families, whole, and only those meant."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from pod import FAR, OUTSIDE, PAYLOAD, POD, Pod, as_nobody, dribble, exchange
from proxy import PATIENCE, Proxy, until

from loadtest import netns

pytestmark = pytest.mark.net

POLICY = """\
listeners:
  out:
    address: "*:15001"
    protocol: TCP
    transparent:
      {mode: redirect, direction: outbound, exceptPorts: [9100], exceptBlocks: [203.0.113.64/26]}
  out-http: {address: "*:15002", transparent: {mode: redirect, direction: outbound, ports: [80]}}
  in:
    address: "*:15006"
    protocol: TCP
    transparent: {mode: redirect, direction: inbound}
  plain: {address: "*:8080", protocol: TCP}
routes:
  - {name: near, matches: [{destinations: [203.0.113.0/24, "[fd78::/64]:5432"]}], listeners: [out],
     backendRefs: [{name: db}]}
  - {name: odd, matches: [{destinations: ["203.0.113.0/24:5433"]}], listeners: [out],
     backendRefs: [{name: passthrough}]}
  - {name: other, listeners: [plain], backendRefs: [{name: db}]}
  - {name: hello, listeners: [out-http], hostnames: [hello.internal],
     respond: {status: 200, body: hello}}
backends:
  db: {endpoints: [10.77.1.1:7000]}
"""


@pytest.fixture(
    scope="module", params=[pytest.param("sockmap", marks=pytest.mark.kernel), "splice2"]
)
def proxy(pod: Pod, request: pytest.FixtureRequest) -> Iterator[Proxy]:
    with pod.intercepting(POLICY, request.param) as proxy:
        yield proxy


@pytest.fixture(scope="module", autouse=True)
def _servers(pod: Pod) -> None:
    """Applications in the pod, and all the rest outside, on a port for each family."""
    for family in (4, 6):
        pod.serve(f"app{family}", pod.pod, POD[family], 8000)
        pod.serve(f"far{family}", pod.outside, FAR[family], 9000)
        pod.serve(f"far{family}", pod.outside, FAR[family], 5433)
        pod.serve(f"exempt{family}", pod.outside, FAR[family], 9100)
    pod.serve("db", pod.outside, OUTSIDE[4], 7000)
    pod.serve("web", pod.outside, OUTSIDE[4], 9000)
    pod.serve("fenced", pod.outside, "203.0.113.70", 9000)


def test_outbound_goes_where_it_was_going(pod: Pod, proxy: Proxy) -> None:
    kernel = rounds = 0
    # a busy machine may have one of them end before it is spliced
    while rounds < 3 or (proxy.datapath == "sockmap" and not kernel and rounds < 30):
        rounds += 1
        client = pod.dial(pod.pod, OUTSIDE[4], 9000)
        port = client.getsockname()[1]
        answer = exchange(client, sent=dribble(client))
        assert answer.whole
        assert (answer.name, answer.near, answer.port) == ("web", OUTSIDE[4], 9000)
        record = proxy.record(port)
        assert (record["listener"], record["route"]) == ("out", "(unmatched)")
        assert (record["backend"], record["reason"]) == ("passthrough", "done")
        assert record["client"] == f"{POD[4]}:{port}"
        assert record["destination"] == record["endpoint"] == f"{OUTSIDE[4]}:9000"
        assert record["bytes_in"] == len(PAYLOAD)
        kernel += record["kernel_in"]
    assert (kernel > 0) == (proxy.datapath == "sockmap")


def test_outbound_of_ipv6(pod: Pod, proxy: Proxy) -> None:
    client = pod.dial(pod.pod, FAR[6], 9000)
    port = client.getsockname()[1]
    answer = exchange(client)
    assert (answer.whole, answer.name, answer.near) == (True, "far6", FAR[6])
    assert proxy.record(port)["destination"] == f"[{FAR[6]}]:9000"


def test_outbound_is_routed_by_where_it_was_going(pod: Pod, proxy: Proxy) -> None:
    """Nobody has these addresses and ports: the route alone knows better."""
    for host, port in (("203.0.113.200", 1), (FAR[4], 9000), ("fd78::77", 5432)):
        answer = exchange(pod.dial(pod.pod, host, port))
        assert (answer.whole, answer.name) == (True, "db")


def test_a_port_is_more_specific_than_none(pod: Pod, proxy: Proxy) -> None:
    answer = exchange(pod.dial(pod.pod, FAR[4], 5433))
    assert (answer.whole, answer.name, answer.port) == (True, "far4", 5433)


def test_a_port_has_a_listener_of_its_own(pod: Pod, proxy: Proxy) -> None:
    with pod.dial(pod.pod, "203.0.113.200", 80) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: hello.internal\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\nhello")


@pytest.mark.parametrize("family", [4, 6])
def test_inbound_goes_to_the_application(pod: Pod, proxy: Proxy, family: int) -> None:
    client = pod.dial(pod.outside, POD[family], 8000)
    port = client.getsockname()[1]
    answer = exchange(client)
    assert (answer.whole, answer.name) == (True, f"app{family}")
    record = proxy.record(port)
    assert (record["listener"], record["backend"]) == ("in", "passthrough")
    shown = POD[4] if family == 4 else f"[{POD[6]}]"
    assert record["destination"] == f"{shown}:8000"


@pytest.mark.parametrize(
    ("who", "host", "port"),
    [
        ("an exempt port", FAR[4], 9100),
        ("an exempt port of IPv6", FAR[6], 9100),
        ("an exempt block", "203.0.113.70", 9000),
        ("the application to itself", POD[4], 8000),
        ("the application to itself over IPv6", POD[6], 8000),
    ],
)
def test_left_alone(pod: Pod, proxy: Proxy, who: str, host: str, port: int) -> None:
    accepted = proxy.stats()["connections"]["accepted"]
    answer = exchange(pod.dial(pod.pod, host, port))
    assert answer.whole
    assert (answer.peer, answer.near, answer.port) == (client_host(host), host, port)
    assert proxy.stats()["connections"]["accepted"] == accepted, who


def client_host(host: str) -> str:
    return POD[6] if ":" in host else POD[4]


def test_what_the_proxy_s_own_user_dials_is_left_alone(pod: Pod, proxy: Proxy) -> None:
    accepted = proxy.stats()["connections"]["accepted"]
    address = OUTSIDE[4], 9000
    client = netns.inside(
        pod.pod, lambda: as_nobody(lambda: socket.create_connection(address, PATIENCE))
    )
    assert exchange(client).name == "web"
    assert proxy.stats()["connections"]["accepted"] == accepted


def test_a_listener_that_is_not_transparent_is_reached_as_it_is(pod: Pod, proxy: Proxy) -> None:
    client = pod.dial(pod.outside, POD[4], 8080)
    port = client.getsockname()[1]
    assert exchange(client).name == "db"
    assert proxy.record(port)["listener"] == "plain"


def test_udp_is_left_alone(pod: Pod, proxy: Proxy) -> None:
    def bound() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((OUTSIDE[4], 53))
        return sock

    with netns.inside(pod.outside, bound) as server:
        server.settimeout(PATIENCE)
        with netns.inside(pod.pod, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as one:
            one.sendto(b"?", (OUTSIDE[4], 53))
            assert server.recvfrom(9)[0] == b"?"


def test_an_application_that_is_not_there_is_refused(pod: Pod, proxy: Proxy) -> None:
    """The handshake is l7proxy's, so the client learns it a moment later."""
    record = proxy.record(pod.cut(pod.outside, POD[4], 8111))
    assert (record["backend"], record["reason"]) == ("passthrough", "dial_refused")


@pytest.mark.parametrize(
    ("place", "host", "port"),
    [("pod", "127.0.0.1", 15001), ("pod", "::1", 15006), ("outside", POD[4], 15001)],
)
def test_who_connects_to_the_listener_itself_is_refused(
    pod: Pod, proxy: Proxy, place: str, host: str, port: int
) -> None:
    """What was passed through would come again, and again."""
    before = proxy.stats()["errors"]["loop"]
    record = proxy.record(pod.cut(getattr(pod, place), host, port))
    assert (record["reason"], record["rule"]) == ("loop", "own-listener")
    assert proxy.stats()["errors"]["loop"] == before + 1
    until(lambda: "loop refused" in proxy.log(), "it is told")


def test_status_counts_and_compares(pod: Pod, proxy: Proxy) -> None:
    exchange(pod.dial(pod.outside, POD[4], 8000))
    path = str(proxy.directory / "policy.yaml")
    said = pod.sidecar("status", path)
    assert said.startswith("in place, as this policy asks for\n")
    assert "redirect-inbound-in: " in said
    assert "redirect-inbound-in: 0 " not in said
    assert "nobody listens" not in said
    other = pod.sidecar("status", path, "--except-ports", "22", code=4)
    assert other.startswith("in place, and differs")
