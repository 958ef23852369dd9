"""What blast is told and what it says, as text."""

from __future__ import annotations

import sys

import pytest

from loadtest import blast
from loadtest.blast import Hold, Load, Mark, Order, Slow
from loadtest.hosts import LoadTestError

BOTH = ("10.0.0.1:80", "10.0.0.2:80")


@pytest.mark.parametrize(
    ("order", "line"),
    [
        (
            Load(to=BOTH, connections=50, rate=12345.678, seconds=0.5),
            "load to=10.0.0.1:80,10.0.0.2:80 kind=get connections=50 size=1 close=0 "
            "rate=12345.678 warmup=1 seconds=0.5 timeout=10",
        ),
        (
            Load(to=BOTH[:1], kind="get", path="/bytes/65536", close=True),
            "load to=10.0.0.1:80 kind=get connections=1 path=/bytes/65536 size=1 close=1 "
            "rate=0 warmup=1 seconds=5 timeout=10",
        ),
        (
            Hold(to=BOTH, connections=5000, on=8, rate=1000, seconds=5),
            "hold to=10.0.0.1:80,10.0.0.2:80 connections=5000 on=8 rate=1000 warmup=0 "
            "seconds=5 timeout=10",
        ),
        (
            Slow(to=BOTH[:1], connections=8, bytes_per_second=65536, seconds=10, rcvbuf=8192),
            "slow to=10.0.0.1:80 connections=8 bytes_per_second=65536 seconds=10 warmup=0 "
            "rcvbuf=8192 timeout=10",
        ),
    ],
    ids=["open loop", "a connection per request", "hold", "slow"],
)
def test_an_order_as_a_command_line(order: Order, line: str) -> None:
    assert " ".join(blast.arguments(order)) == line


def test_an_origin_as_a_command_line() -> None:
    assert blast.origin_arguments(BOTH, BOTH[:1]) == [
        "origin",
        "http=10.0.0.1:80,10.0.0.2:80",
        "echo=10.0.0.1:80",
    ]
    assert blast.origin_arguments(BOTH[:1]) == ["origin", "http=10.0.0.1:80"]


def test_what_it_says_is_read() -> None:
    assert blast.parse_mark('{"ns":5,"done":2,"bytes":6,"errors":1}') == Mark(5, 2, 6, 1)
    result = blast.parse_result(
        '{"done":2,"bytes":6,"seconds":1.0,"rate":2.0,"errors":{"connect":1,"reset":2,"short":0,'
        '"status":0,"timeout":0,"corrupt":0},"complaint":"","unsent":3,"reopened":0,"alive":0,"us":{"p50":1.5,'
        '"p90":2,"p99":2,"p999":2,"max":2.25,"mean":1.75},"histogram":[[1.5,1],[2,1]],"busy":0.5,'
        '"lag_us":7.0}'
    )
    assert result.failed == 3
    assert result.us is not None
    assert result.us.max == 2.25
    assert result.histogram == [(1.5, 1), (2, 1)]


def say(script: str) -> blast.Child:
    return blast.Child([sys.executable, "-c", f"import sys, time\n{script}"])


def test_a_child_that_says_nothing_is_an_error_in_time() -> None:
    child = say("time.sleep(60)")
    try:
        with pytest.raises(LoadTestError, match=r"did not say 'begin' within 0 s"):
            child.line("begin", 0.2)
    finally:
        child.kill()
    assert not child.alive


def test_what_a_child_complains_of_is_in_the_error() -> None:
    child = say("sys.exit('blast: no such thing')")
    try:
        with pytest.raises(LoadTestError, match="ended before 'ready': blast: no such thing"):
            child.line("ready", 20)
    finally:
        child.kill()


def test_lines_that_come_in_one_piece_and_in_pieces() -> None:
    script = r"print('begin {}\nend {}\nres', end='', flush=True); time.sleep(.1); print('ult {}')"
    child = say(script)
    try:
        assert [child.line(word, 20) for word in ("begin", "end", "result")] == ["{}"] * 3
    finally:
        child.kill()


def test_another_line_than_the_expected_one_is_an_error() -> None:
    child = say("print('end {}', flush=True); time.sleep(60)")
    try:
        with pytest.raises(LoadTestError, match="said 'end' for 'begin'"):
            child.line("begin", 20)
    finally:
        child.kill()
