"""What a service manager hears while an l7proxy reloads and ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from l7proxy.net.systemd import Manager
from l7proxy.supervisor import managing
from l7proxy.supervisor.managing import Managing
from l7proxy.supervisor.reload import Outcome


class Heard(Manager):
    """A manager that writes down what it is told, without times."""

    def __init__(self, watchdog: float | None = None) -> None:
        super().__init__(watchdog=watchdog)
        self.told: list[str] = []

    @property
    def is_there(self) -> bool:
        return True

    def tell(self, *assignments: str, **_: Any) -> bool:
        self.told.append(" ".join(a for a in assignments if not a.startswith("MONOTONIC")))
        return True


async def told(heard: Heard, many: int) -> None:
    """Wait until so many words were said."""
    async with asyncio.timeout(60):
        while len(heard.told) < many:
            await asyncio.sleep(0.01)


def run(body: Coroutine[Any, Any, None]) -> None:
    asyncio.run(body)


def test_the_last_of_several_reloads_is_the_answer() -> None:
    async def body() -> None:
        heard = Heard()
        one = Managing(heard, lambda: "2 connections", lambda: False)
        loop = asyncio.get_running_loop()
        first, second = loop.create_future(), loop.create_future()
        one.reloading(first)
        one.reloading(second)
        first.set_result(Outcome(True, 2))
        await asyncio.sleep(0)
        assert heard.told == ["RELOADING=1 STATUS=loading the policy"] * 2
        second.set_result(Outcome(False, 2, errors=3))
        await asyncio.sleep(0)
        refused = "2 connections; the last policy was refused (3 errors)"
        assert heard.told[2:] == [f"READY=1 STATUS={refused}"]

    run(body())


def test_more_time_is_asked_for_from_the_first_moment_to_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Listeners may stay open for longer than the manager would wait: --drain-delay."""

    async def body() -> None:
        heard, asked = Heard(), False
        one = Managing(heard, lambda: "2 connections", lambda: asked)
        beat = asyncio.create_task(one.beat())
        await told(heard, 1)
        await asyncio.sleep(0.08)
        assert heard.told == ["STATUS=2 connections"], "once, for it did not change"
        asked = True
        await told(heard, 3)
        beat.cancel()
        more = "STOPPING=1 EXTEND_TIMEOUT_USEC=20000000 STATUS=draining: 2 connections"
        assert set(heard.told[1:]) == {more}
        assert len(heard.told) > 2

    monkeypatch.setattr(managing, "PERIOD", 0.02)
    run(body())


def test_signs_of_life_come_twice_as_often_as_they_are_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard, pauses = Heard(watchdog=0.2), []

    async def sleep(seconds: float) -> None:
        if len(pauses) == 5:
            raise asyncio.CancelledError
        pauses.append(seconds)

    monkeypatch.setattr("l7proxy.supervisor.managing.asyncio.sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        run(Managing(heard, lambda: "", lambda: False).beat())
    assert pauses == [0.1] * 5
    assert heard.told.count("WATCHDOG=1") == 5
