"""A worker's view of a backend group; two views on one board are two workers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from l7proxy import cookies
from l7proxy.balance import Member, members
from l7proxy.errors import Reason
from l7proxy.health import Checked, Failure
from l7proxy.model import (
    Address,
    Backend,
    Balance,
    BalanceType,
    Circuit,
    Ejection,
    Endpoint,
    HashOn,
    HealthCheck,
    NameAddress,
    Request,
    Retries,
    Sticky,
)
from l7proxy.telemetry.health import HealthBoard, endpoint_key
from l7proxy.worker import groups
from l7proxy.worker.groups import Group, Place
from l7proxy.worker.timers import Calendar

A, B, C = (Address("127.0.0.1", port) for port in (1, 2, 3))
NOW = 1000.0
NAME = NameAddress("app.test", 80)


@pytest.fixture
def board() -> Iterator[HealthBoard]:
    one = HealthBoard(3, rows=16)
    yield one
    one.close()


def backend(*addresses: Address | NameAddress, **more: object) -> Backend:
    return Backend("app", tuple(map(Endpoint, addresses)), **more)  # type: ignore[arg-type]


class View:
    """A worker with one group."""

    def __init__(
        self, board: HealthBoard, number: int, one: Backend, **resolved: tuple[str, ...]
    ) -> None:
        self.calendar = Calendar()
        self.slot = board.slot(number)
        self.group = Group(
            one, resolved, self.slot, self.calendar, random.Random(1), NOW, start=number
        )

    def order(self, now: float = NOW, client: str = "") -> list[str]:
        return [place.text for place in self.group.order(None, client, None, now)]

    def place(self, address: object) -> Place:
        return next(place for place in self.group.places if place.text == str(address))

    def fails(self, address: object, times: int = 1, now: float = NOW) -> None:
        for _ in range(times):
            self.group.failed(self.place(address), Failure.DIAL, "connection refused", now)


def endpoint_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for text in caplog.messages if text.startswith("endpoint")]


def test_failures_of_all_workers_eject_and_all_know_at_once(
    board: HealthBoard, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rules = backend(A, B, ejection=Ejection(failures=3, base=5.0))
    one, two = View(board, 0, rules), View(board, 1, rules)
    one.fails(A, 2)
    assert len(two.order()) == 2
    two.fails(A, 2)  # the fourth one comes after the ejection
    for view in (one, two):
        assert view.order(NOW + 4.9) == [str(B)]
    for _ in range(2):
        for view in (one, two):
            assert sorted(view.order(NOW + 5)) == [str(A), str(B)]
    assert endpoint_lines(caplog) == [
        f'endpoint ejected backend=app endpoint={A} seconds=5 why="connection refused"',
        f"endpoint back backend=app endpoint={A}",
    ]


def test_a_success_anywhere_ends_the_row(board: HealthBoard) -> None:
    rules = backend(A, B, ejection=Ejection(failures=3))
    one, two = View(board, 0, rules), View(board, 1, rules)
    one.fails(A, 2)
    two.group.worked(two.place(A), Failure.DIAL)
    one.fails(A, 2)
    assert len(one.order()) == 2
    one.fails(A)
    assert one.order() == two.order() == [str(B)]


def test_who_fails_again_at_once_is_ejected_for_longer(
    board: HealthBoard, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when nobody had asked for an order in between."""
    caplog.set_level("INFO")
    view = View(board, 0, backend(A, B, ejection=Ejection(failures=2, base=5.0)))
    view.fails(A, 2)
    view.fails(A, 1, NOW + 5)
    assert view.order(NOW + 14) == [str(B)]
    assert [text.split(" backend")[0] for text in endpoint_lines(caplog)] == [
        "endpoint ejected",
        "endpoint back",
        "endpoint ejected",
    ]


def panic_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for text in caplog.messages if text.startswith("panic")]


BEGINS = "panic, health is ignored backend=app healthy=1 endpoints=2"
OVER = "panic over backend=app healthy=2 endpoints=2"


def test_a_panic_is_told_once_when_it_begins_and_once_when_it_is_over(
    board: HealthBoard, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rules = backend(A, B, ejection=Ejection(failures=1, base=5.0), panic=60)
    one, two = View(board, 0, rules), View(board, 1, rules)
    one.fails(A)
    for now in (NOW, NOW + 1, NOW + 4):
        for view in (one, two):
            assert len(view.order(now)) == 2
    assert panic_lines(caplog) == [BEGINS]
    later = View(board, 2, rules)  # a worker that starts meanwhile
    assert len(later.order(NOW + 4)) == 2
    assert panic_lines(caplog) == [BEGINS]
    for view in (two, one, later):
        view.order(NOW + 5)
    assert panic_lines(caplog) == [BEGINS, OVER]
    one.fails(B, now=NOW + 6)
    two.order(NOW + 6)
    assert panic_lines(caplog) == [BEGINS, OVER, BEGINS]


def test_a_group_that_goes_does_not_end_its_panic(
    board: HealthBoard, caplog: pytest.LogCaptureFixture
) -> None:
    """The next policy may have it again; one without a panic ends it."""
    caplog.set_level("INFO")
    rules = backend(A, B, ejection=Ejection(failures=1, base=5.0), panic=60)
    one, two = View(board, 0, rules), View(board, 1, rules)
    one.fails(A)
    one.order()
    one.group.close()
    assert panic_lines(caplog) == [BEGINS]
    View(board, 0, rules).order()
    assert panic_lines(caplog) == [BEGINS]
    two.group.close()
    View(board, 1, backend(A, B, ejection=Ejection(failures=1, base=5.0))).order()
    assert panic_lines(caplog) == [BEGINS, "panic over backend=app healthy=1 endpoints=2"]


@pytest.mark.parametrize(
    ("addresses", "failures"), [((A,), 1), ((A, B), 0)], ids=["alone", "turned off"]
)
def test_who_is_never_ejected(
    board: HealthBoard, addresses: tuple[Address, ...], failures: int
) -> None:
    view = View(board, 0, backend(*addresses, ejection=Ejection(failures=failures)))
    view.fails(A, 100)
    assert len(view.order()) == len(addresses)
    assert view.place(A).row.failures() == 100


@pytest.mark.parametrize("slow_start", [0.0, 60.0])
def test_a_policy_that_ejects_nobody_forgets_ejections(
    board: HealthBoard, slow_start: float
) -> None:
    """Such a group looks at states once only: what it saw then would count for ever."""
    view = View(board, 0, backend(A, B, ejection=Ejection(failures=1)))
    view.fails(A)
    assert view.order() == [str(B)]
    rules = backend(A, B, ejection=Ejection(failures=0), slow_start=slow_start)
    view = View(board, 1, rules)
    assert sorted(view.order()) == [str(A), str(B)]
    assert view.group.standing(NOW).weights == (100, 100)


def test_what_the_prober_finds_counts_at_once(board: HealthBoard) -> None:
    view = View(board, 0, backend(A, B, health=HealthCheck()))
    assert len(view.order()) == 2
    prober = board.slot(2)
    row = prober.attach(endpoint_key("app", A))
    with prober.locked():
        row.store_check(Checked.DOWN, 1)
        prober.changed()
    assert view.order() == [str(B)]
    # an earlier policy had checks, this one has none
    assert len(View(board, 1, backend(A, B)).order()) == 2


# ---- names


def test_a_name_has_other_addresses(board: HealthBoard) -> None:
    view = View(board, 0, backend(NAME))
    assert view.order() == []
    assert view.group.why_nobody() is Reason.UNRESOLVED
    view.group.update({"app.test": ("10.0.0.1", "10.0.0.2")}, NOW)
    assert sorted(view.order()) == ["10.0.0.1:80", "10.0.0.2:80"]
    kept, gone = view.place("10.0.0.2:80"), view.place("10.0.0.1:80")
    assert view.group.take(gone)
    view.group.update({"app.test": ("10.0.0.3", "10.0.0.2")}, NOW)
    assert sorted(view.order()) == ["10.0.0.2:80", "10.0.0.3:80"]
    assert view.place("10.0.0.2:80") is kept
    assert gone.at == -1
    # its connection is still counted, and its failure harms nobody
    view.group.failed(gone, Failure.EARLY, "no answer", NOW)
    assert gone.row.present() == 1
    gone.leave()
    assert gone.row.present() == 0


def test_only_names_of_its_own_concern_a_group(
    board: HealthBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand names that change each minute times a thousand groups would be a pause."""
    view = View(board, 0, backend(NAME, A))
    asked = 0

    def counted(*arguments: Any) -> tuple[Member, ...]:
        nonlocal asked
        asked += 1
        return members(*arguments)

    monkeypatch.setattr(groups, "members", counted)
    known = {"app.test": ("10.0.0.1",), "other.test": ("10.0.0.2",)}
    view.group.update(known, NOW, {"other.test"})
    assert asked == 0
    view.group.update(known, NOW, {"app.test"})
    assert asked > 0
    assert view.place("10.0.0.1:80").at >= 0


def test_rows_are_given_back(board: HealthBoard) -> None:
    """DNS that changes for months must not use the board up: 16 rows, 100 addresses."""
    view = View(board, 0, backend(NAME))
    for n in range(100):
        view.group.update({"app.test": (f"10.0.0.{n}",)}, NOW)
        place = view.group.places[0]
        assert view.group.take(place)
        assert board.slot(1).find(endpoint_key("app", f"10.0.0.{n}:80")) is not None
        place.leave()
    view.group.close()


def test_a_group_that_is_closed_keeps_its_rows_while_it_has_connections(
    board: HealthBoard,
) -> None:
    view = View(board, 0, backend(A, B))
    assert view.group.admit()
    place = view.place(A)
    assert view.group.take(place)
    view.group.close()
    assert view.order() == []
    assert view.group.why_nobody() is Reason.NO_ENDPOINT
    again = View(board, 0, backend(A, B))  # made anew by a reload
    assert again.place(A).row.present() == 1
    assert again.group.load.row.present() == 1
    place.leave()
    view.group.load.leave()
    assert again.place(A).row.present() == again.group.load.row.present() == 0
    assert view.group.admit()  # somebody comes late: all the same, it must come out even
    view.group.load.leave()


@pytest.mark.parametrize("balance", BalanceType)
def test_a_closed_group_has_nobody(board: HealthBoard, balance: BalanceType) -> None:
    way = Balance(balance, HashOn.CLIENT if balance is BalanceType.HASH else None)
    view = View(board, 0, backend(A, B, balance=way))
    assert len(view.order(client="x")) == 2
    view.group.close()
    assert view.order(client="x") == []


SIX = ("::1", "::2", "::3")


@pytest.mark.parametrize(
    ("addresses", "first", "then"),
    [
        (("10.0.0.1", "::1"), "10.0.0.1:80", ["[::1]:80"]),
        (("10.0.0.1", "::1"), "[::1]:80", ["10.0.0.1:80"]),
        (("10.0.0.1", *SIX), "[::2]:80", ["10.0.0.1:80", "[::1]:80", "[::3]:80"]),
        (("10.0.0.1", *SIX), "10.0.0.1:80", ["[::1]:80", "[::2]:80", "[::3]:80"]),
        (
            ("10.0.0.1", "10.0.0.2", "::1", "::2"),
            "10.0.0.2:80",
            ["[::1]:80", "10.0.0.1:80", "[::2]:80"],
        ),
        (("10.0.0.1", "10.0.0.2"), "10.0.0.1:80", []),
        (SIX, "[::1]:80", []),
    ],
)
def test_families_take_turns_in_a_race(
    board: HealthBoard, addresses: tuple[str, ...], first: str, then: list[str]
) -> None:
    view = View(board, 0, backend(A, NAME), **{"app.test": addresses})
    racers = view.group.racers(view.place(first), NOW)
    assert [place.text for place in racers] == then


def test_an_address_races_nobody(board: HealthBoard) -> None:
    view = View(board, 0, backend(A, Address("::1", 1)))
    assert view.group.racers(view.place(A), NOW) == []


def test_who_may_not_be_used_does_not_race(board: HealthBoard) -> None:
    rules = backend(NAME, ejection=Ejection(failures=1))
    view = View(board, 0, rules, **{"app.test": ("10.0.0.1", "::1")})
    view.fails("[::1]:80")
    assert view.group.racers(view.place("10.0.0.1:80"), NOW) == []


# ---- hash


def test_a_table_is_filled_beside_the_traffic(board: HealthBoard) -> None:
    balance = Balance(BalanceType.HASH, HashOn.CLIENT)
    before = tuple(f"10.0.0.{n}" for n in range(1, 6))
    rules = backend(NAME, balance=balance)
    view = View(board, 0, rules, **{"app.test": before})
    clients = [f"client {n}" for n in range(300)]
    owners = {client: view.order(client=client)[0] for client in clients}
    view.group.update({"app.test": before[1:]}, NOW)

    def moved() -> int:
        return sum(
            view.order(client=client)[0] != owner
            for client, owner in owners.items()
            if owner != "10.0.0.1:80"
        )

    assert moved() == 0, "the old table goes on"
    steps = 0
    while due := view.calendar.due(NOW):
        for item in due:
            item.on_deadline()
            steps += 1
    assert steps > 1
    assert moved() < 15
    fresh = View(board, 1, rules, **{"app.test": before[1:]})
    for client in clients:  # and now all agree with who starts now
        assert view.order(client=client) == fresh.order(client=client)


@pytest.mark.parametrize("after", [("10.0.0.9",), ()], ids=["one", "none"])
def test_a_table_that_is_no_longer_wanted_while_it_is_filled(
    board: HealthBoard, after: tuple[str, ...]
) -> None:
    """DNS answers twice within a moment, and then there is nothing to choose from."""
    rules = backend(NAME, balance=Balance(BalanceType.HASH, HashOn.CLIENT))
    view = View(board, 0, rules, **{"app.test": ("10.0.0.1", "10.0.0.2")})
    view.group.update({"app.test": ("10.0.0.1", "10.0.0.3")}, NOW)
    view.group.update({"app.test": after}, NOW)
    for item in view.calendar.due(NOW):
        item.on_deadline()
    assert view.order(client="c") == [f"{host}:80" for host in after]
    assert view.calendar.next() is None


# ---- sticky


def test_who_is_remembered(board: HealthBoard) -> None:
    rules = backend(A, B, sticky=Sticky("at"), ejection=Ejection(failures=1))
    view = View(board, 0, rules)
    token = cookies.token("app", str(A))

    def remembered(value: bytes) -> Place | None:
        return view.group.remembered(Request(headers=((b"cookie", b"at=" + value),)), NOW)

    assert remembered(token) is view.place(A)
    assert remembered(b"nobody") is None
    assert view.group.remembered(Request(), NOW) is None
    assert view.group.remembered(None, NOW) is None
    view.fails(A)
    assert remembered(token) is None, "it is ejected"


# ---- how much


def test_circuits_hold_over_workers(board: HealthBoard) -> None:
    rules = backend(A, B, circuit=Circuit(connections=3, endpoint_connections=2))
    one, two = View(board, 0, rules), View(board, 1, rules)
    assert [view.group.admit() for view in (one, two, one, two)] == [True, True, True, False]
    assert [view.group.take(view.place(A)) for view in (one, two, one)] == [True, True, False]
    assert one.group.take(one.place(B))
    two.place(A).leave()
    two.group.load.leave()
    assert one.group.admit()
    assert one.group.take(one.place(A))
    assert one.group.load.row.refused() == 1


def test_pending_dials_hold_over_workers(board: HealthBoard) -> None:
    rules = backend(A, circuit=Circuit(pending=1))
    one, two = View(board, 0, rules), View(board, 1, rules)
    assert one.group.admit()
    assert not two.group.admit()
    one.group.load.row.end_dial()
    assert two.group.admit()


def test_a_budget_of_retries(board: HealthBoard) -> None:
    view = View(board, 0, backend(A, B, retries=Retries(budget=50)))
    for _ in range(40):
        view.group.admit()
    assert sum(view.group.may_retry(NOW + 1) for _ in range(100)) == 20
    assert view.group.load.row.retries() == 20
