"""The byte accounts of one direction, by examples, exhaustively in a small world, and at random.

Everywhere: S is the source, D the destination; `received` is what S's TCP received, its FIN counted
as one, and `queued` what D's write queue has taken.
"""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7proxy.ledger import Ledger, Step

counts = st.integers(0, 1 << 40)


def ledger(
    early_in: int = 0, early_out: int = 0, redirected: int = 0, passed: int = 0, written: int = 0
) -> Ledger:
    made = Ledger(early_in, early_out)
    made.read_kernel(redirected, passed)
    made.written = written
    return made


def test_a_direction_that_nothing_came_from() -> None:
    empty = Ledger()
    assert empty.caught_up
    assert empty.step(fin=False, received=0, queued=0) is Step.FLOW
    assert empty.step(fin=True, received=1, queued=0) is Step.FINISH


def test_a_request_in_two_ways() -> None:
    """A head of 100 bytes becomes 130; then 1000 redirected, 50 passed, and the FIN."""
    made = Ledger(early_in=100, early_out=130)
    made.read_kernel(redirected=1000, passed=50)
    # the kernel's worker has sent 400 of the 1000: a write now would overtake the other 600
    assert made.step(fin=False, received=1150, queued=530) is Step.WAIT
    assert made.step(fin=False, received=1150, queued=1130) is Step.RELAY
    made.written = 20
    assert made.step(fin=False, received=1150, queued=1150) is Step.RELAY
    made.written = 50
    assert made.step(fin=False, received=1150, queued=1180) is Step.FLOW
    # the FIN: another 10 bytes came with it, the verdict has not seen them yet
    assert made.step(fin=True, received=1161, queued=1180) is Step.WAIT
    made.read_kernel(redirected=1010, passed=50)
    # it has; now they are on their way
    assert made.step(fin=True, received=1161, queued=1180) is Step.WAIT
    assert made.step(fin=True, received=1161, queued=1190) is Step.FINISH
    assert made.total == 1160


def test_early_bytes_count_on_both_ends_but_not_in_the_kernel() -> None:
    """The head that is forwarded is not as long as the one that came."""
    shorter = Ledger(early_in=100, early_out=80)
    assert shorter.step(fin=True, received=101, queued=80) is Step.FINISH
    assert shorter.step(fin=True, received=101, queued=100) is Step.WAIT
    assert shorter.step(fin=True, received=81, queued=80) is Step.WAIT


def test_somebody_elses_bytes_in_the_queue_are_no_balance() -> None:
    """More in the write queue than was accounted for means that the accounts are wrong."""
    assert not ledger(redirected=10).may_write(11)
    assert ledger(redirected=10).step(fin=True, received=11, queued=11) is Step.WAIT


def test_fin_alone_is_no_end_while_bytes_are_passed() -> None:
    made = ledger(passed=5)
    assert made.step(fin=True, received=6, queued=0) is Step.RELAY
    made.written = 5
    assert made.step(fin=True, received=6, queued=5) is Step.FINISH


@pytest.mark.parametrize(("redirected", "passed"), [(9, 20), (10, 19), (9, 21), (11, 19)])
def test_a_counter_that_runs_backwards_raises_and_changes_nothing(
    redirected: int, passed: int
) -> None:
    made = ledger(redirected=10, passed=20)
    with pytest.raises(ValueError, match="backwards"):
        made.read_kernel(redirected, passed)
    assert (made.redirected, made.passed) == (10, 20)


def test_every_answer_in_a_small_world() -> None:
    """All accounts with counts up to two: the answer follows from what is under way, no more."""
    few = range(3)
    for early_in, early_out, redirected, passed, written in product(few, repeat=5):
        if written > passed:
            continue
        made = ledger(early_in, early_out, redirected, passed, written)
        for unjudged, unsent, fin in product(few, few, (False, True)):
            received = early_in + redirected + passed + unjudged + fin
            queued = early_out + redirected + written - unsent
            if queued < 0:
                continue
            step = made.step(fin=fin, received=received, queued=queued)
            if written < passed:
                expected = Step.WAIT if unsent else Step.RELAY
            elif not fin:
                expected = Step.FLOW
            else:
                expected = Step.WAIT if unjudged or unsent else Step.FINISH
            assert step is expected


@given(counts, counts, counts, counts, counts)
def test_the_identities(
    early_in: int, early_out: int, redirected: int, relayed: int, unwritten: int
) -> None:
    passed = relayed + unwritten
    made = ledger(early_in, early_out, redirected, passed, relayed)
    assert made.judged(early_in + redirected + passed + 1)
    assert made.expected_in_queue == early_out + redirected + relayed
    assert made.may_write(early_out + redirected + relayed)
    assert made.caught_up == (unwritten == 0)
    assert made.total == early_in + redirected + relayed


@given(counts, counts, counts, counts, st.integers(-(1 << 20), 1 << 20).filter(bool))
def test_one_byte_off_is_off(
    early_in: int, early_out: int, redirected: int, passed: int, off: int
) -> None:
    """Neither too few nor too many, in neither of the two TCP counters."""
    made = ledger(early_in, early_out, redirected, passed, passed)
    received, queued = early_in + redirected + passed + 1, early_out + redirected + passed
    assert made.step(fin=True, received=received, queued=queued) is Step.FINISH
    assert made.step(fin=True, received=received + off, queued=queued) is Step.WAIT
    assert made.step(fin=True, received=received, queued=queued + off) is Step.WAIT
    made.read_kernel(redirected, passed + 1)  # and one byte that user space has to write
    assert made.step(fin=True, received=received + 1, queued=queued) is Step.RELAY
    assert made.step(fin=True, received=received + 1, queued=queued + off) is Step.WAIT
