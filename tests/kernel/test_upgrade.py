"""Another l7proxy takes over: listeners, maps, and the spliced pairs with all their bytes."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator

import pytest
from peers import PATIENCE, connect
from proxy import alive, children, until
from scrapes import Scrape

from .test_worker_death import House, opened

pytestmark = [pytest.mark.kernel, pytest.mark.net, pytest.mark.slow, pytest.mark.matrix]

START = 120.0


@pytest.fixture
def house() -> Iterator[House]:
    with opened() as made:
        made.successors = []
        yield made
        for pid in made.successors:
            if alive(pid):
                os.kill(pid, signal.SIGTERM)
                until(lambda pid=pid: not alive(pid), "it stops", START)
        made.proxy.check_log()


def follow(house: House, said: str) -> int:
    """The new one's process id; returns when its admin server answers."""
    found = re.search(r"process (\d+)", said)
    assert found, said
    pid = int(found[1])
    house.successors.append(pid)
    until(lambda: house.proxy.log().count(" admin address=") > len(house.successors), "up", START)
    return pid


def test_pairs_live_on_in_the_new_one_and_the_old_one_is_gone(house: House) -> None:
    pairs = [house.pair() for _ in range(5)]
    half_client, half_backend = house.pair()
    half_client.half_close()
    assert half_backend.rest() == b""
    for round in range(2):  # and again, from the new one
        for client, backend in pairs:
            client.send(b"before")
            assert backend.read(6) == b"before"
        done = house.proxy.upgrade()
        assert done.returncode == 0, done.stderr + house.proxy.log()
        assert "6 spliced connections" in done.stdout
        follow(house, done.stdout)
        if round == 0:
            assert house.proxy.process.wait(PATIENCE) == 0
        for client, backend in pairs:
            client.send(b"after")
            assert backend.read(5) == b"after"
            backend.send(b"fine")
            assert client.read(4) == b"fine"
        until(lambda: house.proxy.stats()["kept"] == {"pairs": 6, "adopted": 6}, "all are adopted")
        stats = house.proxy.stats()
        assert stats["pairs"] == {"active": 6, "spliced": 6, "relayed": 0}
        assert stats["connections"]["active"] == stats["listeners"]["raw"]["active"] == 6
    until(lambda: not alive(house.successors[0]), "the one in between is gone")
    fresh, _ = house.pair()  # a new one, on the same port
    half_backend.send(b"an answer").half_close()
    assert half_client.rest() == b"an answer"
    for client, backend in pairs:
        client.half_close()
        assert backend.rest() == b""
        backend.half_close()
        assert client.rest() == b""
        record = house.proxy.record(client.port)
        assert record["reason"] == "done"
        assert (record["bytes_in"], record["bytes_out"]) == (5 + 2 * 11, 5 + 2 * 4)
    fresh.reset()
    house.proxy.settled()
    until(lambda: house.kept == 0, "no duplicate is left")


def test_a_signal_does_it_and_a_worker_may_die_after_it(house: House) -> None:
    client, backend = house.pair()
    house.proxy.signal(signal.SIGUSR2)
    assert house.proxy.process.wait(START) == 0
    found = re.search(r"upgraded pid=(\d+) pairs=1", house.proxy.log())
    assert found, house.proxy.log()
    new = int(found[1])
    house.successors.append(new)
    until(lambda: "pairs adopted" in house.proxy.log(), "adopted", START)
    (worker,) = children(new)
    os.kill(worker, signal.SIGKILL)
    until(lambda: house.proxy.log().count("pairs adopted") == 2, "adopted again", START)
    client.send(b"still there")
    assert backend.read(11) == b"still there"
    backend.reset()
    assert client.ending() == "reset"


def test_one_that_does_not_come_up_leaves_everything_as_it_was(house: House) -> None:
    client, backend = house.pair()
    (worker,) = house.proxy.workers
    house.proxy.write("listeners: nonsense\n")
    done = house.proxy.upgrade()
    assert done.returncode == 1
    assert "exit code 1" in done.stderr
    assert house.proxy.workers == [worker], "nobody has left yet"
    client.send(b"as ever")
    assert backend.read(7) == b"as ever"
    house.proxy.write(house.policy)
    house.pair()


def test_one_that_dies_while_it_takes_over_is_replaced_by_the_old_one(house: House) -> None:
    """Its workers have left by then: they start again, and adopt what theirs was."""
    client, backend = house.pair()
    house.proxy.write(house.policy + "# DIE\n")
    done = house.proxy.upgrade()
    assert done.returncode == 1, done.stdout
    until(lambda: "pairs adopted" in house.proxy.log(), "adopted by the old one", START)
    client.send(b"as ever")
    assert backend.read(7) == b"as ever"
    house.pair()
    client.reset()
    assert backend.ending() == "reset"


def test_another_layout_is_not_guessed_at(house: House) -> None:
    """The new one serves, the old one drains: what it has ends where it began."""
    client, backend = house.pair()
    address = house.proxy.address("raw")
    house.proxy.write(house.policy + "# ODD\n")
    done = house.proxy.upgrade()
    assert done.returncode == 0, done.stderr
    assert "another layout" in done.stdout
    found = re.search(r"process (\d+)", done.stdout)
    assert found
    house.successors.append(int(found[1]))
    assert house.proxy.process.poll() is None
    client.send(b"in the old one")
    assert backend.read(14) == b"in the old one"
    with connect(address) as another:  # the new one's
        another.send(b"hello")
        with house.accept() as served:
            assert served.read(5) == b"hello"
    client.half_close()
    assert backend.rest() == b""
    backend.half_close()
    assert client.rest() == b""
    assert house.proxy.process.wait(START) == 0


def test_what_is_not_spliced_has_a_moment(house: House) -> None:
    """Nothing lingers: a client that has said nothing yet is reset, and told of."""
    client = connect(house.proxy.address("web"))
    client.send(b"GET / HT")
    mine = f"client=127.0.0.1:{client.port}"
    until(lambda: house.proxy.connections(mine), "it is accepted")
    began = time.monotonic()
    done = house.proxy.upgrade()
    assert done.returncode == 0, done.stderr
    assert client.ending() == "reset"
    assert time.monotonic() - began < START
    follow(house, done.stdout)
    assert house.proxy.record(client.port)["reason"] == "upgraded"
    client.close()


def test_metrics_of_the_new_one(house: House) -> None:
    """What it counts begins anew; what the kernel counts goes on, and pairs end where they are."""
    client, backend = house.pair()
    client.send(b"before")
    assert backend.read(6) == b"before"
    moved = ("l7proxy_transferred_bytes_total", "way", "kernel", "direction", "from_client")
    before = Scrape(house.proxy)[moved]
    assert before >= 6
    follow(house, house.proxy.upgrade().stdout)
    client.send(b"after")
    assert backend.read(5) == b"after"
    until(lambda: Scrape(house.proxy)["l7proxy_adoptions_total"] == 1, "it is adopted")
    scrape = Scrape(house.proxy)
    assert scrape[moved] == before + 5
    assert scrape["l7proxy_connections"] == scrape["l7proxy_pairs", "way", "kernel"] == 1
    assert scrape["l7proxy_connections_ended_total"] == 0
    client.half_close()
    assert backend.rest() == b""
    backend.half_close()
    assert client.rest() == b""
    house.proxy.settled()
    ended = Scrape(house.proxy).find("l7proxy_connections_ended_total")
    assert [(one.labels["listener"], one.labels["reason"], one.value) for one in ended] == [
        ("raw", "done", 1)
    ]
