"""A group whose endpoints fail, work, come back and are checked, in any order.

The machine does what workers and prober do; after each step what the rules promise must hold.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from l7proxy.health import ActiveCheck, Checked, Failure, Marks, Seen, may_eject, standing
from l7proxy.model import Backend, Ejection, HealthCheck

WEIGHTS = st.lists(st.integers(0, 3), min_size=1, max_size=5)


class Group(RuleBasedStateMachine):
    @initialize(
        weights=WEIGHTS,
        failures=st.integers(0, 3),
        share=st.sampled_from([1, 34, 50, 100]),
        panic=st.sampled_from([0, 0, 50, 100]),
    )
    def begin(self, weights: list[int], failures: int, share: int, panic: int) -> None:
        self.rules = Ejection(failures=failures, base=1.0, most=16.0, share=share)
        self.backend = Backend("app", (), ejection=self.rules, slow_start=4.0, panic=panic)
        self.weights = weights
        self.marks = [Marks() for _ in weights]
        self.checks = [ActiveCheck(HealthCheck()) for _ in weights]
        self.now = 1000.0
        self.last: dict[int, float] = {}

    def seen(self) -> list[Seen]:
        return [
            Seen(weight, check.state, marks.ejected_until, marks.back_since)
            for weight, check, marks in zip(self.weights, self.checks, self.marks, strict=True)
        ]

    def pick(self, drawn: int) -> int:
        return drawn % len(self.weights)

    @rule(drawn=st.integers(0, 9), failure=st.sampled_from(Failure))
    def fails(self, drawn: int, failure: Failure) -> None:
        at = self.pick(drawn)
        marks, seen = self.marks[at], self.seen()
        marks.failed(failure)
        if seen[at].is_ejected(self.now) or not marks.is_due(self.rules):
            return
        if may_eject(seen, at, self.rules, self.now):
            healthy = sum(one.weight > 0 and one.is_healthy(self.now) for one in seen)
            seconds = marks.eject(self.rules, self.now)
            assert 1.0 <= seconds <= 16.0
            assert seconds in (1.0, min(16.0, 2 * self.last.get(at, 0.5)))
            self.last[at] = seconds
            left = sum(one.weight > 0 and one.is_healthy(self.now) for one in self.seen())
            assert left >= 1, "the last endpoint was ejected"
            assert left >= healthy - 1
            ejected = sum(one.weight > 0 and one.is_ejected(self.now) for one in self.seen())
            takers = sum(weight > 0 for weight in self.weights)
            assert ejected <= max(1, takers * self.rules.share // 100)

    @rule(drawn=st.integers(0, 9), failure=st.sampled_from(Failure))
    def works(self, drawn: int, failure: Failure) -> None:
        self.marks[self.pick(drawn)].worked(failure)

    @rule(drawn=st.integers(0, 9), good=st.booleans())
    def is_checked(self, drawn: int, good: bool) -> None:
        self.checks[self.pick(drawn)].on(good=good)

    @rule(seconds=st.floats(0.01, 20.0))
    def time_passes(self, seconds: float) -> None:
        before = standing(self.seen(), self.backend, self.now)
        self.now += seconds
        if self.now < before.until:
            assert standing(self.seen(), self.backend, self.now).usable == before.usable
        for marks in self.marks:
            was = marks.ejected_until
            if marks.come_back(self.rules, self.now):
                assert 0 < was <= self.now
                assert not marks.is_due(self.rules)

    @invariant()
    def what_may_be_used_is_right(self) -> None:
        seen, found = self.seen(), standing(self.seen(), self.backend, self.now)
        takers = [at for at, weight in enumerate(self.weights) if weight]
        for at, one in enumerate(seen):
            assert (found.weights[at] > 0) == (found.usable[at] and one.weight > 0)
            assert found.weights[at] <= one.weight * 100
            if one.is_healthy(self.now):
                assert found.usable[at], "a healthy endpoint is left out"
        if any(seen[at].checked is not Checked.DOWN for at in takers):
            assert any(found.weights), "nothing is used though no check says so"
        if self.backend.panic == 0 and all(seen[at].checked is Checked.DOWN for at in takers):
            assert not any(found.weights)
        assert found.until > self.now


Group.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestGroup = Group.TestCase
