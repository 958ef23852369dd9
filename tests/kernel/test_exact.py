"""Bytes that the kernel would send twice: overlapping segments, and skbs that were read in part."""

from __future__ import annotations

import contextlib
import os
import socket

import pytest

from l7proxy.datapath.libbpf import ProgramRefused
from l7proxy.datapath.selftest import inject, sequence_numbers
from l7proxy.datapath.sockmap import BROKEN, PROGRAMS, Splicer, load_splicers

from .pairs import CLIENT, read_exactly, silent, wait_for

pytestmark = pytest.mark.kernel

FIN = 0x01


def has_kfuncs() -> bool:
    """Whether this kernel has what `verdict` needs and `verdict_probe` does not."""
    with open("/proc/kallsyms") as symbols:
        return any(line.split()[2] == "bpf_cast_to_kern_ctx" for line in symbols)


@pytest.fixture(params=PROGRAMS)
def either(request):
    """Both ways in which the program gets at a sequence number; the kernel may know but one."""
    try:
        (splicer,) = load_splicers(1, 4, program=request.param)
    except ProgramRefused as refusal:
        if request.param == "verdict" and not has_kfuncs():
            pytest.skip(str(refusal))
        raise
    splicer.start()
    with contextlib.closing(splicer):
        yield splicer


@pytest.fixture
def raw():
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as sock:
        yield sock


# (what, (offset from the next sequence number, payload) ..., what the backend must read)
OVERLAPS = {
    "half old, half new": ([(-5, b"56789abcde")], b"abcde"),
    "all but one byte old": ([(-10, b"0123456789a")], b"a"),
    "nothing old": ([(0, b"abcde")], b"abcde"),
    "all old": ([(-5, b"56789"), (0, b"abcde")], b"abcde"),
    "fills a hole and overlaps what lies behind it": (
        [(5, b"fghij"), (0, b"abcdefgh")],
        b"abcdefghij",
    ),
    "two holes": (
        [(10, b"klmno"), (3, b"defgh"), (0, b"abcd"), (6, b"ghijklm")],
        b"abcdefghijklmno",
    ),
    "longer than one cut of 4095": ([(-10, b"0123456789" + b"x" * 9000)], b"x" * 9000),
}


@pytest.mark.parametrize("case", OVERLAPS)
def test_overlapping_segments_are_trimmed(either: Splicer, pair, raw, case):
    segments, wanted = OVERLAPS[case]
    one = pair(either).splice()
    one.client.sendall(b"0123456789")
    assert read_exactly(one.backend, 10) == b"0123456789"
    after, acked = sequence_numbers(one.client)
    for offset, payload in segments:
        inject(raw, one.client, after + offset, acked, payload)
    assert read_exactly(one.backend, len(wanted)) == wanted
    inject(raw, one.client, after + len(wanted), acked, b"and on")
    assert read_exactly(one.backend, 6) == b"and on"
    assert silent(one.backend)
    assert one.counts(CLIENT) == (10 + len(wanted) + 6, 0, 0)
    assert either.broken(one.index) == 0


def test_a_retransmission_where_only_the_fin_is_new_is_an_end(either: Splicer, pair, raw):
    one = pair(either).splice()
    one.client.sendall(b"0123456789")
    assert read_exactly(one.backend, 10) == b"0123456789"
    after, acked = sequence_numbers(one.client)
    inject(raw, one.client, after - 4, acked, b"6789", FIN)
    one.client.shutdown(socket.SHUT_WR)  # the client itself has to know of its FIN
    wait_for(lambda: one.pump() or one.shut[CLIENT], what="the end")
    assert one.backend.recv(1) == b""
    assert one.near_backend.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    one.backend.sendall(b"still there")
    assert read_exactly(one.client, 11) == b"still there"


@pytest.mark.parametrize(
    ("taken", "size"),
    [(1, 200), (10, 200), (199, 200), (4095, 9000), (4096, 9000), (5000, 60_000), (64_999, 65_000)],
)
def test_a_segment_read_in_part_before_the_insertion(either: Splicer, pair, taken, size):
    data = os.urandom(size)
    one = pair(either)
    one.client.sendall(data)
    wait_for(lambda: len(one.near_client.recv(size, socket.MSG_PEEK)) == size)
    assert one.near_client.recv(taken) == data[:taken]
    one.splice()
    assert read_exactly(one.backend, size - taken) == data[taken:]
    one.client.sendall(b"tail")
    assert read_exactly(one.backend, 4) == b"tail"
    assert silent(one.backend)
    assert one.counts(CLIENT) == (size - taken + 4, 0, 0)
    assert either.totals().trims == 1
    assert 0 < either.totals().trimmed_bytes <= taken  # less: it came as two skbs


def test_bytes_that_wait_at_the_insertion_are_forwarded(either: Splicer, pair):
    one = pair(either)
    one.client.sendall(b"early bird")
    one.backend.sendall(b"early worm")
    wait_for(lambda: one.near_client.recv(10, socket.MSG_PEEK) == b"early bird")
    wait_for(lambda: one.near_backend.recv(10, socket.MSG_PEEK) == b"early worm")
    one.splice()
    assert read_exactly(one.backend, 10) == b"early bird"
    assert read_exactly(one.client, 10) == b"early worm"


def test_a_gap_breaks_the_direction_and_nothing_more_gets_through(splicer: Splicer, pair):
    """No kernel is known to produce one, so the expected sequence number is moved by hand."""
    one = pair().splice()
    one.client.sendall(b"before")
    assert read_exactly(one.backend, 6) == b"before"
    next_seq = memoryview(splicer._words).cast("B").cast("I")
    at = one.index * 32 + 6  # words of 4 bytes: 128 a direction, next_seq after three counters
    next_seq[at] = (next_seq[at] - 100) & 0xFFFFFFFF
    drops = splicer.totals().drops
    one.client.sendall(b"after")
    wait_for(lambda: splicer.broken(one.index) == BROKEN)
    assert splicer.events() == [one.index]
    one.client.sendall(b"more")
    wait_for(lambda: splicer.totals().drops == drops + 2)
    assert silent(one.backend)
    assert one.counts(CLIENT) == (6, 0, 0)
    assert splicer.events() == []
