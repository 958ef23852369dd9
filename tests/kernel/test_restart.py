"""A worker that was killed leaves nothing in the way of the one that takes its place."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

import pytest

from l7proxy.datapath.sockmap import URGENT, load_splicers

from .pairs import CLIENT, Pair, read_exactly, wait_for
from .test_privileges import as_nobody

pytestmark = pytest.mark.kernel

PAIRS = 8


def killed(work: Callable[[], object]) -> None:
    """Fork; once the child is through with `work`, and still holds it, end it with SIGKILL."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            held = work()
            os.write(writer, b"ready" if held else b"")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb", buffering=0) as stream:
        told = stream.read(5)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert told == b"ready"


def test_the_successor_of_a_killed_worker_has_the_whole_capacity():
    (splicer,) = load_splicers(1, PAIRS)

    def worker() -> list[Pair]:
        splicer.start()
        pairs = [Pair(splicer).splice() for _ in range(PAIRS)]
        for one in pairs:
            one.client.send(b"!", socket.MSG_OOB)
            wait_for(lambda one=one: splicer.broken(one.index) == URGENT)
        return pairs  # every index taken, every cookie known, an event for each in the ring

    def successor() -> None:
        splicer.start()
        assert splicer.events() == []
        pairs = [Pair(splicer).splice() for _ in range(PAIRS)]
        for number, one in enumerate(pairs):
            data = b"pair %d" % number
            one.client.sendall(data)
            assert read_exactly(one.backend, 6) == data
            assert one.counts(CLIENT) == (6, 0, 0)
        for one in pairs:
            one.close_all()

    for _ in range(2):
        killed(worker)
        assert as_nobody(successor) == ""
    assert splicer.totals().redirected_client == 2 * 6 * PAIRS
    splicer.close()
