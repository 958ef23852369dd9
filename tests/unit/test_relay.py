"""The two channels over real sockets: exact, bounded, honest about ends, and nothing is left open.

A sender, the source, the channel under test, the sink, a receiver: two connections, one channel.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.datapath import relay
from l7proxy.datapath.relay import (
    BUFFER,
    TURN,
    Channel,
    CopyChannel,
    PipePool,
    Relays,
    SinkBroken,
    SourceBroken,
    Splice2Channel,
    Want,
)
from l7proxy.model import Datapath

pytestmark = pytest.mark.net

Ends = tuple[socket.socket, socket.socket]
RESET = struct.pack("ii", 1, 0)
SETTLED = 200  # pumps after which nothing more is expected to move by itself


def tcp() -> Ends:
    """Two ends of a TCP connection; small buffers, so that they fill up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        far = socket.socket()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        far.connect(listener.getsockname())
        near, _ = listener.accept()
    for end in (far, near):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return far, near


def unix() -> Ends:
    """The same without TCP's timers."""
    far, near = socket.socketpair()
    for end in (far, near):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return far, near


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@dataclass
class Wire:
    """A channel, what it stands between, and what it may hold at the most."""

    channel: Channel
    sender: socket.socket
    receiver: socket.socket
    near: Ends
    holds: int
    got: bytes = b""
    ended: bool = False

    def send(self, data: bytes) -> int:
        """As much as goes."""
        with contextlib.suppress(BlockingIOError):
            return self.sender.send(data)
        return 0

    def receive(self, size: int) -> None:
        with contextlib.suppress(BlockingIOError):
            piece = self.receiver.recv(size)
            self.got += piece
            self.ended |= not piece

    def pump(self) -> Want:
        want = self.channel.pump()
        assert 0 <= self.channel.taken - self.channel.written <= self.holds
        return want

    def pump_until(self, wanted: Want) -> None:
        for _ in range(SETTLED):
            if self.pump() is wanted:
                return
        raise AssertionError(f"never {wanted}")

    def fill(self) -> bytes:
        """Send until nothing moves any more, and nobody reads. Returns what was sent."""
        sent, idle = b"", 0
        supply = Random(0).randbytes(1 << 20)
        while idle < 20:
            n = self.send(supply[len(sent) : len(sent) + 5000])
            sent += supply[len(sent) : len(sent) + n]
            moved = self.channel.taken
            self.pump()
            idle = 0 if n or self.channel.taken != moved else idle + 1
        return sent


KINDS = ["copy", "splice2"]


@contextlib.contextmanager
def wired(kind: str, ends: Callable[[], Ends] = tcp, buffer: int = BUFFER) -> Iterator[Wire]:
    """A channel in the middle. Nothing may be open afterwards that was not before."""
    before = descriptors()
    with contextlib.ExitStack() as stack:
        (sender, source), (receiver, sink) = ends(), ends()
        for end in (sender, source, receiver, sink):
            end.setblocking(False)
            stack.enter_context(end)
        pool = PipePool()
        stack.callback(pool.close)
        channel: Channel
        if kind == "copy":
            channel = CopyChannel(source, sink, memoryview(bytearray(buffer)))
        else:
            stack.enter_context(mock.patch.object(relay, "BUFFER", buffer))
            channel = Splice2Channel(source, sink, pool)
        stack.callback(channel.close)
        yield Wire(channel, sender, receiver, (source, sink), buffer)
    assert descriptors() == before


both = pytest.mark.parametrize("kind", KINDS)


# ---- exact


@both
@pytest.mark.parametrize("ends", [tcp, unix])
def test_every_byte_once_in_order_and_then_the_end(kind: str, ends: Callable[[], Ends]) -> None:
    """Any sizes of buffer, sends and receives, in any order of turns."""

    @settings(max_examples=40, deadline=None)
    @given(
        st.integers(0, 1 << 32),
        st.sampled_from([1, 7, 100, 4096, BUFFER]),
        st.sampled_from([60_000, 20_000, 300, 1, 0]),
    )
    def check(seed: int, buffer: int, size: int) -> None:
        rng = Random(seed)
        data = rng.randbytes(min(size, 2000 * buffer))
        with wired(kind, ends, buffer) as wire:
            sent, over, want = 0, False, Want.READ
            for _ in range(100_000):
                if wire.ended:
                    break
                turn = rng.randrange(3)
                if turn == 0 and sent < len(data):
                    sent += wire.send(data[sent : sent + rng.choice([1, 60, 9000])])
                elif turn == 0 and not over:
                    over = True
                    wire.sender.shutdown(socket.SHUT_WR)
                elif turn == 1:
                    want = wire.pump()
                    if want is Want.END:  # what the driver does then
                        assert over
                        assert wire.channel.written == wire.channel.taken == len(data)
                        wire.near[1].shutdown(socket.SHUT_WR)
                else:
                    wire.receive(rng.choice([1, 60, 9000]))
            assert wire.got == data
            assert wire.ended
            assert want is Want.END

    check()


@both
def test_idle_then_bytes_then_the_end(kind: str) -> None:
    with wired(kind, unix) as wire:
        assert wire.pump() is Want.READ
        wire.send(b"some bytes")
        assert wire.pump() is Want.READ
        assert wire.receiver.recv(100) == b"some bytes"
        wire.sender.close()
        assert wire.pump() is Want.END
        assert wire.pump() is Want.END  # and it stays so
        assert (wire.channel.taken, wire.channel.written) == (10, 10)


@both
def test_the_end_is_not_told_while_bytes_wait_for_room(kind: str) -> None:
    with wired(kind, unix) as wire:
        sent = wire.fill()
        wire.sender.shutdown(socket.SHUT_WR)
        for _ in range(10):
            assert wire.pump() is Want.WRITE
        while len(wire.got) < len(sent):
            wire.receive(1000)
            if wire.pump() is Want.END:
                break
        assert wire.channel.written == len(sent)
        while len(wire.got) < len(sent):
            wire.receive(1000)
        assert wire.got == sent


def test_what_somebody_else_took_from_the_source_goes_first() -> None:
    """The first answer that the client had no room for, before the pair was open."""
    with wired("copy", unix) as wire:
        assert isinstance(wire.channel, CopyChannel)
        wire.channel.hold(b"taken before, ")
        wire.send(b"taken now")
        assert wire.channel.pump() is Want.READ
        assert wire.receiver.recv(100) == b"taken before, taken now"
        assert (wire.channel.taken, wire.channel.written) == (9, 23)


# ---- bounded


@both
@pytest.mark.parametrize("ends", [tcp, unix])
def test_a_receiver_that_takes_nothing_stops_the_sender(
    kind: str, ends: Callable[[], Ends]
) -> None:
    with wired(kind, ends, 1000) as wire:  # each pump checks how much is held
        sent = wire.fill()
        assert len(sent) < 1 << 18
        assert wire.pump() is Want.WRITE
        assert wire.send(b"x") == 0
        total = 0
        while total < len(sent):
            piece = len(wire.got)
            wire.receive(700)
            wire.pump()
            total += len(wire.got) - piece
        assert wire.got == sent


@both
def test_a_turn_ends_while_there_is_more(kind: str) -> None:
    with wired(kind, unix, 100) as wire:
        wire.send(b"x" * 1000)
        assert wire.pump() is Want.TURN
        assert wire.channel.written == TURN * 100
        wire.pump_until(Want.READ)
        assert wire.channel.written == 1000


# ---- broken


@both
def test_a_source_that_is_reset_is_broken(kind: str) -> None:
    with wired(kind) as wire:
        wire.sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        wire.sender.close()
        with pytest.raises(SourceBroken):
            wire.pump_until(Want.END)


@both
def test_a_sink_that_is_reset_is_broken(kind: str) -> None:
    with wired(kind) as wire:
        wire.receiver.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        wire.receiver.close()
        wire.send(b"bytes for nobody")
        with pytest.raises(SinkBroken):
            wire.pump_until(Want.END)


@both
def test_a_sink_that_breaks_while_bytes_wait_for_it(kind: str) -> None:
    with wired(kind) as wire:
        wire.fill()
        assert wire.channel.taken > wire.channel.written
        wire.receiver.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        wire.receiver.close()
        with pytest.raises(SinkBroken):
            wire.pump_until(Want.END)


# ---- what is given back


def pipe_bytes(ends: tuple[int, int]) -> bytes:
    """What waits in a pipe."""
    try:
        return os.read(ends[0], 1 << 20)
    except BlockingIOError:
        return b""


def test_idle_directions_share_pipes() -> None:
    with contextlib.ExitStack() as stack:
        pool = PipePool()
        stack.callback(pool.close)
        wires = []
        for _ in range(10):
            (sender, source), (receiver, sink) = unix(), unix()
            for end in (sender, source, receiver, sink):
                end.setblocking(False)
                stack.enter_context(end)
            wires.append((sender, receiver, Splice2Channel(source, sink, pool)))
        before = descriptors()
        for number, (sender, receiver, channel) in enumerate(wires):
            for piece in (b"", b"bytes of %d" % number):
                sender.send(piece)
                assert channel.pump() is Want.READ
                assert descriptors() == before + 2  # one pipe, in the pool
            assert receiver.recv(100) == b"bytes of %d" % number


def test_a_pipe_that_holds_bytes_meets_no_other_connection() -> None:
    pool = PipePool()
    before = descriptors()
    with wired("splice2", unix) as wire:
        wire.channel = Splice2Channel(*wire.near, pool)
        wire.fill()
        assert wire.channel.taken > wire.channel.written
        wire.channel.close()
        wire.channel.close()  # once more is harmless
    assert descriptors() == before  # closed, not kept
    pipe = pool.take()
    assert pipe_bytes(pipe) == b""
    pool.give(pipe, empty=True)
    pool.close()


def test_a_pipe_is_kept_by_its_channel_only_while_it_holds_bytes() -> None:
    pool = PipePool()
    with wired("splice2", unix) as wire:
        wire.channel = Splice2Channel(*wire.near, pool)
        sent = wire.fill()
        assert pool._free == []
        while len(wire.got) < len(sent):
            wire.receive(5000)
            wire.pump()
        assert wire.got == sent
        assert len(pool._free) == 1
        pool.close()


@pytest.mark.parametrize("broken", ["source", "sink"])
def test_a_broken_channel_gives_its_pipe_back(broken: str) -> None:
    with wired("splice2") as wire:  # which counts descriptors
        end = wire.sender if broken == "source" else wire.receiver
        wire.send(b"bytes")
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        end.close()
        with pytest.raises((SourceBroken, SinkBroken)):
            wire.pump_until(Want.END)


def test_the_pool_keeps_no_more_than_it_may() -> None:
    before = descriptors()
    pool = PipePool(keep=2)
    pipes = [pool.take() for _ in range(5)]
    for pipe in pipes:
        pool.give(pipe, empty=True)
    assert descriptors() == before + 2 * 2
    assert pool.take() in pipes  # used again
    assert len(pool._free) == 1
    pool.give(pipes[1], empty=True)
    pool.close()
    pool.close()
    assert descriptors() == before


def test_pipes_are_as_large_as_one_read() -> None:
    pool = PipePool()
    ends = pool.take()
    assert fcntl.fcntl(ends[0], fcntl.F_GETPIPE_SZ) == BUFFER
    pool.give(ends, empty=False)


def test_a_system_that_grants_no_larger_pipe() -> None:
    """/proc/sys/fs/pipe-user-pages-soft is used up: EPERM, and the default size does it."""
    refused = mock.patch.object(relay.fcntl, "fcntl", side_effect=PermissionError)
    with refused, wired("splice2", unix) as wire:
        sent = wire.fill()
        while len(wire.got) < len(sent):
            wire.receive(5000)
            wire.pump()
        assert wire.got == sent


def test_no_descriptor_left_for_a_pipe() -> None:
    """Neither side is broken then: the driver is told so, and nothing is lost."""
    with wired("splice2", unix) as wire:
        wire.send(b"bytes")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        top = max(map(int, os.listdir("/proc/self/fd")))
        full = [os.dup(0) for _ in range(top - descriptors() + 8)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(full) + 1, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                wire.pump()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in full:
                os.close(fd)
        assert wire.pump() is Want.READ
        assert wire.receiver.recv(100) == b"bytes"


def test_copying_goes_on_where_a_pipe_could_not_be_had() -> None:
    with wired("splice2", unix) as wire:
        relays = Relays(Datapath.SPLICE2)
        wire.send(b"by splice, ")
        wire.pump()
        wire.channel = relays.copy(*wire.near, after=wire.channel)
        wire.send(b"by copy")
        wire.pump()
        assert wire.receiver.recv(100) == b"by splice, by copy"
        assert wire.channel.taken == wire.channel.written == 18
        relays.close()


# ---- one worker's channels


@pytest.mark.parametrize(
    ("told", "used"),
    [
        (Datapath.COPY, Datapath.COPY),
        (Datapath.SPLICE2, Datapath.SPLICE2),
        (Datapath.SOCKMAP, Datapath.SPLICE2),
    ],
)
def test_how_pairs_are_relayed(told: Datapath, used: Datapath) -> None:
    assert Relays(told).datapath is used


def test_channels_of_one_worker_share_a_buffer_and_nothing_else() -> None:
    """Both are stuck with bytes in hand, taken through the same buffer: they keep their own."""
    before = descriptors()
    relays = Relays(Datapath.COPY)
    with contextlib.ExitStack() as stack:
        wires = []
        for _ in range(2):
            (sender, source), (receiver, sink) = unix(), unix()
            for end in (sender, source, receiver, sink):
                end.setblocking(False)
                stack.enter_context(end)
            channel = relays.copy(source, sink)
            wires.append(Wire(channel, sender, receiver, (source, sink), BUFFER))
        sent = [b"", b""]
        rng = Random(1)
        for _ in range(200):
            for at, wire in enumerate(wires):
                piece = rng.randbytes(3000)
                sent[at] += piece[: wire.send(piece)]
                wire.pump()
        for at, wire in enumerate(wires):
            assert wire.channel.taken > wire.channel.written
            while len(wire.got) < len(sent[at]):
                wire.receive(5000)
                wire.pump()
            assert wire.got == sent[at]
        relays.close()
    assert descriptors() == before
