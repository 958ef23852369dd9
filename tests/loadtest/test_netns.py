"""Namespaces: they reach each other, are set up, and leave nothing behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest import machine, netns

# The client's namespace is that of the thread which makes the Lan: an interface eth0 would be added
# to it. So a process of its own does, and tells what it found.
pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

SCRIPT = """\
import socket, sys
from loadtest import netns

assert netns.isolate()
lan = netns.Lan()

def listen(host):
    server = socket.create_server((host, 9000))
    return server

def dial(host):
    with socket.create_connection((host, 9000), 5) as connection:
        return connection.getsockname()[0]

def origins():
    return [listen(host) for host in netns.ORIGINS]

servers = netns.inside(lan.origins, origins)
contender = netns.inside(lan.contender, lambda: listen(netns.CONTENDER))
assert [dial(host) for host in netns.ORIGINS] == [netns.CLIENT] * 2
assert dial(netns.CONTENDER) == netns.CLIENT
assert netns.inside(lan.contender, lambda: dial(netns.ORIGINS[0])) == netns.CONTENDER
for place in (lan.contender, lan.origins):
    text = netns.inside(place, lambda: open("/proc/sys/net/ipv4/ip_local_port_range").read())
    assert text.split() == ["10000", "65535"], text
print("ok")
"""


@pytest.fixture
def before() -> set[str]:
    return {interface for _, interface in socket.if_nameindex()}


def _run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=machine.ROOT / "docker",
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_client_contender_and_origins_reach_each_other(before: set[str]) -> None:
    assert _run(SCRIPT) == "ok"
    assert {interface for _, interface in socket.if_nameindex()} == before


CLOSING = """\
import os, socket
from loadtest import netns

def held():
    links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
    return sum("net:" in os.readlink(link) for link in links if os.path.lexists(link))

assert netns.isolate()
for _ in range(3):
    lan = netns.Lan()
    assert held() == 4
    lan.close()
    lan.close()
print(held(), [name for _, name in socket.if_nameindex()])
"""


def test_closing_leaves_no_namespace_and_no_interface() -> None:
    assert _run(CLOSING) == "0 ['lo']"


def test_an_error_inside_comes_out() -> None:
    namespace = netns.create()
    try:
        with pytest.raises(ZeroDivisionError):
            netns.inside(namespace, lambda: 1 // 0)
        inner = netns.inside(namespace, lambda: os.readlink("/proc/thread-self/ns/net"))
        assert inner != os.readlink("/proc/self/ns/net")
        assert Path(namespace.path).exists()
    finally:
        namespace.close()
