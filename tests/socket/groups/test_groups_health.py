"""Backend groups end to end: an endpoint fails, is checked, and comes back."""

from __future__ import annotations

import os
import signal
from collections import Counter

import pytest
from grouped import CHECK, asking, evenly, get, lines, names, policy, running, shown, state
from proxy import DATAPATHS, until
from servers import Server

pytestmark = pytest.mark.net

# ---- an endpoint fails, and comes back


def test_an_endpoint_that_dies_is_ejected_and_comes_back_slowly(two: tuple[Server, Server]) -> None:
    one, other = two
    more = "    ejection: {failures: 2, base: 1s}\n    slowStart: 2s"
    with running(policy([one.address, other.address], more), workers=2) as proxy:
        assert evenly(names(proxy, 12))
        one.stop()
        until(asking(proxy, lambda: lines(proxy, "endpoint ejected")), "it is ejected")
        assert shown(proxy, one.address)["state"] == "ejected"
        assert names(proxy, 6) == {"two": 6}
        one.start()
        until(asking(proxy, lambda: lines(proxy, "endpoint back")), "it is back")
        assert shown(proxy, one.address)["state"] == "starting"
        slowly = names(proxy, 20)
        assert slowly["one"] < slowly["two"]
        until(lambda: shown(proxy, one.address)["state"] == "up", "it has its whole share")
        assert evenly(names(proxy, 12))
        assert lines(proxy, "endpoint") == [
            f"endpoint ejected backend=app endpoint={one.address} seconds=1"
            ' why="connection refused"',
            f"endpoint back backend=app endpoint={one.address}",
        ]


def test_no_client_sees_an_endpoint_die(two: tuple[Server, Server]) -> None:
    """Connections that are refused go to the other one, before and after the ejection."""
    one, other = two
    with running(policy([one.address, other.address]), workers=2) as proxy:
        one.stop()
        assert names(proxy, 40) == {"two": 40}
        assert shown(proxy)["retries"] > 0


@pytest.mark.parametrize("datapath", DATAPATHS)
def test_an_endpoint_that_breaks_connections_is_ejected(
    two: tuple[Server, Server], datapath: str
) -> None:
    one, other = two
    more = "    ejection: {failures: 3, base: 30s}"
    with running(policy([one.address, other.address], more), workers=2, datapath=datapath) as proxy:
        one.breaks = True
        statuses = Counter(get(proxy).status for _ in range(30))
        assert statuses == {200: 27, 502: 3}
        assert lines(proxy, "endpoint") == [
            f'endpoint ejected backend=app endpoint={one.address} seconds=30 why="no answer"'
        ]
        assert shown(proxy, one.address)["failures"] == 3


def test_the_last_endpoint_is_never_ejected(two: tuple[Server, Server]) -> None:
    one, other = two
    more = "    ejection: {failures: 1, base: 30s}"
    with running(policy([one.address, other.address], more)) as proxy:
        one.breaks = other.breaks = True
        assert Counter(get(proxy).status for _ in range(10)) == {502: 10}
        one.breaks = other.breaks = False
        assert get(proxy).status == 200
        assert len(lines(proxy, "endpoint ejected")) == 1


# ---- active checks


def test_checks_decide_who_is_used(two: tuple[Server, Server]) -> None:
    one, other = two
    with running(policy([one.address, other.address], CHECK), workers=2) as proxy:
        until(lambda: state(proxy, one) == state(proxy, other) == "up", "both are up")
        assert evenly(names(proxy, 8))
        one.health = 503
        until(lambda: state(proxy, one) == "down", "it is down")
        assert shown(proxy, one.address)["why"] == "status 503"
        assert names(proxy, 8) == {"two": 8}
        other.health = 500
        until(lambda: state(proxy, other) == "down", "both are down")
        answer = get(proxy)
        assert (answer.status, answer.text) == (
            503,
            "503 Service Unavailable: no endpoint of the backend is up\n",
        )
        assert proxy.settled()["errors"]["no_endpoint"] == 1
        one.health = 200
        until(lambda: state(proxy, one) == "up", "it is up again")
        assert names(proxy, 8) == {"one": 8}
        assert lines(proxy, "endpoint") == [
            f'endpoint down backend=app endpoint={one.address} why="status 503"',
            f'endpoint down backend=app endpoint={other.address} why="status 500"',
            f"endpoint up backend=app endpoint={one.address}",
        ]


def test_in_a_panic_health_is_ignored(two: tuple[Server, Server]) -> None:
    one, other = two
    one.health = 503
    more = CHECK + "\n    panic: 60"
    with running(policy([one.address, other.address], more), workers=2) as proxy:
        until(lambda: state(proxy, one) == "down", "one of two is down")
        assert shown(proxy)["panic"]
        assert evenly(names(proxy, 8))
        one.health = 200
        until(lambda: state(proxy, one) == "up", "it is up again")
        assert not shown(proxy)["panic"]
        assert evenly(names(proxy, 8))
        assert lines(proxy, "panic") == [
            "panic, health is ignored backend=app healthy=1 endpoints=2",
            "panic over backend=app healthy=2 endpoints=2",
        ]


def test_a_prober_that_is_killed_is_replaced_and_nobody_goes_down(
    two: tuple[Server, Server],
) -> None:
    one, other = two
    one.health = 503
    with running(policy([one.address, other.address], CHECK)) as proxy:
        until(lambda: state(proxy, one) == "down", "it is down")
        prober = proxy.workers[0]  # it is started first
        os.kill(prober, signal.SIGKILL)
        until(lambda: len(proxy.workers) == 2 and prober not in proxy.workers, "another one")
        assert names(proxy, 4) == {"two": 4}
        one.health = 200
        until(lambda: state(proxy, one) == "up", "the new one checks")
        assert lines(proxy, "endpoint") == [
            f'endpoint down backend=app endpoint={one.address} why="status 503"',
            f"endpoint up backend=app endpoint={one.address}",
        ]
