"""The agent's calls over HTTP, and the host of containers with agents in place of containers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from loadtest import agent, blast, checks, contenders, machine, meter
from loadtest.blast import Load
from loadtest.containers import ContainerHost, NoContainer, Remote
from loadtest.hosts import LoadTestError, Order

pytestmark = pytest.mark.net

DOCKER = machine.ROOT / "docker"
CONTENDER = "l7proxy-copy"  # needs no privilege, and is always installed
# An agent's port is fixed, so each has an address, and each run of the tests has its own ones.
_NET = f"127.{os.getpid() // 250 % 250 + 1}.{os.getpid() % 250 + 1}"
HOSTS = {"origin-1": f"{_NET}.2", "origin-2": f"{_NET}.3", CONTENDER: f"{_NET}.4"}
ALONE, NOBODY = f"{_NET}.5", f"{_NET}.6"


@contextmanager
def _agent(host: str) -> Iterator[subprocess.Popen[bytes]]:
    code = f"from loadtest import agent; raise SystemExit(agent.serve({host!r}))"
    environment = os.environ | {"PYTHONPATH": str(DOCKER)}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=DOCKER, env=environment)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()


@pytest.fixture
def agents() -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    blast.build()
    with ExitStack() as stack:
        yield {name: stack.enter_context(_agent(host)) for name, host in HOSTS.items()}


@pytest.fixture
def remote() -> Iterator[Remote]:
    with _agent(ALONE):
        remote = Remote("alone", ALONE)
        remote.connect()
        yield remote


def _order() -> Order:
    return Order(CONTENDER, workers=1, connections=100)


class TestHost:
    def test_a_contender_is_started_measured_and_ended(
        self, agents: dict[str, subprocess.Popen[bytes]]
    ) -> None:
        containers = ContainerHost(HOSTS)
        with containers.attended(), containers as host:
            assert len(host.origins.web) == 2
            assert "$" not in host.configuration(_order())
            assert f"{HOSTS['origin-2']}:9001" in host.configuration(_order())
            assert host.capacity(CONTENDER, 1) > 100
            with host.running(_order()) as running:
                checks.check(running.addresses, host.origins)
                assert running.addresses.web == (f"{HOSTS[CONTENDER]}:{contenders.WEB}",)
                before = running.own(memory=False)
                load = Load(running.addresses.web, connections=4, warmup=0.1, seconds=0.5)
                result = blast.measure(blast.build(), load)
                after = running.own()
                assert result.failed == 0
                assert result.done > 0
                assert before.cpu < after.cpu
                assert before.switches < after.switches
                assert before.pss_kib == 0
                assert after.pss_kib > 1000
                assert running.pss_kib() > 1000
                assert "error" not in running.stats()
                assert running.problems() == []
                # Not the agent itself, and as this machine's /proc has them.
                parents = {meter.read().processes[pid].parent for pid in after.pids}
                assert parents == {agents[CONTENDER].pid}
            with pytest.raises(LoadTestError):
                checks.check(running.addresses, host.origins)
        for process in agents.values():
            assert process.wait(60) == 0

    def test_direct_is_the_origins(self, agents: dict[str, subprocess.Popen[bytes]]) -> None:
        with ContainerHost(HOSTS) as host:
            with host.running(Order("direct", 1, 100)) as running:
                assert running.addresses == host.origins
                assert running.own().pids == frozenset()
            origins = {agents["origin-1"].pid, agents["origin-2"].pid}
            processes = meter.read().processes
            assert {processes[pid].parent for pid in host.origin_pids()} == origins
            assert host.configuration(Order("direct", 1, 100)) == ""

    def test_an_end_is_told(self, agents: dict[str, subprocess.Popen[bytes]]) -> None:
        with ContainerHost(HOSTS) as host:
            with host.running(_order()) as running:
                _kill(running.own().pids)
                _until(lambda: running.problems() != [])
                assert "the contender ended" in running.problems()[0]
            assert host.problems() == []
            _kill(host.origin_pids())
            _until(lambda: len(host.problems()) == 2)

    def test_versions(
        self, agents: dict[str, subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("loadtest.containers.RESOLVE", 0.0)
        absent = HOSTS | {"haproxy-tcp": "no-such-container.invalid"}
        with ContainerHost(absent) as host:
            found = host.versions(["direct", CONTENDER, "haproxy-tcp"])
        assert found["direct"] == "no proxy"
        assert found[CONTENDER] == contenders.version(contenders.by_name(CONTENDER))
        assert found["haproxy-tcp"] == ""

    def test_not_without_the_processes(
        self, agents: dict[str, subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def connect(remote: Remote, patience: float = 0) -> None:
            known(remote, 60)
            remote.mark = "load-elsewhere"  # as if /proc were that of another pid namespace

        known = Remote.connect
        monkeypatch.setattr(Remote, "connect", connect)
        with pytest.raises(LoadTestError, match="pid: host"):
            ContainerHost(HOSTS).__enter__()


class TestCalls:
    def test_a_mark_that_fits(self, remote: Remote) -> None:
        assert len(remote.mark) == 15
        assert len(remote.pids()) == 0

    def test_an_error_is_the_callers(self, remote: Remote) -> None:
        with pytest.raises(LoadTestError, match="alone: no contender 'squid'"):
            remote.call("version", name="squid")
        with pytest.raises(LoadTestError, match=r"alone: .*unexpected keyword"):
            remote.call("version", nam="direct")

    def test_no_other_call(self, remote: Remote) -> None:
        for name in ("close", "call", "_setup", "__init__", "leaving", ""):
            with pytest.raises(LoadTestError, match="no call"):
                remote.call(name)

    def test_a_start_that_fails_says_why(self, remote: Remote) -> None:
        nowhere = {"web": ["192.0.2.1:1"] * 2, "bulk": [], "echo": ["192.0.2.1:1"] * 2}
        order = {"contender": CONTENDER, "workers": 1, "connections": 10}
        with pytest.raises(LoadTestError, match=r"ended at its start: .*cannot listen"):
            remote.call("start", order=order, listen="192.0.2.1", origins=nowhere)
        assert remote.call("problems") == []
        assert remote.call("own", memory=True)["pids"] == []

    def test_nothing_runs(self, remote: Remote) -> None:
        assert remote.call("stats") == {}
        assert remote.call("pss_kib") == 0
        remote.call("stop")

    def test_no_agent(self) -> None:
        with pytest.raises(LoadTestError, match="gone: hello"):
            Remote("gone", NOBODY).connect(patience=0.1)
        with pytest.raises(NoContainer, match=r"no-such-container\.invalid"):
            Remote("gone", "no-such-container.invalid").connect(patience=0)

    def test_sigterm_ends_what_runs_too(self) -> None:
        blast.build()
        with _agent(ALONE) as process:
            remote = Remote("origin-1", ALONE)
            remote.connect()
            remote.call("origin", listen=ALONE)
            [origin] = remote.pids()
            process.terminate()
            assert process.wait(60) == 0
            assert not Path(f"/proc/{origin}").exists()


def test_addresses_come_back_as_they_were() -> None:
    given = {"web": ["a:1", "b:1"], "bulk": ["a:2"], "echo": []}
    assert agent.addresses(given).web == ("a:1", "b:1")
    assert agent.addresses(given).echo == ()


def _kill(pids: frozenset[int]) -> None:
    for pid in pids:
        os.kill(pid, 9)


def _until(true: object, seconds: float = 60.0) -> None:
    assert callable(true)
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
