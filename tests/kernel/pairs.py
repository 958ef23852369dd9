"""Spliced pairs for tests, and the least worker that can relay what the verdict passes.

        client ==== near_client [index]   near_backend [index ^ 1] ==== backend

`client` and `backend` are the ends that a test holds, the near sockets are the proxy's. `Pair.pump`
does once what a worker does: relay passed bytes when the ledger allows it, hand on FINs.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

from l7proxy.datapath.sockmap import Splicer

CLIENT, BACKEND = 0, 1
PATIENCE = 60.0  # seconds; machines stand still now and then, and emulated ones are slow


def connected(
    host: str = "127.0.0.1",
    *,
    rcvbuf: int = 0,
    sndbuf: int = 0,
    family: socket.AddressFamily = socket.AF_INET,
) -> tuple[socket.socket, socket.socket]:
    """A TCP connection over loopback: the connecting end (with these buffers), the accepted one."""
    with socket.create_server((host, 0), family=family) as listener:
        far = socket.socket(family)
        if rcvbuf:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        if sndbuf:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
        far.connect(listener.getsockname())
        near, _ = listener.accept()
    for end in (far, near):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return far, near


class Info:
    """The few fields of `struct tcp_info` that a ledger needs (include/uapi/linux/tcp.h)."""

    def __init__(self, sock: socket.socket) -> None:
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        self.state = raw[0]
        self.received: int = struct.unpack_from("=Q", raw, 128)[0]
        notsent: int = struct.unpack_from("=I", raw, 144)[0]
        sent, retransmitted = struct.unpack_from("=QQ", raw, 200)
        self.written: int = sent - retransmitted + notsent  # bytes ever in the write queue


def wait_for(true: Callable[[], object], what: str = "", seconds: float = PATIENCE) -> None:
    """Poll until `true()`; fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what or true}"
        time.sleep(0.001)


def read_exactly(sock: socket.socket, count: int, seconds: float = PATIENCE) -> bytes:
    """`count` bytes, or fewer when the stream ends or nothing more comes."""
    sock.settimeout(seconds)
    got = bytearray()
    with contextlib.suppress(TimeoutError):
        while len(got) < count:
            data = sock.recv(count - len(got))
            if not data:
                break
            got += data
    return bytes(got)


def silent(sock: socket.socket, seconds: float = 0.05) -> bool:
    """Whether nothing comes: neither byte nor end nor error."""
    return not select.select([sock], [], [], seconds)[0]


class Pair:
    """One client and one backend connection, and the pair in between."""

    def __init__(self, splicer: Splicer, **buffers: int) -> None:
        self.splicer = splicer
        self.client, self.near_client = connected(**buffers)
        self.near_backend, self.backend = connected()
        self.near = (self.near_client, self.near_backend)
        self.index = -1
        self.pending = [b"", b""]  # received from that side, not yet written to the other
        self.ended = [False, False]
        self.shut = [False, False]

    def splice(self) -> Pair:
        for sock in self.near:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.base = [Info(sock).written for sock in self.near]
        self.index = self.splicer.splice(self.near_client.fileno(), self.near_backend.fileno())
        return self

    def counts(self, side: int) -> tuple[int, int, int]:
        """(redirected, passed, relayed) of a direction."""
        index = self.index + side
        return (
            self.splicer.redirected(index),
            self.splicer.passed(index),
            self.splicer.relayed(index),
        )

    def balanced(self, side: int) -> bool:
        """Every byte of the direction that the kernel or `pump` took is in the write queue."""
        redirected, _, relayed = self.counts(side)
        written = Info(self.near[1 - side]).written - self.base[1 - side]
        return written == redirected + relayed

    def pump(self) -> bool:
        """One round of a worker over both directions; whether anything moved."""
        to_backend, to_client = self._pump(CLIENT), self._pump(BACKEND)
        return to_backend or to_client

    def _pump(self, side: int) -> bool:
        if self.shut[side]:
            return False
        index, source, target = self.index + side, self.near[side], self.near[1 - side]
        moved = False
        while True:
            relayed = self.splicer.relayed(index)
            if not self.pending[side] and not self.ended[side]:
                try:
                    self.pending[side] = source.recv(1 << 16)
                    # Passed bytes can wait behind bytes that are being sent to this socket; recv()
                    # tells the end before it tells them.
                    if not self.pending[side] and self.splicer.passed(index) != relayed:
                        return moved
                    self.ended[side] = not self.pending[side]
                except BlockingIOError:
                    return moved
            if not self.balanced(side):
                return moved
            if self.ended[side] and not self.pending[side]:
                target.shutdown(socket.SHUT_WR)
                self.shut[side] = True
                return True
            try:
                sent = target.send(self.pending[side])
            except BlockingIOError:
                return moved
            self.pending[side] = self.pending[side][sent:]
            self.splicer.set_relayed(index, relayed + sent)
            Info(source)  # takes the socket's lock: a pass that did not see `relayed` is over
            moved = True

    def close(self) -> None:
        """Close the near sockets and give the index back."""
        for sock in self.near:
            sock.close()
        if self.index >= 0:
            self.splicer.release(self.index)
            self.index = -1

    def close_all(self) -> None:
        self.close()
        self.client.close()
        self.backend.close()


@contextlib.contextmanager
def pumping(*pairs: Pair) -> Iterator[None]:
    """Pump in the background, as a worker would; an exception there fails the test."""
    stop = threading.Event()
    failure: list[BaseException] = []

    def run() -> None:
        try:
            while not stop.is_set():
                moved = [pair.pump() for pair in pairs]
                if not any(moved):
                    time.sleep(0.0005)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failure:
        raise failure[0]
