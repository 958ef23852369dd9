"""The tester of exchanges is tested: a right proxy passes, and each fault of another is found."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable

import pytest

from .client import Target
from .judge import Report, perform
from .origin import Crew
from .plan import FEATURES, KIB, Exchange, draw
from .reference import FAULTS, Listening

pytestmark = [pytest.mark.net, pytest.mark.slow]

SEED = random.SystemRandom().getrandbits(32)
RARE: dict[str, Callable[[Exchange], bool]] = {
    "cut-looks-whole": lambda one: one.breaks == "body",
    "repeats": lambda one: one.breaks == "before" and not one.safe and not one.request.size,
    "upgrade-cut": lambda one: one.upgrade,
    "whole-request": lambda one: one.abort == "request" and one.request.framing == "chunked",
}
"""Faults that show in rare exchanges alone."""
SCRIPTS = 24  # that a fault must show in


def _scripts(seed: int, most: int, fault: str) -> list[int]:
    """Some in which a fault can show."""
    rare = RARE.get(fault, lambda _: True)
    able = (
        number
        for number in itertools.count()
        if any(rare(one) for one in draw(seed, number, FEATURES, most).exchanges)
    )
    return list(itertools.islice(able, SCRIPTS))


async def _through_reference(seed: int, *faults: str) -> Report:
    most = 32 * KIB
    crew = Crew(seed, most, FEATURES)
    listening = Listening(crew.ports, frozenset(faults))
    target = Target(("127.0.0.1", listening.port), seed, most, FEATURES)
    try:
        if not faults:
            return await perform(target, crew, 200)
        scripts = _scripts(seed, most, faults[0])
        return await perform(target, crew, 0, scripts=scripts, first_only=True)
    finally:
        await listening.close()


def test_a_right_proxy_passes() -> None:
    report = asyncio.run(_through_reference(SEED))
    assert not report.failures, report.failures
    assert report.exchanges >= 150


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str) -> None:
    report = asyncio.run(_through_reference(20261125, fault))
    assert report.failures, f"nobody noticed: {FAULTS[fault]}"
