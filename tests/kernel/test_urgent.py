"""Urgent data would go in-band: a byte that layer 7 never saw. It is refused."""

from __future__ import annotations

import socket

import pytest

from l7proxy.datapath.sockmap import URGENT, Splicer

from .pairs import BACKEND, CLIENT, PATIENCE, read_exactly, silent, wait_for

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("side", [CLIENT, BACKEND])
def test_an_urgent_byte_is_a_fault_and_goes_nowhere(splicer: Splicer, pair, side):
    one = pair().splice()
    here, there = (one.client, one.backend) if side == CLIENT else (one.backend, one.client)
    here.sendall(b"abc")
    assert read_exactly(there, 3) == b"abc"
    here.send(b"Z", socket.MSG_OOB)
    wait_for(lambda: splicer.broken(one.index + side) == URGENT)
    assert splicer.events() == [one.index + side]
    here.sendall(b"def")
    assert silent(there)
    assert one.counts(side) == (3, 0, 0)
    assert splicer.broken(one.index + 1 - side) == 0


def test_the_fin_still_comes_through_after_a_fault(splicer: Splicer, pair):
    one = pair().splice()
    one.client.send(b"Z", socket.MSG_OOB)
    one.client.shutdown(socket.SHUT_WR)
    wait_for(lambda: splicer.broken(one.index) == URGENT)
    one.near_client.setblocking(True)
    one.near_client.settimeout(PATIENCE)
    assert one.near_client.recv(10) == b""
