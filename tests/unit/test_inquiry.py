"""What workers are asked, what they may answer, and what becomes of those that do not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from l7proxy.net.channel import ChannelBroken
from l7proxy.net.messages import (
    ConnectionRow,
    Connections,
    ListConnections,
    ResetConnection,
    WasReset,
)
from l7proxy.session import Flow, State
from l7proxy.supervisor import inquiry as module
from l7proxy.supervisor.inquiry import Found, Inquiry, Unanswered
from l7proxy.worker import telling


def row(number: int, age: float = 0.0, client: str = "") -> ConnectionRow:
    return ConnectionRow(number, "web", "", "", "", client, "head", None, age, 0.0, 0, 0, 0)


class Workers:
    """A supervisor whose workers answer at once: `answers` has what each says to a message."""

    def __init__(self, inquiry: Inquiry, answers: dict[int, Callable[[Any], list[object]]]) -> None:
        self.configured = 3
        self.asked: list[tuple[int, object]] = []
        self._inquiry = inquiry
        self._answers = answers
        self._woken = asyncio.Event()
        inquiry.supervisor = self  # type: ignore[assignment]

    def has(self, slot: int) -> bool:
        return slot in self._answers

    def send(self, slot: int, message: object) -> None:
        self.asked.append((slot, message))
        for answer in self._answers[slot](message):
            asyncio.get_running_loop().call_soon(self._say, slot, answer)

    def _say(self, slot: int, answer: object) -> None:
        if answer == "dies":
            self._inquiry.on_exit(slot)
        else:
            assert self._inquiry.on_message(slot, answer)
        self._woken.set()

    async def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._woken.clear()
                    await self._woken.wait()
        except TimeoutError:
            return condition()
        return True


def listing(
    answers: dict[int, Callable[[Any], list[object]]],
    sort: str = "age",
    *,
    reverse: bool = True,
    limit: int = 10,
) -> Found:
    async def main() -> Found:
        inquiry = Inquiry()
        Workers(inquiry, answers)
        return await inquiry.connections({}, sort, reverse=reverse, limit=limit)

    return asyncio.run(main())


def tells(*parts: list[ConnectionRow], total: int) -> Callable[[ListConnections], list[object]]:
    def answer(message: ListConnections) -> list[object]:
        return [
            Connections(message.inquiry, tuple(part), total, number == len(parts) - 1)
            for number, part in enumerate(parts)
        ]

    return answer


def test_what_workers_tell_is_put_together_in_order() -> None:
    found = listing(
        {
            0: tells([row(1, 5.0), row(2, 3.0)], [row(3, 1.0)], total=9),
            2: tells([row(1, 4.0)], total=1),
        },
        limit=3,
    )
    assert [(slot, one.number) for slot, one in found.rows] == [(0, 1), (2, 1), (0, 2)]
    assert (found.total, found.silent) == (10, [])
    assert found.as_dict() == {"total": 10, "shown": 3, "silent_workers": []}


def test_words_are_sorted_too() -> None:
    answers = {0: tells([row(1, client="b")], total=1), 1: tells([row(2, client="a")], total=1)}
    found = listing(answers, "client", reverse=False)
    assert [one.client for _, one in found.rows] == ["a", "b"]


def test_one_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.05)
    found = listing({0: tells([row(1)], total=1), 1: lambda _: []})
    assert (found.total, found.silent, len(found.rows)) == (1, [1], 1)


def test_one_that_stops_halfway_is_named_and_what_it_said_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.05)
    found = listing({1: lambda asked: [Connections(asked.inquiry, (row(1),), 5, False)]})
    assert (found.total, found.silent, len(found.rows)) == (5, [1], 1)


def test_one_that_dies_is_not_waited_for() -> None:
    def dies(asked: ListConnections) -> list[object]:
        return [Connections(asked.inquiry, (row(1),), 5, False), "dies"]

    found = listing({0: tells([row(1)], total=1), 1: dies})
    assert (found.total, found.silent, len(found.rows)) == (1, [1], 1)


def test_more_than_was_asked_for_is_not_taken() -> None:
    async def main() -> None:
        inquiry = Inquiry()
        Workers(inquiry, {0: lambda _: []})
        task = asyncio.create_task(inquiry.connections({}, "age", reverse=True, limit=2))
        await asyncio.sleep(0)
        assert inquiry.on_message(0, Connections(1, (row(1), row(2)), 5, False))
        with pytest.raises(ChannelBroken, match="more connections than it was asked for"):
            inquiry.on_message(0, Connections(1, (row(3),), 5, False))
        task.cancel()

    asyncio.run(main())


def test_an_answer_to_nothing() -> None:
    async def main() -> None:
        inquiry = Inquiry()
        Workers(inquiry, {0: tells([row(1)], total=1)})
        with pytest.raises(ChannelBroken, match="nobody has asked inquiry 1 yet"):
            inquiry.on_message(0, WasReset(1, True))
        found = await inquiry.connections({}, "age", reverse=True, limit=1)
        assert len(found.rows) == 1
        # one that is over, and one that another worker was asked: neither is believed
        assert inquiry.on_message(0, Connections(1, (row(2),), 1, True))
        assert not inquiry.on_message(0, "another message")

    asyncio.run(main())


def test_a_reset() -> None:
    async def main() -> list[object]:
        inquiry = Inquiry()
        workers = Workers(
            inquiry,
            {
                0: lambda asked: [WasReset(asked.inquiry, asked.number == 7)],
                1: lambda _: [],
            },
        )
        found: list[object] = [await inquiry.reset(0, 7), await inquiry.reset(0, 8)]
        found += [await inquiry.reset(2, 7), await inquiry.reset(99, 7)]  # there are no such ones
        assert workers.asked == [(0, ResetConnection(1, 7)), (0, ResetConnection(2, 8))]
        with pytest.raises(Unanswered):
            await inquiry.reset(1, 7)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SECONDS", 0.05)
        assert asyncio.run(main()) == [True, False, False, False]


def test_inquiries_take_turns() -> None:
    async def main() -> None:
        inquiry = Inquiry()
        workers = Workers(inquiry, {0: tells([row(1)], total=1)})
        found = await asyncio.gather(
            *(inquiry.connections({}, "age", reverse=True, limit=1) for _ in range(3))
        )
        assert [len(one.rows) for one in found] == [1, 1, 1]
        assert [message.inquiry for _, message in workers.asked] == [1, 2, 3]  # type: ignore[attr-defined]

    asyncio.run(main())


# ---- the worker's end


def connection(number: int, age: float) -> Any:
    return SimpleNamespace(
        number=number,
        began=100.0 - age,
        worker=SimpleNamespace(clock=lambda: 100.0),
        session=SimpleNamespace(state=State.SPLICED, flows=[Flow.KERNEL, Flow.OVERFLOW]),
        requests=None,
        pair=SimpleNamespace(moved=lambda: (number, 1, 0, 0), idle_since=lambda now: now - 1.0),
        record=SimpleNamespace(
            listener="web", route="", backend="", endpoint="", client=f"[::1]:{number}"
        ),
    )


def asked(limit: int, sort: str = "age", **only: str) -> ListConnections:
    return ListConnections(1, only, sort, True, limit)


def parts(count: int, message: ListConnections) -> list[Connections | None]:
    fleet = [connection(number, float(number * 7919 % count)) for number in range(count)]
    worker: Any = SimpleNamespace(connections=lambda: fleet)
    return list(telling.telling(worker, message))


def test_a_worker_tells_in_parts_and_of_the_first_only() -> None:
    found = parts(5_000, asked(100))
    told = [part for part in found if part is not None]
    assert [len(part.rows) for part in told] == [48, 48, 4]
    assert [part.is_last for part in told] == [False, False, True]
    assert {part.total for part in told} == {5_000}
    ages = [one.age for part in told for one in part.rows]
    assert ages == [float(age) for age in range(4_999, 4_899, -1)]
    # user space has one direction for now
    assert {one.way for part in told for one in part.rows} == {"relay"}
    # it stops in between, so that nobody waits for it
    assert found.count(None) >= 5_000 // telling.STEP


def test_a_worker_that_has_none() -> None:
    assert parts(0, asked(100)) == [Connections(1, (), 0, True)]
    assert parts(3, asked(0))[-1] == Connections(1, (), 3, True)
    assert parts(3, asked(9, listener="db"))[-1] == Connections(1, (), 0, True)


@pytest.mark.parametrize("client", ["::1", "[::1]:2"])
def test_a_client_by_its_address(client: str) -> None:
    last = parts(3, asked(9, client=client))[-1]
    assert last is not None
    assert last.total == (3 if client == "::1" else 1)


def test_both_ends_know_the_same_words() -> None:
    assert set(module.FILTERS) == telling.FIELDS.keys()
    assert module.SORTS.keys() == telling.SORTS.keys()
    assert module.SORTS.keys() >= module.WORDS
