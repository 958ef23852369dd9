"""`.ci/nightly` runs every part, bounds each in time, and its last line is its exit status."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "nightly"
TOOLS = ("sh", "dirname", "id", "mktemp", "rm", "cat", "date", "timeout", "sleep")
MAKE = """\
#!/bin/sh
echo "made $2 with CI=$CI"
case $2 in
survive) exit 2 ;;
slow) sleep 60 ;;
esac
"""


@pytest.fixture
def nightly(tmp_path):
    """The script, with a make that only says what it is asked for, and no sudo."""
    for tool in TOOLS:
        (tmp_path / tool).symlink_to(shutil.which(tool) or tool)
    (tmp_path / "make").write_text(MAKE)
    (tmp_path / "make").chmod(0o755)

    def run(*parts: str) -> tuple[int, list[str]]:
        environment = {key: value for key, value in os.environ.items() if key != "CI"}
        done = subprocess.run(
            [SCRIPT, *parts],
            env={**environment, "PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        return done.returncode, done.stdout.splitlines()

    return run


def test_all_parts_run_though_one_fails(nightly) -> None:
    status, lines = nightly()
    assert [line for line in lines if line.startswith("made")] == [
        "made soak with CI=true",
        "made survive with CI=true",
        "made exchanges with CI=true",
        "made kernel-matrix with CI=true",
    ]
    *_, soak, survive, exchanges, matrix, last = (line.split(maxsplit=3) for line in lines)
    assert (soak[0], soak[3]) == ("soak", "ok")
    assert (survive[0], survive[3]) == ("survive", "FAILED: make's exit status is 2")
    assert (exchanges[0], exchanges[3]) == ("exchanges", "ok")
    assert (matrix[0], matrix[3]) == ("kernel-matrix", "ok")
    assert " ".join(last) == "nightly: FAILED"
    assert status == 1


def test_what_takes_too_long_is_ended_and_the_next_one_runs(nightly) -> None:
    status, lines = nightly("slow=1", "soak=50")
    assert lines[-3].split(maxsplit=3)[3] == "FAILED: not over after 1 s"
    assert lines[-2].split(maxsplit=3)[3] == "ok"
    assert (lines[-1], status) == ("nightly: FAILED", 1)


def test_all_is_well(nightly) -> None:
    status, lines = nightly("soak=50")
    assert (lines[-1], status) == ("nightly: ok", 0)
