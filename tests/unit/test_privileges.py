"""What a worker gives up: tried in a child, because it cannot be undone."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from l7proxy.errors import StartupError
from l7proxy.net import privileges
from l7proxy.net.privileges import Account

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def in_child(action: Callable[[], object]) -> object:
    """What the action answers, in a process of its own; its exception as text."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer: object = action()
        except BaseException as error:
            answer = repr(error)
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as file:
        return json.load(file)


def status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_bytes().decode().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@needs_root
def test_what_is_permitted_becomes_effective() -> None:
    def action() -> object:
        before = status()["CapPrm"]
        privileges._capset(0, int(before, 16), 0)
        none = privileges.held()
        privileges.use_permitted()
        found = status()
        return [len(none), found["CapEff"] == before, found["CapPrm"] == before]

    assert in_child(action) == [0, True, True]


def test_where_nothing_is_permitted_nothing_is_used() -> None:
    def action() -> object:
        privileges._capset(0, 0, 0)
        privileges.use_permitted()
        return sorted(privileges.held())

    assert in_child(action) == []


@needs_root
def test_root_becomes_another_user_without_any_capability() -> None:
    def action() -> object:
        privileges.drop(Account("someone", 12345, 12346))
        found = status()
        regain = []
        for attempt in (lambda: os.setuid(0), lambda: os.setgroups([0]), lambda: os.chroot("/")):
            try:
                attempt()
            except PermissionError:
                regain.append("refused")
        return [
            os.getresuid(),
            os.getresgid(),
            os.getgroups(),
            [found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
            found["NoNewPrivs"],
            regain,
        ]

    assert in_child(action) == [
        [12345] * 3,
        [12346] * 3,
        [],
        ["0" * 16] * 5,
        "1",
        ["refused"] * 3,
    ]


def test_without_another_user_only_capabilities_go() -> None:
    def action() -> object:
        privileges.drop(None)
        found = status()
        return [os.getuid(), found["CapPrm"], found["CapEff"], found["NoNewPrivs"]]

    assert in_child(action) == [os.getuid(), "0" * 16, "0" * 16, "1"]


def test_dropping_twice_is_no_error() -> None:
    def action() -> object:
        privileges.drop(None)
        privileges.drop(None)
        return sorted(privileges.held())

    assert in_child(action) == []


@needs_root
def test_what_cannot_be_given_up_stops_the_worker() -> None:
    def action() -> object:
        privileges.drop(None)
        privileges.drop(Account("someone", 12345, 12345))  # CAP_SETUID is gone
        return "went on"

    assert "StartupError('cannot give up privileges" in str(in_child(action))


@needs_root
def test_whom_workers_become() -> None:
    nobody = privileges.account(None)
    assert nobody is not None
    assert nobody.name == "nobody"
    assert nobody.uid != 0
    assert privileges.account("12345") == Account("12345", 12345, 12345)
    assert privileges.account("root") is None


def test_a_user_there_is_not() -> None:
    with pytest.raises(StartupError, match="--user no-such-user: there is no such user; make one"):
        privileges.account("no-such-user")


@needs_root
def test_becoming_somebody_takes_capabilities() -> None:
    def action() -> object:
        privileges.drop(None)
        return privileges.account("nobody")

    assert "CAP_SETGID and CAP_SETUID missing" in str(in_child(action))


@needs_root
def test_only_root_becomes_somebody_else() -> None:
    def action() -> object:
        privileges.drop(Account("someone", 12345, 12345))
        assert privileges.account(None) is None
        assert privileges.account("12345") is None
        return privileges.account("root")

    assert "only root can become another user" in str(in_child(action))


@pytest.mark.parametrize(
    ("bits", "missing"),
    [
        (0, ("BPF", "NET_ADMIN", "PERFMON")),
        (1 << 39, ("NET_ADMIN", "PERFMON")),
        (1 << 39 | 1 << 12, ("PERFMON",)),
        (1 << 39 | 1 << 38 | 1 << 12, ()),
        (1 << 21, ()),
        (1 << 21 - 1, ("BPF", "NET_ADMIN", "PERFMON")),
    ],
)
def test_what_is_missing_to_splice(tmp_path: Path, bits: int, missing: tuple[str, ...]) -> None:
    path = tmp_path / "status"
    path.write_text(f"Name:\tx\nCapPrm:\t{(1 << 41) - 1:016x}\nCapEff:\t{bits:016x}\n")
    assert privileges.missing_for_splicing(privileges.held(str(path))) == missing


def test_the_soft_limit_of_files_goes_up_to_the_hard_one() -> None:
    def action() -> object:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
        return [privileges.raise_nofile(), resource.getrlimit(resource.RLIMIT_NOFILE), hard]

    found = in_child(action)
    assert isinstance(found, list)
    (before, after), now, hard = found
    assert (before, after, now) == (100, hard, [hard, hard])
