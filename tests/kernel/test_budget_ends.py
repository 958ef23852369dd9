"""What goes wrong in the midst of a body, and the windows between user space and the verdict."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from l7proxy.datapath.maps import AIM, DIRECTION_WORDS
from l7proxy.datapath.sockmap import URGENT, Splicer

from .bodies import Body, Maker, Single, couple, singles
from .pairs import BACKEND, CLIENT, PATIENCE, read_exactly, silent, wait_for

pytestmark = pytest.mark.kernel

RESET = b"\1\0\0\0\0\0\0\0"  # SO_LINGER {1, 0}


@pytest.fixture
def single(splicer: Splicer):
    with singles(splicer) as make:
        yield make


def test_a_sink_without_room_is_told_relayed_and_given_back(splicer: Splicer, single: Maker):
    client, backend = single(CLIENT), single(BACKEND, rcvbuf=8192)
    backend.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
    data = random.Random(3).randbytes(600_000)
    body = Body(client, backend, len(data))
    client.far.setblocking(False)
    at, got = 0, bytearray()
    while splicer.passed(client.index) == 0:  # nobody reads
        with contextlib.suppress(BlockingIOError):
            at += client.far.send(data[at : at + 5000])
    assert splicer.events() == [client.index]
    before = splicer.redirected(client.index)
    backend.far.setblocking(False)
    deadline = time.monotonic() + PATIENCE
    while len(got) < len(data):
        assert time.monotonic() < deadline, f"{len(got)} of {len(data)}, {client.counts()}"
        if len(got) == at:  # the reader has come after
            at += client.far.send(data[at : at + 3000])
        body.step()
        with contextlib.suppress(BlockingIOError):
            got += backend.far.recv(1 << 20)
    assert got == data
    wait_for(body.step)
    redirected, passed = client.counts()
    assert redirected + passed == len(data)
    assert redirected > before + 100_000
    assert passed
    client.far.setblocking(True)
    client.far.sendall(b"next")
    wait_for(lambda: client.look() == b"next")
    assert silent(backend.far)


def test_a_sink_that_is_reset_gets_no_more(splicer: Splicer, single: Maker):
    client, backend = couple(single)
    assert splicer.direct(client.index, backend.index, 0, 1000)
    client.far.sendall(b"x" * 10)
    assert read_exactly(backend.far, 10) == b"x" * 10
    backend.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    backend.far.close()
    poll = select.poll()
    poll.register(backend.near, 0)
    assert dict(poll.poll(1000 * PATIENCE))[backend.near.fileno()] & select.POLLERR
    client.far.sendall(b"y" * 10)
    wait_for(lambda: splicer.passed(client.index) == 10)
    assert splicer.events() == [client.index]
    splicer.halt(client.index)
    assert client.look() == b"y" * 10
    other = single(BACKEND)  # the client itself is as good as new
    assert splicer.direct(client.index, other.index, 10, 5)
    client.far.sendall(b"other")
    assert read_exactly(other.far, 5) == b"other"


def test_the_slot_of_a_closed_sink_is_nobodys_until_its_source_is_halted(
    splicer: Splicer, single: Maker
):
    client, backend = couple(single)
    assert splicer.direct(client.index, backend.index, 0, 1000)
    index = backend.index
    backend.near.close()
    client.far.sendall(b"for nobody")
    wait_for(lambda: splicer.passed(client.index) == 10)
    assert splicer.events() == [client.index]
    assert client.look() == b"for nobody"
    assert splicer.resume(client.index, 10)  # as if the rest were for the closed one
    splicer.leave(index)
    backend.index = -1
    stranger = single(BACKEND)
    assert stranger.index == index
    client.far.sendall(b"not for strangers")
    wait_for(lambda: splicer.passed(client.index) == 27)
    assert silent(stranger.far)
    assert splicer.redirected(client.index) == 0
    assert client.look() == b"for nobodynot for strangers"
    assert splicer.direct(client.index, stranger.index, 27, 6)
    client.far.sendall(b"at last")
    wait_for(lambda: splicer.passed(client.index) == 34)


@contextlib.contextmanager
def talking(source: Single, stream: bytes, seed: int) -> Iterator[None]:
    """Send the stream, over and over, from another thread."""
    stop, rng = threading.Event(), random.Random(seed)

    def talk() -> None:
        source.far.settimeout(0.01)
        at = 0
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                at += source.far.send(stream[at : at + rng.randint(1, 3000)])
                at %= len(stream)
            if rng.random() < 0.1:
                time.sleep(0.0002)

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def opened(splicer: Splicer, source: Single, sink: Single) -> int:
    """Aim while bytes keep coming; returns the position of the first one that is redirected."""
    deadline = time.monotonic() + PATIENCE
    while True:
        assert time.monotonic() < deadline
        source.look()
        source.surplus = b""
        before = splicer.redirected(source.index)
        here = before + source.taken
        if splicer.direct(source.index, sink.index, source.taken, None):
            return here
        splicer.halt(source.index)
        if splicer.redirected(source.index) != before:
            return here  # some were, and then one was passed


def test_sinks_come_and_go_in_the_same_slot_while_bytes_arrive(splicer: Splicer, single: Maker):
    """Each gets what is its own: from the byte at which it was aimed at, without a gap."""
    stream = random.Random(5).randbytes(1_000_003)
    client = single(CLIENT)
    rng, moved, indices = random.Random(6), 0, set()
    with talking(client, stream, 7):
        for _ in range(150):
            sink = Single(splicer, BACKEND).enter()
            indices.add(sink.index)
            before = splicer.redirected(client.index)
            lock = opened(splicer, client, sink)
            begin = lock % len(stream)
            if rng.random() < 0.8:
                wait_for(
                    lambda start=before: (
                        splicer.redirected(client.index) != start
                        or splicer.passed(client.index) != client.taken
                    )
                )
            sink.far.settimeout(0.2)
            early = b""
            with contextlib.suppress(TimeoutError):
                early = sink.far.recv(1 << 20) if rng.random() < 0.5 else b""
            sink.close()  # in the midst of it; at once the next one stands in its slot
            sink.far.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                while data := sink.far.recv(1 << 20):
                    early += data
            sink.far.close()
            doubled = stream + stream
            assert early == doubled[begin : begin + len(early)]
            moved += len(early)
    assert len(indices) == 1
    assert moved


def test_after_halt_not_one_more_byte_is_redirected(splicer: Splicer, single: Maker):
    client, backend = couple(single)
    stream, stop = random.Random(8).randbytes(100_003), threading.Event()

    def read() -> None:
        backend.far.settimeout(0.01)
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                backend.far.recv(1 << 20)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with talking(client, stream, 9):
            for _ in range(200):
                wait_for(backend_settled(splicer, client, backend))
                opened(splicer, client, backend)
                before = splicer.redirected(client.index)
                wait_for(
                    lambda start=before: (
                        splicer.redirected(client.index) != start
                        or splicer.passed(client.index) != client.taken
                    )
                )
                splicer.halt(client.index)
                final = splicer.redirected(client.index)
                wait_for(
                    lambda: splicer.passed(client.index) != client.taken, what="a pass after it"
                )
                assert splicer.redirected(client.index) == final
    finally:
        stop.set()
        reader.join()
    assert splicer.redirected(client.index)


def test_the_lock_of_the_source_is_taken_after_every_change(
    splicer: Splicer, single: Maker, monkeypatch
):
    """A verdict that has read the old words is over then; its window is too short to be hit."""
    client, backend = couple(single)
    words, real, seen = splicer._words, splicer._getsockopt, []
    aim = client.index * DIRECTION_WORDS + AIM

    def spy(fd: int, level: int, name: int, value: int, length: int) -> int:
        if (level, name) == (socket.IPPROTO_TCP, socket.TCP_INFO):
            assert fd == client.near.fileno()
            seen.append(words[aim] & 0xFFFFFFFF if words[aim] else None)
        return real(fd, level, name, value, length)

    monkeypatch.setattr(splicer, "_getsockopt", spy)
    assert splicer.direct(client.index, backend.index, 0, 10)
    assert splicer.resume(client.index, 0)
    splicer.halt(client.index)
    assert seen == [backend.index, backend.index, None]
    assert splicer.direct(client.index, backend.index, 0, 10)
    index = backend.index
    backend.close()
    assert seen[3:] == [index, None]


def backend_settled(splicer: Splicer, source: Single, sink: Single):
    def settled() -> bool:
        sink.brought = splicer.redirected(source.index)
        return sink.settled()

    return settled


def test_a_stream_that_ends_within_the_body(splicer: Splicer, single: Maker):
    client, backend = couple(single)
    assert splicer.direct(client.index, backend.index, 0, 10)
    client.far.sendall(b"01234")
    client.far.shutdown(socket.SHUT_WR)
    assert read_exactly(backend.far, 5) == b"01234"
    assert select.select([client.near], [], [], PATIENCE)[0]
    assert client.near.recv(1) == b""
    assert client.counts() == (5, 0)
    assert splicer.events() == []  # epoll tells
    assert silent(backend.far)  # and its end is not passed on by itself
    assert backend.near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_a_stream_that_ends_with_the_body(splicer: Splicer, single: Maker):
    client, backend = couple(single)
    assert splicer.direct(client.index, backend.index, 0, 5)
    client.far.sendall(b"01234")
    client.far.shutdown(socket.SHUT_WR)
    assert read_exactly(backend.far, 5) == b"01234"
    assert splicer.events() == [client.index]
    splicer.halt(client.index)
    assert client.near.recv(1) == b""
    assert splicer.direct(backend.index, client.index, 0, 6)  # the answer
    backend.far.sendall(b"answer")
    assert read_exactly(client.far, 6) == b"answer"


def test_urgent_data_within_a_body_ends_it(splicer: Splicer, single: Maker):
    client, backend = couple(single)
    assert splicer.direct(client.index, backend.index, 0, 10)
    client.far.send(b"!", socket.MSG_OOB)
    wait_for(lambda: splicer.broken(client.index) == URGENT)
    assert splicer.events() == [client.index]
    client.far.sendall(b"more")
    assert silent(backend.far)
    assert client.counts() == (0, 0)


def test_both_ways_at_once(splicer: Splicer, single: Maker):
    """A request's body and an early answer's, between the same two sockets."""
    client, backend = couple(single)
    rng = random.Random(10)
    up, down = rng.randbytes(700_000), rng.randbytes(900_000)
    bodies = Body(client, backend, len(up)), Body(backend, client, len(down))
    sent, got = [0, 0], [bytearray(), bytearray()]
    ends = ((client, backend, up), (backend, client, down))
    for one in (client, backend):
        one.far.setblocking(False)
    deadline = time.monotonic() + PATIENCE
    while not all(body.done for body in bodies) or [len(x) for x in got] != [len(up), len(down)]:
        assert time.monotonic() < deadline
        for way, (source, sink, data) in enumerate(ends):
            with contextlib.suppress(BlockingIOError):
                if sent[way] < len(data):
                    sent[way] += source.far.send(data[sent[way] : sent[way] + 100_000])
            with contextlib.suppress(BlockingIOError):
                got[way] += sink.far.recv(1 << 18)
            bodies[way].step()
    assert (bytes(got[0]), bytes(got[1])) == (up, down)
