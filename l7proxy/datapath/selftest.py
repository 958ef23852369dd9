"""Proof over loopback that the running kernel splices exactly, with the very object that is used.

The kernel is asked, not its version: each check is one way in which a SOCKMAP is known to lose,
repeat or hoard bytes. `prove_kernel` runs them all in a fraction of a second; if one fails, l7proxy
relays in user space and says which.

An overlapping segment is forged with a raw socket, which takes CAP_NET_RAW. Where that is missing a
segment that was read in part before the insertion proves the same guard, and the check says so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from l7proxy.datapath.sockmap import Splicer, load_splicers
from l7proxy.errors import DatapathUnavailable

_BLOCK = 4096
_TCP_REPAIR, _TCP_REPAIR_QUEUE, _TCP_QUEUE_SEQ = 19, 20, 21  # include/uapi/linux/tcp.h
_RECV_QUEUE, _SEND_QUEUE = 1, 2
_REPAIR_OFF_NO_WP = -1  # leave repair mode without a window probe
_SO_MEMINFO = 55  # include/uapi/asm-generic/socket.h
_NEVER = 1 << 62  # as `relayed`: `passed` never gets there, so the gate stays shut
# 256 segments of 1 byte take 200 KB; a kernel in order shuts the window after 5.
_SEGMENTS, _SLACK, _GRACE = 256, 16384, 0.2
_PSH, _ACK = 0x08, 0x10  # RFC 9293, 3.1


class CheckFailed(AssertionError):
    """A check saw the wrong bytes, or none in time. `str()` tells what."""


@dataclass(frozen=True, slots=True)
class Check:
    """One proof. `detail` is what was seen, or why it failed."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class SelfTestResult:
    """All checks in the order they ran; `ok` only if every one is."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether the kernel may be trusted with connections."""
        return all(check.ok for check in self.checks)

    @property
    def failures(self) -> str:
        """The failed checks on one line; empty if there is none."""
        return "; ".join(f"{c.name}: {c.detail}" for c in self.checks if not c.ok)


class _Rig:
    """client ==== near_client [index]  near_backend [index ^ 1] ==== backend, over loopback."""

    def __init__(self, splicer: Splicer, deadline: float, buffers: int = 0) -> None:
        self.splicer = splicer
        self.deadline = deadline
        self.client, self.near_client = _connection(buffers)
        self.near_backend, self.backend = _connection(0)
        self.index = -1
        self.singles: list[int] = []

    def enter(self) -> tuple[int, int]:
        """Both near sockets, each by itself; returns the client's index and the backend's."""
        for side, near in enumerate((self.near_client, self.near_backend)):
            self.singles.append(self.splicer.enter(near.fileno(), side))
        client, backend = self.singles
        return client, backend

    def splice(self) -> None:
        self.index = self.splicer.splice(self.near_client.fileno(), self.near_backend.fileno())

    def expect(self, sock: socket.socket, wanted: bytes) -> None:
        """Read as many bytes as wanted and compare; fails at the deadline."""
        got = bytearray()
        while len(got) < len(wanted):
            data = self.read(sock, len(wanted) - len(got))
            if not data:
                break
            got += data
        if got != wanted:
            raise CheckFailed(f"{_shown(wanted)} was sent, {_shown(bytes(got))} arrived")

    def read(self, sock: socket.socket, count: int = _BLOCK) -> bytes:
        """What comes next; empty at the end of the stream or when nothing comes in time."""
        if not select.select([sock], [], [], max(0.0, self.deadline - time.monotonic()))[0]:
            return b""
        return sock.recv(count)

    def until(self, true: Callable[[], bool], what: str) -> None:
        """Poll for something that has no event; fails at the deadline."""
        while not true():
            if time.monotonic() > self.deadline:
                raise CheckFailed(f"in vain: {what}")
            time.sleep(0.0005)

    def close(self) -> None:
        for sock in (self.near_client, self.near_backend, self.client, self.backend):
            sock.close()
        if self.index >= 0:
            self.splicer.release(self.index)
        for single in self.singles:
            self.splicer.leave(single)


def prove_kernel(timeout: float = 10.0) -> SelfTestResult:
    """Run all checks, `timeout` seconds at most altogether. Never raises for what it finds.

    Needs the capabilities of `load_splicers`; without them there is one failed check that says so.
    """
    deadline = time.monotonic() + timeout
    try:
        (splicer,) = load_splicers(1, 4)
    except DatapathUnavailable as error:
        return SelfTestResult((Check("load", False, str(error)),))
    results = []
    with contextlib.closing(splicer):
        splicer.start()
        for name, check, buffers in _CHECKS:
            try:
                with contextlib.closing(_Rig(splicer, deadline, buffers)) as rig:
                    detail, ok = check(rig), True
            except (CheckFailed, OSError) as error:
                detail, ok = str(error), False
            results.append(Check(name, ok, detail))
    return SelfTestResult(tuple(results))


def _redirect(rig: _Rig) -> str:
    rig.splice()
    for size in (1, 1000, 100_000):
        for here, there in ((rig.client, rig.backend), (rig.backend, rig.client)):
            data = os.urandom(size)
            here.sendall(data)
            rig.expect(there, data)
    redirected = rig.splicer.redirected(rig.index), rig.splicer.redirected(rig.index ^ 1)
    if redirected != (101_001, 101_001):
        raise CheckFailed(f"101001 bytes each way, the program counted {redirected}")
    return "202002 bytes moved by the kernel, both ways"


def _stale_bytes(rig: _Rig) -> str:
    rig.client.sendall(b"early")
    rig.until(
        lambda: bool(select.select([rig.near_client], [], [], 0)[0]), "bytes before insertion"
    )
    rig.splice()
    rig.expect(rig.backend, b"early")
    return "bytes that were waiting at the insertion were forwarded"


def _partial_read(rig: _Rig) -> str:
    data = os.urandom(9000)
    rig.client.sendall(data)
    rig.until(lambda: len(rig.near_client.recv(9000, socket.MSG_PEEK)) == 9000, "9000 bytes")
    taken = len(rig.near_client.recv(4096))
    rig.splice()
    rig.expect(rig.backend, data[taken:])
    rig.client.sendall(b"and on")
    rig.expect(rig.backend, b"and on")
    return f"{taken} bytes read before the insertion were not sent again"


def _overlap(rig: _Rig) -> str:
    try:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    except PermissionError:
        return "not tried without CAP_NET_RAW; the partial read shows the same guard"
    with raw:
        rig.splice()
        rig.client.sendall(b"0123456789")
        rig.expect(rig.backend, b"0123456789")
        after, acked = sequence_numbers(rig.client)
        inject(raw, rig.client, after - 5, acked, b"56789abcde")
        rig.expect(rig.backend, b"abcde")
        inject(raw, rig.client, after + 10, acked, b"klmno")
        inject(raw, rig.client, after + 5, acked, b"fghijklm")
        rig.expect(rig.backend, b"fghijklmno")
    return "retransmissions with other boundaries left no byte twice"


def _fin(rig: _Rig) -> str:
    rig.splice()
    rig.client.sendall(b"last")
    rig.client.shutdown(socket.SHUT_WR)
    rig.expect(rig.backend, b"last")
    if rig.read(rig.near_client):
        raise CheckFailed("bytes instead of the end of the stream")
    code = rig.near_backend.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise CheckFailed(f"the end of one side broke the other: {errno.errorcode.get(code)}")
    rig.backend.sendall(b"answer after it")
    rig.expect(rig.client, b"answer after it")
    return "an end is read in order and leaves the other direction alone"


def _order(rig: _Rig) -> str:
    rig.splice()
    rig.client.sendall(b"one ")
    rig.expect(rig.backend, b"one ")
    rig.splicer.set_relayed(rig.index, 1)  # ahead of `passed`: the gate is shut
    rig.client.sendall(b"two ")
    rig.until(lambda: rig.splicer.passed(rig.index) == 4, "passed == 4")
    rig.splicer.set_relayed(rig.index, 0)
    rig.client.sendall(b"three ")
    rig.until(lambda: rig.splicer.passed(rig.index) == 10, "passed == 10")
    rig.near_backend.sendall(rig.read(rig.near_client, 10))
    rig.splicer.set_relayed(rig.index, 10)
    rig.client.sendall(b"four")
    rig.expect(rig.backend, b"two three four")
    if rig.splicer.redirected(rig.index) != 8:
        raise CheckFailed("the kernel did not take over again")
    return "bytes keep their order from kernel to user space and back"


def _budget(rig: _Rig) -> str:
    """Two bodies between heads: one that ends with an skb, and one that ends within one."""
    splicer, (client, backend) = rig.splicer, rig.enter()
    rig.client.sendall(b"head")
    rig.expect(rig.near_client, b"head")
    body = os.urandom(10_000)
    splicer.direct(client, backend, 4, len(body))
    for piece in (body[:6000], body[6000:]):
        rig.client.sendall(piece)
        rig.expect(rig.backend, piece)
    rig.until(lambda: splicer.redirected(client) == len(body), "the whole body redirected")
    if splicer.events() != [client]:
        raise CheckFailed("no event at the end of a body")
    splicer.halt(client)
    rig.client.sendall(b"next")
    rig.expect(rig.near_client, b"next")
    splicer.direct(client, backend, 8, 4)
    rig.client.sendall(b"bodymore")
    rig.until(lambda: splicer.passed(client) == 16, "an skb that ends behind the body passed")
    if splicer.events() != [client]:
        raise CheckFailed("no event at an skb that ends behind the body")
    splicer.halt(client)
    rig.expect(rig.near_client, b"bodymore")
    if splicer.redirected(client) != len(body):
        raise CheckFailed(f"{splicer.redirected(client)} bytes redirected of {len(body)}")
    return f"a body of {len(body)} bytes was redirected to the byte, what is around it was passed"


def _bound(rig: _Rig) -> str:
    rig.splice()
    index, block, sent = rig.index ^ 1, os.urandom(_BLOCK), 0
    rig.backend.setblocking(False)
    while rig.splicer.passed(index) == 0:
        if time.monotonic() > rig.deadline:
            raise CheckFailed(f"{sent} bytes for a reader that does not read, and no end")
        with contextlib.suppress(BlockingIOError):
            sent += rig.backend.send(block[sent % _BLOCK :])
    if rig.splicer.events() != [index]:
        raise CheckFailed("no event at the first byte that was left to user space")
    redirected = rig.splicer.redirected(index)
    rig.until(
        lambda: _written(rig.near_client) == redirected,
        "redirected bytes still wait outside the send queue",
    )
    rig.until(
        lambda: redirected + rig.splicer.passed(index) == sent,
        f"{sent} bytes were sent, {redirected + rig.splicer.passed(index)} counted",
    )
    stream = block * (sent // _BLOCK + 1)
    rig.expect(rig.client, stream[:redirected])
    for at in range(redirected, sent, _BLOCK):
        data = rig.read(rig.near_backend, min(_BLOCK, sent - at))
        rig.near_client.sendall(data)
        rig.expect(rig.client, stream[at : at + len(data)])
    return f"an idle reader is owed {redirected} bytes, the other {sent - redirected} wait"


def _small_segments(rig: _Rig) -> str:
    """What is passed costs at most the receive buffer, however small the segments.

    tcp_data_queue() of Linux 6.1 takes a segment whatever memory it needs if the receive queue is
    empty, and the verdict leaves it empty. Later kernels announce a window of 0 there.
    """
    rig.near_client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the kernel's least
    rig.splice()
    rig.splicer.set_relayed(rig.index, _NEVER)

    def send(number: int) -> None:
        rig.client.send(b"x")
        rig.until(
            lambda: rig.splicer.passed(rig.index) == number or not _window(rig.client),
            f"passed == {number}",
        )

    for count in range(1, _SEGMENTS + 1):
        send(count)  # one by one: together they would become one segment
        held, limit = _received(rig.near_client)
        over = held > limit + _SLACK
        if over:  # a busy CPU may still have the news of a shut window in its backlog
            late = time.monotonic() + _GRACE
            while _window(rig.client) and time.monotonic() < late:
                time.sleep(0.001)
        if not _window(rig.client):
            return f"{count} of 1 byte shut the window, with {held} bytes of memory held"
        if over:
            break
    raise CheckFailed(
        f"{count} segments of 1 byte hold {held} bytes of memory, the receive buffer is {limit}, "
        "and the window is open: a slow reader would cost memory without a bound"
    )


_CHECKS: tuple[tuple[str, Callable[[_Rig], str], int], ...] = (
    ("redirect", _redirect, 0),
    ("stale bytes", _stale_bytes, 0),
    ("partial read", _partial_read, 0),
    ("overlap", _overlap, 0),
    ("fin", _fin, 0),
    ("order", _order, 0),
    ("budget", _budget, 0),
    ("bound", _bound, 16384),
    ("small segments", _small_segments, 0),
)


def sequence_numbers(sock: socket.socket) -> tuple[int, int]:
    """The sequence numbers of the next byte that `sock` sends and receives (CAP_NET_ADMIN)."""
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    numbers = []
    for queue in (_SEND_QUEUE, _RECV_QUEUE):
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, queue)
        numbers.append(sock.getsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ) & 0xFFFFFFFF)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _REPAIR_OFF_NO_WP)
    return numbers[0], numbers[1]


def inject(
    raw: socket.socket,
    sender: socket.socket,
    sequence: int,
    acknowledged: int,
    payload: bytes,
    flags: int = 0,
    urgent: int = 0,
) -> None:
    """Send a forged segment of `sender`'s connection (IPv4) to its other end."""
    (source, source_port), (target, target_port) = sender.getsockname(), sender.getpeername()

    def header(checksum: int) -> bytes:
        return struct.pack(
            "!HHIIBBHHH",
            source_port,
            target_port,
            sequence & 0xFFFFFFFF,
            acknowledged & 0xFFFFFFFF,
            5 << 4,  # words of header
            _ACK | _PSH | flags,
            512,
            checksum,
            urgent,
        )

    pseudo = socket.inet_aton(source) + socket.inet_aton(target)
    pseudo += struct.pack("!BBH", 0, socket.IPPROTO_TCP, 20 + len(payload))
    raw.sendto(header(checksum(pseudo + header(0) + payload)) + payload, (target, 0))


def checksum(data: bytes) -> int:
    """RFC 1071: the one's complement of the one's complement sum of 16-bit words."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _connection(buffers: int) -> tuple[socket.socket, socket.socket]:
    """The connecting end and the accepted one; `buffers` bytes between them, 0 for the default."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.socket()
        if buffers:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
        far.connect(listener.getsockname())
        near, _ = listener.accept()
    for sock in (far, near):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return far, near


def _written(sock: socket.socket) -> int:
    """Bytes that ever got into the write queue of `sock` (`struct tcp_info`)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    notsent: int = struct.unpack_from("=I", info, 144)[0]
    sent, retransmitted = struct.unpack_from("=QQ", info, 200)
    written: int = sent - retransmitted + notsent
    return written


def _window(sock: socket.socket) -> int:
    """The window that the other end announced last (`tcpi_snd_wnd`)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    window: int = struct.unpack_from("=I", info, 228)[0]
    return window


def _received(sock: socket.socket) -> tuple[int, int]:
    """Memory of received segments, and its limit (`sk_get_meminfo`)."""
    held, limit = struct.unpack_from("=2I", sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36))
    return held, limit


def _shown(data: bytes) -> str:
    return repr(data) if len(data) <= 20 else f"{len(data)} bytes"
