"""Into the map and out of it: all or nothing, and never a foreign slot."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from l7proxy.datapath import libbpf
from l7proxy.datapath.sockmap import HalfSpliced, Splicer, load_splicers

from .pairs import BACKEND, CLIENT, connected, pumping, read_exactly, silent, wait_for

pytestmark = pytest.mark.kernel


def test_bytes_between_the_two_insertions_are_passed_not_lost(splicer: Splicer, pair, monkeypatch):
    """A redirect to an empty slot drops the bytes; so nothing is redirected until both are in."""
    one = pair()
    insert = splicer._insert

    def insert_and_talk(index: int, fd: int) -> int:
        result = insert(index, fd)
        (one.client if index % 2 == CLIENT else one.backend).sendall(b"between %d;" % (index % 2))
        wait_for(lambda: splicer.passed(index) == 10)
        return result

    monkeypatch.setattr(splicer, "_insert", insert_and_talk)
    one.splice()
    one.client.sendall(b"after")
    wait_for(lambda: splicer.passed(one.index) == 15)  # not ahead of what was passed
    assert splicer.events() == []  # splice() returned: the caller reads `passed` itself
    with pumping(one):
        assert read_exactly(one.backend, 15) == b"between 0;after"
        assert read_exactly(one.client, 10) == b"between 1;"
    one.client.sendall(b"redirected again")
    assert read_exactly(one.backend, 16) == b"redirected again"
    assert one.counts(CLIENT) == (16, 15, 15)


def test_the_other_side_gone_from_its_slot_means_pass(splicer: Splicer, pair):
    one = pair().splice()
    one.near_backend.close()
    with pytest.raises(ConnectionResetError):
        one.backend.recv(1)
    one.client.sendall(b"for nobody")
    wait_for(lambda: splicer.passed(one.index) == 10)
    assert one.near_client.recv(100) == b"for nobody"
    assert splicer.redirected(one.index) == 0


FAMILIES = {"::1": socket.AF_INET6, "127.0.0.1": socket.AF_INET}


def half_closed(one) -> None:
    one.client.shutdown(socket.SHUT_WR)
    wait_for(lambda: one.near_client.recv(1) == b"")


def test_a_client_in_close_wait_leaves_everything_as_it_was(splicer: Splicer, pair):
    one = pair()
    half_closed(one)
    free = list(splicer._free)
    with pytest.raises(OSError) as refused:
        one.splice()
    assert refused.value.errno == errno.EOPNOTSUPP
    assert not isinstance(refused.value, HalfSpliced)
    one.near_backend.sendall(b"plain")
    assert read_exactly(one.backend, 5) == b"plain"
    assert splicer._free == free
    fresh, near = connected()
    index = splicer.splice(near.fileno(), one.near_backend.fileno())  # its cookie was not kept
    fresh.sendall(b"spliced")
    assert read_exactly(one.backend, 7) == b"spliced"
    for sock in (fresh, near):
        sock.close()
    one.index = index


def test_a_refused_backend_leaves_a_client_that_can_be_relayed(splicer: Splicer, pair):
    one = pair()
    one.backend.shutdown(socket.SHUT_WR)
    wait_for(lambda: one.near_backend.recv(1) == b"")
    free = len(splicer._free)
    with pytest.raises(HalfSpliced) as refused:
        one.splice()
    assert refused.value.errno == errno.EOPNOTSUPP
    one.index = refused.value.index
    assert len(splicer._free) == free - 1  # the client stands in its slot
    one.client.sendall(b"to user space")
    wait_for(lambda: splicer.passed(one.index) == 13)
    assert one.near_client.recv(100) == b"to user space"
    one.near_client.sendall(b"and back")
    assert read_exactly(one.client, 8) == b"and back"
    assert splicer.events() == []
    index = one.index
    one.close()
    assert pair().splice().index == index


def test_sockets_that_the_kernel_refuses(splicer: Splicer, pair):
    one = pair()
    with socket.socket() as fresh, pytest.raises(OSError) as refused:
        splicer.splice(fresh.fileno(), one.near_backend.fileno())
    assert refused.value.errno == errno.EOPNOTSUPP
    with pytest.raises(OSError) as refused:
        splicer.splice(-1, one.near_backend.fileno())
    assert refused.value.errno == errno.EBADF
    one.splice()
    with pytest.raises(OSError) as refused:  # a second slot for the same sockets
        splicer.splice(one.near_client.fileno(), one.near_backend.fileno())
    assert refused.value.errno == errno.EEXIST
    one.client.sendall(b"as before")
    assert read_exactly(one.backend, 9) == b"as before"


def test_a_full_map_is_enospc_and_a_release_makes_room(pair):
    (small,) = load_splicers(1, 1)
    small.start()
    one, two = pair(small), pair(small)
    one.splice()
    with pytest.raises(OSError) as refused:
        two.splice()
    assert refused.value.errno == errno.ENOSPC
    one.close()
    two.splice()
    two.client.sendall(b"mine")
    assert read_exactly(two.backend, 4) == b"mine"
    two.close()
    small.close()


def test_an_index_used_again_starts_from_zero_and_keeps_connections_apart(splicer: Splicer, pair):
    one = pair().splice()
    index = one.index
    one.client.sendall(b"a" * 1000)
    assert read_exactly(one.backend, 1000) == b"a" * 1000
    splicer.set_relayed(index, 1)  # leave the entry in as odd a state as possible
    one.client.sendall(b"b")
    wait_for(lambda: splicer.passed(index) == 1)
    one.close()
    two = pair().splice()
    assert two.index == index
    assert two.counts(CLIENT) == two.counts(BACKEND) == (0, 0, 0)
    two.client.sendall(b"mine only")
    assert read_exactly(two.backend, 9) == b"mine only"
    assert silent(two.backend)
    with pytest.raises(ConnectionResetError):
        one.backend.recv(100)


def test_an_occupied_slot_is_not_replaced(splicer: Splicer, pair):
    """`BPF_ANY` would send the old backend's bytes to the new client."""
    one = pair().splice()
    stranger, near = connected()
    assert splicer._insert(one.index, near.fileno()) == -errno.EEXIST
    one.backend.sendall(b"for the client")
    assert read_exactly(one.client, 14) == b"for the client"
    assert silent(stranger)
    for sock in (stranger, near):
        sock.close()


def test_a_reset_does_not_empty_the_slot_but_close_does(splicer: Splicer, pair):
    one = pair().splice()
    index = one.index
    one.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    one.client.close()
    wait_for(lambda: one.near_client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0)
    other, near = connected()
    assert splicer._insert(index, near.fileno()) == -errno.EEXIST
    one.near_client.close()
    assert splicer._insert(index, near.fileno()) == 0
    for sock in (other, near):
        sock.close()


@pytest.mark.parametrize("order", [(CLIENT, BACKEND), (BACKEND, CLIENT)])
def test_the_order_of_the_two_closes_does_not_matter(splicer: Splicer, pair, order):
    one = pair().splice()
    index = one.index
    for side in order:
        one.near[side].close()
    splicer.release(index)
    one.index = -1
    assert pair().splice().index == index


def test_a_duplicated_descriptor_keeps_the_splice(pair):
    one = pair().splice()
    copies = [sock.dup() for sock in one.near]
    for sock in one.near:
        sock.close()
    one.client.sendall(b"still moving")
    assert read_exactly(one.backend, 12) == b"still moving"
    for sock in copies:
        sock.close()


def test_release_twice_is_a_bug_that_shows(splicer: Splicer, pair):
    one = pair().splice()
    index = one.index
    one.close()
    with pytest.raises(KeyError):
        splicer.release(index)


@pytest.mark.parametrize("host", ["::1", "127.0.0.1"])
def test_ipv6_and_mixed_pairs(splicer: Splicer, host):
    client, near_client = connected("::1", family=socket.AF_INET6)
    near_backend, backend = connected(host, family=FAMILIES[host])
    index = splicer.splice(near_client.fileno(), near_backend.fileno())
    client.sendall(b"six")
    assert read_exactly(backend, 3) == b"six"
    for sock in (client, near_client, near_backend, backend):
        sock.close()
    splicer.release(index)


def test_two_workers_do_not_share_anything(pair):
    first, second = load_splicers(2, 2)
    for splicer in (first, second):
        splicer.start()
    one, two = pair(first).splice(), pair(second).splice()
    assert one.index == two.index
    one.client.sendall(b"one")
    assert read_exactly(one.backend, 3) == b"one"
    assert (first.totals().redirected_client, second.totals().redirected_client) == (3, 0)
    one.close()
    two.close()
    first.close()
    second.close()
    assert libbpf.possible_cpus() >= (os.cpu_count() or 1)
