"""Sockets to dial with another's address: asked for in time, and never without that address."""

from __future__ import annotations

import socket

import pytest

from l7proxy.net.dial import DialError
from l7proxy.net.messages import Spare
from l7proxy.worker.spares import LOW, Spares

pytestmark = pytest.mark.net


def fresh(number: int) -> list[int]:
    return [socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach() for _ in range(number)]


def test_more_are_asked_for_before_the_last_is_gone() -> None:
    said: list[object] = []
    spares = Spares(lambda message: not said.append(message))
    spares.prime()
    assert said == [Spare(False), Spare(True)]
    spares.put(False, fresh(LOW + 1))
    for there in (LOW + 1, LOW, LOW - 1):
        sock = spares.take("127.0.0.1")
        assert sock is not None
        with sock:
            assert sock.getsockname() == ("127.0.0.1", 0)  # the port is chosen when it connects
        assert said == [Spare(False), Spare(True), *([Spare(False)] if there < LOW else [])]
    for _ in range(LOW - 2):
        sock = spares.take("127.0.0.1")
        assert sock is not None
        sock.close()
    assert spares.take("127.0.0.1") is None
    assert len(said) == 3  # it was asked already


def test_none_came_so_it_asks_again() -> None:
    said: list[object] = []
    spares = Spares(lambda message: not said.append(message))
    assert spares.take("::1") is None
    spares.put(True, [])
    assert spares.take("::1") is None
    assert said == [Spare(True)] * 2


def test_what_could_not_be_said_is_said_the_next_time() -> None:
    answers = [False, True]
    spares = Spares(lambda _: answers.pop(0))
    assert spares.take("127.0.0.1") is None
    assert spares.take("127.0.0.1") is None
    assert answers == []


def test_an_address_that_it_may_not_have() -> None:
    """Without IP_TRANSPARENT only one of this machine can be had."""
    spares = Spares(lambda _: True)
    spares.put(False, fresh(1))
    with pytest.raises(DialError):
        spares.take("192.0.2.1")
