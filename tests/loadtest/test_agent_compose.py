"""The compose file is the one that the load test's code expects."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtest import contenders, machine
from loadtest.containers import SERVICES

HERE = machine.ROOT / "docker" / "loadtest"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((HERE / "compose.yaml").read_text())["services"]
    return found


def test_a_service_for_each_contender_and_origin(services: dict[str, Any]) -> None:
    assert services.keys() - {"client"} == SERVICES.keys()
    assert SERVICES.keys() >= {one.name for one in contenders.CONTENDERS if one.program}


def test_the_client_comes_after_all_of_them(services: dict[str, Any]) -> None:
    assert set(services["client"]["depends_on"]) == SERVICES.keys()


def test_alike_for_all_contenders(services: dict[str, Any]) -> None:
    alike = [
        {key: value for key, value in service.items() if key not in ("build", "cap_add")}
        for name, service in services.items()
        if name in contenders.BY_NAME
    ]
    assert all(one == alike[0] for one in alike)
    assert {"cpuset", "mem_limit", "sysctls"} <= alike[0].keys()


def test_only_l7proxy_has_more_capabilities(services: dict[str, Any]) -> None:
    for contender in contenders.CONTENDERS:
        if contender.program == "l7proxy":
            named = " ".join(services[contender.name]["cap_add"])
            assert named == (
                "NET_ADMIN ${LOADTEST_CAP_BPF:-BPF} ${LOADTEST_CAP_PERFMON:-PERFMON} SYS_PTRACE"
            )
        elif contender.program:
            assert services[contender.name]["cap_add"] == ["SYS_PTRACE"]


def test_an_image_for_each_program(services: dict[str, Any]) -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", (HERE / "Dockerfile").read_text(), re.M))
    for name, service in services.items():
        program = contenders.BY_NAME[name].program if name in contenders.BY_NAME else "tools"
        assert service["build"]["target"] == program
        assert "image" not in service  # two builds of one name at once fail
        assert program in targets
        assert (HERE / service["build"]["context"]).resolve() == machine.ROOT
        assert (machine.ROOT / service["build"]["dockerfile"]) == HERE / "Dockerfile"


def test_the_same_sysctls_as_without_docker(services: dict[str, Any]) -> None:
    for service in services.values():
        given = {key.replace(".", "/"): str(value) for key, value in service["sysctls"].items()}
        assert given.keys() == machine.SYSCTLS.keys()
        for name, values in machine.SYSCTLS.items():
            assert given[name] in values


def test_the_network_has_no_way_out(services: dict[str, Any]) -> None:
    networks = yaml.safe_load((HERE / "compose.yaml").read_text())["networks"]
    assert networks == {"load": {"internal": True}}
    for service in services.values():
        assert service["networks"] == ["load"]
        assert "ports" not in service


def test_what_the_files_beside_it_set_is_read_there() -> None:
    known = set(re.findall(r"\$\{(\w+):-", (HERE / "compose.yaml").read_text()))
    for line in (HERE / "old-engine.env").read_text().splitlines():
        if not line.startswith("#"):
            assert line.partition("=")[0] in known
    told = set(re.findall(r"LOADTEST_[A-Z_]+", (HERE / "README.md").read_text()))
    assert told == known


def test_each_image_gets_what_it_copies() -> None:
    """The classic builder reads .dockerignore alone, and from the top of the checkout."""
    allowed = [
        line.removeprefix("!")
        for line in (machine.ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    for dockerfile in (HERE / "Dockerfile", machine.ROOT / "docker" / "Dockerfile"):
        for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile.read_text(), re.M):
            for source in copied.split():
                assert (machine.ROOT / source).exists()
                inside = (one for one in allowed if Path(one) in (p := Path(source), *p.parents))
                assert next(inside, None) is not None, source
