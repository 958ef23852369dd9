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
        tick=-1,
        listener=SimpleNamespace(
            protocol=Protocol.HTTP, timeouts=Timeouts(), groups={"app": group}
        ),
        record=SimpleNamespace(),
        end_with=lambda reason: happened.append(reason),
        reply_with=lambda *_: None,
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
