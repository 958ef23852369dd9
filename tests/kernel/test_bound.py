"""A receiver that does not read costs a bounded amount of memory and no CPU."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import time

import pytest

from l7proxy.datapath.sockmap import Splicer

from .pairs import BACKEND, PATIENCE, Info, Pair, pumping, read_exactly, wait_for

pytestmark = pytest.mark.kernel

SO_MEMINFO = 55  # include/uapi/asm-generic/socket.h


def memory(sock: socket.socket) -> tuple[int, int, int, int]:
    """(receive queue, its limit, send queue, its limit), overhead included; sk_get_meminfo()."""
    info = struct.unpack("=9I", sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))
    return info[0], info[1], info[5], info[3]


def flood(one: Pair, segment: int, seconds: float = 1.0) -> bytes:
    """Send from the backend, in writes of this size, until it has been blocked for a while.

    Or until the time is over; something has been passed by then, however slow the machine is.
    """
    rng, sent, idle = random.Random(segment), bytearray(), 0
    one.backend.setblocking(False)
    deadline = time.monotonic() + seconds
    patience = deadline + PATIENCE
    data, at = rng.randbytes(1 << 16), 0
    while (now := time.monotonic()) < patience:
        if one.counts(BACKEND)[1] and (idle >= 20 or now >= deadline):
            break
        try:
            n = one.backend.send(data[at : at + segment])
        except BlockingIOError:
            idle += 1
            time.sleep(0.002)
            continue
        sent += data[at : at + n]
        at += n
        if at == len(data):
            data, at = rng.randbytes(1 << 16), 0
    one.backend.setblocking(True)
    return bytes(sent)


def check_bounds(one: Pair) -> None:
    """Nothing waits outside the two sockets, and these keep to their limits."""
    wait_for(
        lambda: one.balanced(BACKEND),
        what="an empty queue between the sockets (where bytes are charged to nobody)",
    )
    received, limit, _, _ = memory(one.near_backend)
    assert received <= limit + (1 << 17)  # one segment may go over
    _, _, queued, limit = memory(one.near_client)
    assert queued <= limit + (1 << 17)


# A byte at a time fills a large buffer only where the sender outruns the kernel's worker: so many
# segments are under way then that the rest is passed. Under emulation it does not, and needs one
# write for each byte of the buffer, thousands in a second. A small buffer takes neither.
@pytest.mark.parametrize(
    ("segment", "send_buffer"), [(1, 8192), (100, 100_000), (1448, 100_000), (65536, 100_000)]
)
def test_a_client_that_reads_nothing_is_owed_no_more_than_its_send_buffer(
    splicer: Splicer, pair, segment, send_buffer, request
):
    if segment == 1:
        request.getfixturevalue("bounded")
    one = pair(rcvbuf=8192).splice()
    one.near_client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    sent = flood(one, segment)
    wait_for(lambda: sum(one.counts(BACKEND)[:2]) + Info(one.backend).written >= len(sent))
    assert one.counts(BACKEND)[1] > 0
    assert splicer.events() == [one.index ^ 1]
    check_bounds(one)
    with pumping(one):
        assert read_exactly(one.client, len(sent)) == sent
    check_bounds(one)


def test_default_buffers_keep_to_their_limits_too(splicer: Splicer, pair):
    one = pair().splice()
    sent = flood(one, 65536, 3)
    assert len(sent) > 1 << 20
    assert one.counts(BACKEND)[1] > 0
    check_bounds(one)
    with pumping(one):
        assert read_exactly(one.client, len(sent)) == sent


def test_the_number_of_segments_on_their_way_is_bounded(splicer: Splicer, pair):
    """1 byte of payload costs about 1.1 KB: bytes alone would be no bound."""
    one = pair(rcvbuf=8192).splice()
    one.near_client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
    worst = 0
    for _ in range(20_000):
        with contextlib.suppress(BlockingIOError):
            one.backend.send(b"x", socket.MSG_DONTWAIT)
        redirected = one.counts(BACKEND)[0]
        worst = max(worst, redirected - (Info(one.near_client).written - one.base[0]))
        if one.counts(BACKEND)[1]:
            break
    assert worst <= 256
    check_bounds(one)


def test_many_stalled_connections_leave_the_kernel_idle(splicer: Splicer, pair):
    """While a queue cannot be sent a kworker polls it; so no queue is left waiting."""
    stalled = [pair(rcvbuf=8192).splice() for _ in range(20)]
    for one in stalled:
        one.near_client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 50_000)
        flood(one, 30_000, 0.1)
    for one in stalled:
        check_bounds(one)
    assert sorted(set(splicer.events())) == sorted(one.index ^ 1 for one in stalled)
