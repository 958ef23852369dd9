"""Idle, dead and refusing ends are found without seeing the data."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator

import pytest

from l7proxy.datapath.sockmap import Splicer

from .pairs import BACKEND, CLIENT, Info, read_exactly, wait_for

pytestmark = pytest.mark.kernel

CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """A network namespace of its own for the sockets made inside; loopback can be broken there."""
    with open("/proc/thread-self/ns/net") as home:
        assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
        finally:
            assert libc.setns(home.fileno(), CLONE_NEWNET) == 0


def last_heard(sock: socket.socket) -> tuple[int, int]:
    """(tcpi_last_data_sent, tcpi_last_data_recv) in milliseconds ago."""
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    sent, _, received = struct.unpack_from("=3I", raw, 44)
    return sent, received


def test_redirected_bytes_count_as_activity(pair):
    one = pair().splice()
    one.client.sendall(b"x")
    assert read_exactly(one.backend, 1) == b"x"
    time.sleep(0.3)
    assert last_heard(one.near_client)[1] >= 250
    assert last_heard(one.near_backend)[0] >= 250
    began = time.monotonic()
    one.client.sendall(b"y")
    assert read_exactly(one.backend, 1) == b"y"
    received, sent = last_heard(one.near_client)[1], last_heard(one.near_backend)[0]
    since = 1000 * (time.monotonic() - began) + 50  # a tick of the kernel is in it
    assert received < since
    assert sent < since


def test_keepalive_finds_a_dead_client(pair):
    with own_network():
        one = pair().splice()
        near = one.near_client
        near.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 1)
        subprocess.run(["ip", "link", "set", "lo", "down"], check=True)
        wait_for(lambda: Info(near).state == 7, "TCP_CLOSE")
    assert near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in (
        errno.ETIMEDOUT,
        errno.ENETUNREACH,
    )
    assert one.near_backend.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_user_timeout_ends_a_client_that_refuses_to_read(splicer: Splicer, pair):
    one = pair(rcvbuf=8192).splice()
    one.near_client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000)
    one.backend.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while one.counts(BACKEND)[1] == 0:
            one.backend.send(bytes(50_000))
    wait_for(lambda: Info(one.near_client).state == 7, "TCP_CLOSE")
    assert one.near_client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ETIMEDOUT


def test_keepalive_leaves_a_slow_reader_alone(pair):
    one = pair(rcvbuf=8192).splice()
    near = one.near_client
    near.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1)):
        near.setsockopt(socket.IPPROTO_TCP, option, value)
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 1)
    one.backend.sendall(bytes(100_000))
    time.sleep(2.3)
    assert len(read_exactly(one.client, 100_000)) == 100_000
    assert one.counts(CLIENT) == (0, 0, 0)
