"""The order across the two ways, and the event that tells of the first byte left to user space."""

from __future__ import annotations

import random
import select
import time

import pytest

from l7proxy.datapath.maps import AIM
from l7proxy.datapath.sockmap import Splicer

from .pairs import BACKEND, CLIENT, PATIENCE, pumping, read_exactly, silent, wait_for

pytestmark = pytest.mark.kernel


def stall(one) -> bytes:
    """Send to a client that reads nothing until the verdict passes; returns what was sent."""
    source = random.Random(1)
    sent = b""
    one.backend.setblocking(False)
    while one.counts(BACKEND)[1] == 0:
        data = source.randbytes(5000)
        try:
            sent += data[: one.backend.send(data)]
        except BlockingIOError:
            time.sleep(0.001)
    one.backend.setblocking(True)
    return sent


def test_one_event_for_the_first_pass_and_none_for_the_next(splicer: Splicer, pair):
    one = pair(rcvbuf=8192).splice()
    sent = stall(one)
    assert select.select([splicer.event_fd], [], [], PATIENCE)[0]
    assert splicer.events() == [one.index ^ 1]
    assert not select.select([splicer.event_fd], [], [], 0)[0]
    passed = one.counts(BACKEND)[1]
    one.backend.sendall(b"more")
    wait_for(lambda: one.counts(BACKEND)[1] == passed + 4)
    assert splicer.events() == []
    with pumping(one):
        assert read_exactly(one.client, len(sent) + 4) == sent + b"more"
    redirected, passed, relayed = one.counts(BACKEND)
    assert passed == relayed > 0
    one.backend.sendall(b"the kernel again")
    assert read_exactly(one.client, 16) == b"the kernel again"
    assert one.counts(BACKEND) == (redirected + 16, passed, relayed)


def test_a_pass_after_the_ledger_balanced_has_its_own_event(splicer: Splicer, pair):
    one = pair(rcvbuf=8192).splice()
    for round_ in range(3):
        sent = stall(one) if round_ == 0 else b""
        if round_:
            splicer.set_relayed(one.index ^ 1, one.counts(BACKEND)[2] + 1)  # shut the gate
            one.backend.sendall(b"1")
            wait_for(lambda: one.counts(BACKEND)[1] == one.counts(BACKEND)[2])
            assert splicer.events() == []  # passed != relayed before: not a first pass
            one.near_client.setblocking(True)
            one.near_client.sendall(one.near_backend.recv(10))
            one.near_client.setblocking(False)
            assert read_exactly(one.client, 1) == b"1"
            sent = stall_again(one)
        assert splicer.events() == [one.index ^ 1]
        with pumping(one):
            assert read_exactly(one.client, len(sent)) == sent


def stall_again(one) -> bytes:
    source, sent, passed = random.Random(2), b"", one.counts(BACKEND)[1]
    one.backend.setblocking(False)
    while one.counts(BACKEND)[1] == passed:
        data = source.randbytes(5000)
        try:
            sent += data[: one.backend.send(data)]
        except BlockingIOError:
            time.sleep(0.001)
    one.backend.setblocking(True)
    return sent


def test_nothing_is_redirected_while_passed_bytes_are_not_relayed(splicer: Splicer, pair):
    one = pair().splice()
    splicer.set_relayed(one.index, 1)  # not what was passed: the gate is shut
    one.client.sendall(b"first ")
    wait_for(lambda: one.counts(CLIENT)[1] == 6)
    splicer.set_relayed(one.index, 0)
    for number in range(5):
        one.client.sendall(b"%d" % number)
        wait_for(lambda number=number: one.counts(CLIENT)[1] == 7 + number)
    assert one.counts(CLIENT)[0] == 0
    assert silent(one.backend)
    with pumping(one):
        assert read_exactly(one.backend, 11) == b"first 01234"
    one.client.sendall(b"last")
    assert read_exactly(one.backend, 4) == b"last"
    assert one.counts(CLIENT) == (4, 11, 11)


def test_the_gate_shut_and_opened_at_random_keeps_every_byte_in_its_place(splicer: Splicer, pair):
    """What is armed is decided by user space; here it changes its mind 400 times."""
    rng = random.Random(7)
    one = pair().splice()
    data = rng.randbytes(2_000_000)
    got, at = bytearray(), 0
    one.client.setblocking(False)
    one.backend.setblocking(False)
    words = splicer._words[one.index * 16 : one.index * 16 + 16]
    aim = words[AIM]
    deadline = time.monotonic() + PATIENCE
    while len(got) < len(data):
        assert time.monotonic() < deadline, f"{len(got)} of {len(data)}, {one.counts(CLIENT)}"
        if rng.random() < 0.3:
            words[AIM] = aim if rng.random() < 0.6 else 0
        try:
            at += one.client.send(data[at : at + rng.randint(1, 20_000)])
        except BlockingIOError:
            pass
        one.pump()
        try:
            got += one.backend.recv(rng.randint(1, 40_000))
        except BlockingIOError:
            pass
    words.release()
    assert got == data
    redirected, passed, relayed = one.counts(CLIENT)
    assert redirected + passed == len(data)
    assert passed == relayed
    assert redirected
    assert passed


def test_a_client_that_does_not_read_can_still_upload(splicer: Splicer, pair):
    """Passed bytes queue behind bytes being sent to the same socket: that queue must be empty."""
    one = pair(rcvbuf=8192).splice()
    sent = stall(one)
    wait_for(lambda: one.balanced(BACKEND))
    splicer.set_relayed(one.index, 1)  # the upload goes through user space
    one.client.sendall(b"upload")
    wait_for(lambda: one.counts(CLIENT)[1] == 6)
    assert select.select([one.near_client], [], [], PATIENCE)[0]
    assert one.near_client.recv(100) == b"upload"
    one.near_backend.send(b"upload")
    splicer.set_relayed(one.index, 6)
    assert read_exactly(one.backend, 6) == b"upload"
    with pumping(one):
        assert read_exactly(one.client, len(sent)) == sent
