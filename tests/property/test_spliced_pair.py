"""The worker's spliced pairs against a simulated kernel, in any order of events."""

from __future__ import annotations

from random import Random

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from l7proxy.errors import Reason
from l7proxy.model import Side
from l7proxy.session import Event, State

from .simulated_kernel import Kernel, Run

# a seed does not shrink to anything simpler
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
LIMIT = 20_000  # turns; a run that needs more hangs


def stream(tag: int, size: int) -> bytes:
    """`size` bytes in which every short piece is unlike every other place of it."""
    return Random(tag).randbytes(size)


def start(
    seed: int, up: int, down: int, early: int, room: int, *, reads: bool = True
) -> tuple[Kernel, Run]:
    kernel = Kernel(Random(seed), (stream(1, up), stream(2, down)), min(early, up), room)
    kernel.reads = reads
    run = Run(kernel)
    run.connection.session.state = State.SEND
    run.connection.on(Event.SENT)
    return kernel, run


sizes = st.one_of(st.just(0), st.integers(1, 300), st.integers(1000, 9000))


@settings(max_examples=400, deadline=None, phases=PHASES)
@given(st.integers(0, 2**32), sizes, sizes, st.integers(0, 200), st.sampled_from((40, 300, 2000)))
def test_every_byte_arrives_once_in_order_and_then_the_end(seed, up, down, early, room):
    kernel, run = start(seed, up, down, early, room)
    for _ in range(LIMIT):
        busy = run.turn()
        if run.worker.finished and not busy:
            break
        kernel.happen()
    else:
        raise AssertionError(f"hangs: {run.connection.session.flows}")
    while kernel.steps():
        kernel.happen()
    for side in Side:
        d = kernel.directions[side]
        assert bytes(d.received) == d.stream
        assert d.fin_received
    assert run.connection.record.reason is Reason.DONE
    assert kernel.reset_seen == [False, False]
    record = run.connection.record
    assert (record.bytes_in, record.bytes_out) == (up, down)
    assert record.kernel_in == kernel.directions[0].redirected


@settings(max_examples=400, deadline=None, phases=PHASES)
@given(
    st.integers(0, 2**32),
    sizes,
    sizes,
    st.sampled_from((40, 300, 2000)),
    st.sampled_from(Side),
    st.integers(0, 400),
)
def test_a_reset_is_never_taken_for_a_complete_stream(seed, up, down, room, side, when):
    kernel, run = start(seed, up, down, 0, room)
    for turn in range(LIMIT):
        if turn == when and not run.worker.finished:
            kernel.reset(side)
        busy = run.turn()
        if run.worker.finished and not busy:
            break
        kernel.happen()
    else:
        raise AssertionError(f"hangs: {run.connection.session.flows}")
    while any(kernel.directions[s].unsent for s in Side) and kernel.steps():
        kernel.happen()
    d = kernel.directions[side]  # bytes from the broken side, to the healthy one
    assert d.stream.startswith(bytes(d.received))
    if bytes(d.received) != d.stream or not d.fin_arrived:
        assert not d.fin_received
        assert kernel.reset_seen[side.other]


@settings(max_examples=200, deadline=None, phases=PHASES)
@given(st.integers(0, 2**32), st.integers(500, 6000))
def test_what_is_passed_stays_within_the_buffers(seed, size):
    """A receiver that takes nothing holds the sender: user space keeps at most one buffer."""
    kernel, run = start(seed, size, 0, 0, 300, reads=False)
    for _ in range(300):
        run.turn()
        kernel.happen()
    d = kernel.directions[0]
    assert len(d.backlog) + len(d.unsent) <= d.room
    assert not run.worker.finished
    assert not d.fin_queued
