"""`backends` of `/stats`: what is remembered from look to look is never out of date."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from l7proxy.health import Checked, Marks
from l7proxy.model import Address, Backend, Ejection, Endpoint, HealthCheck, NameAddress
from l7proxy.telemetry.backends import Collector
from l7proxy.telemetry.health import HealthBoard, HealthSlot, endpoint_key, group_key

ONE, OTHER = Address("127.0.0.1", 1), Address("127.0.0.1", 2)
APP = Backend("app", (Endpoint(ONE), Endpoint(OTHER)), ejection=Ejection(failures=3))


@pytest.fixture
def board() -> Iterator[HealthBoard]:
    one = HealthBoard(3, rows=4)
    yield one
    one.close()


class Looker:
    """Looks at one group, from the slot that only looks."""

    def __init__(self, board: HealthBoard) -> None:
        self._collector = Collector(board.slot(2))

    def group(self, backend: Backend, now: float = 1.0, **resolved: list[str]) -> dict[str, Any]:
        names = {f"{name}.test": hosts for name, hosts in resolved.items()}
        found: dict[str, Any] = self._collector.collect({backend.name: backend}, names, now)
        return found[backend.name]

    def figures(self, backend: Backend, now: float = 1.0, **resolved: list[str]) -> list[str]:
        """State and counts of each endpoint."""
        return [
            "{address} {state} {connections}/{accepted}/{failures}".format(**one)
            for one in self.group(backend, now, **resolved)["endpoints"]
        ]


def attached(slot: HealthSlot, backend: Backend, address: Address) -> Any:
    return slot.attach(endpoint_key(backend.name, address))


def test_a_row_that_is_claimed_after_the_first_look_is_found(board: HealthBoard) -> None:
    look = Looker(board)
    assert look.figures(APP) == ["127.0.0.1:1 up 0/0/0", "127.0.0.1:2 up 0/0/0"]
    row = attached(board.slot(0), APP, OTHER)
    row.enter()
    row.count_failure()
    assert look.figures(APP) == ["127.0.0.1:1 up 0/0/0", "127.0.0.1:2 up 1/1/1"]
    board.slot(1).attach(group_key("app")).begin_dial()
    assert look.group(APP)["pending"] == 1
    row.leave()
    assert look.figures(APP)[1] == "127.0.0.1:2 up 0/1/1"


def test_a_row_that_somebody_else_has_now_is_shown_no_more(board: HealthBoard) -> None:
    look, slot = Looker(board), board.slot(0)
    row = attached(slot, APP, ONE)
    row.enter()
    assert look.figures(APP)[0] == "127.0.0.1:1 up 1/1/0"
    row.leave()
    row.detach()
    for number in range(board.rows):
        slot.attach(f"endpoint:else/{number}").enter()
    assert look.figures(APP)[0] == "127.0.0.1:1 up 0/0/0"


def test_what_only_time_changes_is_looked_at_anew(board: HealthBoard) -> None:
    look, backend = Looker(board), replace(APP, slow_start=10.0)
    row = attached(board.slot(0), backend, ONE)
    row.store(Marks(ejections=1, ejected_until=5.0))
    first = look.group(backend, 2.0)["endpoints"][0]
    assert (first["state"], first["seconds"]) == ("ejected", 3.0)
    assert look.group(backend, 4.0)["endpoints"][0]["seconds"] == 1.0
    assert look.figures(backend, 6.0)[0] == "127.0.0.1:1 starting 0/0/0"
    assert look.figures(backend, 16.0)[0] == "127.0.0.1:1 up 0/0/0"
    row.store(Marks())
    assert look.figures(backend, 16.0)[0] == "127.0.0.1:1 up 0/0/0"


def test_checks_are_seen_as_they_come_and_a_policy_without_them_ignores_them(
    board: HealthBoard,
) -> None:
    look, checked = Looker(board), replace(APP, health=HealthCheck(), panic=60)
    row = attached(board.slot(0), APP, ONE)
    assert look.figures(checked) == ["127.0.0.1:1 unchecked 0/0/0", "127.0.0.1:2 unchecked 0/0/0"]
    row.store_check(Checked.UP, 0)
    assert look.figures(checked)[0] == "127.0.0.1:1 up 0/0/0"
    assert not look.group(checked)["panic"]
    row.store_check(Checked.DOWN, 0)
    assert look.figures(checked)[0] == "127.0.0.1:1 down 0/0/0"
    assert look.group(checked)["panic"]  # one of two is less than 60 %
    assert look.figures(APP)[0] == "127.0.0.1:1 up 0/0/0"


def test_other_answers_of_the_dns_are_other_endpoints(board: HealthBoard) -> None:
    look = Looker(board)
    backend = Backend("app", (Endpoint(NameAddress("app.test", 1)),))
    assert look.group(backend)["unresolved"] == ["app.test"]
    assert look.figures(backend, app=["127.0.0.1"]) == ["127.0.0.1:1 up 0/0/0"]
    attached(board.slot(0), backend, Address("127.0.0.2", 1)).enter()
    assert look.figures(backend, app=["127.0.0.2", "127.0.0.3"]) == [
        "127.0.0.2:1 up 1/1/0",
        "127.0.0.3:1 up 0/0/0",
    ]
    assert look.figures(backend) == []


def test_columns_say_what_rows_say(board: HealthBoard) -> None:
    rng = random.Random(7)
    keys = [f"endpoint:app/{number}" for number in range(board.rows)]
    for process in (0, 1):
        slot = board.slot(process)
        for row in map(slot.attach, keys):
            for act in rng.choices((row.enter, row.leave, row.count_failure), k=9):
                act()
            row.store(Marks(ejected_until=rng.random(), back_since=rng.random()))
            row.store_check(rng.choice(list(Checked)), 0, rng.random())
    slot = board.slot(2)
    columns = slot.columns()
    for key in keys:
        row, number = slot.find(key), slot.number(key)
        assert row is not None
        assert number is not None
        found = columns.present[number], columns.connections[number], columns.failures[number]
        assert found == (row.present(), row.connections(), row.failures())
        assert columns.states[number][0] == row.checked
        assert columns.states[number][1] / 1e6 == row.marks().ejected_until
        assert columns.states[number][2] / 1e6 == row.marks().back_since
