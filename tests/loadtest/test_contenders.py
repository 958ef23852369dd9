"""Each configuration renders, and its own program accepts it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from loadtest import contenders
from loadtest.contenders import CONTENDERS, Contender, Setup
from loadtest.hosts import Addresses, LoadTestError, Order
from loadtest.machine import ROOT

ORIGINS = Addresses(
    web=("127.0.0.1:9001", "127.0.0.2:9011"),
    bulk=("127.0.0.1:9001", "127.0.0.2:9011"),
    echo=("127.0.0.1:9002", "127.0.0.2:9012"),
)
PROXIES = [contender for contender in CONTENDERS if contender.program]


def _setup(contender: Contender, scratch: Path, **more: int) -> Setup:
    order = {"workers": 3, "connections": 2000} | more
    return Setup(Order(contender.name, **order), "127.0.0.9", ORIGINS, scratch)


@pytest.mark.parametrize("contender", PROXIES, ids=lambda one: one.name)
def test_everybody_listens_and_balances_as_ordered(contender: Contender, tmp_path: Path) -> None:
    setup = _setup(contender, tmp_path)
    text = contenders.render(contender, setup)
    ports = [contenders.WEB, contenders.BULK] + [contenders.ECHO] * contender.tcp
    for port in ports:
        assert str(port) in text
    origins = [*ORIGINS.web, *(ORIGINS.echo if contender.tcp else ())]
    for address in origins:
        host, _, port = address.rpartition(":")
        assert host in text
        assert port in text
    argv = contenders.argv(contender, setup) if contenders.program(contender) else ["3"]
    assert "3" in argv or "nbthread 3" in text or "worker_processes 3" in text


@pytest.mark.parametrize("contender", PROXIES, ids=lambda one: one.name)
def test_its_program_accepts_it(contender: Contender, tmp_path: Path) -> None:
    if not contenders.version(contender):
        pytest.skip(f"not installed: {contenders.INSTALL[contender.program]}")
    for connections in (1024, 22_500):
        setup = _setup(contender, tmp_path, connections=connections)
        config = contenders.config_path(contender, setup)
        config.write_text(contenders.render(contender, setup))
        done = subprocess.run(
            contenders.check_argv(contender, setup),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_wrong_configuration_is_not_accepted(tmp_path: Path) -> None:
    """So that the test above can fail."""
    contender = contenders.by_name("l7proxy-tcp")
    setup = _setup(contender, tmp_path)
    text = contenders.render(contender, setup).replace("endpoints", "end points")
    contenders.config_path(contender, setup).write_text(text)
    argv = contenders.check_argv(contender, setup)
    assert subprocess.run(argv, cwd=ROOT, capture_output=True, check=False).returncode != 0


def test_haproxy_is_given_no_more_than_it_may_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contenders, "_descriptors", lambda: 20_000)
    contender = contenders.by_name("haproxy-tcp")
    text = contenders.render(contender, _setup(contender, tmp_path, connections=22_500))
    words = text.split()
    most, pipes = int(words[words.index("maxconn") + 1]), int(words[words.index("maxpipes") + 1])
    assert 2 * most + 2 * pipes < 20_000
    assert most >= contenders.capacity(contender, 4) - 100
    text = contenders.render(contender, _setup(contender, tmp_path, connections=2000))
    assert "maxconn 2000" in text
    assert "maxpipes 500" in text


def test_capacity_is_of_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "_descriptors", lambda: 20_000)
    of = {name: contenders.capacity(contenders.by_name(name), 4) for name in contenders.BY_NAME}
    assert of["haproxy-tcp"] == of["envoy-tcp"] == (20_000 - contenders.SPARE) // 2
    assert of["l7proxy-sockmap"] == of["nginx-stream"] == 4 * of["haproxy-tcp"]


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("starting\n", None),
        ("ready datapath=sockmap workers=3\n", ""),
        ("ready datapath=splice2 workers=3\n", "wanted sockmap x 3"),
        ("ready datapath=sockmap workers=2\n", "wanted sockmap x 3"),
    ],
)
def test_l7proxy_must_come_up_as_ordered(log: str, said: str | None, tmp_path: Path) -> None:
    contender = contenders.by_name("l7proxy-sockmap")
    found = contenders.came_up(contender, _setup(contender, tmp_path), log)
    assert found == said if not said else said in (found or "")


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/", "2.6.12-1+deb12u4"),
        ("nginx version: nginx/1.22.1", "1.22.1"),
        ("l7proxy 0.1.0", "0.1.0"),
        ("lib/python3.11/envoy  version: 9e558093/1.40.0/Clean/RELEASE/BoringSSL", "1.40.0"),
        ("something else", "something else"),
        ("", ""),
    ],
)
def test_versions(line: str, number: str) -> None:
    assert contenders.version_in(line) == number


def test_a_name_that_nobody_has() -> None:
    with pytest.raises(LoadTestError, match=r"no contender 'haproxy': direct, l7proxy-sockmap"):
        contenders.by_name("haproxy")
