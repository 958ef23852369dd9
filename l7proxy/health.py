"""Which endpoints of a group can be used, and how much each may get. Pure: the clock is passed in.

Three sources say how an endpoint is:

- *Active checks* (the prober): so many good answers in a row make it up, so many bad ones down. The
  first answer decides at once; until then it counts as up (as HAProxy has it), or a proxy would
  answer 503 for its first seconds.
- *Passive*: what workers see. Consecutive failed dials, and consecutive connections that broke
  before a byte of the answer, are counted apart: a dial that succeeds says nothing about what
  comes after it. Enough of one kind eject the endpoint, for a time that doubles with each ejection.
  When the time is over it is back, on probation: one more failure ejects it again. The doubling is
  forgotten when an endpoint has stayed for `most` seconds.
- *Slow start*: who came back gets a share that grows from a tenth to the whole.

What follows from them for a group:

- An ejection is a guess. It never takes the last endpoint that can be used, nor more than the
  configured share (but always one); and if every endpoint that no check calls down is ejected, they
  are used all the same.
- An active check is evidence: if it calls all endpoints down, there is none, and the answer is 503.
- *Panic*: with fewer healthy endpoints than the given percentage health is ignored, because those
  few would be drowned by the load of all.
- Weight 0 gets nothing new and counts nowhere, but a client whose sticky cookie names such an
  endpoint still reaches it: that is how one is drained.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from l7proxy.model import Backend, Ejection, HealthCheck

SCALE = 100
"""Effective weights are `weight * SCALE` for an endpoint with its full share."""

SLOW_START_FIRST = 0.1  # of its share, for an endpoint that just came back
_SLOW_START_STEPS = 20  # in which the share grows
_SHORTEST_STEP = 0.05  # seconds


class Checked(IntEnum):
    """What the active checks say."""

    UNKNOWN = 0
    UP = 1
    DOWN = 2


class ActiveCheck:
    """The results of one endpoint's active checks, and what they come to."""

    __slots__ = ("_check", "_row", "state")

    def __init__(self, check: HealthCheck, state: Checked = Checked.UNKNOWN) -> None:
        self._check = check
        self.state = state
        self._row = 0  # results in a row that contradict the state

    def on(self, *, good: bool) -> Checked | None:
        """Count a result; the new state if it is another one now."""
        says = Checked.UP if good else Checked.DOWN
        if says is self.state:
            self._row = 0
            return None
        self._row += 1
        needed = self._check.healthy if good else self._check.unhealthy
        if self.state is not Checked.UNKNOWN and self._row < needed:
            return None
        self.state, self._row = says, 0
        return says


class Failure(IntEnum):
    """How an endpoint failed a connection."""

    DIAL = 0  # refused, unreachable, or no answer in time
    EARLY = 1  # it ended, or broke, before a byte of the answer


@dataclass(slots=True)
class Marks:
    """What workers found out about one endpoint. Seconds of a monotonic clock; 0: never."""

    dial_failures: int = 0  # in a row
    early_ends: int = 0  # in a row
    ejections: int = 0  # since it last stayed for `Ejection.most`
    ejected_until: float = 0.0
    back_since: float = 0.0

    def failed(self, failure: Failure) -> None:
        """Count a failure."""
        if failure is Failure.DIAL:
            self.dial_failures += 1
        else:
            self.early_ends += 1

    def worked(self, failure: Failure) -> None:
        """What could have failed in this way did not."""
        if failure is Failure.DIAL:
            self.dial_failures = 0
        else:
            self.early_ends = 0

    def is_due(self, rules: Ejection) -> bool:
        """Whether it failed so often that it is to be ejected."""
        return 0 < rules.failures <= max(self.dial_failures, self.early_ends)

    def eject(self, rules: Ejection, now: float) -> float:
        """Eject it; for how many seconds."""
        if self.back_since and now - self.back_since >= rules.most:
            self.ejections = 0
        doubled = min(self.ejections, 60)  # beyond it a float would still do, but why
        seconds = min(rules.most, rules.base * 2.0**doubled)
        self.ejections += 1
        self.ejected_until = now + seconds
        return seconds

    def come_back(self, rules: Ejection, now: float) -> bool:
        """End the ejection if its time is over; whether it has ended by this very call."""
        if not self.ejected_until or self.ejected_until > now:
            return False
        self.ejected_until = 0.0
        self.back_since = now
        probation = max(0, rules.failures - 1)
        self.dial_failures = min(self.dial_failures, probation)
        self.early_ends = min(self.early_ends, probation)
        return True


@dataclass(frozen=True, slots=True)
class Seen:
    """One endpoint, as it is now. Times in seconds of the same monotonic clock; 0: never."""

    weight: int
    checked: Checked = Checked.UNKNOWN
    ejected_until: float = 0.0
    back_since: float = 0.0  # after an ejection, or after a check called it down

    def is_ejected(self, now: float) -> bool:
        """Whether it is ejected at this time."""
        return self.ejected_until > now

    def is_healthy(self, now: float) -> bool:
        """Whether nothing speaks against it."""
        return self.checked is not Checked.DOWN and not self.is_ejected(now)


@dataclass(frozen=True, slots=True)
class Standing:
    """What may be used of a group, by the endpoints' order.

    `weights` are effective ones (see `SCALE`), 0 for who gets nothing new; `usable` tells whom a
    sticky cookie may lead to. It holds until `until`, if nothing happens before.
    """

    weights: tuple[int, ...]
    usable: tuple[bool, ...]
    until: float
    panic: bool = False


_NEVER = float("inf")


def standing(seen: Sequence[Seen], backend: Backend, now: float) -> Standing:
    """What may be used of the group. See the head of this module."""
    usable = tuple(one.is_healthy(now) for one in seen)
    takers = [at for at, one in enumerate(seen) if one.weight]
    healthy = sum(usable[at] for at in takers)
    panic = is_panic(backend, healthy, len(takers))
    if panic:
        usable = (True,) * len(seen)
    elif not healthy:
        usable = tuple(one.checked is not Checked.DOWN for one in seen)
    changes = [one.ejected_until for one in seen if one.ejected_until]
    weights = []
    for one, good in zip(seen, usable, strict=True):
        share = slow_start_share(one.back_since, backend.slow_start, now)
        if share < 1.0:
            changes.append(now + max(_SHORTEST_STEP, backend.slow_start / _SLOW_START_STEPS))
        weights.append(max(1, int(one.weight * SCALE * share)) if good and one.weight else 0)
    return Standing(tuple(weights), usable, min(changes, default=_NEVER), panic)


def is_panic(backend: Backend, healthy: int, takers: int) -> bool:
    """Whether health is ignored, with so many `healthy` ones of those that have a weight."""
    return takers > 0 and healthy * 100 < backend.panic * takers


def slow_start_share(back_since: float, seconds: float, now: float) -> float:
    """The part of its share, up to 1, that an endpoint gets which came back at `back_since`.

    That may lie ahead: another process has looked at the clock since, and it is rounded.
    """
    if not back_since or not seconds or now >= back_since + seconds:
        return 1.0
    return max(SLOW_START_FIRST, (now - back_since) / seconds)


def ejects(rules: Ejection, weights: Iterable[int]) -> bool:
    """Whether a group with these weights ejects at all: the only one of a group never is."""
    return rules.failures > 0 and sum(weight > 0 for weight in weights) > 1


def may_eject(seen: Sequence[Seen], at: int, rules: Ejection, now: float) -> bool:
    """Whether the endpoint `at` may be ejected: not the last one, and not beyond the share.

    Of those that have a weight; who has none is of no use to anybody new.
    """
    takers = [other for other, one in enumerate(seen) if one.weight]
    others = [seen[other] for other in takers if other != at]
    if not any(one.is_healthy(now) for one in others):
        return False
    ejected = sum(one.is_ejected(now) for one in others)
    return ejected + 1 <= max(1, len(takers) * rules.share // 100)
