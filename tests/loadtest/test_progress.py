"""What is told while a run goes: lines in a log, a bar on a terminal."""

from __future__ import annotations

import io

from loadtest.progress import progress
from loadtest.results import Sample

GOOD = Sample("connect", "direct", 1, "saturation", figures={"rate": 1234.5, "p99_us": 80.0})
BAD = Sample("connect", "nginx-http", 1, "50", problems=["errors: 1 [/red] :zap:"])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def tell(stream: io.StringIO) -> str:
    with progress(4, stream) as watcher:
        for sample in (GOOD, BAD):
            watcher.start(sample)
            watcher.done(sample)
        watcher.again()
        watcher.skip(2)
        watcher.say("left alone")
        watcher.start(GOOD)
        watcher.done(GOOD)
    return stream.getvalue()


def test_a_log_gets_one_line_for_each_sample_and_no_control_character():
    lines = tell(io.StringIO()).splitlines()
    assert len(lines) == 4
    assert lines[0].split() == [
        *("1/4", "round", "1", "connect", "direct", "saturation"),
        *("1,234.50/s", "p99", "80", "us"),
    ]
    assert lines[1].endswith("INVALID: errors: 1 [/red] :zap:")
    assert lines[2] == "left alone"
    assert lines[3].startswith("   4/4 ")
    assert all(line.isprintable() for line in lines)


def test_a_terminal_gets_a_bar_and_the_samples_above_it(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    said = tell(Terminal())
    assert "\x1b[" in said
    assert "4/4" in said
    assert "1 invalid" in said
    assert "INVALID: errors: 1 [/red] :zap:" in said  # a problem is not markup
    assert said.count("1,234.50/s") == 2


def test_a_dumb_terminal_gets_no_cursor_movement(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b[" not in tell(Terminal())
