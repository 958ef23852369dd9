"""The parts of the kernel matrix that need no kernel: its verdicts, and the archive it boots."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import initramfs
import pytest
import report

CHECKS = [{"name": "redirect", "ok": True, "detail": "moved"}]
REFUSED = [{"name": "bound", "ok": False, "detail": "12 MB wait"}]
BOOT = {"kernel": "6.1.0-cloud-amd64", "btf": True}
PROGRAMS = {"programs": {"verdict": "no such kfunc", "verdict_probe": ""}}
PROVEN = {"selftest": {"ok": True, "checks": CHECKS}}
PASSED = {"test": "test_a", "outcome": "passed", "why": ""}
SPLICED = {"demo": {"exit": 0, "datapath": "datapath sockmap: it moves the bytes", "tail": ""}}
RELAYED = {"demo": {"exit": 0, "datapath": "datapath splice2: because", "tail": ""}}
INTERCEPTED = {"interception_exit": 0}
GREEN = [BOOT, PROGRAMS, PROVEN, PASSED, {"pytest_exit": 0}, INTERCEPTED, SPLICED, {"end": True}]


def heard(*told: object) -> report.Outcome:
    outcome = report.Outcome("6.1", "6.1.192-2")
    outcome.hear(json.dumps(line) for line in told)
    return outcome


def changed(old: object, *new: object) -> list[object]:
    """The green run with one line replaced."""
    return [line for told in GREEN for line in (new if told == old else (told,))]


def test_everything_passed() -> None:
    outcome = heard(*GREEN)
    assert outcome.good
    assert "ok" in outcome.line()
    assert "sockmap by program verdict_probe; 1 passed; interception ok; " in outcome.line()
    assert "; demo exact; " in outcome.line()


def test_a_kernel_that_is_refused_with_a_reason_and_relays_is_good() -> None:
    refusal = {"selftest": {"ok": False, "checks": REFUSED}}
    told = [BOOT, PROGRAMS, refusal, {"pytest_exit": 1}, INTERCEPTED, RELAYED, {"end": True}]
    outcome = heard(*told)
    assert outcome.good
    assert "refused: bound: 12 MB wait" in outcome.line()
    told[4] = {"interception_exit": 1}
    assert not heard(*told).good


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        (changed(PASSED, PASSED | {"outcome": "failed", "why": "1 != 2"}), "failed test_a: 1 != 2"),
        (changed({"pytest_exit": 0}, {"pytest_exit": 1}), "6.1"),
        (changed({"pytest_exit": 0}, {"pytest_exit": None}), "6.1"),
        (changed(PASSED), "0 passed"),
        (changed(INTERCEPTED, {"interception_exit": 1}), "interception FAILED"),
        (changed(INTERCEPTED), "interception FAILED"),
        (changed(SPLICED, RELAYED), "demo: datapath splice2"),
        (changed(SPLICED, {"demo": SPLICED["demo"] | {"exit": 1, "tail": "lost"}}), "1: lost"),
        (changed(PROVEN, {"selftest": {"ok": False, "checks": REFUSED}}), "FAILED: 12 MB wait"),
        (changed(PROVEN, {"selftest": {"crash": "exit code 1"}}), "without an answer: exit code 1"),
        (changed({"end": True}), "the guest stopped in its boot"),
        ([], "did not boot"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_good(told: list[object], shown: str) -> None:
    outcome = heard(*told)
    assert not outcome.good
    assert shown in "\n".join([outcome.line(), *outcome.details()])


def test_skips_are_told_by_their_reason() -> None:
    skip = {"outcome": "skipped", "why": "Skipped: no kfunc"}
    outcome = heard(*GREEN, skip | {"test": "test_b"}, skip | {"test": "test_c"})
    assert outcome.good
    assert "2 skipped: no kfunc" in list(outcome.details())


def test_a_complaint_of_the_kernel_is_told_with_the_test_that_it_came_in() -> None:
    said = {"complaints": ["WARNING: net/core/skmsg.c"]}
    doing = [{"doing": "tests"}, {"doing": "test_a"}, said, PASSED, {"doing": "tests"}, said]
    outcome = heard(*changed(PASSED, *doing))
    assert not outcome.good
    assert list(outcome.complaints) == ["WARNING: net/core/skmsg.c"]
    assert "kernel log, in test_a: WARNING: net/core/skmsg.c" in list(outcome.details())


def test_a_guest_that_dies_says_in_which_test() -> None:
    outcome = heard(BOOT, PROGRAMS, PROVEN, {"doing": "test_b"})
    outcome.hear(['{"test": "test_b", "outc'])  # cut off in mid-line
    assert not outcome.good
    assert "the guest stopped in test_b" in list(outcome.details())


def test_a_failure_is_not_forgotten_for_a_later_outcome_of_the_same_test() -> None:
    outcome = heard(PASSED | {"outcome": "failed", "why": "x"}, PASSED)
    assert outcome.counts() == {"failed": 1}


def members(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Name -> (mode, content), in the archive's order; cpio(5), "New ASCII Format"."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        assert at % 4 == 0
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, length = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + length - 1].decode()
        at += (110 + length + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, archive[at : at + size])
        at += (size + 3) // 4 * 4


def test_an_archive_holds_what_was_put_in_with_its_directories_before_it(tmp_path: Path) -> None:
    real = tmp_path / "usr" / "lib" / "x.so.1.2"
    real.parent.mkdir(parents=True)
    real.write_bytes(b"12345")
    (tmp_path / "lib").symlink_to("usr/lib")
    (real.parent / "x.so.1").symlink_to("x.so.1.2")

    tree = initramfs.Tree()
    tree.add(tmp_path / "lib" / "x.so.1")
    tree.write("/init", "#!/bin/true\n", 0o755)
    tree.folder("/proc")
    tree.pack(tmp_path / "archive")
    found = members((tmp_path / "archive").read_bytes())

    here = str(tmp_path).lstrip("/")
    assert found[f"{here}/usr/lib/x.so.1.2"][1] == b"12345"
    assert found[f"{here}/lib"] == (stat.S_IFLNK | 0o777, b"usr/lib")
    assert found[f"{here}/usr/lib/x.so.1"] == (stat.S_IFLNK | 0o777, b"x.so.1.2")
    assert found["init"] == (stat.S_IFREG | 0o755, b"#!/bin/true\n")
    assert stat.S_ISDIR(found["proc"][0])
    assert stat.S_ISCHR(found["dev/console"][0])  # or process 1 has no output
    order = list(found)
    for name in order[1:]:
        parent = str(Path(name).parent)
        assert order.index(parent) < order.index(name)
        assert stat.S_ISDIR(found[parent][0])


def test_a_copied_tree_leaves_out_what_is_named(tmp_path: Path) -> None:
    for name in ("a.py", "test/b.py", "deep/test/c.py", "deep/d.py"):
        path = tmp_path / "from" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    tree = initramfs.Tree()
    tree.copy(tmp_path / "from", Path("/to"), skip=("test",))
    tree.pack(tmp_path / "archive")
    found = members((tmp_path / "archive").read_bytes())
    files = {name for name, (mode, _) in found.items() if stat.S_ISREG(mode)}
    assert files == {"to/a.py", "to/deep/d.py"}
