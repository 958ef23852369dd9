"""The operational log: one readable line an event, nothing of a client's that steers a terminal."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from l7proxy.telemetry.log import event


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"name": "web", "port": 80}, "said name=web port=80"),
        ({"address": "[::1]:80"}, "said address=[::1]:80"),
        ({"why": "no such file"}, 'said why="no such file"'),
        ({"why": 'a "b" \\c\n'}, 'said why="a \\"b\\" \\\\c\\n"'),
        ({"why": ""}, 'said why=""'),
        ({"why": "a=b"}, 'said why="a=b"'),
    ],
)
def test_event(fields: dict[str, object], text: str) -> None:
    assert event("said", **fields) == text


def logged(script: str, level: str = "info") -> list[str]:
    program = (
        "import logging\nfrom l7proxy.telemetry.log import configure, event\n"
        f"configure({level!r})\nlog = logging.getLogger('l7proxy.x')\n{script}\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120)
    assert done.returncode == 0
    return done.stderr.decode().split("\n")[:-1]


def test_a_line_has_time_level_and_text() -> None:
    (line,) = logged("log.warning(event('said', name='web'))")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z warning said name=web", line)


def test_the_level_decides() -> None:
    assert len(logged("log.debug('a'); log.info('b'); log.warning('c')", "warning")) == 1


def test_control_characters_and_line_ends_do_not_get_through() -> None:
    (line,) = logged("log.info(event('said', path='/\\x1b[2J\\r\\n2026 error forged'))")
    assert "\x1b" not in line
    assert "\\x1b[2J" in line


def test_a_bug_has_its_traceback_below_its_line() -> None:
    lines = logged("try:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception('bug')")
    assert lines[0].endswith("error   bug")
    assert lines[-1] == "    ZeroDivisionError: division by zero"


def test_long_text_comes_whole() -> None:
    lines = logged("log.info('x' * 10_000)")
    assert "".join(lines).count("x") == 10_000
