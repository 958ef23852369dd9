"""What a dial leaves behind when this machine, and not the endpoint, is at its end."""

from __future__ import annotations

import errno
import gc
import random
from types import SimpleNamespace
from typing import Any

import pytest
from peers import Blackhole

from l7proxy.errors import Reason
from l7proxy.model import Address, Backend, Endpoint, Forward, Protocol, Route, Timeouts
from l7proxy.net import process
from l7proxy.session import Event
from l7proxy.telemetry.health import HealthBoard
from l7proxy.worker.dialing import Dialing
from l7proxy.worker.groups import Group
from l7proxy.worker.timers import Calendar

pytestmark = pytest.mark.net


class Waiting(SimpleNamespace):
    """A connection that the calendar can hold."""

    __hash__ = object.__hash__


@pytest.mark.parametrize("seconds", [1.0, 3600.0])
def test_nobody_waits_longer_for_a_socket_than_for_a_dial(seconds: float) -> None:
    """However often it has to look; the calendar is as coarse as it likes."""
    board, calendar = HealthBoard(1, rows=8), Calendar()
    backend = Backend("app", (Endpoint(Address("127.0.0.1", 9)),))
    group = Group(backend, {}, board.slot(0), calendar, random.Random(1), 0.0)
    happened: list[object] = []
    worker = SimpleNamespace(now=100.0, calendar=calendar)
    worker.spares = SimpleNamespace(take=lambda _: None)
    connection: Any = Waiting(
        worker=worker,
        sending=None,
        requests=None,
        client=None,
        watch=lambda *_: None,
        tick=-1,
        listener=SimpleNamespace(
            protocol=Protocol.HTTP, timeouts=Timeouts(dial=seconds), groups={"app": group}
        ),
        record=SimpleNamespace(),
        end_with=happened.append,
        reply_with=lambda *_, **__: None,
        on=happened.append,
    )
    dialing = Dialing(connection)
    dialing.source = "127.0.0.9"
    dialing.choose(Forward(Route("all", ()), backend), None, "", None)
    dialing.start()
    while not happened:
        worker.now += 0.125
        dialing.timed_out()
    assert worker.now == 100.0 + seconds
    assert happened == [Reason.DESCRIPTORS, Event.UNREACHABLE]
    dialing.release(answered=False)
    assert group.places[0].row.present() == group.load.row.present() == 0
    board.close()


def test_epoll_takes_no_more_descriptors() -> None:
    """epoll_ctl(2): ENOSPC, "the limit imposed by /proc/sys/fs/epoll/max_user_watches"."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    board, far, calendar = HealthBoard(1, rows=8), Blackhole(), Calendar()
    backend = Backend("app", (Endpoint(Address("127.0.0.1", far.port)),))
    group = Group(backend, {}, board.slot(0), calendar, random.Random(1), 0.0)
    happened: list[Event] = []
    worker = SimpleNamespace(now=0.0, calendar=calendar, register=full, bury=full)
    connection: Any = SimpleNamespace(
        worker=worker,
        sending=None,
        requests=None,
        client=None,
        watch=lambda *_: None,
        tick=-1,
        listener=SimpleNamespace(
            protocol=Protocol.HTTP, timeouts=Timeouts(), groups={"app": group}
        ),
        record=SimpleNamespace(),
        end_with=lambda reason: happened.append(reason),
        reply_with=lambda *_, **__: None,
        on=happened.append,
    )
    before = process.descriptors()
    dialing = Dialing(connection)
    dialing.choose(Forward(Route("all", ()), backend), None, "", None)
    dialing.start()
    assert happened == [Reason.DESCRIPTORS, Event.UNREACHABLE]
    dialing.release(answered=False)
    assert group.places[0].row.present() == group.load.row.present() == 0
    assert group.load.row.dialling() == 0
    assert calendar.next() is None
    gc.collect()
    assert process.descriptors() == before
    far.close()
    board.close()
