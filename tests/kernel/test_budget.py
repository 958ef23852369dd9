"""Bodies on a byte budget: exact to the byte, and what follows them reaches user space alone."""

from __future__ import annotations

import contextlib
import random
import time

import pytest

from l7proxy.datapath.libbpf import ProgramRefused
from l7proxy.datapath.sockmap import PROGRAMS, Splicer, load_splicers

from .bodies import Body, Maker, Single, couple, singles
from .pairs import BACKEND, CLIENT, PATIENCE, read_exactly, silent, wait_for
from .test_exact import has_kfuncs

pytestmark = pytest.mark.kernel

NEXT = b"GET / HTTP/1.1\r\n\r\n"


@pytest.fixture(params=PROGRAMS)
def either(request):
    """Both programs; the kernel may know but one."""
    try:
        (splicer,) = load_splicers(1, 8, program=request.param)
    except ProgramRefused as refusal:
        if request.param == "verdict" and not has_kfuncs():
            pytest.skip(str(refusal))
        raise
    splicer.start()
    with contextlib.closing(splicer):
        yield splicer


@pytest.fixture
def single(splicer: Splicer):
    with singles(splicer) as make:
        yield make


def send(source: Single, data: bytes, sink: Single, body: Body, total: int) -> bytes:
    """Send all of `data`, do the worker's part, and read what the sink's far end gets.

    Until the body is through and all `total` bytes that were ever sent are somewhere.
    """
    source.far.setblocking(False)
    sink.far.setblocking(False)
    got, at, deadline = bytearray(), 0, time.monotonic() + PATIENCE
    while len(got) + len(source.surplus) < total or not body.done:
        with contextlib.suppress(BlockingIOError):
            if at < len(data):
                at += source.far.send(data[at : at + 300_000])
        with contextlib.suppress(BlockingIOError):
            got += sink.far.recv(1 << 20)
        if body.step():
            source.look()
        assert time.monotonic() < deadline, (at, len(got), len(source.surplus), body.done)
    assert silent(sink.far)
    return bytes(got)


SEGMENT = 1000

COUNTS = [1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 65_535, 65_536, 65_537, 10 << 20]


@pytest.mark.parametrize("count", COUNTS)
def test_a_body_is_exact_to_the_byte(either: Splicer, count):
    with singles(either) as make:
        client, backend = couple(make)
        data = random.Random(count).randbytes(count) + NEXT
        body = Body(client, backend, count)
        if count <= SEGMENT + 1:  # in segments, the end in the midst of one or at its end
            for at in range(0, len(data), SEGMENT):
                client.far.sendall(data[at : at + SEGMENT])
                wait_for(lambda end=at + SEGMENT: sum(client.counts()) == min(end, len(data)))
            got = send(client, b"", backend, body, len(data))
        else:
            got = send(client, data, backend, body, len(data))
        assert got == data[:count]
        assert body.done
        assert client.surplus == NEXT
        assert client.counts()[0] <= count
        assert sum(client.counts()) == len(data)
        if count >= SEGMENT + 1:
            assert client.counts()[0] >= SEGMENT, "the kernel did not move what it could"


def test_the_end_of_the_budget_is_told_though_nothing_follows(splicer: Splicer, single: Maker):
    client, backend = couple(single)
    assert splicer.direct(client.index, backend.index, 0, 10)
    client.far.sendall(b"01234")
    assert read_exactly(backend.far, 5) == b"01234"
    assert splicer.events() == []
    client.far.sendall(b"56789")
    assert read_exactly(backend.far, 5) == b"56789"
    assert splicer.events() == [client.index]
    client.far.sendall(NEXT)
    wait_for(lambda: splicer.passed(client.index) == len(NEXT))
    assert splicer.events() == []  # it was told already
    splicer.halt(client.index)
    assert client.look() == NEXT
    assert silent(backend.far)


def test_what_crosses_the_end_is_passed_whole_and_told(splicer: Splicer, single: Maker):
    client, backend = couple(single)
    assert splicer.direct(client.index, backend.index, 0, 10)
    client.far.sendall(b"01234")
    assert read_exactly(backend.far, 5) == b"01234"
    client.far.sendall(b"56789" + NEXT)
    wait_for(lambda: splicer.passed(client.index) == 5 + len(NEXT))
    assert splicer.events() == [client.index]
    client.far.sendall(b"12345")  # would fit, but is behind it
    wait_for(lambda: splicer.passed(client.index) == 10 + len(NEXT))
    assert splicer.events() == []
    splicer.halt(client.index)
    assert client.look() == b"56789" + NEXT + b"12345"
    assert client.counts()[0] == 5
    assert silent(backend.far)


def test_a_socket_goes_from_sink_to_sink(splicer: Splicer, single: Maker):
    """Every body between heads, as in requests that are routed one by one."""
    client, *backends = single(CLIENT), single(BACKEND), single(BACKEND), single(BACKEND)
    for number in range(30):
        backend = backends[number * 7 % 3]
        data = b"%03d" % number * 700
        client.far.sendall(b"head")
        wait_for(lambda: client.look() == b"head")
        client.surplus = b""
        body = Body(client, backend, len(data))
        client.far.sendall(data)
        wait_for(body.step)
        assert read_exactly(backend.far, len(data)) == data
        assert all(silent(one.far, 0) for one in backends)
    redirected, passed = client.counts()
    assert (redirected, passed) == (30 * 2100, 30 * 4)


def test_another_sink_in_the_midst_of_a_body(splicer: Splicer, single: Maker):
    """Nothing is passed between the two: the account of what is in flight has to begin anew."""
    client, one, two = single(CLIENT), single(BACKEND), single(BACKEND)
    assert splicer.direct(client.index, one.index, 0, 100)
    client.far.sendall(b"a" * 50)
    assert read_exactly(one.far, 50) == b"a" * 50
    splicer.halt(client.index)
    assert splicer.direct(client.index, two.index, 0, 50)
    client.far.sendall(b"b" * 50)
    assert read_exactly(two.far, 50) == b"b" * 50
    assert client.counts() == (100, 0)
    assert splicer.events() == [client.index]
    assert silent(one.far, 0)


def test_without_a_limit_two_singles_are_as_good_as_a_pair(splicer: Splicer, single: Maker):
    client, backend = couple(single)
    client.far.sendall(b"upgrade")
    wait_for(lambda: client.look() == b"upgrade")
    assert splicer.direct(client.index, backend.index, 7, None)
    assert splicer.direct(backend.index, client.index, 0, None)
    for source, sink in ((client, backend), (backend, client)) * 20:
        source.far.sendall(b"x" * 3000)
        assert read_exactly(sink.far, 3000) == b"x" * 3000
    assert client.counts() == (60_000, 7)
    assert backend.counts() == (60_000, 0)
    assert splicer.events() == []


def test_the_counts_of_clients_and_backends_are_told_apart(splicer: Splicer, single: Maker):
    client, backend = couple(single)
    before = splicer.totals()
    assert splicer.direct(client.index, backend.index, 0, 5)
    assert splicer.direct(backend.index, client.index, 0, 7)
    client.far.sendall(b"x" * 5)
    backend.far.sendall(b"y" * 7)
    assert read_exactly(backend.far, 5) + read_exactly(client.far, 7) == b"xxxxxyyyyyyy"
    after = splicer.totals()
    assert after.redirected_client - before.redirected_client == 5
    assert after.redirected_backend - before.redirected_backend == 7


def test_every_event_is_heard_though_the_ring_is_not_read(either: Splicer):
    """More bodies than the ring has room for, one after the other."""
    with singles(either) as make:
        client, backend = couple(make)
        for number in range(700):
            assert either.direct(client.index, backend.index, 0, 3)
            client.far.sendall(b"abc")
            wait_for(lambda n=number: client.counts() == (3 * n + 3, 0))
            either.halt(client.index)
        assert read_exactly(backend.far, 2100) == b"abc" * 700
        assert either.events() == [client.index] * 700
