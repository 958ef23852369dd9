"""Backend groups end to end: who is next, and how much a group and an endpoint take.

Two workers wherever it matters that they agree.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter

import pytest
from grouped import STREAM, Stream, finish, get, names, policy, running, shown
from peers import Blackhole, connect, refusing_port
from proxy import PATIENCE, until
from servers import Server

from l7proxy import cookies

pytestmark = pytest.mark.net

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
        more, patient = "    circuit: {pending: 1}", ", timeouts: {dial: 60s}"
        with running(policy([f"127.0.0.1:{hole.port}"], more, patient), workers=2) as proxy:
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
