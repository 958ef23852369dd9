"""A kernel to test spliced pairs against: sockets, verdict and kworker in plain Python.

It does what bpf/l7proxy.bpf.c and Linux do, one small step at a time, and it takes such steps
*inside* every system call of the code under test as well: whatever can happen between two lines of
the driver does happen in some run. Bytes are numbered, so that loss, repetition and reordering all
show.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any

from l7proxy.datapath.relay import Relays
from l7proxy.model import Datapath, Side
from l7proxy.net.buffers import SO_MEMINFO
from l7proxy.worker.connection import Connection
from l7proxy.worker.timers import Calendar

ESTABLISHED, CLOSE, CLOSE_WAIT = 1, 7, 8


class Direction:
    """What the kernel and the two ends keep of the bytes from one side."""

    def __init__(self, stream: bytes, early: int, room: int) -> None:
        self.stream = stream  # all that the sender is going to send
        self.sent = early  # how much of it has arrived; `early` was moved before the splice
        self.early = early
        self.fin_arrived = False
        self.redirected = 0
        self.passed = 0
        self.relayed = 0
        self.backlog = bytearray()  # redirected, not yet in the write queue
        self.pending = bytearray()  # passed, not yet readable
        self.readable = bytearray()  # passed, readable
        self.fin_readable = False
        self.queued = early  # progress of the other side's write queue
        self.unsent = bytearray()  # in it, the receiver has not taken it
        self.received = bytearray(stream[:early])
        self.fin_queued = False
        self.fin_received = False
        self.room = room
        self.window = 1024  # bytes that may wait here, passed and unread


class Kernel:
    """Two directions, the verdict, the kworker, and both ends."""

    def __init__(self, rng: Random, streams: tuple[bytes, bytes], early: int, room: int) -> None:
        self.rng = rng
        self.directions = (Direction(streams[0], early, room), Direction(streams[1], 0, room))
        self.spliced = False
        self.broken: list[int] = [0, 0]  # errno of each socket
        self.reset_seen = [False, False]  # the end behind each socket has seen a reset
        self.closed = [False, False]
        self.ring: list[int] = []
        self.edges: list[tuple[Side, int]] = []
        self.wants_room = [False, False]  # a send to this socket found no room
        self.reads = True  # the receivers take what comes

    # ---- steps of the kernel and the two ends

    def steps(self) -> list[Callable[[], None]]:
        """Everything that can happen now."""
        found: list[Callable[[], None]] = []
        for side in Side:
            d = self.directions[side]
            alive = not self.broken[side] and not self.closed[side]
            if (
                alive
                and d.sent < len(d.stream)
                and len(d.readable) + len(d.pending) < max(d.window, 1)
            ):
                found.append(lambda side=side: self._arrive(side))
            if alive and d.sent == len(d.stream) and not d.fin_arrived:
                found.append(lambda side=side: self._fin(side))
            if d.backlog:
                found.append(lambda side=side: self._kworker(side))
            if d.pending:
                found.append(lambda side=side: self._deliver(side))
            if self.reads and (d.unsent or (d.fin_queued and not d.fin_received)):
                found.append(lambda side=side: self._take(side))
        return found

    def happen(self) -> None:
        """A few steps, or none; called in the middle of every system call."""
        for _ in range(self.rng.choice((0, 0, 0, 1, 1, 2, 4))):
            steps = self.steps()
            if steps:
                self.rng.choice(steps)()

    def _arrive(self, side: Side) -> None:
        d = self.directions[side]
        n = min(self.rng.choice((1, 2, 7, 60, 300)), len(d.stream) - d.sent)
        skb = d.stream[d.sent : d.sent + n]
        d.sent += n
        room = len(d.unsent) + len(d.backlog) + n <= d.room
        room = room and not self.broken[side.other] and not self.closed[side.other]
        if self.spliced and d.passed == d.relayed and room:
            d.redirected += n
            d.backlog += skb
            return
        first = d.passed == d.relayed
        d.passed += n
        (d.pending if self.rng.random() < 0.5 or d.pending else d.readable).extend(skb)
        if self.spliced and first:
            self.ring.append(side)

    def _fin(self, side: Side) -> None:
        self.directions[side].fin_arrived = True
        self.edges.append((side, select.EPOLLRDHUP))

    def _kworker(self, side: Side) -> None:
        d = self.directions[side]
        n = self.rng.randint(1, len(d.backlog))
        d.unsent += d.backlog[:n]
        d.queued += n
        del d.backlog[:n]

    def _deliver(self, side: Side) -> None:
        d = self.directions[side]
        d.readable += d.pending
        d.pending.clear()

    def _take(self, side: Side) -> None:
        d = self.directions[side]
        if d.unsent:
            n = self.rng.randint(1, len(d.unsent))
            d.received += d.unsent[:n]
            del d.unsent[:n]
            if self.wants_room[side.other] and len(d.unsent) * 3 <= d.room * 2:
                self.wants_room[side.other] = False
                self.edges.append((side.other, select.EPOLLOUT))
        else:
            d.fin_received = True

    def reset(self, side: Side) -> None:
        """The end behind `side` resets its connection."""
        self.broken[side] = errno.ECONNRESET
        self.edges.append((side, select.EPOLLERR | select.EPOLLHUP | select.EPOLLRDHUP))


class FakeSocket:
    """One of the proxy's two sockets. Every call lets the kernel take steps first."""

    def __init__(self, kernel: Kernel, side: Side) -> None:
        self.kernel = kernel
        self.side = side
        self.source = kernel.directions[side]
        self.sink = kernel.directions[side.other]
        self.linger = True
        self.closed = False

    def fileno(self) -> int:
        return 100 + self.side

    def _check(self) -> None:
        assert not self.closed
        self.kernel.happen()
        if self.kernel.broken[self.side]:
            raise OSError(self.kernel.broken[self.side], "reset")

    def recv_into(self, buffer: memoryview, size: int, flags: int) -> int:
        self._check()
        d = self.source
        if d.readable:
            most = min(len(d.readable), size or len(buffer))
            n = self.kernel.rng.choice((most, self.kernel.rng.randint(1, most)))
            buffer[:n] = d.readable[:n]
            if not flags & socket.MSG_PEEK:
                del d.readable[:n]
                self.kernel.happen()
            return n
        if d.fin_arrived:  # also while passed bytes are pending: tcp_bpf_recvmsg does that
            return 0
        raise BlockingIOError

    def send(self, data: memoryview, _flags: int) -> int:
        self._check()
        d = self.sink
        free = d.room - len(d.unsent)
        if free <= 0:
            self.kernel.wants_room[self.side] = True
            raise BlockingIOError
        n = self.kernel.rng.randint(1, min(free, len(data)))
        d.unsent += data[:n]
        d.queued += n
        return n

    def getsockopt(self, _level: int, option: int, _size: int) -> bytes:
        assert not self.closed
        self.kernel.happen()
        if option == SO_MEMINFO:
            return struct.pack(
                "=II4xI4xI",
                len(self.source.readable) + len(self.source.pending),
                self.source.window,
                self.sink.room,
                len(self.sink.unsent),
            )
        assert option == socket.TCP_INFO
        info = bytearray(216)
        state = CLOSE_WAIT if self.source.fin_arrived else ESTABLISHED
        info[0] = CLOSE if self.kernel.broken[self.side] else state
        struct.pack_into("Q", info, 128, self.source.sent + self.source.fin_arrived)
        struct.pack_into("Q", info, 200, self.sink.queued)
        return bytes(info)

    def setsockopt(self, _level: int, option: int, value: Any) -> None:
        self.kernel.happen()
        if option == socket.SO_RCVBUF:
            self.source.window = max(1, min(value, 1024))
        elif option == socket.SO_LINGER:
            self.linger = struct.unpack("ii", value)[0] == 1

    def setblocking(self, _flag: bool) -> None:
        pass

    def shutdown(self, how: int) -> None:
        assert how == socket.SHUT_WR
        self._check()
        self.sink.fin_queued = True

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        self.kernel.closed[self.side] = True
        self.sink.backlog.clear()  # sk_psock_drop() purges what was redirected and not sent
        if self.linger:
            if not self.kernel.broken[self.side]:
                self.kernel.reset_seen[self.side] = True
                self.sink.unsent.clear()
        else:
            self.sink.fin_queued = True


class FakeSplicer:
    """`Splicer`, over the simulated kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def splice(self, _client: int, _backend: int) -> int:
        self.kernel.happen()
        self.kernel.spliced = True
        self.kernel.happen()
        return 0

    def redirected(self, index: int) -> int:
        return self.kernel.directions[index].redirected

    def passed(self, index: int) -> int:
        return self.kernel.directions[index].passed

    def relayed(self, index: int) -> int:
        return self.kernel.directions[index].relayed

    def set_relayed(self, index: int, count: int) -> None:
        d = self.kernel.directions[index]
        assert d.relayed <= count <= d.passed
        d.relayed = count
        # the rule of the splice that everything rests on
        if count == d.passed:
            assert d.queued == d.early + d.redirected + count, "re-armed with bytes under way"

    def broken(self, _index: int) -> int:
        return 0


class FakeWorker:
    """What `Connection` asks of its worker, on a clock that the test moves."""

    def __init__(self, kernel: Kernel, scratch: int) -> None:
        self.kernel = kernel
        self.slot = 0
        self.now = 0.0
        self.view = [0] * 64
        self.calendar = Calendar()
        self.relays = Relays(Datapath.COPY)
        self.spliced: dict[int, Any] = {}
        self.splicer = FakeSplicer(kernel)
        self.scratch = memoryview(bytearray(scratch))
        self.receive_ceiling = 1 << 20
        self.graves: list[FakeSocket] = []
        self.soon: set[Connection] = set()
        self.finished = False

    def clock(self) -> float:
        return self.now

    def wall(self) -> float:
        return 0.0

    def register(self, _fd: int, _mask: int, _handler: Any) -> None:
        self.kernel.happen()

    def modify(self, fd: int, mask: int) -> None:
        self.kernel.happen()
        side = Side(fd - 100)
        sink = self.kernel.directions[side.other]
        if not mask & select.EPOLLOUT:
            return
        if len(sink.unsent) * 3 <= sink.room * 2:  # EPOLL_CTL_MOD looks at once
            self.kernel.edges.append((side, select.EPOLLOUT))
        else:
            self.kernel.wants_room[side] = True

    def unregister(self, _fd: int) -> None:
        pass

    def bury(self, sock: FakeSocket) -> None:
        self.graves.append(sock)

    def release(self, _index: int) -> None:
        pass

    def look_again(self, connection: Connection, delay: float) -> None:
        connection.retry_at = self.now + delay
        self.soon.add(connection)

    def note_refused(self, error: OSError) -> None:
        raise error

    def ended(self, _connection: Connection) -> None:
        self.finished = True


class Run:
    """A connection under test, from the moment that its pair opens."""

    def __init__(self, kernel: Kernel, protocol: str = "TCP", scratch: int = 256) -> None:
        self.kernel = kernel
        self.worker = FakeWorker(kernel, scratch)
        self.client = FakeSocket(kernel, Side.CLIENT)
        self.backend = FakeSocket(kernel, Side.BACKEND)
        timeouts = SimpleNamespace(head=10.0, dial=5.0, idle=3600.0, overflow=300.0)
        listener = SimpleNamespace(name="raw", protocol=protocol, timeouts=timeouts, index=0)
        self.connection = Connection(
            self.worker,
            listener,
            self.client,
            ("127.0.0.1", 1),  # type: ignore[arg-type]
        )
        self.connection.backend = self.backend  # type: ignore[assignment]
        self.connection.early_in = self.connection.early_out = kernel.directions[0].early

    def turn(self) -> bool:
        """One round of the worker's loop; whether there was anything to do."""
        kernel, worker = self.kernel, self.worker
        worker.now += 0.0005
        busy = False
        while kernel.edges and not worker.finished:
            side, mask = kernel.edges.pop(kernel.rng.randrange(len(kernel.edges)))
            self.connection.ready(100 + side, mask)
            busy = True
        while kernel.ring and not worker.finished:
            pair = worker.spliced.get(0)
            side = kernel.ring.pop(0)
            if pair is not None:
                pair.on_event(side)
            busy = True
        for connection in [c for c in worker.soon if c.retry_at <= worker.now]:
            worker.soon.discard(connection)
            if connection.pair is not None and connection.session.is_open:
                connection.pair.again()
            busy = True
        if worker.soon:
            worker.now += 0.01
            busy = True
        for grave in worker.graves:
            grave.close()
        worker.graves.clear()
        return busy
