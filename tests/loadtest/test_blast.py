"""blast against its own origin: each kind of load, and what it counts.

Bounds of times and rates are wide: the machine that runs this may be busy with other things.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from ends import OK, Origin, Standing, head_of, serving, undisturbed

from loadtest import blast
from loadtest.blast import Hold, Load, Result, Slow

pytestmark = pytest.mark.net

SHORT = {"warmup": 0.1, "seconds": 0.4}
LONGER = {"warmup": 0.1, "seconds": 1.0}  # at the end of which blast waits for 10 ms


def clean(result: Result) -> Result:
    """Without an error; and what it says of itself agrees."""
    assert result.failed == 0, result.complaint
    assert result.unsent == 0
    assert result.reopened == 0
    assert 0 < result.busy <= 1.05
    if result.us is not None:
        assert sum(count for _, count in result.histogram) == result.done
        us = result.us
        assert us.p50 <= us.p90 <= us.p99 <= us.p999 <= us.max
        assert list(result.histogram) == sorted(result.histogram)
    return result


@pytest.mark.parametrize(
    ("load", "bytes_each"),
    [
        (Load(to=(), connections=1), 3),
        (Load(to=(), connections=50), 3),
        (Load(to=(), connections=8, close=True), 3),
        (Load(to=(), connections=3, path="/bytes/0"), 0),
        (Load(to=(), connections=3, path="/bytes/1"), 1),
        (Load(to=(), connections=8, path="/bytes/65536"), 65536),
        (Load(to=(), connections=2, path="/bytes/1048577", close=True), 1048577),
        (Load(to=(), kind="put", connections=4, size=0), 0),
        (Load(to=(), kind="put", connections=4, size=10), 10),
        (Load(to=(), kind="put", connections=2, size=3_000_001), 3_000_001),
        (Load(to=(), kind="echo", connections=8, size=1), 1),
        (Load(to=(), kind="echo", connections=8, size=16384), 16384),
        (Load(to=(), kind="echo", connections=3, size=131072), 131072),
        (Load(to=(), kind="ws", connections=8, size=1), 1),
        (Load(to=(), kind="ws", connections=8, size=125), 125),
        (Load(to=(), kind="ws", connections=8, size=126), 126),
        (Load(to=(), kind="ws", connections=8, size=16384), 16384),
        (Load(to=(), kind="ws", connections=3, size=65535), 65535),
    ],
    ids=lambda given: " ".join(blast.arguments(given)[1:5]) if isinstance(given, Load) else "",
)
def test_closed_loop(program: Path, origin: Origin, load: Load, bytes_each: int) -> None:
    to = origin.echo if load.kind == "echo" else origin.http
    result = clean(blast.measure(program, replace(load, to=(to,), **SHORT)))
    assert result.done > 0
    assert result.us is not None
    assert result.rate == pytest.approx(result.done / result.seconds, rel=0.01)
    # of those that were under way at one of the marks, some bytes are on one side of it
    cut = load.connections * max(bytes_each, 1)
    assert abs(result.bytes - result.done * bytes_each) <= cut


@pytest.mark.parametrize("kind", ["stream", "sink"])
@pytest.mark.parametrize("connections", [1, 3])
def test_endless(program: Path, origin: Origin, kind: blast.Kind, connections: int) -> None:
    load = Load(to=(origin.http,), kind=kind, connections=connections, **SHORT)
    result = clean(undisturbed(program, load, lambda result: result.bytes > 10_000_000))
    assert result.bytes > 10_000_000
    assert (result.done, result.us, result.histogram) == (0, None, [])


@pytest.mark.parametrize(
    "load",
    [
        Load(to=(), connections=10, rate=1000),
        Load(to=(), connections=10, rate=300, close=True),
        Load(to=(), connections=4, rate=100, path="/bytes/65536"),
        Load(to=(), kind="put", connections=4, rate=100, size=65536),
        Load(to=(), kind="echo", connections=10, rate=1000),
        Load(to=(), kind="ws", connections=10, rate=1000),
    ],
    ids=lambda load: f"{load.kind} {load.path} {'close' if load.close else ''}",
)
def test_open_loop_sends_what_is_due_and_no_more(program: Path, origin: Origin, load: Load) -> None:
    to = origin.echo if load.kind == "echo" else origin.http
    order = replace(load, to=(to,), **LONGER)
    result = clean(undisturbed(program, order, lambda result: not result.unsent))
    assert abs(result.done - load.rate * LONGER["seconds"]) <= 1
    assert result.unsent == 0
    assert result.seconds == LONGER["seconds"]
    assert result.lag_us > 0


def test_a_rate_that_cannot_be_had_is_unsent_not_failed(program: Path, origin: Origin) -> None:
    load = Load(to=(origin.http,), connections=2, rate=3_000_000, **SHORT)
    result = undisturbed(program, load, lambda result: result.us is not None)
    assert result.failed == 0
    assert result.unsent > 0
    assert abs(result.done + result.unsent - load.rate * SHORT["seconds"]) <= 1
    assert result.us is not None
    assert result.us.max > 100_000  # those that were sent last were due long before


def test_both_targets_are_used_in_turn(program: Path, origin: Origin) -> None:
    """Two connections to two targets: where one of them cannot be, half fails."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = "{}:{}".format(*gone.getsockname())
    load = Load(to=(origin.http, nobody), connections=2, **SHORT)
    result = blast.measure(program, load)
    assert result.done > 0
    assert result.errors["connect"] > 0
    assert "connection 1: Connection refused" in result.complaint


def test_a_connection_per_request_leaves_no_port_waiting(program: Path, origin: Origin) -> None:
    """Where the client has one address, its ports would be used up by its own TIME_WAITs."""
    load = Load(to=(origin.http,), connections=8, close=True, **SHORT)
    assert clean(undisturbed(program, load, lambda result: result.done > 100)).done > 100
    port = f":{int(origin.http.partition(':')[2]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    waiting = [(local, remote) for _, local, remote, state, *_ in rows if state == "06"]
    assert any(local.endswith(port) for local, _ in waiting)  # the origin's: it closes first
    # Of the 8 that were under way when blast ended, some may be the client's.
    assert sum(remote.endswith(port) for _, remote in waiting) <= 8


def test_marks_are_differences_of_the_same_counters(program: Path, origin: Origin) -> None:
    with blast.client(program, Load(to=(origin.http,), connections=4, **SHORT)) as client:
        begin = client.begin()
        end = client.end()
        time.sleep(0.2)  # the readings
        result = client.result()
    assert result.done == end.done - begin.done
    assert result.bytes == end.bytes - begin.bytes
    assert result.seconds == pytest.approx((end.ns - begin.ns) / 1e9, abs=1e-5)
    assert begin.done > 0  # it was warm


def test_held_connections_and_traffic_beside_them(program: Path, origin: Origin) -> None:
    order = Hold(to=(origin.http,), connections=700, on=4, rate=500, warmup=0.1, seconds=1.0)
    for _ in range(20):
        with Standing() as standing, blast.client(program, order) as client:
            assert client.begin().done >= 700
            held = len(list(Path(f"/proc/{origin.child.pid}/fd").iterdir()))
            client.end()
            result = client.result()
        if not result.unsent or standing.longest < 0.005:
            break
    assert held >= 704
    assert clean(result).alive == 700
    assert abs(result.done - 500) <= 1


def test_held_connections_without_traffic(program: Path, origin: Origin) -> None:
    with blast.client(program, Hold(to=(origin.http,), connections=100)) as client:
        client.begin()
        client.end()
        time.sleep(0.2)
        result = client.result()
    assert (result.alive, result.failed, result.done) == (100, 0, 0)


def test_held_connections_that_are_lost_are_errors(program: Path, origin: Origin) -> None:
    with blast.client(program, Hold(to=(origin.http,), connections=100, timeout=5)) as client:
        client.begin()
        client.end()
        origin.child.kill()
        result = client.result()
    assert result.alive == 0
    assert result.failed == 100


@pytest.mark.parametrize("rcvbuf", [0, 4096])
def test_slow_readers_read_at_their_rate(program: Path, origin: Origin, rcvbuf: int) -> None:
    order = Slow(
        to=(origin.http,), connections=3, bytes_per_second=65536, seconds=1.0, rcvbuf=rcvbuf
    )
    about = pytest.approx(3 * 65536, rel=0.1)
    result = undisturbed(program, order, lambda result: result.bytes == about)
    assert result.failed == 0, result.complaint
    assert result.alive == 3
    assert result.bytes == about
    assert result.busy < 0.5


def test_percentiles_are_those_of_an_exact_computation(program: Path) -> None:
    values = [
        round(1000 * 1.0008**k) for k in range(20_000)
    ]  # 1 us to 8,800 s: the last are capped
    values = [value for value in values if value < 2_000_000_000_000]
    said = subprocess.run(
        [program, "histogram"],
        input="\n".join(map(str, values)),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    raw = said.removeprefix("result ").strip()[:-1]
    rest = '"done":0,"bytes":0,"seconds":0,"rate":0,"errors":{},"complaint":"","unsent":0,'
    rest += '"reopened":0,"alive":0,"busy":0,"lag_us":0}'
    result = blast.parse_result(f"{raw},{rest}")
    assert result.us is not None
    for share, got in (
        (0.5, result.us.p50),
        (0.9, result.us.p90),
        (0.99, result.us.p99),
        (0.999, result.us.p999),
    ):
        exact = values[-(-len(values) * round(share * 1000) // 1000) - 1] / 1000
        assert got == pytest.approx(exact, rel=0.008)
    assert result.us.max == pytest.approx(values[-1] / 1000)
    assert result.us.mean == pytest.approx(sum(values) / len(values) / 1000)
    assert sum(count for _, count in result.histogram) == len(values)
    steps = [later[0] / earlier[0] for earlier, later in itertools.pairwise(result.histogram)]
    assert max(steps) < 1.017


# ---- the origin, from Python --------------------------------------------------------------------


def connected(address: str) -> socket.socket:
    host, _, port = address.partition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def whole(client: socket.socket) -> bytes:
    text = bytearray()
    while more := client.recv(1 << 16):
        text += more
    return bytes(text)


def test_origin_answers_requests_that_come_in_a_row_and_in_pieces(origin: Origin) -> None:
    with connected(origin.http) as client:
        client.sendall(
            b"GET / HTTP/1.1\r\nhost: a\r\n\r\nPOST /x HTTP/1.1\r\ncontent-length: 5\r\n\r\nab"
        )
        time.sleep(0.1)
        client.sendall(b"cdeGET /bytes/4 HTTP/1.1\r\nConnection: close\r\n\r\n")
        text = whole(client)
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"
    assert text.startswith(ok + ok + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
    assert len(text) == 2 * len(ok) + len(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n") + 4


def test_origin_refuses_an_upload_of_other_bytes(origin: Origin) -> None:
    with connected(origin.http) as client:
        client.sendall(b"PUT /upload HTTP/1.1\r\nContent-Length: 5\r\n\r\nwrong")
        assert client.recv(4096).startswith(b"HTTP/1.1 422 ")


def test_origin_sends_to_one_that_reads_later(origin: Origin) -> None:
    size = 20_000_000
    with connected(origin.http) as client:
        client.sendall(b"GET /bytes/%d HTTP/1.1\r\nConnection: close\r\n\r\n" % size)
        client.shutdown(socket.SHUT_WR)
        time.sleep(0.2)
        text = whole(client)
    head, _, body = text.partition(b"\r\n\r\n")
    assert b"Content-Length: 20000000" in head
    assert len(body) == size
    assert body[:100_000] == body[65521:165_521]  # the period of the pattern
    assert body[:65521].count(body[:8]) == 1


def test_origin_echoes_to_one_that_reads_later(origin: Origin) -> None:
    sent = bytes(range(256)) * 40_000
    with connected(origin.echo) as client:
        client.settimeout(0.3)
        done = 0
        while done < len(sent):
            try:
                done += client.send(sent[done:])
            except TimeoutError:
                break
        got = b""
        while len(got) < done:
            got += client.recv(1 << 16)
    assert got == sent[:done]


def test_origin_answers_a_ping_and_a_message_in_pieces(origin: Origin) -> None:
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    magic = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1((key + magic).encode()).digest())
    with connected(origin.http) as client:
        client.sendall(
            b"GET /ws HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key.encode() + b"\r\n\r\n"
        )
        text = client.recv(4096)
        assert text.startswith(b"HTTP/1.1 101 ")
        assert b"\r\nSec-WebSocket-Accept: " + accept + b"\r\n" in text
        client.sendall(b"\x89\x82\x01\x02\x03\x04" + bytes([ord("h") ^ 1, ord("i") ^ 2]))
        assert client.recv(100) == b"\x8a\x02hi"
        client.sendall(b"\x81\x83\x00\x00\x00")
        time.sleep(0.1)
        client.sendall(b"\x00abc\x82\x81\xff\xff\xff\xff\x00")
        got = b""
        while len(got) < 8:
            got += client.recv(100)
        assert got == b"\x81\x03abc\x82\x01\xff"


def test_what_blast_does_not_understand_it_refuses(program: Path) -> None:
    for words, complaint in (
        (["load"], "no address given"),
        (["load", "to=127.0.0.1:1", "rats=3"], "no such option: rats"),
        (["load", "to=localhost:1"], "not an IPv4 address: localhost"),
        (["load", "to=127.0.0.1:1", "rate=fast"], "not a number"),
        (["load", "to=127.0.0.1:1", "kind=get5"], "not a kind of load: get5"),
        (["load", "to=127.0.0.1:1", "kind=stream", "rate=5"], "what never ends has no rate"),
        (["load", "to=127.0.0.1:1", "kind=ws", "size=65536"], "size of a message"),
        (["lode", "to=127.0.0.1:1"], "no such verb: lode"),
    ):
        done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
        assert done.returncode in (1, 2)
        assert complaint in done.stderr


def test_those_that_wait_at_the_end_for_a_moment_are_sent(program: Path) -> None:
    """A stall of 65 ms until 5 ms after the end: two wait then, and 35 ms are left to send them."""

    def behave(client: socket.socket) -> None:
        began = 0.0
        while head_of(client):
            began = began or time.monotonic()
            if time.monotonic() - began > 3.93:
                time.sleep(max(0.0, began + 4.005 - time.monotonic()))
            client.sendall(OK)

    for _ in range(5):  # a machine that stands still may need more than 35 ms
        with serving(behave) as address, Standing() as standing:
            order = Load(to=(address,), connections=1, rate=50, warmup=0.0, seconds=4.0)
            result = blast.measure(program, order)
        assert result.done + result.unsent == 200
        if not result.unsent or standing.longest < 0.01:
            break
    assert not result.unsent
