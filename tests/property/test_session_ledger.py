"""Session and ledger as one state machine: any order of what a kernel, two ends and a driver do.

The machine is the kernel, and a driver that does no more than the tables and `Ledger.step` tell it.
It says what they promise together: what is written is what was sent, in order; a FIN is passed on
when nothing is under way, and not before; whatever happened, the pair can still come to its end.
(`test_spliced_pair` puts the real driver in its place, and a rougher kernel.)
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from l7proxy.errors import TransitionError
from l7proxy.ledger import Ledger, Step
from l7proxy.model import Side
from l7proxy.session import Command, Event, Flow, FlowCommand, FlowEvent, Session, State

sides = st.sampled_from(Side)
counts = st.integers(1, 5)


class Direction:
    """Bytes are numbers: the n-th byte from a side is n, and a queue is a list of them."""

    def __init__(self, early_in: int, early_out: int) -> None:
        self.early_in = early_in
        self.early_out = early_out
        self.sent = 0  # since the splice
        self.fin = False
        self.unjudged: list[int] = []  # TCP has counted them, the verdict has not come to them
        self.redirected = 0
        self.passed = 0
        self.relayed = 0
        self.unread: list[int] = []  # passed
        self.backlog: list[int] = []  # redirected, not in the write queue
        self.queue: list[int] = []  # the other side's write queue, all of it
        self.event = False  # in the ring
        self.fin_passed = False
        self.ledger = Ledger(early_in, early_out)

    def arrive(self, n: int) -> None:
        """The sender's next bytes, if it has not ended."""
        if not self.fin:
            self.unjudged += range(self.sent, self.sent + n)
            self.sent += n

    def judge(self, *, room: bool) -> None:
        """The verdict on what has arrived."""
        n = len(self.unjudged)
        if room and self.passed == self.relayed:
            self.redirected += n
            self.backlog += self.unjudged
        elif n:
            self.event |= self.passed == self.relayed
            self.passed += n
            self.unread += self.unjudged
        self.unjudged = []

    def kworker(self, n: int) -> None:
        self.queue += self.backlog[:n]
        del self.backlog[:n]

    def step(self, what: str, n: int) -> None:
        """One step of the kernel or of the sender."""
        if what == "fin":
            self.fin = True
        elif what == "kworker":
            self.kworker(n)
        elif what == "arrive":
            self.arrive(n)
        else:
            self.judge(room=what == "redirect")


STEPS = ["arrive", "redirect", "pass", "kworker", "fin"]
kernel_steps = st.tuples(st.sampled_from(STEPS), counts)
# what happens between two of the driver's looks; mostly nothing
gaps = st.lists(kernel_steps, max_size=2)


class Pair(RuleBasedStateMachine):
    """A pair from its splice to its end."""

    @initialize(
        http=st.booleans(),
        awaited=st.booleans(),
        much=st.booleans(),
        early_in=st.integers(0, 3),
        early_out=st.integers(0, 3),
        added=st.integers(0, 2),
    )
    def splice(
        self, http: bool, awaited: bool, much: bool, early_in: int, early_out: int, added: int
    ) -> None:
        self.session = Session()
        self.on(Event.ACCEPTED if http else Event.ACCEPTED_UNREAD)
        if http:
            self.on(Event.ROUTED)
        self.on(Event.CONNECTED)
        if awaited:
            assert self.on(Event.AWAITED) is Command.READ_ANSWER
            assert self.on(Event.ANSWER_SEEN) is Command.OPEN
        else:
            assert self.on(Event.SENT) is Command.FIRST
            if much:
                assert self.on(Event.MUCH) is Command.RELAY
            assert self.on(Event.CALM if much else Event.LASTS) is Command.OPEN
        # user space may have written more to the client than it had of the backend: a cookie
        answer = Direction(early_out, early_out + added)
        self.directions = (Direction(early_in, early_out), answer)

    def on(self, event: Event) -> Command:
        (command,) = self.session.on(event)
        return command

    def tell(self, side: Side, event: FlowEvent) -> None:
        """What the driver does with the session's orders."""
        for command in self.session.on_flow(side, event):
            if command is not FlowCommand.PASS_FIN:
                continue  # the machine looks when it likes to
            d = self.directions[side]
            assert d.fin, "a FIN that nobody sent"
            assert not d.fin_passed
            assert d.queue == list(range(d.sent)), "the other side would see a short stream"
            assert not d.backlog, "redirected bytes behind the FIN"
            d.fin_passed = True
            if self.session.finished:
                assert self.on(Event.FINISHED) is Command.CLOSE

    open = precondition(lambda self: self.session.is_open)

    # ---- the kernel, and the two ends

    @open
    @rule(side=sides, step=kernel_steps)
    def happens(self, side: Side, step: tuple[str, int]) -> None:
        self.directions[side].step(*step)

    @open
    @rule(side=sides, n=st.integers(1, 50), room=st.booleans())
    def bytes_come(self, side: Side, n: int, room: bool) -> None:
        self.directions[side].arrive(n)
        self.directions[side].judge(room=room)

    # ---- the driver

    @open
    @rule(side=sides)
    def ring(self, side: Side) -> None:
        """An event, real or left over: `SplicedPair.on_event`."""
        d = self.directions[side]
        d.event = False
        if d.passed != d.ledger.written:
            self.tell(side, FlowEvent.PASSED)

    @open
    @rule(side=sides)
    def epoll(self, side: Side) -> None:
        """EPOLLRDHUP; EPOLLHUP may tell of it again."""
        d = self.directions[side]
        if d.fin and self.session.flows[side] is not Flow.FINISHED:
            self.tell(side, FlowEvent.FIN)

    @open
    @rule(side=sides, gaps=st.tuples(gaps, gaps, gaps), most=st.integers(1, 60))
    def look(
        self, side: Side, gaps: tuple[list[tuple[str, int]], ...], most: int = 1 << 30
    ) -> None:
        """`SplicedPair._follow`, once: four looks, and the world does not stand still between."""
        d, ledger = self.directions[side], self.directions[side].ledger
        flow = self.session.flows[side]
        if flow not in (Flow.OVERFLOW, Flow.DRAINING):
            return
        received = d.early_in + d.sent + d.fin
        self.pass_time(d, gaps[0])
        passed = d.passed
        self.pass_time(d, gaps[1])
        ledger.read_kernel(d.redirected, passed)
        self.pass_time(d, gaps[2])
        queued = d.early_out + len(d.queue)
        step = ledger.step(fin=flow is Flow.DRAINING, received=received, queued=queued)
        if step is Step.RELAY:
            self.relay(d, min(most, ledger.passed - ledger.written))
        elif step is Step.FLOW:
            self.tell(side, FlowEvent.CAUGHT_UP)
        elif step is Step.FINISH:
            self.tell(side, FlowEvent.BALANCED)

    @staticmethod
    def pass_time(d: Direction, steps: list[tuple[str, int]]) -> None:
        for what, n in steps:
            d.step(what, n)

    @staticmethod
    def relay(d: Direction, n: int) -> None:
        assert not d.backlog, "user space overtakes the kernel"
        d.queue += d.unread[:n]
        del d.unread[:n]
        d.ledger.written += n
        if d.ledger.caught_up:
            d.relayed = d.ledger.written

    # ---- ends before its time

    @open
    @rule(
        event=st.sampled_from(
            [Event.CLIENT_ERROR, Event.BACKEND_ERROR, Event.TIMEOUT, Event.ABORT]
        ),
        seldom=st.integers(0, 9),
    )
    def breaks(self, event: Event, seldom: int) -> None:
        if seldom == 0:
            assert self.on(event) is Command.RESET
            assert self.session.state is State.CLOSED

    @precondition(lambda self: not self.session.is_open)
    @rule(side=sides, event=st.sampled_from(Event), flow_event=st.sampled_from(FlowEvent))
    def nothing_more(self, side: Side, event: Event, flow_event: FlowEvent) -> None:
        with pytest.raises(TransitionError):
            self.session.on(event)
        with pytest.raises(TransitionError):
            self.session.on_flow(side, flow_event)

    # ---- what holds at any time

    @invariant()
    def what_is_written_is_what_was_sent_in_order(self) -> None:
        for d in self.directions:
            assert d.queue == list(range(len(d.queue)))

    @invariant()
    def every_byte_is_in_one_account(self) -> None:
        for d in self.directions:
            ledger = d.ledger
            assert d.sent == d.redirected + d.passed + len(d.unjudged)
            assert len(d.queue) + len(d.backlog) == d.redirected + ledger.written
            assert len(d.unread) == d.passed - ledger.written
            assert d.relayed <= ledger.written <= ledger.passed <= d.passed
            assert ledger.redirected <= d.redirected
            assert ledger.total == d.early_in + ledger.redirected + ledger.written

    @invariant()
    def the_ledger_agrees_with_the_world_when_it_has_just_looked(self) -> None:
        for d in self.directions:
            now = Ledger(d.early_in, d.early_out)
            now.written = d.ledger.written
            now.read_kernel(d.redirected, d.passed)
            assert now.may_write(d.early_out + len(d.queue)) == (not d.backlog)
            assert now.judged(d.early_in + d.sent + 1) == (not d.unjudged)
            assert now.caught_up == (not d.unread)

    @invariant()
    def nothing_waits_that_nobody_was_told_of(self) -> None:
        for side, d in zip(Side, self.directions, strict=True):
            if d.unread and self.session.flows[side] is Flow.KERNEL:
                assert d.event, "passed, and neither an event nor anybody who looks"

    @invariant()
    def fins_are_passed_once_each_is_done(self) -> None:
        for side, d in zip(Side, self.directions, strict=True):
            assert d.fin_passed == (self.session.flows[side] is Flow.FINISHED)

    def teardown(self) -> None:
        """Wherever this run stopped: the pair comes to its end from here, in few steps."""
        if not hasattr(self, "session"):
            return
        for _ in range(8):
            for side, d in zip(Side, self.directions, strict=True):
                d.fin = True
                d.judge(room=True)
                d.kworker(1 << 30)
                for rule_ in (self.ring, self.epoll):
                    if self.session.is_open:
                        rule_(side)
                if self.session.is_open:
                    self.look(side, ([], [], []))
        assert self.session.state is State.CLOSED


Pair.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestPair = Pair.TestCase
