"""docker/systemd/ against what l7proxy offers, and, where systemd is installed, against systemd."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from l7proxy import cli
from l7proxy.net import privileges

FOLDER = Path(__file__).resolve().parents[2] / "docker" / "systemd"
SERVICE = FOLDER / "l7proxy.service"
SOCKET = FOLDER / "l7proxy-web.socket"
PROGRAM = "/opt/l7proxy/bin/l7proxy"
MOST_EXPOSURE = 2.0  # of 10, as `systemd-analyze security` counts

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here"
)


def settings(path: Path) -> dict[str, list[str]]:
    """Each setting with all its values. A unit file has several of a name, as no INI file has."""
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def options(name: str) -> list[str]:
    (command,) = settings(SERVICE)[name]
    program, *arguments = command.split()
    assert program == PROGRAM
    return arguments


def test_commands_are_those_that_there_are() -> None:
    run = cli._parser().parse_args(options("ExecStart"))
    reload = cli._parser().parse_args(options("ExecReload"))
    check = cli._parser().parse_args(options("ExecStartPre"))
    assert run.policy == check.policy
    assert run.admin == [reload.admin]
    (folder,) = settings(SERVICE)["RuntimeDirectory"]
    assert Path(reload.admin).parent == Path("/run") / folder


def test_it_has_what_splicing_takes_and_no_more() -> None:
    unit = settings(SERVICE)
    (ambient,), (bounding,) = unit["AmbientCapabilities"], unit["CapabilityBoundingSet"]
    names = frozenset(name.removeprefix("CAP_") for name in ambient.split())
    assert privileges.missing_for_splicing(names) == ()
    assert names == {"BPF", "NET_ADMIN", "PERFMON"}
    assert bounding == ambient
    assert any("bpf" in value.split() for value in unit["SystemCallFilter"])


def test_the_socket_goes_to_the_service_and_to_a_listener() -> None:
    unit = settings(SOCKET)
    assert unit["Service"] == [SERVICE.name]
    assert SOCKET.name in settings(SERVICE)["Sockets"]
    shown = re.search(r"^#\s+(\w+): \{address: \"\*:(\d+)\"\}$", SOCKET.read_text(), re.M)
    assert shown, "the comment shows the listener that it is for"
    assert unit["FileDescriptorName"] == [shown[1]]
    assert unit["ListenStream"] == [shown[2]]


@needs_systemd
def test_systemd_understands_them(tmp_path: Path) -> None:
    program = tmp_path / "l7proxy"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for path in (SERVICE, SOCKET):
        (tmp_path / path.name).write_text(path.read_text().replace(PROGRAM, str(program)))
    command = ["systemd-analyze", "verify", "--man=no"]
    paths = [str(tmp_path / path.name) for path in (SERVICE, SOCKET)]
    done = subprocess.run([*command, *paths], capture_output=True, text=True)
    about = [
        line for line in done.stderr.splitlines() if str(tmp_path) in line or "l7proxy" in line
    ]
    assert (done.returncode, about) == (0, [])


@needs_systemd
def test_it_is_hardened() -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(SERVICE)]
    done = subprocess.run(command, capture_output=True, text=True)
    level = re.search(r"Overall exposure level for l7proxy.service: ([\d.]+)", done.stdout)
    if level is None and "offline" in done.stderr:
        pytest.skip("this systemd-analyze reads no unit offline")
    assert level, done.stdout + done.stderr
    assert float(level[1]) <= MOST_EXPOSURE
