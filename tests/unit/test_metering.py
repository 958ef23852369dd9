"""From what a worker notes to families of metrics: counts, bounds, and what is told of others."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from forking import in_child

from l7proxy.errors import Reason
from l7proxy.telemetry import families, meter
from l7proxy.telemetry.accesslog import Record
from l7proxy.telemetry.counters import Counter, SharedCounters
from l7proxy.telemetry.endpoints import ENDPOINTS, GROUPS, Endpoints, Growing
from l7proxy.telemetry.exposition import Family
from l7proxy.telemetry.meter import BOUNDS, Meter, counts_board, spare, times_board
from l7proxy.telemetry.metered import NOTHING, Metered
from l7proxy.telemetry.processes import CpuTimes, look
from l7proxy.telemetry.series import SPARE


class Desk:
    """Two workers' meters over small tables."""

    def __init__(self, rows: int = 8) -> None:
        self.shared = SharedCounters(2, rows=1)
        self.counts, self.times = counts_board(2, rows), times_board(2, rows)
        self.meters = [
            Meter(self.counts, self.times, worker, self.shared.slot(worker).view)
            for worker in range(2)
        ]

    def found(self) -> dict[str, dict[tuple[str, ...], Any]]:
        every: list[Family] = [*families.counted(self.counts), *families.timed(self.times)]
        return {one.name: dict([*one.samples, *one.distributions]) for one in every}


@pytest.fixture
def desk() -> Iterator[Desk]:
    one = Desk()
    yield one
    one.counts.close()
    one.times.close()
    one.shared.close()


def record(route: str, reason: Reason = Reason.DONE, **more: int) -> Record:
    found = Record(0.0, 0, "web", "192.0.2.1:5", route=route, backend="app", endpoint="10.0.0.1:80")
    found.reason = reason
    for name, value in more.items():
        setattr(found, name, value)
    return found


def test_what_workers_note_is_summed_up(desk: Desk) -> None:
    for number, one in enumerate(desk.meters, start=1):
        one.accepted("web")
        one.refused("web", Reason.CONNECTION_LIMIT)
        one.ended(record("api", bytes_in=10, bytes_out=200, kernel_out=150))
        one.ended(record("api", Reason.IDLE_TIMEOUT))
        one.head("web", 2.0 * number)
    found = desk.found()
    where = ("web", "api", "app", "10.0.0.1:80")
    assert found["l7proxy_connections_accepted"] == {("web",): 2}
    assert found["l7proxy_connections_refused"] == {("web", "connection_limit"): 2}
    ends = {(*where, "done"): 2, (*where, "idle_timeout"): 2}
    assert found["l7proxy_connections_ended"] == ends
    assert found["l7proxy_connection_bytes"] == {
        (*where, "from_backend", "kernel"): 300,
        (*where, "from_client", "relay"): 20,
        (*where, "from_backend", "relay"): 100,
    }
    head = found["l7proxy_head_duration_seconds"]["web",]
    assert (sum(head.counts), round(head.sum, 6)) == (2, 0.006)
    assert found["l7proxy_dial_duration_seconds"] == {}


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0.0, 0), (0.0001, 0), (0.00011, 1), (10.0, len(BOUNDS) - 1), (10.1, len(BOUNDS))],
)
def test_a_bucket_holds_its_bound(desk: Desk, seconds: float, bucket: int) -> None:
    """`le` is less or equal."""
    desk.meters[0].dialled("app", seconds * 1000)
    one = desk.found()["l7proxy_dial_duration_seconds"]["app",]
    assert [at for at, count in enumerate(one.counts) if count] == [bucket]
    assert one.sum == pytest.approx(seconds)


def test_what_was_counted_while_it_went_on_is_not_counted_at_its_end(desk: Desk) -> None:
    meter, one = desk.meters[0], record("api", bytes_in=30, bytes_out=700, kernel_out=500)
    rounds = [NOTHING, (10, 0, 0, 0), (10, 400, 0, 300), (10, 600, 0, 500)]
    where = ("web", "api", "app", "10.0.0.1:80")
    seen = []
    for before, now in pairwise(rounds):
        meter.moved(one, now, before)
        seen.append(
            desk.found()["l7proxy_connection_bytes"].get((*where, "from_backend", "kernel"))
        )
    assert seen == [None, 300, 500]
    meter.ended(one, rounds[-1])
    assert desk.found()["l7proxy_connection_bytes"] == {
        (*where, "from_backend", "kernel"): 500,
        (*where, "from_client", "relay"): 30,
        (*where, "from_backend", "relay"): 200,
    }


def test_what_was_counted_of_a_pair_is_known_to_the_next_worker() -> None:
    metered = Metered(3)
    metered.store(4, (1, 2, 3, 1 << 40))
    in_child(lambda: metered.store(2, (5, 6, 7, 8)))
    assert [metered.of(index) for index in (0, 2, 4)] == [
        NOTHING,
        (5, 6, 7, 8),
        (1, 2, 3, 1 << 40),
    ]


def test_other_series_keep_the_reason(desk: Desk) -> None:
    for number in range(20):
        desk.meters[0].ended(record(f"route-{number}", Reason.STALLED, bytes_in=1))
        desk.meters[0].head(f"listener-{number}", 1.0)
    found = desk.found()
    ends = found["l7proxy_connections_ended"]
    assert sum(ends.values()) == 20, "nothing is lost"
    assert ends["_other", "_other", "_other", "_other", "stalled"] == 16
    other = ("_other",) * 4
    assert found["l7proxy_connection_bytes"][*other, "from_client", "relay"] == 16
    assert sum(found["l7proxy_head_duration_seconds"]["_other",].counts) == 12
    assert desk.shared.total(Counter.SERIES_FULL) == 16 + 16 + 12


def test_there_is_a_spare_row_for_every_family_and_reason() -> None:
    keys = {spare((family, "web", reason)) for family in meter.ENDS for reason in Reason}
    keys |= {spare((family, "web")) for family in (meter.ACCEPTED, meter.BYTES)}
    assert len(keys) <= SPARE


def test_what_a_worker_wrote_amiss_is_left_out(desk: Desk) -> None:
    slot = desk.counts.slot(0, spare)
    for key in (("ended", "too few"), ("bytes",), ("accepted", "too", "many"), ("x",), ("",)):
        slot.words[slot.at(key)] += 1
    found = desk.found()
    assert all(not samples for samples in found.values())


def test_listeners_beyond_the_bound_are_others() -> None:
    most = families.LISTENERS
    live = [((f"l{number}",), 2) for number in range(most + 3)]
    assert dict(families.listeners(live[:most]).samples).keys() == {key for key, _ in live[:most]}
    found = dict(families.listeners(live).samples)
    assert len(found) == most + 1
    assert found["_other",] == 6


# ---- backends


def group(*endpoints: tuple[str, int], state: str = "up", panic: bool = False) -> dict[str, Any]:
    return {
        "connections": 1,
        "pending": 0,
        "accepted": sum(accepted for _, accepted in endpoints),
        "retries": 0,
        "circuit_open": 0,
        "panic": panic,
        "endpoints": [
            {
                "address": address,
                "state": state,
                "connections": 1,
                "accepted": accepted,
                "failures": 0,
            }
            for address, accepted in endpoints
        ],
    }


def samples(endpoints: Endpoints, backends: dict[str, Any]) -> dict[str, dict[Any, float]]:
    return {one.name: dict(one.samples) for one in endpoints.families(backends)}


def test_groups_and_endpoints_beyond_the_bound_are_others() -> None:
    many = {f"g{number}": group((f"10.0.0.1:{number}", 2)) for number in range(GROUPS + 3)}
    found = samples(Endpoints(), many)
    assert len(found["l7proxy_backend_connections"]) == GROUPS + 1
    assert found["l7proxy_backend_connections"]["_other",] == 6
    assert found["l7proxy_backend_endpoints"]["_other", "up"] == 3
    one = {"app": group(*[(f"10.0.0.1:{number}", 5) for number in range(ENDPOINTS + 2)])}
    found = samples(Endpoints(), one)
    assert len(found["l7proxy_endpoint_up"]) == ENDPOINTS
    assert found["l7proxy_endpoint_connections"]["_other", "_other"] == 10
    assert found["l7proxy_backend_endpoints"]["app", "up"] == ENDPOINTS + 2


@pytest.mark.parametrize(
    ("state", "up"),
    [("up", 1), ("unchecked", 1), ("starting", 1), ("drained", 0), ("ejected", 0), ("down", 0)],
)
def test_an_endpoint_is_up_while_it_gets_connections(state: str, up: int) -> None:
    found = samples(Endpoints(), {"app": group(("10.0.0.1:1", 0), state=state, panic=True)})
    assert found["l7proxy_endpoint_up"]["app", "10.0.0.1:1"] == up
    assert found["l7proxy_backend_endpoints"]["app", state] == 1
    assert sum(found["l7proxy_backend_endpoints"].values()) == 1
    assert found["l7proxy_backend_panic"]["app",] == 1


@pytest.mark.parametrize(
    ("looks", "sums"),
    [
        ([[("a", 5), ("b", 7)], [("a", 9), ("b", 8)]], [7, 8]),
        ([[("a", 5), ("b", 7)], [("a", 5)]], [7, 7]),  # b went
        ([[("a", 5), ("b", 7)], [("b", 9), ("a", 6)]], [7, 8]),  # they changed places
        ([[("a", 5), ("b", 7)], [("a", 5), ("b", 2)]], [7, 9]),  # b is counted anew
        ([[("a", 5)], [("a", 5), ("c", 3)]], [0, 3]),
    ],
)
def test_the_sum_of_others_only_grows(looks: list[list[tuple[str, int]]], sums: list[int]) -> None:
    growing = Growing()
    found = [growing.look([(name,) for name, _ in look], [n for _, n in look], 1) for look in looks]
    assert found == sums


# ---- processes


def test_processor_time_of_those_that_follow_one_another() -> None:
    times = CpuTimes()
    seen = [
        times.add(*look)
        for look in ((0, 100, 1.0), (1, 101, 5.0), (0, 100, 2.5), (0, 200, 0.25), (0, 200, 0.5))
    ]
    assert seen == [1.0, 5.0, 2.5, 2.75, 3.0]


def test_a_process_there_is_not() -> None:
    assert look(2**22 + 1) is None
