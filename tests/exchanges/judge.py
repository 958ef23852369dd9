"""A run: scripts until so many exchanges are over, and what both ends together say of it.

`perform` plays them, asks the origins what they have seen, and compares: nothing may have come
twice that may not, an answer that the client has was sent by an origin, one that is lost was not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .client import Outcome, Target, run
from .origin import Crew, Origins
from .plan import Exchange, draw


@dataclass(slots=True)
class Report:
    """`ends` counts exchanges by their end, `classes` by what was special, `accepted` connections
    by origin. Every failure names its script."""

    seed: int
    ends: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    failed: set[int] = field(default_factory=set)
    accepted: dict[str, int] = field(default_factory=dict)
    connections: int = 0
    body_bytes: int = 0

    @property
    def exchanges(self) -> int:
        return sum(self.ends.values())

    def fail(self, script: int, text: str) -> None:
        """What is wrong is told at once: a run that hangs later has told it."""
        print(f"seed {self.seed}, script {script}: {text[:600]}", flush=True)
        self.failed.add(script)
        self.failures.append(f"script {script}: {text}")

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.exchanges} exchanges on {self.connections} connections "
            f"({dict(sorted(self.ends.items()))}), {self.body_bytes} bytes of answers, connections "
            f"of origins {self.accepted}, classes {dict(sorted(self.classes.items()))}, "
            f"{len(self.failures)} failures"
        )


def classes(one: Exchange) -> set[str]:
    """What an exchange tries, beside being one."""
    found = {one.method, f"request {one.request.framing}", f"answer {one.response.framing}"}
    found.add(f"status {one.status}")
    if one.version == 0 or one.response_version == 0:
        found.add("HTTP/1.0")
    found |= {f"interim {status}" for status in one.interims}
    if one.expect:
        found.add(f"expect {one.expect}")
    if one.early >= 0:
        found.add("early answer")
    if one.breaks:
        found.add(f"broken {one.breaks} by {one.break_by}")
    if one.abort:
        found.add(f"aborted {one.abort} by {one.abort_by}")
    if one.ending != "keep":
        found.add(f"origin's end {one.ending}")
    if one.request.trailers or one.response.trailers:
        found.add("trailers")
    if max(one.request.size, one.response.size) >= 1 << 20:
        found.add("1 MiB and more")
    return found


async def perform(
    target: Target,
    origins: Origins | Crew,
    count: int,
    *,
    concurrency: int = 16,
    scripts: list[int] | None = None,
    tries: int = 2,
    first_only: bool = False,
) -> Report:
    """Play scripts of the run (or these), until `count` exchanges are over.

    `tries`: how often an exchange that is safe to repeat may reach an origin. `first_only`: the
    first failure ends it.
    """
    report = Report(target.seed)
    numbers = scripts or _enough(target, count)
    outcomes = {}
    playing = run(target, numbers, concurrency=concurrency)
    async for outcome in playing:
        outcomes[outcome.script] = outcome
        report.connections += outcome.connections
        report.body_bytes += outcome.body_bytes
        script = draw(target.seed, outcome.script, target.features, target.most)
        for number, _, end in outcome.ends:
            report.ends[end] += 1
            report.classes.update(classes(script.exchanges[number]))
        if script.depth > 1:
            report.classes["pipelined scripts"] += 1
        if script.half_close:
            report.classes["half-closing scripts"] += 1
        if outcome.failure:
            report.fail(outcome.script, outcome.failure)
            if first_only:
                await playing.aclose()
                break
    seen = await origins.finish()
    report.accepted = seen["accepted"]
    for failure in seen["failures"]:
        name, _, text = failure.partition(":")
        number, _, _ = name.partition(".")
        report.fail(int(number) if number.isdigit() else -1, f"exchange {name}:{text}")
    if seen["left"]:
        report.fail(-1, f"exchanges that do not end at an origin: {seen['left']}")
    _compare(target, outcomes, seen["arrivals"], report, tries)
    return report


def _enough(target: Target, count: int) -> list[int]:
    numbers, planned = [], 0
    while planned < count:
        script = draw(target.seed, len(numbers), target.features, target.most)
        planned += len(script.exchanges)
        numbers.append(script.number)
    return numbers


def _compare(
    target: Target,
    outcomes: Mapping[int, Outcome],
    arrivals: list[dict[str, Any]],
    report: Report,
    tries: int,
) -> None:
    came: dict[tuple[int, int, int], list[str]] = {}
    for one in arrivals:
        key = (one["script"], one["number"], one["attempt"])
        came.setdefault(key, []).append(one["state"])
    for (number, exchange_number, attempt), states in came.items():
        exchange = draw(target.seed, number, target.features, target.most).exchanges[
            exchange_number
        ]
        most = tries if exchange.repeatable else 1
        if len(states) > most:
            report.fail(number, f"exchange {exchange.name}.{attempt} came {states} to an origin")
    for number, outcome in outcomes.items():
        for exchange_number, attempt, end in outcome.ends:
            states = came.get((number, exchange_number, attempt), [])
            if end == "done" and "answered" not in states:
                report.fail(number, f"exchange {exchange_number} has an answer of nobody: {states}")
            if end == "lost" and "answered" in states:
                report.fail(number, f"the answer of exchange {exchange_number} is lost: {states}")
