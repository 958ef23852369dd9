"""A whole run in small, and what the command line says to what it cannot do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadtest import results
from loadtest.machine import ROOT, find
from loadtest.results import Results

COMMAND = [sys.executable, "-m", "loadtest", "native"]
# Whatever else the machine does, a sample is taken once. (Beyond 1: children that are reaped count
# with all that they ever used.)
LEAVE_ALONE = ["--max-foreign", "99", "--again", "0", "--patience", "0"]
pytestmark = [
    pytest.mark.net,
    pytest.mark.slow,
    pytest.mark.skipif(not (find("gcc") or find("cc")), reason="no C compiler: blast is made of C"),
]


def _run(output: Path, *arguments: str) -> tuple[int, str, list[Results]]:
    done = subprocess.run(
        [*COMMAND, "--output", str(output), *LEAVE_ALONE, *arguments],
        cwd=ROOT / "docker",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    found = [results.read(path) for path in output.glob("*.json")]
    return done.returncode, done.stdout + done.stderr, found


def test_direct_and_one_proxy(tmp_path: Path) -> None:
    only = "direct,l7proxy-copy,requests-50,echo-16k,stream,slow-reader,20"
    code, text, [found] = _run(
        tmp_path, "--rounds", "1", "--seconds", "0.3", "--long", "0.6", "--only", only
    )
    samples = {(one.workload, one.contender, one.load): one for one in found.samples}
    assert len(samples) == len(found.samples) == 2 * (2 + 2 + 1 + 1), text
    for (workload, _, load), sample in samples.items():
        starved = [problem for problem in sample.problems if "starved" in problem]
        assert sample.problems == starved, text
        assert sample.figures["rate"] > 0
        assert ("p50_us" in sample.figures) == (load == "20" and not sample.saturated)
        assert (sample.series is not None) == (workload == "slow-reader")
    assert code == int(not all(sample.valid for sample in found.samples))
    proxied = samples["requests-50", "l7proxy-copy", "saturation"].figures
    offered = samples["requests-50", "l7proxy-copy", "20"].figures["offered"]
    assert offered == pytest.approx(proxied["rate"] / 5)
    assert proxied["cpu_own_us"] > 1
    assert proxied["pss_kib"] > 5_000
    assert samples["requests-50", "direct", "saturation"].figures["cpu_own_us"] == 0
    assert [contender.name for contender in found.contenders] == ["direct", "l7proxy-copy"]
    assert "endpoints" in found.contenders[1].config
    assert found.head.rounds == 1
    assert "--seconds 0.3" in found.head.command


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_in_namespaces(tmp_path: Path) -> None:
    only = "direct,l7proxy-copy,connect,saturation"
    code, text, [found] = _run(
        tmp_path, "--network", "namespaces", "--rounds", "1", "--seconds", "0.3", "--only", only
    )
    assert code == 0, text
    assert found.head.network == "namespaces"
    assert [sample.figures["rate"] > 0 for sample in found.samples] == [True, True]


def test_what_was_taken_is_written_when_it_is_interrupted(tmp_path: Path) -> None:
    arguments = ["--output", str(tmp_path), "--seconds", "0.2", "--only", "direct,requests-1"]
    with subprocess.Popen(
        [*COMMAND, *arguments, "--rounds", "1000", *LEAVE_ALONE],
        cwd=ROOT / "docker",
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if line.lstrip().startswith("2/1000"):
                break
        time.sleep(0.1)
        run.send_signal(signal.SIGTERM)
        text = run.stderr.read()
    assert run.returncode == 1, text
    [path] = tmp_path.glob("*.json")
    assert 2 <= len(results.read(path).samples) < 1000


def test_a_name_that_nothing_has(tmp_path: Path) -> None:
    code, text, found = _run(tmp_path, "--only", "haproxy")
    assert code == 2
    assert "loadtest: haproxy: neither a contender nor a workload nor a load" in text
    assert found == []
