"""How a stream ends: in full with a FIN, or visibly cut off by a reset. Nothing in between."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import signal
import socket
import struct

import pytest

from l7proxy.datapath.selftest import checksum, sequence_numbers
from l7proxy.datapath.sockmap import Splicer, VerdictLimits, load_splicers

from .pairs import BACKEND, CLIENT, PATIENCE, Info, Pair, pumping, read_exactly, silent, wait_for

pytestmark = pytest.mark.kernel

IP_RECVERR = 11  # include/uapi/linux/in.h
ICMP_DEST_UNREACH, ICMP_PORT_UNREACH = 3, 3  # include/uapi/linux/icmp.h
RESET = b"\1\0\0\0\0\0\0\0"  # struct linger {1, 0}
ESTABLISHED, CLOSE_WAIT = 1, 8  # include/net/tcp_states.h


def ends(one: Pair, side: int) -> tuple[socket.socket, socket.socket]:
    """(the end that sends in this direction, the end that receives)"""
    return (one.client, one.backend) if side == CLIENT else (one.backend, one.client)


def error(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def read_to_the_end(sock: socket.socket) -> bytes:
    sock.settimeout(PATIENCE)
    got = bytearray()
    while data := sock.recv(1 << 16):
        got += data
    return bytes(got)


@pytest.mark.parametrize("side", [CLIENT, BACKEND])
@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_the_fin_is_never_redirected(splicer: Splicer, pair, side, size):
    """Redirected, it puts EPIPE on the other side and kills its psock."""
    one = pair().splice()
    here, there = ends(one, side)
    here.sendall(bytes(size))
    here.shutdown(socket.SHUT_WR)
    assert len(read_exactly(there, size)) == size
    wait_for(lambda: Info(one.near[side]).state == CLOSE_WAIT)
    assert one.near[side].recv(1) == b""
    assert error(one.near[1 - side]) == 0
    assert Info(one.near[1 - side]).state == ESTABLISHED
    assert silent(there)  # and nobody but user space hands it on
    assert Info(one.near[side]).received == size + 1  # the FIN counts one
    assert one.counts(side) == (size, 0, 0)


@pytest.mark.parametrize("first", [CLIENT, BACKEND])
def test_both_half_closes_in_either_order(splicer: Splicer, pair, first):
    one = pair().splice()
    data = [os.urandom(300_000), os.urandom(300_000)]
    with pumping(one):
        for side in (first, 1 - first):
            here, there = ends(one, side)
            here.sendall(data[side])
            here.shutdown(socket.SHUT_WR)
            assert read_to_the_end(there) == data[side]
    for sock in one.near:
        assert error(sock) == 0


def test_a_fin_does_not_break_a_socket_that_is_still_being_sent_to(pair):
    """Passed, it would queue behind the bytes on their way there, and end as EPIPE."""
    (splicer,) = load_splicers(1, 1, VerdictLimits(backlog_bytes=1 << 20))
    splicer.start()
    one = pair(splicer, rcvbuf=8192)
    one.near_client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
    one.splice()
    data = os.urandom(300_000)
    one.backend.sendall(data)
    wait_for(lambda: one.counts(BACKEND)[0] == len(data))
    assert not one.balanced(BACKEND)  # they wait, for the limit above allows it
    one.client.shutdown(socket.SHUT_WR)
    wait_for(lambda: Info(one.near_client).state == CLOSE_WAIT)
    assert read_exactly(one.client, len(data)) == data
    one.backend.sendall(b"and on")
    assert read_exactly(one.client, 6) == b"and on"
    assert error(one.near_client) == 0
    assert one.near_client.recv(1) == b""
    one.close()
    splicer.close()


def test_a_fin_behind_passed_bytes_is_read_after_them(splicer: Splicer, pair):
    one = pair().splice()
    one.client.sendall(b"redirected ")
    assert read_exactly(one.backend, 11) == b"redirected "
    splicer.set_relayed(one.index, 1)
    one.client.sendall(b"passed")
    one.client.shutdown(socket.SHUT_WR)
    wait_for(lambda: Info(one.near_client).state == CLOSE_WAIT)
    splicer.set_relayed(one.index, 0)
    assert one.counts(CLIENT) == (11, 6, 0)
    with pumping(one):
        assert read_to_the_end(one.backend) == b"passed"


def owed(one: Pair) -> int:
    """Let the backend send until user space has some of it; returns how much it sent in all."""
    one.backend.setblocking(False)
    sent = 0
    while one.counts(BACKEND)[1] == 0:
        with contextlib.suppress(BlockingIOError):
            sent += one.backend.send(bytes(50_000))
    wait_for(lambda: sum(one.counts(BACKEND)[:2]) == sent)
    one.backend.setblocking(True)
    return sent


@pytest.mark.parametrize("loaded", [False, True], ids=["idle", "with bytes on their way"])
@pytest.mark.parametrize("side", [CLIENT, BACKEND])
def test_a_reset_is_seen_on_its_side_and_nothing_more_is_redirected_there(
    splicer: Splicer, pair, side, loaded
):
    one = pair(rcvbuf=8192).splice()
    if loaded:
        owed(one)
    here, there = ends(one, side)
    here.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    here.close()
    wait_for(lambda: Info(one.near[side]).state not in (ESTABLISHED, CLOSE_WAIT))
    redirected, passed, _ = one.counts(1 - side)
    if there is one.client or not loaded:
        there.sendall(b"into the void")  # to the dead side: kept, not acknowledged and dropped
        wait_for(lambda: one.counts(1 - side)[1] == passed + 13)
        assert one.counts(1 - side)[0] == redirected
    assert error(one.near[side]) in (errno.ECONNRESET, errno.EPIPE)
    assert error(one.near[1 - side]) == 0
    one.close()
    with pytest.raises(ConnectionResetError):
        read_to_the_end(there)


def test_a_side_that_user_space_shut_gets_nothing_more(splicer: Splicer, pair):
    one = pair().splice()
    one.near_backend.shutdown(socket.SHUT_WR)
    one.client.sendall(b"too late")
    wait_for(lambda: one.counts(CLIENT)[1] == 8)
    assert one.counts(CLIENT)[0] == 0
    assert error(one.near_backend) == 0
    assert error(one.near_client) == 0


def test_a_side_with_an_error_gets_nothing_more(pair):
    """tcp_sendmsg() would fail, and the bytes would be acknowledged and gone."""
    one = pair().splice()
    near, backend = one.near_backend, one.backend
    near.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)  # an ICMP error becomes sk_err at once
    sequence, _ = sequence_numbers(near)
    quoted = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, socket.IPPROTO_TCP, 0)
    quoted += socket.inet_aton("127.0.0.1") * 2
    quoted += struct.pack("!HHI", near.getsockname()[1], backend.getsockname()[1], sequence)
    message = struct.pack("!BBHI", ICMP_DEST_UNREACH, ICMP_PORT_UNREACH, 0, 0) + quoted
    message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.sendto(message, ("127.0.0.1", 0))
    with select.epoll() as poll:
        poll.register(near, 0)
        assert poll.poll(PATIENCE), "no error was reported"
    assert Info(near).state == ESTABLISHED
    one.client.sendall(b"not to be lost")
    wait_for(lambda: one.counts(CLIENT)[1] == 14)
    assert one.counts(CLIENT)[0] == 0
    assert error(near) == errno.ECONNREFUSED


def test_close_with_bytes_on_their_way_resets_both(splicer: Splicer, pair):
    one = pair(rcvbuf=8192).splice()
    owed(one)
    one.close()
    for sock in (one.client, one.backend):
        with pytest.raises(ConnectionResetError):
            read_to_the_end(sock)


def test_a_killed_worker_resets_both(pair):
    """SIGKILL in mid-transfer: the linger also holds for what the kernel closes."""
    (splicer,) = load_splicers(1, 1)
    splicer.start()
    one = pair(splicer, rcvbuf=8192)
    ready, tell = os.pipe()
    if (pid := os.fork()) == 0:  # the worker
        one.splice()
        os.write(tell, b"x")
        signal.pause()
    assert os.read(ready, 1) == b"x"
    one.close()  # from here on only the worker holds the near sockets
    while splicer.passed(BACKEND) == 0:
        with contextlib.suppress(BlockingIOError):
            one.backend.send(bytes(50_000), socket.MSG_DONTWAIT)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for sock in (one.client, one.backend):
        with pytest.raises(ConnectionResetError):
            read_to_the_end(sock)
    for descriptor in (ready, tell):
        os.close(descriptor)
    splicer.close()


def test_a_stream_cut_off_at_any_point_never_looks_complete(splicer: Splicer, pair):
    rng = random.Random(3)
    for _ in range(20):
        one = pair(rcvbuf=8192).splice()
        owed(one)
        read_exactly(one.client, rng.randint(0, 20_000))
        one.close()
        with pytest.raises(ConnectionResetError):
            read_to_the_end(one.client)
        one.close_all()
