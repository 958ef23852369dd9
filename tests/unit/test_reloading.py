"""A worker's end of the channel: whatever becomes of a policy, nothing of it is left behind."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from l7proxy.model import Backend, Policy
from l7proxy.net import bundle, channel, process
from l7proxy.net.channel import Channel
from l7proxy.net.messages import FROM_WORKER, Abandon, Prepare, Unprepared
from l7proxy.telemetry.counters import Counter
from l7proxy.worker.reloading import Reloading


class Desk:
    """The supervisor's end, and a worker that has no policy yet."""

    def __init__(self) -> None:
        ours, theirs = channel.pair()
        self.control = theirs.detach()
        self.channel = Channel(ours, FROM_WORKER)
        worker: Any = SimpleNamespace(
            slot=0,
            view=[0] * len(Counter),
            register=lambda *_: None,
            modify=lambda *_: None,
            accepting=SimpleNamespace(generation=SimpleNamespace(groups={}), sockets=dict),
        )
        self.reloading = Reloading(worker, self.control)

    def prepare(self, generation: int) -> None:
        policy = bundle.pack(Policy({}, (), {"app": Backend("app", ())}, "p.yaml"))
        self.channel.send(Prepare(generation, (), ()), [policy])
        process.close(policy)

    def hear(self) -> list[object]:
        self.reloading.ready(self.control, 0)
        while self.reloading.busy:
            self.reloading.step()
        return [received.message for received in self.channel.receive()]


@pytest.fixture
def desk() -> Iterator[Desk]:
    was_on = gc.isenabled()
    gc.enable()
    one = Desk()
    yield one
    one.channel.close()
    one.reloading._channel.close()
    gc.enable() if was_on else gc.disable()


def test_a_policy_that_is_given_up_before_a_step_was_made(desk: Desk) -> None:
    before = process.descriptors()
    for generation in range(1, 4):
        desk.prepare(generation)
        desk.channel.send(Abandon(generation, ()))
        assert desk.hear() == []
    assert process.descriptors() == before
    assert gc.isenabled()


def test_a_policy_that_cannot_be_built(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("l7proxy.worker.reloading.building", fails)
    before = process.descriptors()
    desk.prepare(1)
    assert desk.hear() == [Unprepared(1, "[Errno 24] Too many open files")]
    assert process.descriptors() == before
    assert gc.isenabled(), "it has been off while there was something to build"
