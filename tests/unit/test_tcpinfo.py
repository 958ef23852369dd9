"""`TCP_INFO` of real connections, and its layout against the kernel's header."""

from __future__ import annotations

import ctypes
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from l7proxy.net.tcpinfo import TcpInfo, tcp_info

pytestmark = pytest.mark.net

# struct tcp_info of include/uapi/linux/tcp.h, up to tcpi_bytes_retrans; the bit fields are a byte
# and a half, and one more.
FIELDS = (
    "B state, B ca_state, B retransmits, B probes, B backoff, B options, B wscale, B bits, "
    "I rto, I ato, I snd_mss, I rcv_mss, I unacked, I sacked, I lost, I retrans, I fackets, "
    "I last_data_sent, I last_ack_sent, I last_data_recv, I last_ack_recv, "
    "I pmtu, I rcv_ssthresh, I rtt, I rttvar, I snd_ssthresh, I snd_cwnd, I advmss, I reordering, "
    "I rcv_rtt, I rcv_space, I total_retrans, "
    "Q pacing_rate, Q max_pacing_rate, Q bytes_acked, Q bytes_received, I segs_out, I segs_in, "
    "I notsent_bytes, I min_rtt, I data_segs_in, I data_segs_out, Q delivery_rate, "
    "Q busy_time, Q rwnd_limited, Q sndbuf_limited, I delivered, I delivered_ce, "
    "Q bytes_sent, Q bytes_retrans"
)
TYPES = {"B": ctypes.c_uint8, "I": ctypes.c_uint32, "Q": ctypes.c_uint64}


class Whole(ctypes.Structure):
    """All of it, as the compiler lays it out."""

    _fields_ = [(f.split()[1], TYPES[f.split()[0]]) for f in FIELDS.split(", ")]


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        two, _ = listener.accept()
    with one, two:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield one, two


def eventually(sock: socket.socket, **wanted: int) -> TcpInfo:
    """Loopback is quick, not immediate."""
    deadline = time.monotonic() + 60
    while True:
        info = tcp_info(sock)
        if all(getattr(info, name) == value for name, value in wanted.items()):
            return info
        assert time.monotonic() < deadline, info
        time.sleep(0.001)


def test_every_field_stands_where_the_header_has_it() -> None:
    """A buffer in which no two bytes at any distance that matters are alike."""
    assert ctypes.sizeof(Whole) == 216
    data = bytes((7 * at + at // 5) % 256 for at in range(ctypes.sizeof(Whole)))
    whole = Whole.from_buffer_copy(data)

    class Fake:
        def getsockopt(self, level: int, option: int, size: int) -> bytes:
            assert (level, option, size) == (socket.IPPROTO_TCP, socket.TCP_INFO, len(data))
            return data

    info = tcp_info(Fake())  # type: ignore[arg-type]
    assert {name: getattr(whole, name) for name in info._fields} == info._asdict()


def test_a_connection_that_has_said_nothing(ends: tuple[socket.socket, socket.socket]) -> None:
    one, _ = ends
    info = tcp_info(one)
    assert info.state == 1  # TCP_ESTABLISHED
    assert (info.bytes_received, info.bytes_sent, info.queued) == (0, 0, 0)
    assert 0 < info.min_rtt < 1_000_000


def test_bytes_are_counted_and_the_fin_as_one(ends: tuple[socket.socket, socket.socket]) -> None:
    """What `Ledger.judged` rests on."""
    one, two = ends
    one.sendall(b"x" * 1000)
    eventually(two, bytes_received=1000)
    two.recv(300)  # read or unread is the same
    assert tcp_info(two).bytes_received == 1000
    one.shutdown(socket.SHUT_WR)
    assert eventually(two, bytes_received=1001).state == 8  # TCP_CLOSE_WAIT


def test_queued_is_exactly_what_was_written(ends: tuple[socket.socket, socket.socket]) -> None:
    """What `Ledger.may_write` rests on: sent, acknowledged or stuck, every byte counts once."""
    one, two = ends
    one.setblocking(False)
    written = 0
    while True:
        try:
            written += one.send(b"x" * 7001)
        except BlockingIOError:
            break
        assert tcp_info(one).queued == written
    info = tcp_info(one)
    assert info.notsent_bytes > 0  # the receiver's window is shut
    assert info.queued == written
    two.setblocking(True)
    taken = 0
    while taken < written:
        taken += len(two.recv(1 << 20))
        assert tcp_info(one).queued == written
    assert eventually(one, notsent_bytes=0).queued == written


def test_retransmissions_do_not_count() -> None:
    info = TcpInfo._make([0] * 8)._replace(bytes_sent=1500, bytes_retrans=500, notsent_bytes=30)
    assert info.queued == 1030


def test_silence_is_told_in_milliseconds(ends: tuple[socket.socket, socket.socket]) -> None:
    one, two = ends
    one.sendall(b"x")
    two.recv(1)
    began = time.monotonic()
    time.sleep(0.12)
    silent = tcp_info(one).last_data_sent, tcp_info(two).last_data_recv
    passed = (time.monotonic() - began) * 1000
    for ms in silent:
        assert 90 <= ms <= passed + 100
    began = time.monotonic()
    one.sendall(b"x")
    two.recv(1)
    heard = tcp_info(two).last_data_recv
    assert heard <= (time.monotonic() - began) * 1000 + 50


def test_a_reset_connection_can_still_be_asked(ends: tuple[socket.socket, socket.socket]) -> None:
    """The worker asks without looking first: epoll may tell of the reset later."""
    one, two = ends
    one.sendall(b"x" * 100)
    two.recv(100)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()
    info = eventually(two, state=7)  # TCP_CLOSE
    assert info.bytes_received == 100  # a reset is no FIN: such a direction never balances


def test_other_sockets_have_none() -> None:
    unix = socket.socketpair()
    with unix[0], unix[1], pytest.raises(OSError):
        tcp_info(unix[0])
    with socket.socket(type=socket.SOCK_DGRAM) as udp, pytest.raises(OSError):
        tcp_info(udp)
