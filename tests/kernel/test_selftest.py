"""The proof that `run` and `doctor` rely on: it passes here, and it notices a kernel that errs."""

from __future__ import annotations

import time

import pytest

from l7proxy.datapath import selftest
from l7proxy.datapath.selftest import prove_kernel
from l7proxy.datapath.sockmap import Splicer
from l7proxy.errors import DatapathUnavailable

pytestmark = pytest.mark.kernel


@pytest.mark.usefixtures("bounded")
def test_this_kernel_passes_in_time():
    began = time.monotonic()
    result = prove_kernel()
    assert time.monotonic() - began < 60  # 0.02 s on an idle machine, 0.6 s emulated
    assert result.ok, result.failures
    assert [check.name for check in result.checks] == [
        "redirect",
        "stale bytes",
        "partial read",
        "overlap",
        "fin",
        "order",
        "budget",
        "bound",
        "small segments",
    ]


def test_without_raw_sockets_it_says_that_overlap_was_not_tried(monkeypatch):
    real = selftest.socket.socket

    def refuse(*arguments: int, **named: int) -> object:
        if selftest.socket.SOCK_RAW in arguments:
            raise PermissionError
        return real(*arguments, **named)

    monkeypatch.setattr(selftest.socket, "socket", refuse)
    overlap = next(check for check in prove_kernel().checks if check.name == "overlap")
    assert overlap.ok
    assert "CAP_NET_RAW" in overlap.detail


def test_bytes_that_are_not_kicked_are_noticed(monkeypatch):
    monkeypatch.setattr(Splicer, "_kick", lambda self, fd: None)
    result = prove_kernel(1.0)
    assert not result.ok
    assert "stale bytes: b'early' was sent, b'' arrived" in result.failures


def test_a_body_that_is_not_cut_off_where_it_ends_is_noticed(monkeypatch):
    real = Splicer.direct

    def generous(self: Splicer, index: int, sink: int, taken: int, count: int) -> bool:
        return real(self, index, sink, taken, count + 4)

    monkeypatch.setattr(Splicer, "direct", generous)
    assert "budget: no event at the end of a body" in prove_kernel().failures


def test_memory_without_a_bound_is_noticed(monkeypatch):
    """As on Linux 6.1, where segment after segment is taken and the window stays open."""
    memory = iter(range(5000, 1 << 30, 5000))
    monkeypatch.setattr(selftest, "_received", lambda _: (next(memory), 2304))
    monkeypatch.setattr(selftest, "_window", lambda _: 65536)
    result = prove_kernel()
    assert [check.name for check in result.checks if not check.ok] == ["small segments"]
    assert "4 segments of 1 byte hold 20000 bytes of memory" in result.failures


def test_a_kernel_that_cannot_load_is_one_failed_check(monkeypatch):
    def refuse(*_: int) -> list[Splicer]:
        raise DatapathUnavailable("no BPF here", "elsewhere")

    monkeypatch.setattr(selftest, "load_splicers", refuse)
    result = prove_kernel()
    assert not result.ok
    assert result.failures == "load: no BPF here; elsewhere"
