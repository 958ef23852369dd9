"""Backend groups end to end: an endpoint fails, is checked, and comes back."""

from __future__ import annotations

import os
import signal
from collections import Counter

import pytest
from grouped import CHECK, asking, evenly, get, lines, names, policy, running, shown, state, told
from proxy import DATAPATHS, until
from servers import Server

pytestmark = pytest.mark.net

# ---- an endpoint fails, and comes back


def test_an_endpoint_that_dies_is_ejected_and_comes_back(two: tuple[Server, Server]) -> None:
    one, other = two
    more = "    ejection: {failures: 2, base: 1s}\n    slowStart: 1s"
    with running(policy([one.address, other.address], more), workers=2) as proxy:
        assert evenly(names(proxy, 12))
        one.stop()
        until(asking(proxy, lambda: lines(proxy, "endpoint ejected")), "it is ejected")
        assert names(proxy, 6) == {"two": 6}
        one.start()
        until(asking(proxy, lambda: lines(proxy, "endpoint back")), "it is back")
        until(lambda: shown(proxy, one.address)["state"] == "up", "it has its whole share")
        assert evenly(names(proxy, 12))
        told_ejected, *_, told_back = lines(proxy, "endpoint")
        assert told_ejected == (
            f"endpoint ejected backend=app endpoint={one.address} seconds=1"
            ' why="connection refused"'
        )
        assert told_back == f"endpoint back backend=app endpoint={one.address}"


def test_an_ejected_endpoint_gets_nothing(two: tuple[Server, Server]) -> None:
    one, other = two
    more = "    ejection: {failures: 2, base: 60s}"
    with running(policy([one.address, other.address], more), workers=2) as proxy:
        one.stop()
        until(asking(proxy, lambda: lines(proxy, "endpoint ejected")), "it is ejected")
        assert shown(proxy, one.address)["state"] == "ejected"
        one.start()
        assert names(proxy, 6) == {"two": 6}
        told(
            proxy,
            "endpoint",
            f"endpoint ejected backend=app endpoint={one.address} seconds=60"
            ' why="connection refused"',
        )


def test_an_endpoint_that_is_back_starts_slowly(two: tuple[Server, Server]) -> None:
    one, other = two
    more = "    ejection: {failures: 2, base: 100ms}\n    slowStart: 5m"
    with running(policy([one.address, other.address], more), workers=2) as proxy:
        one.stop()
        until(asking(proxy, lambda: lines(proxy, "endpoint ejected")), "it is ejected")
        one.start()
        until(asking(proxy, lambda: lines(proxy, "endpoint back")), "it is back")
        until(asking(proxy, lambda: shown(proxy, one.address)["state"] == "starting"), "slowly")
        slowly = names(proxy, 20)
        assert slowly["one"] < slowly["two"]


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
    more = "    ejection: {failures: 3, base: 60s}"
    with running(policy([one.address, other.address], more), workers=2, datapath=datapath) as proxy:
        one.breaks = True
        statuses = Counter(get(proxy).status for _ in range(30))
        assert statuses == {200: 27, 502: 3}
        told(
            proxy,
            "endpoint",
            f'endpoint ejected backend=app endpoint={one.address} seconds=60 why="no answer"',
        )
        assert shown(proxy, one.address)["failures"] == 3


def test_the_last_endpoint_is_never_ejected(two: tuple[Server, Server]) -> None:
    one, other = two
    more = "    ejection: {failures: 1, base: 60s}"
    with running(policy([one.address, other.address], more)) as proxy:
        one.breaks = other.breaks = True
        assert Counter(get(proxy).status for _ in range(10)) == {502: 10}
        one.breaks = other.breaks = False
        assert get(proxy).status == 200
        proxy.stop()
        assert len(lines(proxy, "endpoint ejected")) == 1


# ---- active checks


def down(server: Server, why: str) -> str:
    """What the log says of it. The line is written last: the workers can know it by then."""
    return f'endpoint down backend=app endpoint={server.address} why="{why}"'


def up(server: Server) -> str:
    return f"endpoint up backend=app endpoint={server.address}"


def test_checks_decide_who_is_used(two: tuple[Server, Server]) -> None:
    one, other = two
    with running(policy([one.address, other.address], CHECK), workers=2) as proxy:
        until(lambda: state(proxy, one) == state(proxy, other) == "up", "both are up")
        assert evenly(names(proxy, 8))
        one.health = 503
        told(proxy, "endpoint", down(one, "status 503"))
        assert state(proxy, one) == "down"
        assert shown(proxy, one.address)["why"] == "status 503"
        assert names(proxy, 8) == {"two": 8}
        other.health = 500
        told(proxy, "endpoint", down(one, "status 503"), down(other, "status 500"))
        answer = get(proxy)
        assert (answer.status, answer.text) == (
            503,
            "503 Service Unavailable: no endpoint of the backend is up\n",
        )
        assert proxy.settled()["errors"]["no_endpoint"] == 1
        one.health = 200
        told(proxy, "endpoint", down(one, "status 503"), down(other, "status 500"), up(one))
        assert state(proxy, one) == "up"
        assert names(proxy, 8) == {"one": 8}


def test_in_a_panic_health_is_ignored(two: tuple[Server, Server]) -> None:
    one, other = two
    one.health = 503
    more = CHECK + "\n    panic: 60"
    begun, over = (
        "panic, health is ignored backend=app healthy=1 endpoints=2",
        "panic over backend=app healthy=2 endpoints=2",
    )
    with running(policy([one.address, other.address], more), workers=2) as proxy:
        told(proxy, "endpoint", down(one, "status 503"))
        assert shown(proxy)["panic"]
        assert evenly(names(proxy, 8))
        told(proxy, "panic", begun)
        one.health = 200
        told(proxy, "endpoint", down(one, "status 503"), up(one))
        assert not shown(proxy)["panic"]
        assert evenly(names(proxy, 8))
        told(proxy, "panic", begun, over)


def test_a_prober_that_is_killed_is_replaced_and_nobody_goes_down(
    two: tuple[Server, Server],
) -> None:
    one, other = two
    one.health = 503
    with running(policy([one.address, other.address], CHECK)) as proxy:
        told(proxy, "endpoint", down(one, "status 503"))
        prober = proxy.workers[0]  # it is started first
        os.kill(prober, signal.SIGKILL)
        until(lambda: len(proxy.workers) == 2 and prober not in proxy.workers, "another one")
        assert names(proxy, 4) == {"two": 4}
        one.health = 200
        told(proxy, "endpoint", down(one, "status 503"), up(one))
        assert state(proxy, one) == "up"  # the new one checks
