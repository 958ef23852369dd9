"""blast against servers that do it wrong: each error is counted by its kind, and the run ends."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from ends import OK, Behaviour, head_of, reset, saying, serving, undisturbed

from loadtest import blast
from loadtest.blast import Load, Slow

pytestmark = pytest.mark.net

ENDLESS = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % 2**50


def then_reset(client: socket.socket) -> None:
    head_of(client)
    reset(client)


def other_echo(client: socket.socket) -> None:
    while data := client.recv(65536):
        client.sendall(data[:-1] + bytes([data[-1] ^ 1]))


def echo_of_before(client: socket.socket) -> None:
    """What another one, or this one before, was sent: right in length, wrong in content."""
    before = client.recv(65536)
    client.sendall(before)
    while client.recv(65536):
        client.sendall(before)


def twice(client: socket.socket) -> None:
    while data := client.recv(65536):
        client.sendall(data + data)


def silent(client: socket.socket) -> None:
    while client.recv(65536):
        pass


def answers_at_once(client: socket.socket) -> None:
    """And goes on reading."""
    client.recv(65536)
    client.sendall(OK)
    silent(client)


def rotated(client: socket.socket) -> None:
    """A body that lost a byte in its middle and got one at its end."""
    head_of(client)
    body = bytes(65536)
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 65536\r\n\r\n" + body)
    head_of(client)


CASES: dict[str, tuple[Behaviour, Load, str]] = {
    "ends in a body": (
        saying(OK[:-1], then_close=True),
        Load(to=(), connections=2),
        "short",
    ),
    "ends in a head": (saying(OK[:20], then_close=True), Load(to=(), connections=2), "short"),
    "ends in a body, a connection each": (
        saying(OK[:-1], then_close=True),
        Load(to=(), connections=2, close=True),
        "short",
    ),
    "ends without a word": (
        saying(b"", then_close=True),
        Load(to=(), connections=2, close=True),
        "short",
    ),
    "another length": (
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        Load(to=(), connections=2),
        "short",
    ),
    "reset": (then_reset, Load(to=(), connections=2), "reset"),
    "reset, a connection each": (then_reset, Load(to=(), connections=2, close=True), "reset"),
    "503": (
        saying(b"HTTP/1.1 503 No\r\nContent-Length: 3\r\n\r\nok\n"),
        Load(to=(), connections=2),
        "status",
    ),
    "no HTTP": (saying(b"SSH-2.0-OpenSSH\r\n\r\n" * 3), Load(to=(), connections=2), "status"),
    "a head without end": (
        saying(b"HTTP/1.1 200 OK\r\n" * 99),
        Load(to=(), connections=2),
        "status",
    ),
    "no upgrade": (saying(OK), Load(to=(), kind="ws", connections=2), "status"),
    "another accept key": (
        saying(b"HTTP/1.1 101 Go\r\nSec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n"),
        Load(to=(), kind="ws", connections=2),
        "status",
    ),
    "never answers": (silent, Load(to=(), connections=2, timeout=0.2), "timeout"),
    "never answers, a connection each": (
        silent,
        Load(to=(), connections=2, close=True, timeout=0.2),
        "timeout",
    ),
    "answers, and does not end": (
        saying(OK),
        Load(to=(), connections=2, close=True, timeout=0.2),
        "timeout",
    ),
    "never upgrades": (silent, Load(to=(), kind="ws", connections=2, timeout=0.2), "timeout"),
    "stops in a body": (
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\no"),
        Load(to=(), connections=2, timeout=0.2),
        "timeout",
    ),
    "another body": (
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nko\n"),
        Load(to=(), connections=2),
        "corrupt",
    ),
    "more than a body": (saying(OK + b"!"), Load(to=(), connections=2), "corrupt"),
    "more than a body, a connection each": (
        saying(OK + b"!", then_close=True),
        Load(to=(), connections=2, close=True),
        "corrupt",
    ),
    "another large body": (rotated, Load(to=(), connections=2, path="/bytes/65536"), "corrupt"),
    "another echo": (other_echo, Load(to=(), kind="echo", connections=2, size=1000), "corrupt"),
    "another echo of a byte": (other_echo, Load(to=(), kind="echo", connections=2), "corrupt"),
    "an echo of before": (
        echo_of_before,
        Load(to=(), kind="echo", connections=2, size=100),
        "corrupt",
    ),
    "an echo twice": (twice, Load(to=(), kind="echo", connections=2, size=100), "corrupt"),
    "an upload that is refused": (
        saying(b"HTTP/1.1 422 Wrong\r\nContent-Length: 3\r\n\r\nok\n"),
        Load(to=(), kind="put", connections=2, size=0),
        "corrupt",
    ),
    "a stream that ends": (
        saying(ENDLESS, then_close=True),
        Load(to=(), kind="stream", connections=2),
        "short",
    ),
    "a stream without a length": (
        saying(b"HTTP/1.1 200 OK\r\n\r\n"),
        Load(to=(), kind="stream", connections=2),
        "short",
    ),
    "a stream in chunks": (
        saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        Load(to=(), kind="stream", connections=2),
        "short",
    ),
    "a stream that stops": (
        saying(ENDLESS),
        Load(to=(), kind="stream", connections=2, timeout=0.2),
        "timeout",
    ),
    "a sink that answers": (answers_at_once, Load(to=(), kind="sink", connections=2), "short"),
}


@pytest.mark.parametrize("rate", [0, 200], ids=["closed", "open"])
@pytest.mark.parametrize("name", CASES)
def test_an_error_is_counted_by_its_kind(program: Path, name: str, rate: float) -> None:
    behave, load, kind = CASES[name]
    if rate and load.kind in ("stream", "sink"):
        pytest.skip("what never ends has no rate")
    with serving(behave) as address:
        order = replace(load, to=(address,), rate=rate, warmup=0.0, seconds=0.5)
        began = time.monotonic()
        result = blast.measure(program, order)
        took = time.monotonic() - began
    assert result.errors[kind] > 0
    others = {name: count for name, count in result.errors.items() if count and name != kind}
    assert not others, result.complaint
    assert result.complaint.startswith("connection ")
    assert took < 60


def test_nobody_listens(program: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = "{}:{}".format(*gone.getsockname())
    result = blast.measure(program, Load(to=(address,), connections=5, rate=100, seconds=0.3))
    assert result.errors["connect"] >= 5
    assert result.done == 0
    assert result.unsent == 30
    assert "Connection refused" in result.complaint


def test_one_that_never_accepts(program: Path) -> None:
    """A full backlog: SYNs go unanswered."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as door:
        where = door.getsockname()
        with socket.create_connection(where), socket.socket() as second:
            second.setblocking(False)
            second.connect_ex(where)
            order = Load(to=("{}:{}".format(*where),), connections=3, timeout=0.5, seconds=0.2)
            result = blast.measure(program, order)
    assert result.errors["connect"] >= 3
    assert result.done == 0


def test_a_connection_closed_between_two_requests_is_told_but_no_error(program: Path) -> None:
    def behave(client: socket.socket) -> None:
        head_of(client)
        client.sendall(OK)
        client.shutdown(socket.SHUT_WR)
        time.sleep(0.5)

    with serving(behave) as address:
        # few arrivals: a request that crosses the FIN would be an error, as it should
        order = Load(to=(address,), connections=2, rate=20, warmup=0.0, seconds=0.5)
        result = undisturbed(program, order, lambda result: result.done == 10)
    assert result.failed == 0, result.complaint
    assert result.done == 10
    assert result.reopened >= 8


def test_a_stall_is_in_the_latency_of_all_that_were_due_in_it(program: Path) -> None:
    """Coordinated omission: one connection that stalls is one slow answer of a closed loop, and
    some hundred of an open one."""
    stall = 0.5
    began = threading.Event()

    def behave(client: socket.socket) -> None:
        stalled = False
        while head_of(client):
            if not stalled and began.is_set():
                stalled = True
                time.sleep(stall)
            client.sendall(OK)

    with serving(behave) as address:
        order = Load(to=(address,), connections=1, rate=200, warmup=0.2, seconds=1.5)
        with blast.client(program, order) as client:
            client.begin()
            began.set()
            client.end()
            result = client.result()
    assert result.failed == 0, result.complaint
    assert abs(result.done - 300) <= 1
    # 100 were due in the stall, one each 5 ms, and waited for what was left of it: 50 of them for
    # more than half of it.
    slow = sum(count for us, count in result.histogram if us > stall / 2 * 1e6)
    assert 40 <= slow <= 200
    assert result.us is not None
    assert stall * 0.95e6 < result.us.max
    assert result.us.p90 > stall / 4 * 1e6
    assert result.lag_us < stall / 2 * 1e6  # the stall was not the client's fault


def test_those_under_way_at_the_end_are_waited_for(program: Path) -> None:
    def behave(client: socket.socket) -> None:
        while head_of(client):
            time.sleep(0.3)
            client.sendall(OK)

    with serving(behave) as address:
        order = Load(to=(address,), connections=50, rate=50, warmup=0.0, seconds=0.5)
        result = undisturbed(program, order, lambda result: result.done == 25)
    assert (result.done, result.unsent, result.failed) == (25, 0, 0)
    assert result.us is not None
    assert result.us.p50 > 250_000


def test_slow_readers_of_one_that_stops(program: Path) -> None:
    def behave(client: socket.socket) -> None:
        head_of(client)
        client.sendall(ENDLESS)
        head_of(client)

    with serving(behave) as address:
        order = Slow(to=(address,), connections=2, bytes_per_second=1000, seconds=0.8, timeout=0.3)
        result = blast.measure(program, order)
    assert result.errors["timeout"] == 2
    assert result.alive == 0


def test_slow_readers_check_what_they_read(program: Path) -> None:
    def behave(client: socket.socket) -> None:
        head_of(client)
        client.sendall(ENDLESS + bytes(5000))
        head_of(client)

    with serving(behave) as address:
        result = blast.measure(
            program, Slow(to=(address,), connections=2, bytes_per_second=10000, seconds=0.3)
        )
    assert result.errors["corrupt"] == 2


def test_slow_readers_want_a_length(program: Path) -> None:
    """As the others have it: chunks would be another load."""
    chunked = saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    with serving(chunked) as address:
        order = Slow(to=(address,), connections=2, bytes_per_second=1000, seconds=0.2)
        result = blast.measure(program, order)
    assert result.errors["short"] == 2
    assert result.alive == 0
