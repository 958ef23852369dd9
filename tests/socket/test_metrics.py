"""`GET /metrics` of a proxy that has something to tell."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from peers import Backend, Peer, connect, refusing_port
from prometheus_client.parser import text_string_to_metric_families
from proxy import DATAPATHS, Proxy, cpu_seconds, descriptors, until
from scrapes import Scrape, no_way_back

from l7proxy import __version__

pytestmark = pytest.mark.net

POLICY = """\
listeners:
  web: {{address: "127.0.0.1:0"}}
  raw: {{address: "127.0.0.1:0", protocol: TCP}}
routes:
  - name: api
    listeners: [web]
    splice: connection
    matches: [{{path: /api}}]
    backendRefs: [{{name: app}}]
  - name: dead
    listeners: [web]
    splice: connection
    matches: [{{path: /dead}}]
    backendRefs: [{{name: gone}}]
  - {{name: stream, listeners: [raw], backendRefs: [{{name: app}}]}}
backends:
  app: {{endpoints: ["127.0.0.1:{app}"]}}
  gone: {{endpoints: ["127.0.0.1:{gone}"]}}
"""


@pytest.fixture
def backend() -> Iterator[Backend]:
    one = Backend()
    yield one
    one.finish()
    one.close()


@contextlib.contextmanager
def running(backend: Backend, datapath: str = "splice2", workers: int = 1) -> Iterator[Proxy]:
    policy = POLICY.format(app=backend.port, gone=refusing_port())
    with Proxy(policy, datapath, workers=workers) as proxy:
        yield proxy
        proxy.stop()


@pytest.fixture(scope="module")
def quiet() -> Iterator[Proxy]:
    """One with two workers and nothing to do."""
    nobody = Backend()
    with running(nobody, workers=2) as proxy:
        yield proxy
    nobody.close()


def answer(peer: Peer) -> None:
    """One request, one answer, the end."""
    peer.head()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").half_close().rest()


def ask(proxy: Proxy, path: str, count: int = 1) -> None:
    for _ in range(count):
        with connect(proxy.address("web")) as client:
            client.send(b"GET %s HTTP/1.1\r\nHost: app.test\r\n\r\n" % path.encode())
            client.half_close().rest()
    proxy.settled()


def is_replaced(proxy: Proxy, times: int) -> bool:
    """Whether so many workers have ended, and each has a successor."""
    workers = proxy.stats()["workers"]
    return bool(workers["restarts"] == times and workers["running"] == 2)


def test_where_connections_went_and_how_they_ended(backend: Backend) -> None:
    backend.play(answer)
    with running(backend, workers=2) as proxy:
        ask(proxy, "/api", 3)
        ask(proxy, "/dead")
        ask(proxy, "/none", 2)
        scrape = Scrape(proxy)
        ends = {
            tuple(one.labels[name] for name in ("listener", "route", "backend", "reason")): one
            for one in scrape.find("l7proxy_connections_ended_total")
        }
        assert {key: one.value for key, one in ends.items()} == {
            ("web", "api", "app", "done"): 3,
            ("web", "dead", "gone", "dial_refused"): 1,
            ("web", "", "", "local_reply"): 2,
        }
        endpoint = f"127.0.0.1:{backend.port}"
        assert ends["web", "api", "app", "done"].labels["endpoint"] == endpoint
        assert scrape["l7proxy_connections_accepted_total", "listener", "web"] == 6
        assert scrape["l7proxy_listener_connections", "listener", "web"] == 0
        assert scrape["l7proxy_connections"] == 0
        moved = ("l7proxy_connection_bytes_total", "route", "api", "direction")
        assert scrape[*moved, "from_backend"] == 3 * 43
        assert scrape[*moved, "from_client"] == 3 * 37
        for name, who in (("head", "web"), ("dial", "app"), ("first_byte", "app")):
            series = f"l7proxy_{name}_duration_seconds"
            label = ("listener" if name == "head" else "backend", who)
            count = 6 if name == "head" else 3
            assert scrape[f"{series}_count", *label] == count
            assert scrape[f"{series}_bucket", *label, "le", "10.0"] == count
            assert 0 < scrape[f"{series}_sum", *label] < 10
        assert scrape["l7proxy_endpoint_up", "endpoint", endpoint] == 1
        assert scrape["l7proxy_endpoint_failures_total", "backend", "gone"] == 1
        assert scrape["l7proxy_backend_endpoints", "backend", "app", "state", "up"] == 1
        assert scrape["l7proxy_build_info", "version", __version__, "datapath", "splice2"] == 1


def test_the_text_format_for_whoever_does_not_ask_for_openmetrics(quiet: Proxy) -> None:
    status, headers, body = quiet.get("/metrics")
    assert status == 200
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert headers["Vary"] == "Accept"
    plain = {
        sample.name: sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    named = {one.name: one.value for one in Scrape(quiet).samples}
    assert plain.keys() == named.keys()


def test_names_are_as_prometheus_wants_them(quiet: Proxy) -> None:
    """https://prometheus.io/docs/practices/naming/: prefix, base units, `_total`."""
    for family in Scrape(quiet).families:
        assert family.name.startswith(("l7proxy_", "process_")), family.name
        assert family.documentation.endswith("."), family.name
        units = {"milliseconds", "ms", "us", "kilobytes", "kib", "percent"}
        assert units.isdisjoint(family.name.split("_")), family.name
        for sample in family.samples:
            assert sample.name.endswith("_total") is (family.type == "counter")
            assert {"le", "quantile", "job", "instance"}.isdisjoint(
                sample.labels.keys() - ({"le"} if family.type == "histogram" else set())
            )


@pytest.mark.parametrize("datapath", DATAPATHS)
def test_bytes_are_seen_while_they_flow(backend: Backend, datapath: str) -> None:
    way = "kernel" if datapath == "sockmap" else "relay"
    turns, piece = 10, 8_000

    def script(peer: Peer) -> None:
        peer.send(b"hello")
        for _ in range(turns):
            peer.read(1)
            peer.send(bytes(piece))
        peer.rest()

    backend.play(script)
    with running(backend, datapath) as proxy, connect(proxy.address("raw")) as client:
        client.read(5)
        until(lambda: Scrape(proxy)["l7proxy_pairs", "way", way], "the pair is open")
        total = "l7proxy_transferred_bytes_total"
        for turn in range(1, turns + 1):
            client.send(b".").read(piece)
            # a relay counts what it has written: a moment after the client may have it
            wanted = 5 + turn * piece
            until(
                lambda w=wanted: Scrape(proxy)[total, "direction", "from_backend"] == w, "it shows"
            )
            now = Scrape(proxy)
            assert now[total, "direction", "from_client"] == turn
            assert now[total, "direction", "from_backend", "way", way] >= turn * piece
            assert now["l7proxy_pairs", "way", way] == 1
            assert now["l7proxy_listener_connections", "listener", "raw"] == 1
            assert now.find("l7proxy_connections_ended_total") == []
        client.half_close().rest()
        proxy.settled()
        end = Scrape(proxy)
        moved = "l7proxy_connection_bytes_total"
        assert end[moved, "direction", "from_backend"] == 5 + turns * piece
        assert end[moved, "direction", "from_client", "way", way] == turns
        by_reference = end["l7proxy_relayed_by_reference_bytes_total", "direction", "from_client"]
        assert by_reference == (turns if datapath == "splice2" else 0)
        if way == "kernel":
            assert end["l7proxy_drains_total"] == 2
            assert end["l7proxy_splices_total"] == 1
            assert end["l7proxy_kernel_drops_total"] == 0


def test_no_counter_goes_back(backend: Backend) -> None:
    """Across reloads, refused ones too, the death of each worker, and names that go and come."""
    backend.play(answer)
    with running(backend, workers=2) as proxy:
        policy = proxy.policy()
        ask(proxy, "/api", 5)
        last = Scrape(proxy)

        def look() -> Scrape:
            nonlocal last
            before, last = last, Scrape(proxy)
            no_way_back(before, last)
            return last

        without = policy.replace("name: api", "name: other")
        for turn, text in enumerate((without, policy), start=1):
            proxy.reload(text)
            ask(proxy, "/api", 5)
            assert look()["l7proxy_reloads_total", "result", "ok"] == turn
        assert last["l7proxy_connections_ended_total", "route", "api", "reason", "done"] == 10
        assert last["l7proxy_connections_ended_total", "route", "other"] == 5
        proxy.reload("nonsense", ok=False)
        assert look()["l7proxy_policy_last_reload_successful"] == 0
        assert last["l7proxy_reloads_total", "result", "failed"] == 1
        for number, pid in enumerate(proxy.workers, start=1):
            os.kill(pid, signal.SIGKILL)
            until(lambda n=number: is_replaced(proxy, n), "there is another worker")
            ask(proxy, "/api", 5)
            look()
            assert last["l7proxy_worker_restarts_total"] == number
        assert last["l7proxy_connections_ended_total", "route", "api", "reason", "done"] == 20
        assert last["l7proxy_connections_accepted_total"] == 25
        assert last["l7proxy_first_byte_duration_seconds_count", "backend", "app"] == 25


@pytest.mark.kernel
def test_a_connection_that_is_adopted_is_one_connection(backend: Backend) -> None:
    def script(peer: Peer) -> None:
        peer.send(b"hello").read(1)
        peer.send(bytes(1000)).rest()

    backend.play(script)
    with running(backend, "sockmap") as proxy, connect(proxy.address("raw")) as client:
        client.read(5)
        until(lambda: Scrape(proxy)["l7proxy_pairs_kept"] == 1, "the pair is kept")
        before = Scrape(proxy)
        os.kill(proxy.workers[0], signal.SIGKILL)
        until(lambda: Scrape(proxy)["l7proxy_adoptions_total"] == 1, "it is adopted")
        client.send(b".").read(1000)
        moved = ("l7proxy_transferred_bytes_total", "direction", "from_backend")
        until(lambda: Scrape(proxy)[moved] == 1005, "bytes show")
        client.half_close().rest()
        proxy.settled()
        after = Scrape(proxy)
        no_way_back(before, after)
        assert after["l7proxy_connections_accepted_total"] == 1
        assert after["l7proxy_connections_ended_total", "route", "stream", "reason", "done"] == 1
        assert after["l7proxy_connections_lost_total"] == 0
        assert after["l7proxy_connection_bytes_total", "direction", "from_backend"] == 1005
        proxy.check_log()


def test_a_stopped_worker_does_not_stop_a_scrape(backend: Backend) -> None:
    backend.play(answer)
    with running(backend, workers=2) as proxy:
        ask(proxy, "/api")
        stopped = proxy.workers
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            scrape = Scrape(proxy)
            assert time.monotonic() - began < 20
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        assert scrape["l7proxy_connections_ended_total"] == 1
        assert scrape["l7proxy_workers", "state", "running"] == 2


def test_figures_of_processes_are_those_of_the_kernel(quiet: Proxy) -> None:
    scrape = Scrape(quiet)
    assert len(scrape.find("l7proxy_worker_cpu_seconds_total")) == 2
    used = sum(cpu_seconds(pid) for pid in quiet.workers)
    assert 0 <= used - scrape["l7proxy_worker_cpu_seconds_total"] < 5
    for worker in ("0", "1"):
        assert scrape["l7proxy_worker_resident_memory_bytes", "worker", worker] > 1 << 20
        assert scrape["l7proxy_worker_open_fds", "worker", worker] > 5
    assert abs(scrape["process_open_fds"] - descriptors(quiet.process.pid)) <= 2
    words = Path(f"/proc/{quiet.process.pid}/stat").read_text().rpartition(")")[2].split()
    before = time.time()
    up = float(Path("/proc/uptime").read_text().split()[0])
    after = time.time()
    age = up - int(words[19]) / os.sysconf("SC_CLK_TCK")
    assert before - age - 2 < scrape["process_start_time_seconds"] < after - age + 2
