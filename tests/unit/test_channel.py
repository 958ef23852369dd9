"""The channel between the supervisor and a child: boundaries, descriptors, bounds, and garbage."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from l7proxy.net import channel
from l7proxy.net.channel import Channel, ChannelBroken, ChannelClosed


@dataclass(frozen=True)
class Place:
    host: str
    port: int


@dataclass(frozen=True)
class Told:
    number: int
    share: float = 0.5
    good: bool = True
    why: str | None = None
    names: tuple[str, ...] = ()
    rows: dict[str, int] | None = None
    places: tuple[Place, ...] = ()


@dataclass(frozen=True)
class Laden:
    has_payload: ClassVar = True
    number: int


@dataclass(frozen=True)
class Secret:
    number: int


Ends = tuple[Channel, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A channel that takes `Told`, and the bare socket at its other end."""
    ours, theirs = channel.pair()
    one = Channel(ours, (Told,))
    yield one, theirs
    one.close()
    theirs.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_messages_arrive_whole_in_order_and_equal() -> None:
    ours, theirs = channel.pair()
    here, there = Channel(ours, ()), Channel(theirs, (Told,))
    sent = [
        Told(1),
        Told(-(1 << 63), 2.0, good=False, why="ü\n\0", names=("a", ""), rows={"listener:x": 7}),
        Told(3, places=(Place("::1", 80), Place("127.0.0.1", 81))),
    ]
    for message in sent:
        here.send(message)
    assert [received.message for received in there.receive()] == sent
    assert list(there.receive()) == []
    here.close()
    there.close()


def test_the_end_is_told_after_what_was_sent_before(ends: Ends) -> None:
    one, other = ends
    other.send(b'["Told",[1,0.5,true,null,[],null,[]]]')
    other.close()
    arriving = one.receive()
    assert next(arriving).message == Told(1)
    with pytest.raises(ChannelClosed):
        next(arriving)
    with pytest.raises(ChannelClosed):
        one.send(Told(1))


GARBAGE: list[Any] = [
    b"\0\xff",
    b"null",
    b"[]",
    b"[1]",
    b"{",
    b"[" * 60_000,
    b"9" * 60_000,
    b"cos\nsystem\n(S'true'\ntR.",  # a pickle
    ["Secret", [1]],  # a type that is not for this end
    ["Nothing", [1]],
    [["Told"], [1]],
    ["Told", {"number": 1}],
    ["Told", [1]],
    ["Told", [1, 0.5, True, None, [], None, [], 1]],
    ["Told", ["1", 0.5, True, None, [], None, []]],
    ["Told", [True, 0.5, True, None, [], None, []]],
    ["Told", [1.0, 0.5, True, None, [], None, []]],
    ["Told", [1 << 63, 0.5, True, None, [], None, []]],
    ["Told", [1, "x", True, None, [], None, []]],
    ["Told", [1, 0.5, 1, None, [], None, []]],
    ["Told", [1, 0.5, True, 1, [], None, []]],
    ["Told", [1, 0.5, True, None, "ab", None, []]],
    ["Told", [1, 0.5, True, None, [1], None, []]],
    ["Told", [1, 0.5, True, None, [], {"a": "b"}, []]],
    ["Told", [1, 0.5, True, None, [], [], []]],
    ["Told", [1, 0.5, True, None, [], None, [["::1"]]]],
    b'["Told",[1,NaN,true,null,[],null,[]]]',
    b'["Told",[1,Infinity,true,null,[],null,[]]]',
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda garbage: repr(garbage)[:40])
def test_garbage_is_refused(ends: Ends, garbage: Any) -> None:
    one, other = ends
    other.send(garbage if isinstance(garbage, bytes) else json.dumps(garbage).encode())
    with pytest.raises(ChannelBroken, match="not a message"):
        list(one.receive())


def test_a_message_that_is_too_large_is_refused_by_both_ends(ends: Ends) -> None:
    one, other = ends
    with pytest.raises(ValueError, match="a Told of"):
        one.send(Told(1, why="x" * channel.MAX_MESSAGE))
    other.send(b" " * channel.MAX_MESSAGE + b"[]")
    with pytest.raises(ChannelBroken, match="larger"):
        list(one.receive())


# ---- a receiver that does not read


def test_what_is_not_read_waits_and_is_delivered_later(ends: Ends) -> None:
    one, other = ends
    there = Channel(other, (Told,))
    for number in range(700):
        one.send(Told(number, why="x" * 1000))
    assert one.waiting
    found = []
    while len(found) < 700:
        found += [received.message.number for received in there.receive()]
        one.flush()
    assert found == list(range(700))
    assert not one.waiting


def test_a_receiver_that_never_reads_is_told_of_and_costs_a_bounded_queue(ends: Ends) -> None:
    one, _other = ends
    before = open_descriptors()
    null = os.open(os.devnull, os.O_RDONLY)

    def send_for_ever() -> None:
        for number in range(100_000):
            one.send(Told(number, why="x" * 1000), [null] if number % 100 == 0 else [])

    with pytest.raises(ChannelBroken, match="nobody reads"):
        send_for_ever()
    os.close(null)
    assert open_descriptors() > before, "what waits holds duplicates"
    one.close()
    assert open_descriptors() < before, "and gives them up"


# ---- descriptors and payloads


def test_descriptors_arrive_as_duplicates_that_close_on_exec(tmp_path: Path) -> None:
    ours, theirs = channel.pair()
    here, there = Channel(ours, ()), Channel(theirs, (Told,), fds=2)
    file = tmp_path / "x"
    file.write_text("hello")
    with file.open("rb") as opened:
        here.send(Told(1), [opened.fileno(), opened.fileno()])
    (received,) = there.receive()
    assert len(received.fds) == 2
    for fd in received.fds:
        assert os.pread(fd, 10, 0) == b"hello"
        assert not os.get_inheritable(fd)
        os.close(fd)
    here.close()
    there.close()


def test_an_end_that_expects_no_descriptors_gets_none(ends: Ends) -> None:
    one, other = ends
    before = open_descriptors()
    data = b'["Told",[1,0.5,true,null,[],null,[]]]'
    with open(os.devnull, "rb") as file:
        socket.send_fds(other, [data], [file.fileno()] * 200)
    with pytest.raises(ChannelBroken, match="larger than any"):
        list(one.receive())
    assert open_descriptors() == before


def test_more_descriptors_than_expected_are_closed() -> None:
    ours, theirs = channel.pair()
    one = Channel(ours, (Told,), fds=1)
    before = open_descriptors()
    with open(os.devnull, "rb") as file:
        socket.send_fds(theirs, [b'["Told",[1,0.5,true,null,[],null,[]]]'], [file.fileno()] * 9)
    with pytest.raises(ChannelBroken):
        list(one.receive())
    assert open_descriptors() == before
    one.close()
    theirs.close()


def test_a_payload_can_be_read_again_and_again_and_never_changed() -> None:
    data = os.urandom(3_000_000)
    fd = channel.seal("policy", data)
    assert channel.unseal(fd) == data == channel.unseal(fd)
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)


def test_a_payload_that_somebody_could_still_change_is_refused(tmp_path: Path) -> None:
    fd = os.memfd_create("policy", os.MFD_ALLOW_SEALING)
    with pytest.raises(ChannelBroken, match="not sealed"):
        channel.unseal(fd)
    os.close(fd)
    with (tmp_path / "x").open("wb") as file, pytest.raises(ChannelBroken, match="no memfd"):
        channel.unseal(file.fileno())


def test_a_type_that_cannot_travel_is_told_at_once() -> None:
    @dataclass(frozen=True)
    class Odd:
        data: bytes

    ours, theirs = channel.pair()
    with pytest.raises(TypeError, match="a message cannot hold"):
        Channel(ours, (Odd,))
    ours.close()
    theirs.close()


def test_the_last_words_of_one_that_has_not_read_all_are_heard() -> None:
    """The kernel reports ECONNRESET first then, and what was sent before it afterwards."""
    ours, theirs = channel.pair()
    here, there = Channel(ours, (Told,)), Channel(theirs, ())
    there.send(Told(1))
    here.send(Told(2))
    there.close()
    heard = here.receive()
    assert next(heard).message == Told(1)
    with pytest.raises(ChannelClosed):
        next(heard)
    here.close()


def test_a_payload_comes_as_it_is_with_a_type_that_has_one() -> None:
    ours, theirs = channel.pair()
    here, there = Channel(ours, (Laden, Told)), Channel(theirs, ())
    for payload in (b"", b"\n", bytes(range(256))):
        there.send(Laden(7), (), payload)
        (received,) = here.receive()
        assert (received.message, received.payload) == (Laden(7), payload)
    with pytest.raises(ValueError, match="a Laden of"):
        there.send(Laden(7), (), bytes(channel.MAX_MESSAGE))
    there.send(Told(1), (), b"more")
    with pytest.raises(ChannelBroken):
        next(here.receive())
    here.close()
    there.close()
