"""Backend groups end to end: who gets a connection, and what happens to who fails.

Two workers wherever it matters that they agree.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import select
import signal
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from peers import Blackhole, connect, refusing_port
from proxy import DATAPATHS, PATIENCE, Proxy, until
from servers import Server

from l7proxy import cookies

pytestmark = pytest.mark.net


def policy(endpoints: list[str], more: str = "", listener: str = "", route: str = "") -> str:
    return f"""\
listeners:
  web: {{address: "127.0.0.1:0"{listener}}}
routes:
  - name: all
    backendRefs: [{{name: app}}]
{route}
backends:
  app:
    endpoints: {json.dumps(endpoints)}
{more}
"""


STREAM = ", protocol: TCP"


@contextlib.contextmanager
def running(policy: str, *, datapath: str = "splice2", **more: Any) -> Iterator[Proxy]:
    """A proxy with this policy, which has to stop well in the end."""
    with Proxy(policy, datapath, **more) as proxy:
        yield proxy
        proxy.stop()


class Answer:
    """What a client got."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.cookie = response.getheader("set-cookie")
        self.text = response.read().decode()


def get(proxy: Proxy, path: str = "/", **headers: str) -> Answer:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection(*proxy.address("web"), timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers)
        return Answer(connection.getresponse())


def names(proxy: Proxy, count: int, **headers: str) -> Counter[str]:
    """Who answered this many requests; all of them have to be answered well."""
    found: Counter[str] = Counter()
    for _ in range(count):
        answer = get(proxy, **headers)
        assert answer.status == 200, answer.text
        found[answer.text] += 1
    return found


def evenly(found: Counter[str]) -> bool:
    """In turns: each of two workers may be one off."""
    return set(found) == {"one", "two"} and abs(found["one"] - found["two"]) <= 2


class Stream:
    """A connection through a TCP listener; `name` is who answered, "" when it was reset."""

    def __init__(self, proxy: Proxy, source: str = "127.0.0.1") -> None:
        self.sock = socket.socket()
        self.sock.settimeout(PATIENCE)
        self.sock.bind((source, 0))
        try:
            self.sock.connect(proxy.address("web"))
            self.name = self.sock.recv(100).decode()
        except ConnectionError:
            self.name = ""

    def close(self) -> None:
        self.sock.close()


def finish(proxy: Proxy, streams: list[Stream]) -> None:
    """A clean end: every count of connections has to come back to nothing."""
    for one in streams:
        one.close()
    proxy.settled()
    group = shown(proxy)
    assert (group["connections"], group["pending"]) == (0, 0)
    assert [one["connections"] for one in group["endpoints"]] == [0] * len(group["endpoints"])


@pytest.fixture
def streams() -> Iterator[list[Stream]]:
    opened: list[Stream] = []
    yield opened
    for one in opened:
        one.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that the workers and the prober can read too: they are another user."""
    with tempfile.TemporaryDirectory(prefix="l7proxy-") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.fixture
def two() -> Iterator[tuple[Server, Server]]:
    with Server("one") as one, Server("two") as two:
        yield one, two


@pytest.fixture
def streaming() -> Iterator[tuple[Server, Server]]:
    with Server("one", stream=True) as one, Server("two", stream=True) as two:
        yield one, two


def shown(proxy: Proxy, address: str | None = None) -> Any:
    """The group in the statistics, or one endpoint of it."""
    group = proxy.stats()["backends"]["app"]
    if address is None:
        return group
    return next(one for one in group["endpoints"] if one["address"] == address)


def lines(proxy: Proxy, begin: str) -> list[str]:
    """Lines of the log that begin so, without time and level."""
    texts = [line[33:] for line in proxy.log().splitlines()]
    return [text for text in texts if text.startswith(begin)]


def asking(proxy: Proxy, true: Callable[[], object]) -> Callable[[], object]:
    """For `until`: connections go on meanwhile."""

    def ask() -> object:
        get(proxy)
        return true()

    return ask


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


CHECK = "    healthCheck: {type: HTTP, path: /health, interval: 100ms, timeout: 5s}"


def state(proxy: Proxy, server: Server) -> str:
    found: str = shown(proxy, server.address)["state"]
    return found


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


# ---- who is next


def test_connections_are_spread_over_two_workers(
    streaming: tuple[Server, Server], streams: list[Stream]
) -> None:
    one, other = streaming
    more = "    balance: least_connections"
    text = policy([one.address, other.address], more, STREAM)
    with running(text, workers=2) as proxy:
        for count in range(1, 21):
            streams.append(Stream(proxy))
            spread = Counter(stream.name for stream in streams)
            assert spread["one"] + spread["two"] == count
            assert abs(spread["one"] - spread["two"]) <= 1
        for stream in streams:
            if stream.name == "one":
                stream.close()
        until(lambda: shown(proxy, one.address)["connections"] == 0, "one has none left")
        more_streams = [Stream(proxy) for _ in range(5)]
        streams += more_streams
        assert [stream.name for stream in more_streams] == ["one"] * 5
        finish(proxy, streams)


def test_weights(two: tuple[Server, Server]) -> None:
    one, other = two
    endpoints = f"[{{address: {one.address}, weight: 3}}, {{address: {other.address}, weight: 1}}]"
    text = policy([], "").replace("endpoints: []", f"endpoints: {endpoints}")
    with running(text) as proxy:
        assert names(proxy, 12) == {"one": 9, "two": 3}


def test_the_same_client_comes_to_the_same_endpoint_in_every_worker(
    streaming: tuple[Server, Server], streams: list[Stream]
) -> None:
    one, other = streaming
    text = policy([one.address, other.address], "    balance: {hash: client}", STREAM)
    chosen: dict[str, set[str]] = {}
    for workers in (2, 1):  # and after a restart
        with running(text, workers=workers) as proxy:
            for source in [f"127.0.0.{n}" for n in range(1, 9)]:
                for _ in range(5):
                    stream = Stream(proxy, source)
                    chosen.setdefault(source, set()).add(stream.name)
                    stream.close()
    assert all(len(found) == 1 for found in chosen.values())
    assert set().union(*chosen.values()) == {"one", "two"}


@pytest.mark.parametrize("on", ["{header: x-user}", "{cookie: x-user}", "path"])
def test_hash_on_what_is_asked(two: tuple[Server, Server], on: str) -> None:
    one, other = two
    text = policy([one.address, other.address], f"    balance: {{hash: {on}}}")
    with running(text, workers=2) as proxy:
        found = {}
        for user in [f"u{n}" for n in range(8)]:
            headers = {"x-user": user, "cookie": f"a=b; x-user={user}"}
            answers = {get(proxy, f"/{user}", **headers).text for _ in range(5)}
            assert len(answers) == 1
            found[user] = answers.pop()
        assert set(found.values()) == {"one", "two"}


def test_a_sticky_cookie_leads_back(two: tuple[Server, Server]) -> None:
    one, other = two
    endpoints = f"[{{address: {one.address}, weight: 0}}, {other.address}]"
    text = policy([], "    sticky: {cookie: at}").replace(
        "endpoints: []", f"endpoints: {endpoints}"
    )
    with running(text, workers=2) as proxy:
        token = cookies.token("app", one.address).decode()
        # weight 0: nothing new comes there, but who has its cookie does
        assert names(proxy, 8) == {"two": 8}
        assert names(proxy, 8, cookie=f"x=y; at={token}") == {"one": 8}
        assert names(proxy, 4, cookie="at=nobody") == {"two": 4}
        one.stop()
        assert names(proxy, 4, cookie=f"at={token}") == {"two": 4}


def test_a_cookie_is_given_and_leads_back(two: tuple[Server, Server]) -> None:
    one, other = two
    more = "    sticky: {cookie: at, ttl: 1h, secure: true}"
    with running(policy([one.address, other.address], more), workers=2) as proxy:
        for _ in range(4):
            first = get(proxy)
            assert first.cookie is not None
            pair, *attributes = first.cookie.split("; ")
            assert attributes == ["Path=/", "Max-Age=3600", "HttpOnly", "SameSite=Lax", "Secure"]
            for _ in range(4):
                again = get(proxy, cookie=pair)
                assert (again.text, again.cookie) == (first.text, None)
        one.stop()
        pair = "at=" + cookies.token("app", one.address).decode()
        moved = get(proxy, cookie=pair)
        assert (moved.status, moved.text) == (200, "two")
        assert moved.cookie is not None
        assert moved.cookie.startswith("at=" + cookies.token("app", other.address).decode())
        assert one.address not in moved.cookie


# ---- how much


def test_a_group_takes_so_many_connections_over_two_workers(
    streaming: tuple[Server, Server], streams: list[Stream]
) -> None:
    one, other = streaming
    more = "    circuit: {connections: 6}"
    with running(policy([one.address, other.address], more, STREAM), workers=2) as proxy:
        streams += [Stream(proxy) for _ in range(12)]
        taken = [stream for stream in streams if stream.name]
        assert len(taken) == 6
        until(lambda: proxy.stats()["errors"]["circuit_open"] == 6, "the others are counted")
        assert shown(proxy)["circuit_open"] == 6
        taken[0].close()
        until(lambda: shown(proxy)["connections"] == 5, "there is room for one")
        streams += [Stream(proxy) for _ in range(3)]
        assert len([stream for stream in streams[12:] if stream.name]) == 1
        finish(proxy, streams)


def test_many_at_once_do_not_overrun_the_circuit(
    streaming: tuple[Server, Server], streams: list[Stream]
) -> None:
    one, other = streaming
    more = "    circuit: {connections: 5}"
    with running(policy([one.address, other.address], more, STREAM), workers=2) as proxy:
        threads = [
            threading.Thread(target=lambda: streams.append(Stream(proxy))) for _ in range(40)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(streams) == 40
        assert len([stream for stream in streams if stream.name]) == 5
        finish(proxy, streams)


def test_a_full_endpoint_is_passed_over(
    streaming: tuple[Server, Server], streams: list[Stream]
) -> None:
    one, other = streaming
    more = "    circuit: {endpointConnections: 2}"
    with running(policy([one.address, other.address], more, STREAM), workers=2) as proxy:
        streams += [Stream(proxy) for _ in range(6)]
        assert Counter(stream.name for stream in streams) == {"one": 2, "two": 2, "": 2}
        finish(proxy, streams)


def test_so_many_dials_may_be_pending() -> None:
    with Blackhole() as hole:
        more = "    circuit: {pending: 1}"
        with running(policy([f"127.0.0.1:{hole.port}"], more), workers=2) as proxy:
            with connect(proxy.address("web")) as waiting:
                waiting.send(b"GET / HTTP/1.1\r\nHost: app\r\n\r\n")
                until(lambda: shown(proxy)["pending"] == 1, "a dial is pending")
                answer = get(proxy)
                assert answer.status == 503
                assert "all the connections that it takes" in answer.text
                waiting.reset()
            until(lambda: shown(proxy)["pending"] == 0, "the client has gone")


def test_a_killed_worker_leaves_no_connection_behind(
    streaming: tuple[Server, Server], streams: list[Stream]
) -> None:
    one, other = streaming
    more = "    circuit: {connections: 2}"
    with running(policy([one.address, other.address], more, STREAM)) as proxy:
        streams += [Stream(proxy) for _ in range(3)]
        assert [bool(stream.name) for stream in streams] == [True, True, False]
        os.kill(proxy.workers[0], signal.SIGKILL)
        until(lambda: proxy.stats()["workers"]["restarts"] == 1, "another worker")
        streams += [Stream(proxy) for _ in range(2)]
        assert all(stream.name for stream in streams[3:])
        finish(proxy, streams)


def test_so_many_endpoints_are_tried(two: tuple[Server, Server]) -> None:
    dead = [f"127.0.0.1:{refusing_port()}" for _ in range(3)]
    more = "    retries: {attempts: 2}\n    ejection: {failures: 0}"
    with running(policy([*dead, two[0].address], more)) as proxy:
        # by turns: all three dead ones; the last two of them; the last one; the good one
        assert [get(proxy).status for _ in range(4)] == [503, 200, 200, 200]
        assert shown(proxy)["retries"] == 2 + 2 + 1


def test_retries_have_a_budget(two: tuple[Server, Server]) -> None:
    dead = f"127.0.0.1:{refusing_port()}"
    more = "    retries: {budget: 0}\n    ejection: {failures: 0}"
    with running(policy([dead, two[0].address], more)) as proxy:
        statuses = Counter(get(proxy).status for _ in range(30))
        assert statuses == {200: 15 + 10, 503: 5}  # every second one has to be retried


# ---- another policy


def test_what_is_known_of_endpoints_outlives_a_reload(
    streaming: tuple[Server, Server], streams: list[Stream]
) -> None:
    one, other = streaming
    dead = f"127.0.0.1:{refusing_port()}"
    more = "    ejection: {failures: 1, base: 60s}\n    circuit: {connections: 3}"
    text = policy([one.address, dead], more, STREAM)
    with running(text, workers=2) as proxy:
        streams += [Stream(proxy) for _ in range(2)]
        until(lambda: shown(proxy, dead)["state"] == "ejected", "it is ejected")
        new = policy([one.address, dead, other.address], more, STREAM)
        proxy.reload(new)
        assert shown(proxy, dead)["state"] == "ejected"
        assert shown(proxy)["connections"] == 2
        streams += [Stream(proxy) for _ in range(2)]
        assert [bool(stream.name) for stream in streams] == [True, True, True, False]
        assert len(lines(proxy, "endpoint ejected")) == 1
        finish(proxy, streams)


def test_a_reload_brings_a_name_and_nobody_waits_for_it(zone: Zone) -> None:
    with Server("one") as one, Server("two") as two:
        zone.set({"two.test": ["127.0.0.1"]})
        with running(policy([one.address]), workers=2, entry=zone.entry) as proxy:
            assert names(proxy, 2) == {"one": 2}
            proxy.reload(policy([f"two.test:{two.port}"]))
            assert names(proxy, 6) == {"two": 6}
            proxy.reload(policy([one.address]))
            assert names(proxy, 2) == {"one": 2}
            until(lambda: len(proxy.workers) == 2, "nothing is left to be probed")


def test_a_reload_brings_checks(two: tuple[Server, Server]) -> None:
    one, other = two
    one.health = 503
    endpoints = [one.address, other.address]
    with running(policy(endpoints), workers=2) as proxy:
        assert evenly(names(proxy, 8))
        proxy.reload(policy(endpoints, CHECK))
        until(lambda: state(proxy, one) == "down", "it is down")
        assert names(proxy, 4) == {"two": 4}
        proxy.reload(policy(endpoints))
        assert state(proxy, one) == "up"
        assert evenly(names(proxy, 8))


# ---- unix sockets


@pytest.mark.parametrize("datapath", DATAPATHS)
@pytest.mark.parametrize("path", ["{}/sock", "@l7proxy-test-{}"])
def test_a_unix_endpoint(folder: Path, datapath: str, path: str) -> None:
    name = path.format(folder)
    with Server("unix", "\0" + name[1:] if name.startswith("@") else name) as server:
        if not name.startswith("@"):
            Path(name).chmod(0o777)
        with Proxy(policy([f"unix:{name}"]), datapath) as proxy:
            assert names(proxy, 3) == {"unix": 3}
            assert server.hits == 3
            proxy.stop()
            assert {record["endpoint"] for record in proxy.records()} == {f"unix:{name}"}


def test_a_full_unix_endpoint_is_waited_for(tmp_path: Path) -> None:
    name = f"@l7proxy-full-{tmp_path}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + name[1:])
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect("\0" + name[1:])
            with (
                running(policy([f"unix:{name}"])) as proxy,
                socket.create_connection(proxy.address("web"), PATIENCE) as client,
            ):
                client.sendall(b"GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n")
                until(lambda: shown(proxy)["pending"] == 1, "it is being dialled")
                listener.accept()[0].close()
                served, _ = listener.accept()
                with served:
                    assert served.recv(4096).startswith(b"GET / ")
                    served.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
                assert client.recv(4096).startswith(b"HTTP/1.1 204")


# ---- names


class Zone:
    """What names resolve to, for a proxy that is started with `entry`."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "names.json"
        self.entry = ("-m", "tests.resolving", str(self._file))
        self.set({})

    def set(self, names: dict[str, list[str]]) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(names))
        new.chmod(0o644)
        new.rename(self._file)


@pytest.fixture
def zone(folder: Path) -> Zone:
    return Zone(folder)


NAMED = "    resolve: {interval: 1s}"


def test_connections_follow_a_name(zone: Zone, streams: list[Stream]) -> None:
    with (
        Server("one", stream=True) as one,
        Server("two", ("127.0.0.2", one.port), stream=True),
    ):
        zone.set({"app.test": ["127.0.0.1"]})
        text = policy([f"app.test:{one.port}"], NAMED, STREAM)
        with running(text, workers=2, entry=zone.entry) as proxy:
            # the first answer was there before the first connection
            streams += [Stream(proxy) for _ in range(4)]
            assert [stream.name for stream in streams] == ["one"] * 4
            zone.set({"app.test": ["127.0.0.2"]})
            until(lambda: shown(proxy)["endpoints"][0]["address"] == f"127.0.0.2:{one.port}", "new")
            until(lambda: _name(proxy) == "two", "the workers know it")
            for stream in streams:  # connections that are open stay where they are
                stream.sock.sendall(b"still here")
                assert select.select([stream.sock], [], [], 0.05)[0] == []
            zone.set({})  # there is no such name: what is known stays
            until(lambda: lines(proxy, "name not resolved"), "it is told")
            assert [_name(proxy) for _ in range(4)] == ["two"] * 4
            assert len(lines(proxy, "name not resolved")) == 1
            finish(proxy, streams)


def _name(proxy: Proxy) -> str:
    stream = Stream(proxy)
    stream.close()
    return stream.name


def test_all_addresses_of_a_name_are_used(zone: Zone) -> None:
    with Server("one") as one, Server("two", ("127.0.0.2", one.port)):
        zone.set({"app.test": ["127.0.0.2", "127.0.0.1"]})
        text = policy([f"app.test:{one.port}"], NAMED)
        with running(text, workers=2, entry=zone.entry) as proxy:
            found = names(proxy, 20)
            assert abs(found["one"] - found["two"]) <= 2


def test_a_name_that_was_never_resolved(zone: Zone) -> None:
    with Server("one") as one:
        text = policy([f"app.test:{one.port}"], NAMED)
        with running(text, entry=zone.entry) as proxy:
            answer = get(proxy)
            assert answer.status == 503
            assert "the names of the backend's endpoints have not been resolved" in answer.text
            assert proxy.settled()["errors"]["unresolved"] == 1
            assert shown(proxy)["unresolved"] == ["app.test"]
            zone.set({"app.test": ["127.0.0.1"]})
            until(lambda: get(proxy).status == 200, "it is resolved")
            assert len(lines(proxy, "name resolved again")) == 1


def test_localhost_by_the_system() -> None:
    with Server("one") as one, running(policy([f"localhost:{one.port}"])) as proxy:
        # ::1 may be there too, and refuses
        assert names(proxy, 4) == {"one": 4}


@pytest.mark.parametrize("refused", [False, True], ids=["black hole", "refused"])
def test_a_family_that_leads_nowhere_holds_nobody_up(zone: Zone, refused: bool) -> None:
    """The dial timeout is longer than anybody waits: only the other family can have answered."""
    with Server("four") as four, contextlib.ExitStack() as stack:
        if not refused:
            try:
                stack.enter_context(Blackhole("::1", four.port))
            except OSError as error:
                pytest.skip(f"no IPv6 on loopback: {error}")
        zone.set({"app.test": ["::1", "127.0.0.1"]})
        text = policy(
            [f"app.test:{four.port}"],
            NAMED + "\n    retries: {attempts: 0}\n    ejection: {failures: 2}",
            ", timeouts: {dial: 60s}",
        )
        with running(text, entry=zone.entry) as proxy:
            assert names(proxy, 6) == {"four": 6}
            six = shown(proxy, f"[::1]:{four.port}")
            if refused:
                assert six["state"] == "ejected"
            else:  # it lost the race: nobody knows what it would have done
                assert (six["state"], six["failures"]) == ("up", 0)
            assert shown(proxy)["retries"] == 0
            assert (six["connections"], shown(proxy)["connections"]) == (0, 0)


def test_the_log_tells_of_names_and_endpoints_in_single_lines(zone: Zone) -> None:
    with running(policy(["app.test:1"], NAMED), entry=zone.entry) as proxy:
        until(lambda: lines(proxy, "name not resolved"), "it is told")
        assert re.fullmatch(
            r'name not resolved name=app\.test why="Name or service not known" addresses_kept=0',
            lines(proxy, "name not resolved")[0],
        )
