"""What a supervisor and its guardian say to each other, without either."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from l7proxy.errors import StartupError
from l7proxy.net import channel
from l7proxy.net.channel import MAX_FDS, Channel, Received
from l7proxy.net.kept import Kept, batches, laden, load, take
from l7proxy.net.messages import (
    GUARDIAN,
    MOST_PAIRS,
    TO_GUARDIAN,
    Complete,
    Entrusted,
    Estate,
    Farewell,
    Installed,
    Listening,
    Returned,
    Succeeded,
    Withdrawn,
)
from l7proxy.supervisor.guarded import Guarded
from l7proxy.supervisor.holdings import Holdings

NULL = os.open(os.devnull, os.O_RDONLY)  # stands for every socket
PAIR = Kept(NULL, NULL, b"record")


class Ends:
    """Both ends, and what the guardian's hears. It is a process that sleeps."""

    def __init__(self) -> None:
        ours, theirs = channel.pair()
        self.process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        self.guarded = Guarded(Channel(ours, (Returned, Installed)), self.process.pid)
        self.guardian = Channel(theirs, TO_GUARDIAN, fds=MAX_FDS)
        self.freed: list[tuple[int, tuple[int, ...]]] = []
        self.guarded.on_free = lambda slot, pairs: self.freed.append((slot, pairs))

    def heard(self) -> list[Any]:
        """Messages; of `Entrusted` its slot and the indices of its pairs."""
        found: list[Any] = []
        for one in self.guardian.receive():
            message = one.message
            if isinstance(message, Entrusted):
                pairs = take(one)
                assert pairs is not None
                assert all(kept.record in (b"record", bytes(300)) for _, kept in pairs)
                message = message.slot, [index for index, _ in pairs]
            for fd in one.fds:
                os.close(fd)
            found.append(message)
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.guardian.close()
        self.guarded.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


async def turn() -> None:
    """What is due happens, and what has come is heard."""
    for _ in range(4):
        await asyncio.sleep(0)


def test_pairs_are_told_in_few_messages_and_freed_when_they_are_returned(ends: Ends) -> None:
    async def talk() -> None:
        guarded = ends.guarded
        guarded.attach()
        guarded.keep(0, 4, PAIR)
        guarded.keep(1, 4, PAIR)
        guarded.keep(0, 6, PAIR)
        guarded.keep(0, 8, PAIR)
        assert guarded.end(0, [8, 10]) == [8, 10], "nobody else has them"
        await turn()
        assert ends.heard() == [(0, [4, 6]), (1, [4])]
        assert guarded.pairs == 3
        assert guarded.end(0, [4, 6]) == []
        await turn()
        assert ends.heard() == [Withdrawn(0, (4, 6), resets=False)]
        assert ends.freed == []
        ends.guardian.send(Returned(0, (4, 6)))
        await turn()
        assert ends.freed == [(0, (4, 6))]
        assert guarded.pairs == 1
        guarded.detach()

    asyncio.run(talk())


def test_what_a_dead_worker_waited_for_is_told_to_nobody(ends: Ends) -> None:
    """The next one may have used the index again: only the answer about that is told to it."""

    async def talk() -> None:
        guarded = ends.guarded
        guarded.attach()
        guarded.keep(0, 4, PAIR)
        await turn()
        guarded.end(0, [4], resets=True)
        guarded.forget(0)
        await turn()
        guarded.keep(0, 4, PAIR)
        await turn()
        guarded.end(0, [4])
        await turn()
        assert ends.heard() == [
            (0, [4]),
            Withdrawn(0, (4,), resets=True),
            (0, [4]),
            Withdrawn(0, (4,), resets=False),
        ]
        ends.guardian.send(Returned(0, (4,)))
        await turn()
        assert ends.freed == []
        ends.guardian.send(Returned(0, (4,)))
        await turn()
        assert ends.freed == [(0, (4,))]
        guarded.detach()

    asyncio.run(talk())


def test_one_that_does_not_read_costs_no_descriptors_and_is_told_later(ends: Ends) -> None:
    async def talk() -> None:
        guarded = ends.guarded
        guarded.attach()
        before = len(os.listdir("/proc/self/fd"))
        for index in range(0, 2 * 4000, 2):
            guarded.keep(0, index, Kept(NULL, NULL, bytes(300)))
        await turn()
        waiting = 4000 - guarded.pairs
        assert waiting > 0
        assert len(os.listdir("/proc/self/fd")) <= before + 2 * MOST_PAIRS
        told = 0
        while guarded.pairs < 4000 or told < 4000:
            told += sum(len(one[1]) for one in ends.heard())
            await asyncio.sleep(0.001)
        guarded.detach()

    asyncio.run(asyncio.wait_for(talk(), 20))


def test_when_it_is_killed_everything_is_free_and_nothing_is_told_any_more(ends: Ends) -> None:
    async def talk() -> None:
        guarded = ends.guarded
        guarded.attach()
        guarded.keep(0, 4, PAIR)
        guarded.keep(0, 6, PAIR)
        await turn()
        assert guarded.end(0, [4]) == []
        ends.guardian.close()  # which may be seen first
        await turn()
        assert ends.freed == []
        assert guarded.is_there
        ends.process.kill()
        while guarded.is_there:
            await asyncio.sleep(0.001)
        assert ends.freed == [(0, (4,))]
        assert guarded.end(0, [6]) == [6]
        guarded.keep(0, 8, PAIR)
        assert guarded.pairs == 0
        guarded.farewell()
        guarded.detach()

    asyncio.run(asyncio.wait_for(talk(), 20))


def test_before_the_loop_it_waits(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    ends.guarded.tell(lambda end: end.send(Estate("layout", 7)))
    assert ends.heard() == [Estate("layout", 7)]
    ends.guardian.send(Installed())
    ends.guarded.await_installed()
    ends.guarded.has(0, 4)
    ends.guarded.succeeded(adopts=True)
    ends.guarded.farewell()
    assert ends.heard() == [Succeeded(adopts=True), Farewell()]
    monkeypatch.setattr("l7proxy.supervisor.guarded.PATIENCE", 0.01)
    with pytest.raises(StartupError, match="does not answer"):
        ends.guarded.await_installed()
    ends.guardian.close()
    with pytest.raises(StartupError, match="does not want"):
        ends.guarded.await_installed()
    ends.guarded.leave()
    assert not ends.guarded.is_there


def test_it_is_found_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(GUARDIAN, raising=False)
    assert Guarded.take() is None
    ours, theirs = channel.pair()
    monkeypatch.setenv(GUARDIAN, f"{ours.detach()},{os.getpid()}")
    guarded = Guarded.take()
    assert guarded is not None
    assert GUARDIAN not in os.environ
    assert guarded.variables(9) == {GUARDIAN: f"9,{os.getpid()}"}
    assert not any(map(os.get_inheritable, guarded.descriptors))
    guarded.close()
    theirs.close()


# ---- what the guardian holds


def received(message: Any, count: int = 0, payload: bytes = b"", *, whole: bool = True) -> Received:
    return Received(message, [os.dup(NULL) for _ in range(count)], whole, payload)


def held() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_holdings_are_replaced_as_a_whole_and_close_what_they_let_go() -> None:
    before, holdings = held(), Holdings()
    for name in ("a", "b"):
        holdings.coming = [received(Estate(name, 1)), received(Listening((name,), ()), 1)]
        holdings.complete()
        assert held() == before + 1
    holdings.keep(Entrusted(0), received(None, 4, load([4, 1, 6, 2], [b"abb"])))
    holdings.keep(Entrusted(0), received(None, 3, load([8, 1, 10, 2], [b"abb"]), whole=False))
    assert (holdings.total, held()) == (2, before + 5)
    assert [one[0] for one in holdings.bequeath()] == [
        Estate("b", 1),
        Listening(("b",), ()),
        Complete(),
    ]
    assert [(one[0], one[2]) for one in holdings.entrust()] == [
        (Entrusted(0), load([4, 1, 6, 2], [b"abb"])),
        (Complete(), b""),
    ]
    holdings.withdraw(Withdrawn(0, (4, 12), resets=True))
    holdings.withdraw(Withdrawn(3, (6,), resets=False))
    assert (holdings.total, held()) == (1, before + 3)
    holdings.stop_listening()
    assert held() == before + 2
    holdings.close()
    assert (holdings.total, held()) == (0, before)


def test_pairs_go_in_messages_that_are_not_too_large() -> None:
    pairs = [(2 * n, Kept(NULL, NULL, bytes(n % 7))) for n in range(3 * MOST_PAIRS + 1)]
    found = list(batches(pairs))
    assert [len(some) for some in found] == [MOST_PAIRS] * 3 + [1]
    for some in found:
        fds, payload = laden(some)
        assert take(Received(None, fds, payload=payload)) == some
        assert take(Received(None, fds[2:], payload=payload)) is None
        assert take(Received(None, fds, payload=payload + b"x")) is None
    long = [(2 * n, Kept(NULL, NULL, bytes(3000))) for n in range(50)]
    assert max(sum(len(one.record) for _, one in some) for some in batches(long)) < 60_000


def test_what_is_no_channel_is_no_guardian() -> None:
    ours, theirs = socket.socketpair()
    with pytest.raises(StartupError, match="guardian"), ours, theirs:
        Guarded(Channel(ours, ()), (1 << 22) + 1)
