"""The image as an engine runs it: who it runs as, what it may do, and how it ends."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import IMAGE, ROOT, Doctor, Engine, call, docker

MOST_BYTES = 70_000_000
USER = 65532


@pytest.fixture
def container(engine: Engine) -> Iterator[str]:
    """A running container with the image's own command, and the policy of the demo."""
    policy = f"{ROOT}/docker/demo/policy.yaml:/etc/l7proxy/policy.yaml:ro"
    name = docker("run", "-d", *engine.capabilities, "-v", policy, IMAGE)
    yield name
    docker("rm", "-f", name)


def healthy(name: str) -> None:
    end = time.monotonic() + 60
    while (found := docker("inspect", "-f", "{{.State.Health.Status}}", name)) != "healthy":
        logs = call("docker", "logs", name)
        assert time.monotonic() < end, f"{found}: {logs.stdout}{logs.stderr}"
        time.sleep(0.2)


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_it_is_small_and_nobody_in_it_is_root(engine: Engine) -> None:
    (image,) = json.loads(docker("image", "inspect", IMAGE))
    assert image["Size"] < MOST_BYTES
    assert image["Config"]["User"] == f"{USER}:{USER}"  # a number: Kubernetes' runAsNonRoot
    assert image["Config"]["Healthcheck"]["Test"][:2] == ["CMD", "l7proxy"]
    assert image["Config"]["StopSignal"] == "SIGTERM"
    assert call("docker", "run", "--rm", "--entrypoint", "/bin/sh", IMAGE).returncode != 0


def test_every_package_in_it_is_told_with_its_licence(engine: Engine) -> None:
    name = docker("create", IMAGE)
    try:
        listed = call("sh", "-c", f"docker export {name} | tar -t").stdout.splitlines()
    finally:
        docker("rm", name)
    packages = {one.rpartition("/")[2] for one in listed if one.startswith("var/lib/dpkg/status.d")}
    assert {"libbpf1", "libc6", "libssl3"} <= packages
    licences = {one.split("/")[3] for one in listed if one.endswith("/copyright")}
    assert licences == packages - {""}


def test_everything_that_is_imported_is_in_it(engine: Engine) -> None:
    """Each module of l7proxy, also those that are imported only when they are needed."""
    script = """
import ast, importlib, pathlib, pkgutil, curses, l7proxy
for one in pkgutil.walk_packages(l7proxy.__path__, "l7proxy."):
    if not one.name.endswith("__main__"):
        importlib.import_module(one.name)
for path in pathlib.Path(l7proxy.__path__[0]).rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names + ([node.module] if isinstance(node, ast.ImportFrom) else []):
            importlib.import_module(name)
curses.setupterm("xterm-256color", 1)
print("all there")
"""
    done = call("docker", "run", "--rm", "--entrypoint", "python3", IMAGE, "-c", script)
    assert done.stdout == "all there\n", done.stderr


def test_with_the_capabilities_it_splices(engine: Engine, doctor: Doctor) -> None:
    done = doctor(*engine.capabilities)
    assert done.returncode == 0, done.stdout


def test_without_them_it_runs_and_says_so(engine: Engine, doctor: Doctor) -> None:
    done = doctor()
    assert done.returncode == 1
    assert "missing BPF NET_ADMIN PERFMON" in done.stdout
    assert "it works, and relays" in done.stdout


def test_under_no_new_privs_it_says_that_they_have_no_effect(
    engine: Engine, doctor: Doctor
) -> None:
    done = doctor("--security-opt", "no-new-privileges", *engine.capabilities)
    assert done.returncode == 1
    assert "no_new_privs is set" in done.stdout


def test_under_no_new_privs_root_of_the_container_splices(engine: Engine, doctor: Doctor) -> None:
    done = doctor("--security-opt", "no-new-privileges", "--user=0", *engine.capabilities)
    assert done.returncode == 0, done.stdout


def test_a_container_is_healthy_splices_without_root_and_stops_in_order(container: str) -> None:
    healthy(container)
    pid = int(docker("inspect", "-f", "{{.State.Pid}}", container))
    supervisor = status(pid)
    assert supervisor["Uid"].split() == [str(USER)] * 4
    workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert workers
    for worker in map(int, workers):
        found = status(worker)
        nothing = {found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")}
        assert nothing == {"0" * 16}
        assert found["NoNewPrivs"] == "1"  # so what the bounding set still has cannot be gained
        assert found["Uid"].split()[0] == str(USER)
    assert "ready datapath=sockmap" in call("docker", "logs", container).stderr
    began = time.monotonic()
    docker("stop", container)
    assert time.monotonic() - began < 9, "the engine has killed it"
    assert docker("inspect", "-f", "{{.State.ExitCode}}", container) == "0"


def test_the_check_fails_where_nothing_answers(engine: Engine) -> None:
    done = call("docker", "run", "--rm", IMAGE, "health", "--admin", "/run/l7proxy/admin.sock")
    assert done.returncode == 1
