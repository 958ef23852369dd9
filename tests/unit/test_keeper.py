"""The keeper of duplicates, and the records that go with them."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from l7proxy.model import Datapath, Protocol, Timeouts
from l7proxy.net import dial
from l7proxy.net.channel import ChannelBroken, Received
from l7proxy.net.kept import load
from l7proxy.net.messages import Adopted, Dropped, Ended, Spliced
from l7proxy.net.sockdiag import SockDiag
from l7proxy.net.tcpinfo import tcp_info
from l7proxy.supervisor.keeper import TRIES, Keeper
from l7proxy.telemetry.accesslog import Record
from l7proxy.worker.handover import VERSION, Handed, Unreadable, pack

pytestmark = pytest.mark.net


@pytest.fixture
def tcp() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    dial.reset_on_close(near)
    yield near, far
    near.close()
    far.close()


def kept(keeper: Keeper, index: int, sockets: tuple[socket.socket, ...], slot: int = 0) -> None:
    fds = [os.dup(sock.fileno()) for sock in sockets]
    assert keeper.hear(slot, Received(Spliced(), fds, payload=load([index, 6], [b"record"]))) == []


def is_reset(sock: socket.socket, seconds: float = 0.0) -> bool:
    if not select.select([sock], [], [], seconds)[0]:
        return False
    try:
        return sock.recv(1) == b"never"
    except ConnectionResetError:
        return True


def test_what_is_kept_lives_until_it_is_dropped(tcp: tuple[socket.socket, socket.socket]) -> None:
    near, far = tcp
    keeper = Keeper(2, pairs=8, most=10)
    kept(keeper, 4, (near, near), slot=1)
    near.close()
    assert not is_reset(far, 0.02)
    assert keeper.total == 1
    assert keeper.descriptors(0) == keeper.descriptors(2) == frozenset()
    (pair,) = keeper.of(1).values()
    assert keeper.descriptors(1) == {pair.client, pair.backend}
    assert keeper.orphaned(1) == 1
    keeper.drop(1)
    assert is_reset(far, 1.0)
    assert keeper.total == 0


def test_an_end_closes_the_duplicates_and_is_answered(
    tcp: tuple[socket.socket, socket.socket],
) -> None:
    near, far = tcp
    keeper = Keeper(1, pairs=8, most=10)
    kept(keeper, 0, (near, near))
    held = keeper.descriptors(0)
    near.shutdown(socket.SHUT_WR)
    near.close()
    assert keeper.hear(0, Received(Ended((0, 6)), [])) == [Dropped((0, 6))]
    assert far.recv(1) == b""  # in order: not reset
    for fd in held:
        with pytest.raises(OSError):
            os.fstat(fd)


def test_no_more_are_kept_than_there_is_room_for(tcp: tuple[socket.socket, socket.socket]) -> None:
    near, _ = tcp
    keeper = Keeper(1, pairs=8, most=2)
    before = len(os.listdir("/proc/self/fd"))
    for index in (0, 2, 4, 6, 0):
        kept(keeper, index, (near, near))
    assert sorted(keeper.of(0)) == [0, 2]
    assert len(os.listdir("/proc/self/fd")) == before + 4
    keeper.drop(0)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("payload", "fds"),
    [
        (load([1, 0], []), 2),
        (load([16, 0], []), 2),
        (load([(1 << 32) - 2, 0], []), 2),
        (load([0, 0], []), 4),
        (load([0, 0], []), 1),
        (load([0, 0], []), 3),
        (load([0, 0, 2, 0], []), 2),
        (load([0, 1], []), 2),
        (load([0, 0], [b"x"]), 2),
        (b"", 2),
    ],
)
def test_what_no_worker_would_say_is_refused(payload: bytes, fds: int) -> None:
    keeper = Keeper(1, pairs=8, most=10)
    given = [os.open(os.devnull, os.O_RDONLY) for _ in range(fds)]
    with pytest.raises(ChannelBroken):
        keeper.hear(0, Received(Spliced(), list(given), payload=payload))
    assert keeper.total == 0
    for fd in given:
        with pytest.raises(OSError):
            os.fstat(fd)


def test_pairs_that_came_without_all_their_descriptors_are_not_kept() -> None:
    keeper = Keeper(1, pairs=8, most=10)
    fd = os.open(os.devnull, os.O_RDONLY)
    assert keeper.hear(0, Received(Spliced(), [fd], False, load([0, 0], []))) == []
    assert keeper.total == 0
    with pytest.raises(OSError):
        os.fstat(fd)


def test_what_is_no_socket_can_be_dropped_as_well() -> None:
    keeper = Keeper(1, pairs=8, most=10)
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]
    keeper.hear(0, Received(Spliced(), list(fds), payload=load([0, 0], [])))
    keeper.drop(0)
    for fd in fds:
        with pytest.raises(OSError):
            os.fstat(fd)


def test_pairs_that_kill_whoever_adopts_them_are_given_up(
    tcp: tuple[socket.socket, socket.socket],
) -> None:
    near, far = tcp
    keeper = Keeper(1, pairs=8, most=10)
    kept(keeper, 0, (near, near))
    near.close()
    for _ in range(TRIES):
        assert keeper.orphaned(0) == 1
    keeper.hear(0, Received(Adopted(1, 0), []))  # that one was not it
    for _ in range(TRIES):
        assert keeper.orphaned(0) == 1
    assert not is_reset(far)
    assert keeper.orphaned(0) == 0
    assert is_reset(far, 1.0)


def test_other_messages_are_for_others() -> None:
    assert Keeper(1, 8, 8).hear(0, Received(Dropped((0,)), [])) is None


# ---- what it rests on


def test_reset_now_resets_whoever_else_has_a_descriptor(
    tcp: tuple[socket.socket, socket.socket],
) -> None:
    near, far = tcp
    with near.dup():
        dial.reset_now(near)
        assert is_reset(far, 1.0)
        dial.reset_now(near)  # once more does no harm


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_how_much_nobody_has_read(family: socket.AddressFamily) -> None:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    diag = SockDiag()
    with (
        socket.create_server((host, 0), family=family) as listener,
        socket.create_connection(listener.getsockname()[:2]) as far,
    ):
        near, _ = listener.accept()
        with near:
            assert diag.unread(near) == 0
            far.sendall(b"0123456789")
            near.recv(3)
            assert diag.unread(near) == 7
            far.shutdown(socket.SHUT_WR)
            while tcp_info(near).bytes_received != 11:
                pass
            assert diag.unread(near) == 8  # the end is one
    diag.close()


# ---- records


def connection(record: Record, **more: Any) -> Any:
    made = {
        "early_in": 100,
        "early_out": 90,
        "early_answer": 500,
        "before_in": 41,
        "before_out": 42,
        "added": -7,
        "listener": SimpleNamespace(row=3),
        "number": 17,
        "presence": -1,
        "brief": False,
        "upgrades": True,
        "began": 12345.678901,
        "timeouts": Timeouts(idle=0.0, overflow=1.5),
    }
    return SimpleNamespace(record=record, **(made | more))


RECORD = Record(
    1764000000.125,
    2,
    "web",
    "[::1]:45678",
    proxy="10.0.0.1:1",
    route="api",
    backend="app",
    endpoint="127.0.0.1:9000",
    method="GET",
    host="app.test",
    path="/a\xe9\u2028",
    sni="sni.test",
    alpn=("h2", "http/1.1"),
    protocol=Protocol.TLS,
    datapath=Datapath.SOCKMAP,
    head_ms=0.125,
    dial_ms=0.5,
    splice_ms=1.25,
    status=101,
    version="1.1",
    query="b=c\nd",
    headers={"user-agent": "curl"},
)


def test_a_record_comes_back_as_it_was() -> None:
    was = connection(RECORD)
    handed = Handed(pack(was), slot=2)
    assert handed.record == RECORD
    assert (handed.row, handed.protocol, handed.counted) == (3, Protocol.TLS, False)
    found: Any = SimpleNamespace()
    handed.write_to(found)
    for name in ("early_in", "early_out", "early_answer", "before_in", "added", "upgrades"):
        assert getattr(found, name) == getattr(was, name), name
    assert (found.began, found.timeouts) == (was.began, was.timeouts)
    assert Handed(pack(connection(RECORD, presence=5)), 0).counted


def test_a_record_has_a_bound() -> None:
    long = Record(0.0, 0, "web", "c", path="/" * 100_000, protocol=Protocol.HTTP)
    assert len(pack(connection(long))) < 2000


def test_a_record_without_anything_and_one_with_a_name_that_is_no_text() -> None:
    for was in (
        Record(0.5, 0, "web", "c", protocol=Protocol.TCP),
        Record(0.5, 0, "web", "\udcff", protocol=Protocol.TCP, query="", headers={}),
    ):
        assert Handed(pack(connection(was)), 0).record == was


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"0",
        VERSION.encode(),
        b"1" + pack(connection(RECORD))[1:],
        pack(connection(RECORD)) + b"\nmore",
        pack(connection(RECORD)).rpartition(b"\n")[0],
        pack(connection(RECORD)).replace(b"d" + bytes(7), b"d", 1),
        pack(connection(RECORD)).replace("\xe9".encode(), b"\xe9"),
        pack(connection(RECORD)).replace(b"TLS", b"QUIC"),
        pack(connection(RECORD)).replace(b"101", b"a01"),
    ],
)
def test_what_is_not_understood_is_not_guessed(data: bytes) -> None:
    with pytest.raises(Unreadable):
        Handed(data, 0)
