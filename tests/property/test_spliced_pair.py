"""The worker's pairs against a simulated kernel, in any order of events.

A run begins with a connected backend: what is read and written before the splice, what the kernel
refuses, and a relay for the whole life are in it as well.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator
from random import Random
from unittest import mock

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from l7proxy.datapath.sockmap import BROKEN, URGENT, HalfSpliced
from l7proxy.errors import Reason
from l7proxy.model import Protocol, Side
from l7proxy.session import Event, Flow, State
from l7proxy.worker import overflow
from l7proxy.worker.first import FirstPair
from l7proxy.worker.spliced import SplicedPair

from .simulated_kernel import Direction, Kernel, Killed, Run

# a seed does not shrink to anything simpler
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
LIMIT = 20_000  # turns; a run that needs more hangs


def stream(tag: int, size: int) -> bytes:
    """`size` bytes in which every short piece is unlike every other place of it."""
    return Random(tag).randbytes(size)


@pytest.fixture(autouse=True, scope="module")
def _small_bulk() -> Iterator[None]:
    """What is bulk, and what is calm, is as much smaller as the streams here are."""
    with mock.patch.multiple(overflow, BULK=600, SMALL=100, CALM=3):
        yield


def start(
    seed: int,
    up: int,
    down: int,
    early: int = 0,
    room: int = 300,
    *,
    reads: bool = True,
    protocol: Protocol = Protocol.TCP,
    relay: bool = False,
    little: int = 0,
) -> tuple[Kernel, Run]:
    kernel = Kernel(Random(seed), (stream(1, up), stream(2, down)), room)
    kernel.reads = reads
    run = Run(kernel, early, protocol=protocol, relay=relay, little=little)
    run.connection.on(Event.CONNECTED)
    pair = run.connection.pair
    if isinstance(pair, FirstPair) and kernel.rng.random() < 0.7:
        pair._over()
        run.connection.on(Event.LASTS)  # else the most of what is short would be over by then
    return kernel, run


def never_looks_complete(kernel: Kernel, d: Direction, receiver: Side) -> None:
    """A stream that was cut: what came is a front of it, and it ends with a reset."""
    assert d.stream.startswith(bytes(d.received))
    if bytes(d.received) != d.stream or not d.fin_arrived:
        assert not d.fin_received
        assert kernel.reset_seen[receiver] or kernel.broken[receiver]


seeds = st.integers(0, 2**32)
sizes = st.one_of(st.just(0), st.integers(1, 300), *[st.integers(1000, 9000)] * 2)
rooms = st.sampled_from((40, 300, 2000))
earlies = st.sampled_from((0, 0, 1, 200, 3000))
sides = st.sampled_from(Side)
turns = st.one_of(st.integers(0, 12), st.integers(0, 200))


@settings(max_examples=400, deadline=None, phases=PHASES)
@given(seeds, sizes, sizes, earlies, rooms, st.sampled_from((False, False, False, True)))
def test_every_byte_arrives_once_in_order_and_then_the_end(seed, up, down, early, room, relay):
    kernel, run = start(seed, up, down, early, room, relay=relay)
    run.to_the_end(LIMIT)
    for d in kernel.directions:
        assert bytes(d.received) == d.stream
        assert d.fin_received
    record = run.connection.record
    assert record.reason is Reason.DONE
    assert kernel.reset_seen == [False, False]
    assert (record.bytes_in, record.bytes_out) == (up, down)
    assert record.kernel_in == kernel.directions[0].redirected
    assert record.kernel_out == kernel.directions[1].redirected


@settings(max_examples=200, deadline=None, phases=PHASES)
@given(seeds, sizes, sizes, rooms, st.lists(st.integers(0, 400), min_size=1, max_size=4))
def test_a_worker_may_be_killed_anywhere(seed, up, down, room, deaths):
    """The next one goes on from what the kernel knows, and every byte arrives once, in order."""
    kernel, run = start(seed, up, down, 0, room)
    for steps in deaths:
        if not isinstance(run.connection.pair, SplicedPair):
            break
        kernel.dies_in = steps
        try:
            run.to_the_end(LIMIT)
        except Killed:
            closed = any(kernel.closed) or run.connection.session.state is State.CLOSED
            if closed or not isinstance(run.connection.pair, SplicedPair):
                return  # it had ended
            run = run.adopted()
        kernel.dies_in = None
    if not run.worker.finished:
        run.to_the_end(LIMIT)
    for d in kernel.directions:
        assert bytes(d.received) == d.stream
        assert d.fin_received
    assert run.connection.record.reason is Reason.DONE
    assert (run.connection.record.bytes_in, run.connection.record.bytes_out) == (up, down)


def test_the_runs_above_go_every_way() -> None:
    """What the simulation is for does happen in it, often enough."""
    seen: Tally[str] = Tally()
    for seed in range(200):
        up, down = Random(seed).choices((0, 300, 3000), k=2)
        kernel, run = start(seed, up, down, 100, (40, 300, 2000)[seed % 3])
        run.to_the_end(LIMIT)
        seen["spliced"] += kernel.armed
        seen["overflow"] += run.connection.record.overflows > 0
        seen["back in the kernel"] += 0 < kernel.directions[0].passed < kernel.directions[0].sent
        for refusal in run.worker.refusals:
            seen["half" if isinstance(refusal, HalfSpliced) else "refused"] += 1
        seen["answered before"] += run.connection.early_answer > 0
        seen["no room for the first answer"] += run.connection.copied and not run.worker.refusals
    assert len(seen) == 7
    assert min(seen.values()) >= 2, seen


def strike(kernel: Kernel, run: Run, which: int) -> list[Side]:
    """User space has armed the kernel again, and looks at the counters: before its look number
    `which`, bytes are redirected and then others passed. Returns where that has happened.

    The sender pauses in an overflow until then: user space keeps a direction that never rests.
    """
    struck: list[Side] = []
    looks = 0
    may_arrive = kernel._may_arrive

    def arrives(side: Side) -> bool:
        pauses = run.connection.session.flows[side] is Flow.OVERFLOW and not struck
        return may_arrive(side) and not pauses

    kernel._may_arrive = arrives  # type: ignore[method-assign]

    def look(side: Side) -> None:
        nonlocal looks
        d = kernel.directions[side]
        told = d.relayed if d.store is None else d.store
        armed = run.connection.session.flows[side] is Flow.OVERFLOW and d.passed == told
        looks = looks + 1 if armed else 0
        if looks == which and len(d.stream) - d.sent > 600:
            struck.append(side)
            for d.room in (1 << 20, 0):
                kernel._arrive(side)
                while d.unjudged:
                    kernel._judge(side)
            d.room = 300
            kernel.eagerness = 0.0  # nothing else until the worker's turn is over

    kernel.look = look  # type: ignore[method-assign]
    return struck


@pytest.mark.parametrize("which", [1, 2])
def test_a_verdict_between_two_looks_at_the_counters(which: int) -> None:
    """What user space then writes must not overtake what was redirected and is not queued yet."""
    times = 0
    for seed in range(40):
        kernel, run = start(seed, 3000, 0, room=300, little=1)
        kernel.eagerness = 0.0  # nothing ends before the splice
        kernel._arrive(Side.CLIENT)
        struck = strike(kernel, run, which)
        with mock.patch.object(overflow, "BULK", 3000):  # it is handed back as soon as it may be
            run.to_the_end(LIMIT)
        times += len(struck)
        assert bytes(kernel.directions[0].received) == kernel.directions[0].stream
    assert times > 10


@settings(max_examples=400, deadline=None, phases=PHASES)
@given(seeds, sizes, sizes, rooms, sides, turns)
def test_a_reset_is_never_taken_for_a_complete_stream(seed, up, down, room, side, when):
    kernel, run = start(seed, up, down, 0, room)
    run.to_the_end(LIMIT, when, lambda: kernel.reset(side))
    never_looks_complete(kernel, kernel.directions[side], side.other)


@settings(max_examples=150, deadline=None, phases=PHASES)
@given(seeds, st.integers(3000, 9000), st.integers(3000, 9000), rooms, sides, turns)
def test_a_reset_of_a_relayed_pair_neither(seed, up, down, room, side, when):
    kernel, run = start(seed, up, down, 0, room, relay=True)
    run.to_the_end(LIMIT, when, lambda: kernel.reset(side))
    never_looks_complete(kernel, kernel.directions[side], side.other)


@settings(max_examples=150, deadline=None, phases=PHASES)
@given(seeds, st.integers(1000, 9000), sizes, rooms, sides, turns)
def test_what_the_verdict_gives_up_is_reset_on_both_sides(seed, up, down, room, side, when):
    fault = BROKEN if seed % 2 else URGENT
    kernel, run = start(seed, up, down, 0, room)
    run.to_the_end(LIMIT, when, lambda: kernel.give_up(side, fault))
    for each in Side:
        never_looks_complete(kernel, kernel.directions[each], each.other)
    if run.connection.record.reason is not Reason.DONE:
        expected = Reason.URGENT_DATA if fault & URGENT else Reason.DATAPATH
        assert run.connection.record.reason is expected
        assert kernel.reset_seen == [True, True]


@settings(max_examples=150, deadline=None, phases=PHASES)
@given(seeds, sizes, earlies, rooms, st.booleans(), st.sampled_from((None, 0, 1, 5, 40)))
def test_a_backend_that_ends_without_a_word_is_answered_for(seed, up, early, room, relay, reset):
    """HTTP: the client gets a whole 502, by a socket that may have been spliced."""
    kernel, run = start(seed, up, 0, early, room, protocol=Protocol.HTTP, relay=relay)
    when = -1 if reset is None else reset
    run.to_the_end(LIMIT, when, lambda: kernel.reset(Side.BACKEND))
    answer = kernel.directions[Side.BACKEND]
    record = run.connection.record
    assert (record.status, record.reason) == (502, Reason.BACKEND_CLOSED)
    head, _, body = bytes(answer.received).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 502 ")
    assert b"Content-Length: %d" % len(body) in head
    assert answer.fin_received
    assert not kernel.reset_seen[Side.CLIENT]
    request = kernel.directions[Side.CLIENT]
    assert request.stream.startswith(bytes(request.received))
    assert not request.fin_received or bytes(request.received) == request.stream
    assert record.bytes_out == 0


@settings(max_examples=100, deadline=None, phases=PHASES)
@given(seeds, sizes, st.integers(1, 3000), rooms)
def test_a_backend_that_said_something_is_not_answered_for(seed, up, down, room):
    kernel, run = start(seed, up, down, 0, room, protocol=Protocol.HTTP)
    run.to_the_end(LIMIT)
    assert bytes(kernel.directions[Side.BACKEND].received) == stream(2, down)
    assert run.connection.record.status is None


@settings(max_examples=100, deadline=None, phases=PHASES)
@given(seeds, sizes, sizes, rooms, turns)
def test_a_drain_deadline_resets(seed, up, down, room, when):
    kernel, run = start(seed, up, down, 0, room)
    run.to_the_end(LIMIT, when, lambda: run.connection.abort(Reason.DRAIN_DEADLINE))
    for each in Side:
        never_looks_complete(kernel, kernel.directions[each], each.other)


@settings(max_examples=200, deadline=None, phases=PHASES)
@given(seeds, st.integers(500, 6000), st.booleans())
def test_what_is_passed_stays_within_the_buffers(seed, size, relay):
    """A receiver that takes nothing holds the sender: user space keeps at most one buffer."""
    kernel, run = start(seed, size, 0, 0, 300, reads=False, relay=relay)
    kernel.eagerness = 1.0
    for _ in range(300):
        run.turn()
        kernel.happen()
    d = kernel.directions[0]
    assert len(d.backlog) + len(d.unsent) <= d.room
    assert not run.worker.finished
    assert not d.fin_queued
