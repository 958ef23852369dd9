"""Spliced pairs outlive the worker that has put them into the kernel, however it ends.

The next worker adopts them: they end as they would have ended, with one record of all their bytes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from peers import PATIENCE, Peer, connect, digest, stream
from proxy import Proxy, until

pytestmark = [pytest.mark.kernel, pytest.mark.net]

MIB = 1 << 20
POLICY = """\
listeners:
  raw: {{address: 127.0.0.1:0, protocol: TCP}}
  hasty: {{address: 127.0.0.1:0, protocol: TCP, timeouts: {{idle: 5s}}}}
  one: {{address: 127.0.0.1:0, protocol: TCP, limits: {{clientConnections: 1}}}}
  web: {{address: 127.0.0.1:0}}
routes:
  - {{name: all, listeners: [raw, hasty, one, web], backendRefs: [{{name: app}}]}}
backends:
  app: {{endpoints: ["127.0.0.1:{port}"], circuit: {{connections: {most}}}}}
"""
GREETING = b"hello"
AT_ONCE = """\
import os, sys
from l7proxy import cli
from l7proxy.supervisor import workers as supervisor
from l7proxy.supervisor import guardian, succession
guardian.TRIES, guardian.BACKOFF_FIRST = 2, 0.3
supervisor.HEALTHY = 0.0  # seconds; else those that are killed in a row come back later and later
policy = open(next(one for one in sys.argv if one.endswith(".yaml"))).read()
if "# ODD" in policy:
    succession.layout = lambda: "odd"
if "# DIE" in policy:
    def die(heritage, keeper):
        heritage.channel.send(succession.Ready(True))
        os._exit(9)
    succession.Heritage.enter = die
sys.exit(cli.main())
"""


class House:
    """A proxy with one worker, and the server behind it."""

    def __init__(self, most: int = 1000, more: Sequence[str] = ()) -> None:
        self._server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._server.settimeout(PATIENCE)
        port = self._server.getsockname()[1]
        self.policy = POLICY.format(port=port, most=most)
        self.proxy = Proxy(self.policy, "sockmap", entry=("-c", AT_ONCE), more=more)
        self.peers: list[Peer] = []
        self.successors: list[int] = []  # process ids of those that took its place

    def pair(
        self, listener: str = "raw", *, greeting: bytes = GREETING, receive_buffer: int = 0
    ) -> tuple[Peer, Peer]:
        """Client and backend of a connection that is spliced and kept."""
        client = connect(self.proxy.address(listener), receive_buffer=receive_buffer)
        client.send(greeting)
        backend = self.accept()
        self.peers += client, backend
        if listener == "web":
            backend.head()
            backend.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            client.head()
        else:
            assert backend.read(len(greeting)) == greeting
            backend.send(GREETING)
        assert client.read(len(GREETING)) == GREETING
        until(self._is_all_kept, "the pair is kept")
        return client, backend

    def accept(self) -> Peer:
        """The backend's end of the next connection."""
        return Peer(self._server.accept()[0])

    def _is_all_kept(self) -> bool:
        stats = self.proxy.stats()
        pairs: dict[str, int] = stats["pairs"]
        alive = stats["connections"]["active"]  # a pair is counted nowhere as it is spliced
        return alive == pairs["spliced"] == stats["kept"]["pairs"] > 0

    @property
    def kept(self) -> int:
        """Pairs whose sockets the supervisor has, too."""
        kept: int = self.proxy.stats()["kept"]["pairs"]
        return kept

    def kill(self) -> None:
        """`kill -9` of the worker, until the next one has adopted."""
        (worker,) = self.proxy.workers
        adoptions = self.proxy.log().count("pairs adopted")
        os.kill(worker, signal.SIGKILL)
        until(lambda: self.proxy.log().count("pairs adopted") > adoptions, "they are adopted")

    def held(self) -> int:
        """Descriptors of the supervisor."""
        return len(os.listdir(f"/proc/{self.proxy.process.pid}/fd"))

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        self._server.close()


@contextlib.contextmanager
def opened(most: int = 1000, more: Sequence[str] = ()) -> Iterator[House]:
    house = House(most, more)
    try:
        with house.proxy:
            yield house
    finally:
        house.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[House]:
    with opened() as house:
        yield house
        house.proxy.stop()


@pytest.fixture
def house(shared: House) -> Iterator[House]:
    """A proxy that others use, too; each test leaves it empty."""
    shared.proxy.forget_records()
    yield shared
    for peer in shared.peers:
        peer.close()
    shared.peers.clear()
    stats = shared.proxy.settled()
    assert stats["pairs"] == {"active": 0, "spliced": 0, "relayed": 0}
    until(lambda: shared.kept == 0, "no duplicate is left")
    shared.proxy.check_log()


def bytes_of(record: dict[str, Any]) -> tuple[int, int]:
    return record["bytes_in"], record["bytes_out"]


def test_it_goes_on_and_ends_in_order_with_one_record(house: House) -> None:
    client, backend = house.pair()
    client.send(b"before")
    assert backend.read(6) == b"before"
    for _ in range(2):
        house.kill()
        client.send(b"after")
        assert backend.read(5) == b"after"
        backend.send(b"fine")
        assert client.read(4) == b"fine"
    client.half_close()
    assert backend.rest() == b""
    backend.send(b"the rest").half_close()
    assert client.rest() == b"the rest"
    record = house.proxy.record(client.port)
    assert record["reason"] == "done"
    assert bytes_of(record) == (5 + 6 + 10, 5 + 8 + 8)
    assert (record["kernel_in"], record["kernel_out"]) == (16, 16)
    assert (record["route"], record["backend"]) == ("all", "app")
    assert (record["listener"], record["datapath"]) == ("raw", "sockmap")
    assert record["total_ms"] > record["splice_ms"] > 0
    assert len([one for one in house.proxy.records() if one["client"] == record["client"]]) == 1


def test_an_operator_knows_it_by_the_same_name(house: House) -> None:
    client, backend = house.pair()
    client.send(b"before")
    assert backend.read(6) == b"before"
    (before,) = house.proxy.connections(f"client=127.0.0.1:{client.port}")
    house.kill()
    client.send(b"after")
    assert backend.read(5) == b"after"
    (after,) = house.proxy.connections(f"client=127.0.0.1:{client.port}")
    assert after["id"] == before["id"]
    assert after["bytes"]["to_backend"] == before["bytes"]["to_backend"] + 5
    assert house.proxy.ask("DELETE", f"/connections/{after['id']}")[0] == 204
    assert (client.ending(), backend.ending()) == ("reset", "reset")
    assert house.proxy.record(client.port)["reason"] == "operator_reset"


def test_what_the_log_tells_of_a_request_is_still_told(house: House) -> None:
    request = b"GET /a/b?c=%20 HTTP/1.1\r\nHost: app.test\r\n\r\n"
    client, backend = house.pair("web", greeting=request)
    house.kill()
    port = client.port
    client.reset()
    assert backend.ending() == "reset"
    record = house.proxy.record(port)
    told = record["method"], record["host"], record["path"], record["protocol"]
    assert told == ("GET", "app.test", "/a/b", "HTTP")
    assert bytes_of(record) == (len(request), 43)


@pytest.mark.parametrize("adopted", [False, True], ids=["kept", "adopted"])
@pytest.mark.parametrize("end", ["client", "backend"])
def test_a_reset_reaches_the_other_end_at_once(house: House, end: str, adopted: bool) -> None:
    """A duplicate of the socket elsewhere would hold a reset by close(2) back."""
    client, backend = house.pair()
    port = client.port
    if adopted:
        house.kill()
    os.kill(house.proxy.process.pid, signal.SIGSTOP)  # it has no part in that
    try:
        broken, other = (client, backend) if end == "client" else (backend, client)
        broken.reset()
        assert other.ending() == "reset"
    finally:
        os.kill(house.proxy.process.pid, signal.SIGCONT)
    assert house.proxy.record(port)["reason"] == f"{end}_reset"


@pytest.mark.parametrize("first", ["client", "backend"])
def test_both_ends_reach_the_other_side_at_once(house: House, first: str) -> None:
    client, backend = house.pair()
    os.kill(house.proxy.process.pid, signal.SIGSTOP)
    try:
        one, other = (client, backend) if first == "client" else (backend, client)
        one.half_close()
        assert other.rest() == b""
        other.half_close()
        assert one.rest() == b""
    finally:
        os.kill(house.proxy.process.pid, signal.SIGCONT)
    assert house.proxy.record(client.port)["reason"] == "done"


def test_an_end_while_nobody_was_there(house: House) -> None:
    """Both ends of one, one end of another, a reset of a third: the next worker finds them so."""
    done, half, broken = (house.pair() for _ in range(3))
    (worker,) = house.proxy.workers
    os.kill(worker, signal.SIGSTOP)
    done[0].send(b"last words").half_close()
    done[1].half_close()
    half[0].half_close()
    broken[1].reset()
    time.sleep(0.05)
    house.kill()
    assert done[1].rest() == b"last words"
    assert done[0].rest() == b""
    assert half[1].rest() == b""
    assert broken[0].ending() == "reset"
    assert house.proxy.record(done[0].port)["reason"] == "done"
    assert bytes_of(house.proxy.record(done[0].port)) == (15, 5)
    assert house.proxy.record(broken[0].port)["reason"] == "backend_reset"
    half[1].send(b"still here").half_close()
    assert half[0].rest() == b"still here"
    assert house.proxy.record(half[0].port)["reason"] == "done"


def test_a_half_closed_pair_is_still_half_closed(house: House) -> None:
    client, backend = house.pair()
    client.half_close()
    assert backend.rest() == b""
    house.kill()
    backend.send(b"an answer")
    assert client.read(9) == b"an answer"
    backend.half_close()
    assert client.rest() == b""
    assert house.proxy.record(client.port)["reason"] == "done"


def test_idle_is_idle_for_the_next_worker(house: House) -> None:
    client, backend = house.pair("hasty")
    house.kill()
    assert client.ending() == "reset"
    assert backend.ending() == "reset"
    assert house.proxy.record(client.port)["reason"] == "idle_timeout"


@pytest.mark.parametrize("speaks", ["client", "backend"])
@pytest.mark.parametrize("ended", [False, True], ids=["flowing", "draining"])
def test_an_overflow_is_adopted_to_the_byte(house: House, speaks: str, ended: bool) -> None:
    """The receiver has stopped reading: user space has the direction, and bytes of it wait."""
    client, backend = house.pair()
    source, sink = (client, backend) if speaks == "client" else (backend, client)
    sent: list[int] = []
    size = 24 * MIB

    def speak() -> None:
        for piece in stream(7, size):
            source.send(piece)
        sent.append(size)
        if ended:
            source.half_close()

    before = house.proxy.stats()["overflows"]
    speaking = threading.Thread(target=speak)
    speaking.start()
    until(lambda: house.proxy.stats()["overflows"] > before, "a direction overflows")
    reading = threading.Thread(target=lambda: sent.append(sink.digest_of(size)))  # type: ignore[arg-type]
    for _ in range(3):
        time.sleep(0.03)
        house.kill()
    reading.start()
    for _ in range(3):  # now it moves
        house.kill()
    speaking.join(PATIENCE)
    reading.join(PATIENCE)
    assert set(sent) == {size, digest(7, size)}
    source.half_close() if not ended else None
    assert sink.rest() == b""
    sink.half_close()
    record = house.proxy.record(client.port)
    assert record["reason"] == "done"
    assert sorted(bytes_of(record)) == [5, size + 5]


def test_limits_hold_across_a_death(house: House) -> None:
    """Who is adopted still counts: for its client, for its backend, and for its listener."""
    client, _ = house.pair("one")
    house.kill()
    try:
        with connect(house.proxy.address("one")) as another:
            assert another.ending() == "reset"
    except ConnectionResetError:
        pass  # before connect(2) had returned
    stats = house.proxy.stats()
    assert stats["connections"]["active"] == 1
    assert stats["listeners"]["one"]["active"] == 1
    group = stats["backends"]["app"]
    assert [one["connections"] for one in group["endpoints"]] == [group["connections"]] == [1]
    client.reset()
    house.proxy.settled()
    house.pair("one")


def test_young_ones_end_with_their_worker(house: House) -> None:
    """What was not handed over yet is reset at both ends: nothing is cut clean."""
    for _ in range(50):
        house.pair()  # the calendar's tick is over: there is time until the next one
        kept = house.kept
        client = connect(house.proxy.address("raw"))
        client.send(b"x")
        backend = house.accept()
        house.peers += client, backend
        house.kill()
        if house.kept == kept:  # else it was handed over: nobody has killed it young
            break
    endings = {client.ending(), backend.ending()}
    assert endings == {"reset"}


def test_nothing_is_left_behind(house: House) -> None:
    """Indices and descriptors: more pairs come and go than the supervisor could forget about."""
    house.pair()
    held = house.held()
    for _ in range(3):
        pairs = [house.pair() for _ in range(5)]
        house.kill()
        for number, (client, backend) in enumerate(pairs):
            (client if number % 2 else backend).reset()
        until(lambda: house.kept == 1, "they are dropped")
        until(lambda: house.held() <= held, "their descriptors are closed")


def test_a_killed_supervisor_resets_every_kept_pair() -> None:
    with opened() as house:
        pairs = [house.pair() for _ in range(3)]
        house.proxy.signal(signal.SIGKILL)
        for client, backend in pairs:
            assert client.ending() == "reset"
            assert backend.ending() == "reset"


def test_a_drain_ends_what_a_dead_worker_has_left() -> None:
    """Nobody is going to adopt it then."""
    with opened() as house:
        client, backend = house.pair()
        (worker,) = house.proxy.workers
        house.proxy.signal(signal.SIGTERM)
        until(lambda: "draining" in house.proxy.log(), "it drains")
        os.kill(worker, signal.SIGKILL)
        assert client.ending() == "reset"
        assert backend.ending() == "reset"
        assert house.proxy.wait() != 0
