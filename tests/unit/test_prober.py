"""The prober: names and checks, with a resolver of the test's own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator, Sequence

import pytest
from peers import refusing_port

from l7proxy.health import Checked
from l7proxy.model import Address, Backend, Endpoint, HealthCheck, NameAddress, Policy, Resolving
from l7proxy.net import bundle, channel
from l7proxy.net.channel import Channel
from l7proxy.net.messages import FROM_PROBER, Probe, Resolved
from l7proxy.prober import GONE, Prober, ProberSetup, names
from l7proxy.telemetry.backends import Collector
from l7proxy.telemetry.findings import Finding
from l7proxy.telemetry.health import HealthBoard, endpoint_key

pytestmark = pytest.mark.net

# ---- names


class Script:
    """A resolver that is told what to answer; the last answer stays."""

    def __init__(self, *answers: Sequence[str] | OSError) -> None:
        self._answers = list(answers)
        self.asked = 0

    async def __call__(self, name: str) -> Sequence[str]:
        self.asked += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, OSError):
            raise answer
        return answer


NO_NAME = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def looks(
    script: Script, count: int, known: tuple[str, ...] = ()
) -> tuple[list[object], list[float]]:
    """(what was told, the pauses) of this many lookups."""
    told: list[object] = []
    name = names.Name("app.test", 10.0, known, lambda _, found: told.append(found))

    async def look() -> list[float]:
        return [await name.look() for _ in range(count)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(names, "resolve", script)
        return told, asyncio.run(look())


def test_addresses_are_told_when_they_change() -> None:
    script = Script(["10.0.0.2", "10.0.0.1"], ["10.0.0.1", "10.0.0.2", "10.0.0.1"], ["::1"])
    told, pauses = looks(script, 4)
    assert told == [("10.0.0.1", "10.0.0.2"), ("::1",)]
    assert pauses == [10.0] * 4


def test_a_failure_keeps_what_is_known(caplog: pytest.LogCaptureFixture) -> None:
    script = Script(["10.0.0.1"], NO_NAME, NO_NAME, NO_NAME, [], ["10.0.0.1"], ["10.0.0.2"])
    told, pauses = looks(script, 7)
    assert told == [("10.0.0.1",), ("10.0.0.2",)]
    assert pauses == [10.0, 0.5, 1.0, 2.0, 4.0, 10.0, 10.0]
    assert [text for text in caplog.messages if "not resolved" in text] == [
        'name not resolved name=app.test why="Name or service not known" addresses_kept=1'
    ]


def test_who_waits_for_the_first_answer_is_told_that_there_is_none() -> None:
    told, pauses = looks(Script(NO_NAME), 12)
    assert told == [()]
    assert max(pauses) == pauses[-1] == names.RETRY_MOST


def test_a_prober_that_goes_on_tells_what_is_new_only() -> None:
    assert looks(Script(["10.0.0.1"]), 1, known=("10.0.0.1",))[0] == []
    assert looks(Script(NO_NAME), 1, known=("10.0.0.1",))[0] == []


def test_the_system_resolves_localhost() -> None:
    assert set(asyncio.run(_system("localhost"))) <= {"127.0.0.1", "::1"}
    with pytest.raises(socket.gaierror):
        asyncio.run(_system("name.invalid"))


async def _system(name: str) -> Sequence[str]:
    return await names.system(name)


# ---- the whole prober


@pytest.fixture
def board() -> Iterator[HealthBoard]:
    one = HealthBoard(3, rows=64)
    yield one
    one.close()


class Room:
    """A prober at work in this process, and the supervisor's end of its channel."""

    def __init__(self, board: HealthBoard, *backends: Backend) -> None:
        ours, theirs = channel.pair()
        self.channel = Channel(ours, FROM_PROBER)
        self.slot = board.slot(2)
        self.heard: list[Resolved] = []
        self.resolved: dict[str, tuple[str, ...]] = {}
        self.prober = Prober(
            ProberSetup({one.name: one for one in backends}, board.slot(1), theirs.detach())
        )

    async def __aenter__(self) -> Room:
        self._task = asyncio.create_task(self.prober.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.channel.close()
        assert await asyncio.wait_for(self._task, 60) == GONE

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not true():
                for received in self.channel.receive():
                    self.heard.append(received.message)
                    self.resolved.update(received.message.names)
                await asyncio.sleep(0.005)

    def state(self, group: str, address: object) -> Checked | None:
        row = self.slot.find(endpoint_key(group, address))
        return None if row is None else row.checked


RULES = HealthCheck(interval=0.05, timeout=30.0, healthy=2, unhealthy=2)


async def open_port(port: int = 0) -> asyncio.Server:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        await writer.wait_closed()

    return await asyncio.start_server(serve, "127.0.0.1", port)


def test_an_endpoint_goes_down_and_comes_back(
    board: HealthBoard, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    async def scene() -> None:
        server = await open_port()
        port = server.sockets[0].getsockname()[1]
        address = Address("127.0.0.1", port)
        backend = Backend("app", (Endpoint(address),), health=RULES)
        async with Room(board, backend) as room:
            await room.until(lambda: room.state("app", address) is Checked.UP)
            version = room.slot.version
            server.close()
            await server.wait_closed()
            await room.until(lambda: room.state("app", address) is Checked.DOWN)
            assert room.slot.version > version
            row = room.slot.find(endpoint_key("app", address))
            assert row is not None
            assert str(Finding.of(row.why)) == "connection refused"
            shown = Collector(room.slot).collect({"app": backend}, {}, 0.0)["app"]["endpoints"][0]
            assert (shown["state"], shown["why"]) == ("down", "connection refused")
            async with await open_port(port):
                await room.until(lambda: room.state("app", address) is Checked.UP)
            assert row.seen(1, checks=True, ejects=True).back_since > 0
        found = [text for text in caplog.messages if text.startswith("endpoint")]
        assert found == [
            f'endpoint down backend=app endpoint={address} why="connection refused"',
            f"endpoint up backend=app endpoint={address}",
        ]

    asyncio.run(scene())


def test_the_addresses_of_a_name_are_checked(
    board: HealthBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(["127.0.0.1"], ["127.0.0.1", "127.0.0.2"])
    monkeypatch.setattr(names, "resolve", script)
    port = refusing_port()
    backend = Backend(
        "app", (Endpoint(NameAddress("app.test", port)),), health=RULES, resolving=Resolving(0.1)
    )

    async def scene() -> None:
        async with Room(board, backend) as room:
            for host in ("127.0.0.1", "127.0.0.2"):
                address = Address(host, port)
                await room.until(lambda at=address: room.state("app", at) is Checked.DOWN)
            assert room.heard == [
                Resolved({"app.test": ("127.0.0.1",)}),
                Resolved({"app.test": ("127.0.0.1", "127.0.0.2")}),
            ]

    asyncio.run(scene())


def test_another_policy(board: HealthBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "resolve", Script(["127.0.0.1"]))
    one, two = (Address("127.0.0.1", refusing_port()) for _ in range(2))
    named = Endpoint(NameAddress("new.test", two.port))
    old = Backend("old", (Endpoint(one),), health=RULES)
    new = Backend("new", (named,), health=RULES)

    async def scene() -> None:
        async with Room(board, old) as room:
            await room.until(lambda: room.state("old", one) is Checked.DOWN)
            fd = bundle.pack(Policy({}, (), {"new": new}))
            room.channel.send(Probe(), [fd])
            await room.until(lambda: room.state("new", two) is Checked.DOWN)
            assert room.resolved == {"new.test": ("127.0.0.1",)}
            row = room.slot.find(endpoint_key("old", one))
            assert row is not None
            with room.slot.locked():
                row.store_check(Checked.UNKNOWN, 0)
            await asyncio.sleep(0.3)
            assert row.checked is Checked.UNKNOWN, "it is still checked"

    asyncio.run(scene())


def test_a_prober_goes_on_where_another_one_ended(
    board: HealthBoard, caplog: pytest.LogCaptureFixture
) -> None:
    address = Address("127.0.0.1", refusing_port())
    backend = Backend("app", (Endpoint(address),), health=RULES)
    row = board.slot(2).attach(endpoint_key("app", address))
    row.store_check(Checked.DOWN, 0)

    async def scene() -> None:
        async with Room(board, backend) as room:
            await room.until(lambda: row.why != 0)

    asyncio.run(scene())
    assert row.checked is Checked.DOWN
    assert not [text for text in caplog.messages if text.startswith("endpoint")]


def test_thousands_of_names_at_once(board: HealthBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the channel holds, if each were a message; and nobody listens for a while."""
    monkeypatch.setattr(names, "resolve", Script([f"10.0.0.{n}" for n in range(20)]))
    many = [f"n{n}.test" for n in range(5000)]
    backend = Backend("app", tuple(Endpoint(NameAddress(name, 80)) for name in many))

    async def main() -> None:
        ours, theirs = channel.pair()
        end = Channel(ours, FROM_PROBER)
        prober = Prober(ProberSetup({"app": backend}, board.slot(0), theirs.detach()))
        running = asyncio.create_task(prober.run())
        await asyncio.sleep(1.0)
        found: dict[str, tuple[str, ...]] = {}
        messages = 0
        async with asyncio.timeout(60):
            while len(found) < len(many):
                for received in end.receive():
                    found.update(received.message.names)
                    messages += 1
                await asyncio.sleep(0.001)
        assert messages < len(many) / 20
        end.close()
        assert await running == GONE

    asyncio.run(main())
