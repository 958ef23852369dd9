"""Single sockets into the map and out of it, in slots that pairs use too."""

from __future__ import annotations

import errno
import socket

import pytest

from l7proxy.datapath.sockmap import Splicer, load_splicers

from .bodies import Maker, Single, couple, singles
from .pairs import BACKEND, CLIENT, Pair, connected, read_exactly, silent, wait_for
from .test_privileges import as_nobody
from .test_restart import killed

pytestmark = pytest.mark.kernel


@pytest.fixture
def single(splicer: Splicer):
    with singles(splicer) as make:
        yield make


@pytest.fixture
def small():
    """Room for two pairs."""
    (splicer,) = load_splicers(1, 2)
    splicer.start()
    yield splicer
    splicer.close()


def test_all_that_comes_is_passed_and_nothing_is_told(splicer: Splicer, single: Maker):
    client = single(CLIENT)
    for number in range(3):
        client.far.sendall(b"head")
        wait_for(lambda n=number: client.counts() == (0, 4 * n + 4))
    assert client.look() == b"head" * 3
    client.near.sendall(b"answer")
    assert read_exactly(client.far, 6) == b"answer"
    assert splicer.events() == []


def test_bytes_that_wait_are_counted_and_those_that_were_read_are_not(
    splicer: Splicer, single: Maker
):
    client = Single(splicer, CLIENT)
    client.far.sendall(b"0123456789")
    wait_for(lambda: len(client.near.recv(10, socket.MSG_PEEK)) == 10)
    assert client.near.recv(4) == b"0123"  # of one skb
    client.enter()
    backend = single(BACKEND)
    assert client.counts() == (0, 6)
    assert client.look() == b"456789"
    assert splicer.direct(client.index, backend.index, 6, 4)
    client.far.sendall(b"body")
    assert read_exactly(backend.far, 4) == b"body"
    client.close_all()


def test_clients_are_even_and_backends_odd_and_both_halves_of_a_pair_are_used(small: Splicer):
    with singles(small) as make:
        made = [make(side) for side in (CLIENT, BACKEND, BACKEND, CLIENT)]
        assert [one.index for one in made] == [0, 1, 3, 2]
        with pytest.raises(OSError) as refused:
            make(CLIENT)
        assert refused.value.errno == errno.ENOSPC
        made[1].close()
        with pytest.raises(OSError) as refused:  # the other half is a client's
            make(CLIENT)
        assert refused.value.errno == errno.ENOSPC
        assert make(BACKEND).index == 1


def test_pairs_take_what_singles_leave_and_the_other_way_round(small: Splicer, pair):
    with singles(small) as make:
        client, backend = couple(make)
        one = pair(small).splice()
        assert one.index == 2
        with pytest.raises(OSError) as refused:
            pair(small).splice()
        assert refused.value.errno == errno.ENOSPC
        client.close()
        with pytest.raises(OSError):  # half of it is in use
            pair(small).splice()
        backend.close()
        two = pair(small).splice()
        assert two.index == 0
        for each in (one, two):
            each.client.sendall(b"spliced")
            assert read_exactly(each.backend, 7) == b"spliced"
        one.close()
        assert make(BACKEND).index == 3


def test_a_socket_that_is_refused_takes_no_index(small: Splicer):
    free = list(small._free)
    far, near = connected()
    far.shutdown(socket.SHUT_WR)
    wait_for(lambda: near.recv(1) == b"")
    for fd, code in ((near.fileno(), errno.EOPNOTSUPP), (-1, errno.EBADF)):
        with pytest.raises(OSError) as refused:
            small.enter(fd, BACKEND)
        assert refused.value.errno == code
    with socket.socket() as fresh, pytest.raises(OSError):
        small.enter(fresh.fileno(), CLIENT)
    assert small._free == free
    assert small._halves == (set(), set())
    with singles(small) as make:
        one = make(CLIENT)
        with pytest.raises(OSError) as refused:
            small.enter(one.near.fileno(), CLIENT)
        assert refused.value.errno == errno.EEXIST
        one.far.sendall(b"as before")
        wait_for(lambda: one.look() == b"as before")
    assert sorted(small._free) == sorted(free)
    far.close()
    near.close()


def test_an_index_used_again_is_not_armed_and_counts_from_zero(splicer: Splicer, single: Maker):
    client, backend = couple(single)
    splicer.direct(client.index, backend.index, 0, 100)
    client.far.sendall(b"x" * 60)
    assert read_exactly(backend.far, 60) == b"x" * 60
    index = client.index
    client.close()  # still armed
    other = single(CLIENT)
    assert other.index == index
    assert other.counts() == (0, 0)
    other.far.sendall(b"a head")
    wait_for(lambda: other.look() == b"a head")
    assert silent(backend.far)
    assert splicer.direct(other.index, backend.index, 6, 4)  # the sink was set free
    other.far.sendall(b"body")
    assert read_exactly(backend.far, 4) == b"body"


def test_what_may_not_be_aimed(splicer: Splicer, single: Maker, pair):
    client, backend = couple(single)
    third, one = single(CLIENT), pair().splice()
    for source, sink in (
        (client.index, client.index),
        (client.index, one.index),
        (one.index, client.index),
        (client.index, 127),
    ):
        with pytest.raises(ValueError, match="single socket"):
            splicer.direct(source, sink, 0, 1)
    for count in (0, -1):
        with pytest.raises(ValueError, match="nothing"):
            splicer.direct(client.index, backend.index, 0, count)
    assert splicer.direct(client.index, backend.index, 0, 1)
    with pytest.raises(ValueError, match="halt"):  # twice
        splicer.direct(client.index, third.index, 0, 1)
    with pytest.raises(ValueError, match="halt"):  # two sources
        splicer.direct(third.index, backend.index, 0, 1)
    splicer.halt(client.index)
    splicer.halt(client.index)
    assert splicer.direct(third.index, backend.index, 0, 1)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_order_in_which_two_leave_does_not_matter(splicer: Splicer, single: Maker, order):
    free = sorted(splicer._free)
    made = couple(single)
    splicer.direct(made[0].index, made[1].index, 0, 10)
    splicer.direct(made[1].index, made[0].index, 0, 10)
    for one in made:
        one.near.close()
    for which in order:
        splicer.leave(made[which].index)
        made[which].index = -1
    assert sorted(splicer._free) == free
    with pytest.raises(KeyError):
        splicer.leave(0)


def test_single_sockets_of_a_killed_worker_leave_nothing_behind():
    (splicer,) = load_splicers(1, 2)

    def worker() -> list[Single]:
        splicer.start()
        made = [Single(splicer, side).enter() for side in (CLIENT, BACKEND, CLIENT, BACKEND)]
        for source, sink in ((0, 1), (2, 3)):
            splicer.direct(made[source].index, made[sink].index, 0, 10)
            made[source].far.sendall(b"0123456789")
            assert read_exactly(made[sink].far, 10) == b"0123456789"
        return made  # every index taken, an event for each end in the ring

    def successor() -> None:
        splicer.start()
        assert splicer.events() == []
        pairs = [Pair(splicer).splice() for _ in range(2)]
        for one in pairs:
            one.client.sendall(b"spliced")
            assert read_exactly(one.backend, 7) == b"spliced"
            assert one.counts(CLIENT) == (7, 0, 0)
            one.close_all()

    killed(worker)
    assert as_nobody(successor) == ""
    splicer.close()


def test_it_takes_no_capability():
    (splicer,) = load_splicers(1, 2)

    def worker() -> None:
        splicer.start()
        with singles(splicer) as make:
            client, backend = couple(make)
            assert splicer.direct(client.index, backend.index, 0, 4)
            client.far.sendall(b"body")
            assert read_exactly(backend.far, 4) == b"body"
            splicer.halt(client.index)

    assert as_nobody(worker) == ""
    splicer.close()
