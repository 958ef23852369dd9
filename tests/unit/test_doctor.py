"""The doctor, on machines made of files."""

from __future__ import annotations

import json
import resource
from dataclasses import dataclass
from pathlib import Path

import pytest

from l7proxy import doctor
from l7proxy.doctor import Check, Diagnosis, State, diagnose, prove_sockmap, splicing
from l7proxy.doctor.capacity import open_files
from l7proxy.errors import DatapathUnavailable
from l7proxy.net import privileges

GOOD = {
    "proc/sys/kernel/unprivileged_bpf_disabled": "2",
    "proc/sys/net/ipv4/ip_local_port_range": "32768\t60999",
    "proc/sys/net/core/somaxconn": "4096",
    "proc/sys/net/ipv4/tcp_rmem": "4096\t131072\t6291456",
    "proc/sys/net/ipv4/tcp_wmem": "4096\t16384\t4194304",
    "proc/sys/net/netfilter/nf_conntrack_max": "262144",
    "proc/sys/net/netfilter/nf_conntrack_count": "17",
    "sys/kernel/btf/vmlinux": "x" * 4096,
    "sys/kernel/security/lockdown": "[none] integrity confidentiality",
}


@dataclass(frozen=True)
class Behaviour:
    name: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class Proof:
    checks: tuple[Behaviour, ...]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)


def proven() -> Proof:
    return Proof((Behaviour("overlap", True, "12 skbs trimmed"), Behaviour("fin", True)))


def wrong() -> Proof:
    return Proof((Behaviour("overlap", False, "7 bytes twice"), Behaviour("fin", True)))


def impossible() -> Proof:
    raise DatapathUnavailable("loading: not permitted (EPERM)", "sudo l7proxy")


@pytest.fixture(autouse=True)
def _capable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileges, "held", lambda: frozenset({"BPF", "NET_ADMIN", "PERFMON"}))


def machine(tmp_path: Path, **changed: str | None) -> str:
    """A root directory with GOOD in it; `changed` by the last part of the path, None: not there."""
    for name, text in GOOD.items():
        text = changed.get(name.rpartition("/")[2], text)
        if text is not None:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text + "\n")
    return str(tmp_path)


def find(diagnosis: Diagnosis, name: str) -> Check:
    (found,) = [check for check in diagnosis.checks if check.name == name]
    return found


def test_a_good_machine(tmp_path: Path) -> None:
    found = diagnose(machine(tmp_path), proven)
    assert found.can_splice
    bad = {check.name for check in found.checks if check.state is not State.OK}
    assert bad <= {"open files", "libbpf"}, "these two are this machine's"
    assert find(found, "self-test: overlap").value == "12 skbs trimmed"
    assert find(found, "self-test: fin").value == "passed"


CASES = [
    ("vmlinux", None, "btf", State.FAIL, "CONFIG_DEBUG_INFO_BTF"),
    (
        "unprivileged_bpf_disabled",
        "0",
        "unprivileged bpf",
        State.WARN,
        "unprivileged_bpf_disabled=2",
    ),
    ("unprivileged_bpf_disabled", None, "unprivileged bpf", State.OK, ""),
    ("lockdown", "none integrity [confidentiality]", "lockdown", State.WARN, "lockdown=integrity"),
    ("lockdown", "none [integrity] confidentiality", "lockdown", State.OK, ""),
    ("lockdown", None, "lockdown", State.OK, ""),
    ("ip_local_port_range", "50000 50100", "local ports", State.WARN, "ip_local_port_range="),
    ("ip_local_port_range", "rubbish", "local ports", State.WARN, "ip_local_port_range="),
    ("somaxconn", "128", "somaxconn", State.WARN, "net.core.somaxconn=4096"),
    ("tcp_rmem", "4096 87380 200000", "tcp_rmem", State.WARN, '"4096 87380 6291456"'),
    ("tcp_wmem", None, "tcp_wmem", State.WARN, "sysctl net.ipv4.tcp_wmem"),
    ("nf_conntrack_count", "250000", "conntrack", State.WARN, "nf_conntrack_max=524288"),
    ("nf_conntrack_max", None, "conntrack", State.OK, ""),
]


@pytest.mark.parametrize(("file", "text", "name", "state", "advice"), CASES)
def test_what_is_seen_and_what_to_do(
    tmp_path: Path, file: str, text: str | None, name: str, state: State, advice: str
) -> None:
    check = find(diagnose(machine(tmp_path, **{file: text}), proven), name)
    assert check.state is state
    assert advice in check.advice
    assert bool(check.advice) == (state is not State.OK), "advice exactly where there is a reason"


def test_a_kernel_that_fails_the_self_test(tmp_path: Path) -> None:
    found = diagnose(machine(tmp_path), wrong)
    assert not found.can_splice
    check = find(found, "self-test: overlap")
    assert check.state is State.FAIL
    assert check.value == "7 bytes twice"
    with pytest.raises(DatapathUnavailable, match="overlap: 7 bytes twice"):
        prove_sockmap(wrong)


def test_a_self_test_that_cannot_run(tmp_path: Path) -> None:
    found = diagnose(machine(tmp_path), impossible)
    assert not found.can_splice
    check = find(found, "self-test")
    assert "EPERM" in check.value
    assert check.advice == "sudo l7proxy"
    with pytest.raises(DatapathUnavailable, match="EPERM"):
        prove_sockmap(impossible)


def test_a_self_test_that_tried_nothing_proves_nothing(tmp_path: Path) -> None:
    assert not diagnose(machine(tmp_path), lambda: Proof(())).can_splice


def test_a_bug_in_the_self_test_keeps_nobody_from_relaying(monkeypatch: pytest.MonkeyPatch) -> None:
    from l7proxy.datapath import selftest

    def broken() -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(selftest, "prove_kernel", broken)
    with pytest.raises(DatapathUnavailable, match=r"self-test broke .ZeroDivisionError: a bug"):
        splicing.prove_kernel()


def test_without_capabilities_nothing_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privileges, "held", lambda: frozenset({"BPF"}))

    def tried() -> Proof:
        raise AssertionError

    found = diagnose(machine(tmp_path), tried)
    assert not found.can_splice
    check = find(found, "capabilities")
    assert check.state is State.FAIL
    assert check.value == "BPF; missing NET_ADMIN PERFMON"
    assert "--cap-add PERFMON" in check.advice
    with pytest.raises(DatapathUnavailable, match="missing CAP_NET_ADMIN, CAP_PERFMON"):
        prove_sockmap(tried)


@pytest.mark.parametrize(
    ("soft", "hard", "state", "says"),
    [
        (1024, 1024, State.WARN, "about 480 connections"),
        (1024, 1 << 20, State.OK, ""),
        (1024, resource.RLIM_INFINITY, State.OK, ""),
    ],
)
def test_open_files(soft: int, hard: int, state: State, says: str) -> None:
    check = open_files(soft, hard)
    assert check.state is state
    assert says in check.advice


def test_text_is_aligned_and_json_is_whole(tmp_path: Path) -> None:
    found = diagnose(machine(tmp_path), wrong)
    lines = found.as_text().splitlines()
    table = lines[: lines.index("")]
    column = max(len(check.name) for check in found.checks) + 8
    for line, below in zip(table, [*table[1:], ""], strict=True):
        if line.startswith(" "):
            assert line[:column].strip() == ""
            assert line[column:].startswith("-> ")
        else:
            assert line[4:6] == "  "
            assert line[column - 2 : column] == "  "
            assert line.startswith("ok ") or below.lstrip().startswith("-> ")
    assert "cannot splice here" in lines[-1]
    told = json.loads(found.as_json())
    assert told["can_splice"] is False
    assert [check["name"] for check in told["checks"]] == [check.name for check in found.checks]
    assert set(told["checks"][0]) == {"name", "state", "value", "advice"}


@pytest.mark.parametrize(("can_splice", "code"), [(True, 0), (False, 1)])
@pytest.mark.parametrize("as_json", [True, False])
def test_the_exit_code_tells(
    monkeypatch: pytest.MonkeyPatch, can_splice: bool, code: int, as_json: bool
) -> None:
    written: list[str] = []
    found = Diagnosis(can_splice, (Check("x", State.OK, "y"),))
    monkeypatch.setattr(doctor, "diagnose", lambda: found)
    assert doctor.main(as_json, written.append) == code
    assert written == [found.as_json() if as_json else found.as_text()]
