"""A kernel to test pairs against: sockets, verdict, kworker and both ends in plain Python.

It does what bpf/l7proxy.bpf.c and Linux do, one small step at a time, and it takes such steps
*inside* every system call of the code under test, and before every look at the mapped counters:
whatever can happen between two lines of the driver does happen in some run. Bytes are numbered, so
that loss, repetition and reordering all show. What makes it hard:

- a segment that has arrived may wait for its verdict, though TCP has counted it;
- a verdict adds to `passed` first and reads `relayed` later: only the receiving socket's lock puts
  a system call before or after both (`Kernel.lock`);
- what user space stores in `relayed` may be seen late, until it takes that lock: a CPU may let a
  later load go ahead of an earlier store;
- passed bytes may be readable late, and recv(2) says EOF before they are.
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
from l7proxy.datapath.sockmap import HalfSpliced
from l7proxy.errors import Reason
from l7proxy.model import Datapath, Protocol, Side
from l7proxy.session import Event, State
from l7proxy.telemetry.counters import Counter
from l7proxy.telemetry.metered import NOTHING
from l7proxy.worker.adopting import _Adopting
from l7proxy.worker.connection import Connection
from l7proxy.worker.sending import Sending
from l7proxy.worker.spliced import SplicedPair
from l7proxy.worker.timers import Calendar

ESTABLISHED, CLOSE, CLOSE_WAIT = 1, 7, 8
ALWAYS = select.EPOLLERR | select.EPOLLHUP  # cannot be masked


class Killed(BaseException):
    """SIGKILL, in the middle of a system call or between two of them."""


class Direction:
    """What the kernel and the two ends keep of the bytes from one side."""

    def __init__(self, stream: bytes, room: int) -> None:
        self.stream = stream  # all that the sender is going to send
        self.sent = 0  # how much of it has arrived
        self.fin_arrived = False
        self.inserted = False  # the verdict runs here
        self.unjudged: list[bytes] = []  # arrived, no verdict yet
        self.deciding: int | None = None  # `passed` before a verdict that is not over
        self.redirected = 0
        self.passed = 0
        self.relayed = 0  # as the verdict sees it
        self.store: int | None = None  # as user space has stored it, and nobody sees yet
        self.fault = 0
        self.backlog = bytearray()  # redirected, not yet in the write queue
        self.pending = bytearray()  # passed, not yet readable
        self.readable = bytearray()
        self.early = 0  # in the other side's write queue when the pair was spliced
        self.queued = 0  # progress of the other side's write queue
        self.unsent = bytearray()  # in it, the receiver has not taken it
        self.received = bytearray()
        self.fin_queued = False
        self.fin_received = False
        self.ended = False  # user space has noted that it passes the FIN on
        self.room = room
        self.window = 1024  # bytes that may wait here, unread


class Kernel:
    """Two directions, the verdict, the kworker, and both ends."""

    def __init__(self, rng: Random, streams: tuple[bytes, bytes], room: int) -> None:
        self.rng = rng
        self.directions = (Direction(streams[0], room), Direction(streams[1], room))
        self.armed = False
        self.broken: list[int] = [0, 0]  # errno of each socket
        self.reset_seen = [False, False]  # the end behind each socket has seen a reset
        self.closed = [False, False]
        self.ring: list[Side] = []
        self.masks: list[int | None] = [None, None]  # what epoll watches
        self.edges: list[tuple[Side, int]] = []
        self.wants_room = [False, False]  # a send to this socket found no room
        self.dies_in: int | None = None  # system calls, about, until the worker is killed
        self.reads = True  # the receivers take what comes
        # how much the ends do before the splice: usually little, or all would be over by then
        self.eagerness = rng.choice((0.0, 0.02, 0.1, 1.0))

    # ---- steps of the kernel and the two ends

    def steps(self) -> list[Callable[[], None]]:
        """Everything that can happen now."""
        found: list[Callable[[], None]] = []
        for side in Side:
            d = self.directions[side]
            if self._may_arrive(side):
                found.append(lambda side=side: self._arrive(side))
            alive = not self.broken[side] and not self.closed[side]
            if alive and d.sent == len(d.stream) and not d.fin_arrived:
                found.append(lambda side=side: self._fin(side))
            if d.unjudged and not self.closed[side]:
                found.append(lambda side=side: self._judge(side))
            if d.deciding is not None:
                found.append(lambda side=side: self._decide(side))
            if d.store is not None:
                found.append(lambda side=side: self._show_store(side))
            if d.backlog:
                found.append(lambda side=side: self._kworker(side))
            if d.pending:
                found.append(lambda side=side: self._deliver(side))
            if self.reads and (d.unsent or (d.fin_queued and not d.fin_received)):
                found.append(lambda side=side: self._take(side))
        return found

    def happen(self) -> None:
        """A few steps, or none; called in the middle of every system call."""
        if self.dies_in is not None:
            self.dies_in -= 1
            if self.dies_in < 0:
                self.dies_in = None
                raise Killed
        if self.rng.random() > self.eagerness:
            return
        if self.rng.random() < 0.08:
            self._burst(self.rng.choice(tuple(Side)))
        for _ in range(self.rng.choice((0, 0, 0, 1, 1, 2, 4))):
            steps = self.steps()
            if steps:
                self.rng.choice(steps)()

    def look(self, side: Side) -> None:
        """User space is about to look at a counter of this direction: the worst time for a burst.

        Between two such looks a verdict may have redirected, and then passed.
        """
        self.happen()
        if self.rng.random() < 0.2:
            self._burst(side)

    def _burst(self, side: Side) -> None:
        """Segments in a row, and nothing in between: what was redirected is not even queued."""
        for _ in range(self.rng.randint(2, 8)):
            if self._may_arrive(side):
                self._arrive(side)

    def _may_arrive(self, side: Side) -> bool:
        d = self.directions[side]
        if self.broken[side] or self.closed[side] or d.sent == len(d.stream):
            return False
        return len(d.readable) + len(d.pending) + sum(map(len, d.unjudged)) < max(d.window, 1)

    def lock(self, side: Side) -> None:
        """A system call takes a socket's lock: a verdict is over before it or begins after it."""
        if self.directions[side].deciding is not None:
            self._decide(side)
        self._show_store(side)

    def _arrive(self, side: Side) -> None:
        d = self.directions[side]
        n = min(self.rng.choice((1, 2, 7, 60, 300)), len(d.stream) - d.sent)
        skb = d.stream[d.sent : d.sent + n]
        d.sent += n
        if not d.inserted:
            d.readable += skb
            self.edges.append((side, select.EPOLLIN))
            return
        d.unjudged.append(skb)
        if self.rng.random() < 0.8:
            self._judge(side)

    def _judge(self, side: Side) -> None:
        """The verdict on what waits for it. See bpf/l7proxy.bpf.c."""
        d = self.directions[side]
        if d.deciding is not None:
            self._decide(side)
        skb = d.unjudged.pop(0)
        if d.fault:
            return
        room = len(d.unsent) + len(d.backlog) + len(skb) <= d.room
        room = room and not self.broken[side.other] and not self.closed[side.other]
        if self.armed and d.passed == d.relayed and room:
            d.redirected += len(skb)
            d.backlog += skb
            return
        if self.armed:
            d.deciding = d.passed
        d.passed += len(skb)
        late = self.armed and (d.pending or self.rng.random() < 0.5)  # behind what is redirected
        (d.pending if late else d.readable).extend(skb)
        self.edges.append((side, select.EPOLLIN))
        if self.rng.random() < 0.7:
            self._decide(side)

    def _decide(self, side: Side) -> None:
        """The end of a verdict: was that the first pass since user space had caught up?"""
        d = self.directions[side]
        if d.deciding is not None and d.deciding == d.relayed:
            self.ring.append(side)
        d.deciding = None

    def _show_store(self, side: Side) -> None:
        d = self.directions[side]
        if d.store is not None:
            d.relayed, d.store = d.store, None

    def _fin(self, side: Side) -> None:
        self.directions[side].fin_arrived = True
        self.edges.append((side, select.EPOLLRDHUP | select.EPOLLIN))

    def _kworker(self, side: Side) -> None:
        d = self.directions[side]
        assert not d.fin_queued, "bytes behind the FIN: sendmsg says EPIPE"
        n = self.rng.randint(1, len(d.backlog))
        d.unsent += d.backlog[:n]
        d.queued += n
        del d.backlog[:n]

    def _deliver(self, side: Side) -> None:
        d = self.directions[side]
        d.readable += d.pending
        d.pending.clear()
        self.edges.append((side, select.EPOLLIN))

    def _take(self, side: Side) -> None:
        d = self.directions[side]
        if d.unsent:
            n = self.rng.randint(1, len(d.unsent))
            d.received += d.unsent[:n]
            del d.unsent[:n]
            if self.wants_room[side.other] and self.has_room(side.other):
                self.wants_room[side.other] = False
                self.edges.append((side.other, select.EPOLLOUT))
        else:
            d.fin_received = True

    # ---- what a test brings about

    def reset(self, side: Side) -> None:
        """The end behind `side` resets its connection."""
        self.broken[side] = errno.ECONNRESET
        self.edges.append((side, select.EPOLLERR | select.EPOLLHUP | select.EPOLLRDHUP))

    def give_up(self, side: Side, fault: int) -> None:
        """The verdict, if there is one, gives a direction up: it drops what comes from here on."""
        if self.armed:
            self.directions[side].fault = fault
            self.ring.append(side)

    # ---- epoll

    def has_room(self, side: Side) -> bool:
        """Whether epoll would say that this socket can be written to (`sk_stream_is_writeable`)."""
        d = self.directions[side.other]
        return len(d.unsent) * 3 <= d.room * 2

    def poll(self, side: Side) -> None:
        """What epoll_ctl(2) does when it has set a mask, and epoll_wait(2) without EPOLLET."""
        d = self.directions[side]
        found = select.EPOLLIN if d.readable or d.fin_arrived else 0
        found |= select.EPOLLRDHUP if d.fin_arrived else 0
        found |= select.EPOLLOUT if self.has_room(side) else 0
        found |= ALWAYS if self.broken[side] else 0
        mask = self.masks[side]
        if mask is not None and found & (mask | ALWAYS):
            self.edges.append((side, found))
        if not self.has_room(side):
            self.wants_room[side] = True

    def occurred(self) -> list[tuple[Side, int]]:
        """The events of one epoll_wait(2), in any order."""
        for side in Side:
            mask = self.masks[side]
            if mask is not None and not mask & select.EPOLLET:
                self.poll(side)
        found, self.edges = self.edges, []
        self.rng.shuffle(found)
        return found


class FakeSocket:
    """One of the proxy's two sockets. Every call lets the kernel take steps first."""

    family = socket.AF_INET

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
        self.kernel.lock(self.side)
        d = self.source
        while d.unjudged:  # recv runs the verdict over what the socket's queue holds
            self.kernel._judge(self.side)
        if d.readable:
            most = min(len(d.readable), size or len(buffer))
            n = self.kernel.rng.choice((most, self.kernel.rng.randint(1, most)))
            if not d.inserted:
                n = most  # a plain socket gives all that it has
            buffer[:n] = d.readable[:n]
            if not flags & socket.MSG_PEEK:
                del d.readable[:n]
                self.kernel.happen()
            return n
        if d.fin_arrived:  # also while passed bytes are pending: tcp_bpf_recvmsg does that
            return 0
        raise BlockingIOError

    def send(self, data: Any, _flags: int) -> int:
        self._check()
        d = self.sink
        assert not d.fin_queued, "bytes behind the FIN: EPIPE"
        free = d.room - len(d.unsent)
        if free <= 0:
            self.kernel.wants_room[self.side] = True
            raise BlockingIOError
        n = self.kernel.rng.randint(1, min(free, len(data)))
        d.unsent += data[:n]
        d.queued += n
        return n

    def getsockopt(self, _level: int, option: int, _size: int = 0) -> Any:
        assert not self.closed
        self.kernel.happen()
        if option == socket.SO_RCVBUF:
            return 1 << 17
        assert option == socket.TCP_INFO
        self.kernel.lock(self.side)
        info = bytearray(216)
        state = CLOSE_WAIT if self.source.fin_arrived else ESTABLISHED
        if self.sink.fin_queued:  # shut down by us: FIN_WAIT2, LAST_ACK
            state = 9 if self.source.fin_arrived else 5
        info[0] = CLOSE if self.kernel.broken[self.side] else state
        struct.pack_into("Q", info, 128, self.source.sent + self.source.fin_arrived)
        struct.pack_into("Q", info, 200, self.sink.queued)
        return bytes(info)

    def setsockopt(self, _level: int, option: int, value: Any) -> None:
        self.kernel.happen()
        if option == socket.SO_LINGER:
            self.linger = struct.unpack("ii", value)[0] == 1

    def shutdown(self, how: int) -> None:
        assert how == socket.SHUT_WR
        self._check()
        self.sink.fin_queued = True

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        self.kernel.closed[self.side] = True
        self.kernel.masks[self.side] = None
        self.sink.backlog.clear()  # sk_psock_drop() purges what was redirected and not sent
        if self.linger:
            if not self.kernel.broken[self.side]:
                self.kernel.reset_seen[self.side] = True
            self.sink.unsent.clear()  # and the FIN behind it, if there was one
            self.sink.fin_queued = self.sink.fin_received
        else:
            self.sink.fin_queued = True


def _unread(sock: FakeSocket) -> int:
    """`net.sockdiag`: rcv_nxt - copied_seq."""
    sock.kernel.happen()
    d = sock.source
    return len(d.readable) + len(d.pending) + sum(map(len, d.unjudged)) + d.fin_arrived


class FakeSplicer:
    """`Splicer`, over the simulated kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.released: list[int] = []

    def splice(self, _client: int, _backend: int) -> int:
        kernel = self.kernel
        for side in Side:
            kernel.happen()
            d = kernel.directions[side]
            if d.fin_arrived or kernel.broken[side]:  # not ESTABLISHED
                error: OSError = OSError(errno.EOPNOTSUPP, "not supported")
                if side is Side.BACKEND:
                    error = HalfSpliced(errno.EOPNOTSUPP, "not supported")
                    error.index = 0
                raise error
            d.inserted = True
            d.early = d.queued
            d.unjudged, d.readable = [bytes(d.readable)] if d.readable else [], bytearray()
        kernel.happen()
        kernel.armed = True
        kernel.eagerness = 1.0
        for side in Side:  # the kick
            kernel.happen()
            while kernel.directions[side].unjudged:
                kernel._judge(side)
        return 0

    def redirected(self, index: int) -> int:
        self.kernel.look(Side(index))
        return self.kernel.directions[index].redirected

    def passed(self, index: int) -> int:
        self.kernel.look(Side(index))
        return self.kernel.directions[index].passed

    def relayed(self, index: int) -> int:
        d = self.kernel.directions[index]
        return d.relayed if d.store is None else d.store

    def set_relayed(self, index: int, count: int) -> None:
        d = self.kernel.directions[index]
        assert self.relayed(index) <= count <= d.passed
        d.store = count
        # the rule of the splice that everything rests on
        if count == d.passed:
            assert d.queued == d.early + d.redirected + count, "re-armed with bytes under way"

    def broken(self, index: int) -> int:
        self.kernel.happen()
        return self.kernel.directions[index].fault

    def set_ended(self, index: int) -> None:
        self.kernel.directions[index].ended = True

    def ended(self, index: int) -> bool:
        return self.kernel.directions[index].ended

    def release(self, index: int) -> None:
        assert self.kernel.closed == [True, True], "an index is free once both are closed"
        self.released.append(index)


class FakeWorker:
    """What `Connection` asks of its worker, on a clock that the test moves."""

    def __init__(self, kernel: Kernel, scratch: int, little: int, *, relay: bool) -> None:
        self.kernel = kernel
        self.slot = 0
        self.now = 0.0
        self.view = [0] * 64
        self.calendar = Calendar()
        self.relays = Relays(Datapath.COPY)
        self.scratch = memoryview(bytearray(scratch))
        self.first_scratch = self.scratch[: scratch // 2]
        self.little_scratch = self.scratch[
            : little or kernel.rng.choice((1, scratch // 4, scratch))
        ]
        self.relays._buffer = self.scratch[: scratch // 4]
        self.spliced: dict[int, Any] = {}
        self.splicer = None if relay else FakeSplicer(kernel)
        self.graves: list[FakeSocket] = []
        self.free: list[int] = []
        self.soon: set[Connection] = set()
        self.refusals: list[OSError] = []
        self.finished = False
        self.keeping = SimpleNamespace(add=lambda _pair: None)
        self.meter = SimpleNamespace(first_byte=lambda _backend, _seconds: None)
        self.metered = SimpleNamespace(store=lambda _index, _moved: None, of=lambda _index: NOTHING)

    def clock(self) -> float:
        return self.now

    def wall(self) -> float:
        return 0.0

    def register(self, fd: int, mask: int, _handler: Any) -> None:
        assert self.kernel.masks[fd - 100] is None
        self._watch(fd, mask)

    def modify(self, fd: int, mask: int) -> None:
        assert self.kernel.masks[fd - 100] is not None
        self._watch(fd, mask)

    def _watch(self, fd: int, mask: int) -> None:
        self.kernel.happen()
        self.kernel.masks[fd - 100] = mask
        self.kernel.poll(Side(fd - 100))

    def bury(self, sock: FakeSocket) -> None:
        self.kernel.masks[sock.side] = None
        self.graves.append(sock)

    def release(self, index: int) -> None:
        self.spliced.pop(index >> 1, None)
        self.free.append(index)

    def look_again(self, connection: Connection, delay: float) -> None:
        when = self.now + delay
        if connection in self.soon:
            when = min(when, connection.retry_at)
        connection.retry_at = when
        self.soon.add(connection)

    def note_refused(self, error: OSError) -> None:
        self.refusals.append(error)
        self.kernel.eagerness = 1.0

    def ended(self, connection: Connection) -> None:
        assert not self.finished
        self.finished = True
        self.soon.discard(connection)


class Run:
    """A connection under test, from the moment that its backend is connected."""

    def __init__(
        self,
        kernel: Kernel,
        early: int = 0,
        *,
        protocol: Protocol = Protocol.TCP,
        relay: bool = False,
        scratch: int = 256,
        little: int = 0,
    ) -> None:
        """The first `early` bytes of the client are read already; `relay`: there is no splicer.

        `little`: so many bytes pass before a splice; 0: chance decides.
        """
        self.kernel = kernel
        self.is_adopted = False
        self.worker = FakeWorker(kernel, scratch, little, relay=relay)
        self.client = FakeSocket(kernel, Side.CLIENT)
        self.backend = FakeSocket(kernel, Side.BACKEND)
        timeouts = SimpleNamespace(head=10.0, dial=5.0, idle=3600.0, overflow=300.0)
        listener = SimpleNamespace(
            name="raw",
            protocol=protocol,
            timeouts=timeouts,
            index=0,
            front=SimpleNamespace(is_unix=False),
        )
        self.connection = connection = Connection(
            self.worker,  # type: ignore[arg-type]
            listener,
            self.client,
            ("127.0.0.1", 1),
        )
        connection.backend = self.backend  # type: ignore[assignment]
        up = kernel.directions[Side.CLIENT]
        up.sent = connection.early_in = min(early, len(up.stream))
        connection.opening = None
        connection.sending = Sending(connection, up.stream[: up.sent], full_read=bool(early))
        connection.session.state = State.DIAL

    def adopted(self) -> Run:
        """Another worker goes on with the pair: all that this one knew is forgotten."""
        kernel, old = self.kernel, self.connection
        kernel.masks = [None, None]
        kernel.edges.clear()
        kernel.ring.clear()
        sent = kernel.directions[Side.CLIENT].sent
        new = Run(kernel, protocol=old.listener.protocol)
        kernel.directions[Side.CLIENT].sent = sent  # a run begins with what was read early
        new.client.linger, new.backend.linger = self.client.linger, self.backend.linger
        connection = new.connection
        for name in ("early_in", "early_out", "early_answer", "added"):
            setattr(connection, name, getattr(old, name))
        new.is_adopted = True
        new.worker.view[Counter.SPLICES] = 1  # the supervisor leaves it so: `reconcile`
        connection.sending = None
        connection.splicer_index = 0
        connection.session.state = State.NEW
        connection.on(Event.ADOPTED)
        pair = connection.pair
        assert isinstance(pair, SplicedPair)
        pair.is_kept = False  # there are no duplicates here: close ends it
        adopting = _Adopting.__new__(_Adopting)
        adopting._worker = new.worker  # type: ignore[assignment]
        adopting._diag = SimpleNamespace(unread=_unread)  # type: ignore[assignment]
        adopting._find_out(connection)
        return new

    def turn(self) -> bool:
        """One round of the worker's loop; whether there was anything to do."""
        kernel, worker, connection = self.kernel, self.worker, self.connection
        worker.now += 0.0005
        busy = False
        for side, found in kernel.occurred():
            mask = kernel.masks[side]
            if mask is not None and found & (mask | ALWAYS):
                connection.ready(100 + side, found & (mask | ALWAYS))
                busy = True
        while kernel.ring:
            side = kernel.ring.pop(0)
            pair = worker.spliced.get(0)
            if pair is not None:
                pair.on_event(side)
            busy = True
        for item in worker.calendar.due(worker.now):
            item.on_deadline()
        if worker.soon and connection.retry_at <= worker.now:
            worker.soon.clear()
            if connection.pair is not None and connection.session.is_open:
                connection.pair.again()
            busy = True
        if worker.soon:
            worker.now += 0.01
            busy = True
        for grave in worker.graves:
            grave.close()
        worker.graves.clear()
        for index in worker.free:
            worker.splicer.release(index)
        worker.free.clear()
        return busy

    def to_the_end(self, turns: int, at: int = -1, what: Callable[[], None] | None = None) -> None:
        """Go on until the connection is closed and nothing moves any more.

        In turn `at`, if it comes to that, `what` happens. Raises AssertionError if `turns` do not
        suffice, and if the accounts that are left are not in order.
        """
        kernel, worker = self.kernel, self.worker
        for turn in range(turns):
            if turn == at and what is not None and not worker.finished:
                what()
            busy = self.turn()
            kernel.eagerness = 1.0  # opened, or waiting for something
            if worker.finished and not busy:
                break
            kernel.happen()
        else:
            raise AssertionError(f"hangs: {self.connection.session.flows}")
        while kernel.steps():
            kernel.happen()
        self._check_accounts()

    def _check_accounts(self) -> None:
        view, record = self.worker.view, self.connection.record
        assert view[Counter.SPLICES] == view[Counter.SPLICES_ENDED]
        assert view[Counter.RELAYS] == view[Counter.RELAYS_ENDED]
        assert view[Counter.OVERFLOWS] == record.overflows
        assert self.worker.calendar.next() is None
        assert self.kernel.closed == [True, True]
        if self.worker.splicer is not None:
            inserted = self.kernel.directions[Side.CLIENT].inserted
            assert self.worker.splicer.released == [0] * inserted
        if record.reason is Reason.DONE and not self.is_adopted:  # else others counted, too
            assert view[Counter.RELAYED_CLIENT] + record.kernel_in == record.bytes_in
            assert view[Counter.RELAYED_BACKEND] + record.kernel_out == record.bytes_out
