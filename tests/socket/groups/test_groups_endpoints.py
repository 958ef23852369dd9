"""Backend groups end to end: endpoints that come and go by policy or by name, and unix sockets."""

from __future__ import annotations

import contextlib
import re
import select
import socket
from pathlib import Path

import pytest
from grouped import (
    CHECK,
    NAMED,
    STREAM,
    Stream,
    Zone,
    evenly,
    finish,
    get,
    lines,
    names,
    policy,
    running,
    shown,
    state,
)
from peers import Blackhole, refusing_port
from proxy import DATAPATHS, PATIENCE, Proxy, until
from servers import Server

pytestmark = pytest.mark.net

PATIENT = ", timeouts: {dial: 60s}"

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
        finish(proxy, streams)
        proxy.stop()
        assert len(lines(proxy, "endpoint ejected")) == 1


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
        until(lambda: lines(proxy, "endpoint down"), "it is down, and the workers can know")
        assert state(proxy, one) == "down"
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
                running(policy([f"unix:{name}"], listener=PATIENT)) as proxy,
                socket.create_connection(proxy.address("web"), PATIENCE) as client,
            ):
                client.sendall(b"GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n")
                until(lambda: shown(proxy)["pending"] == 1, "it is being dialled")
                listener.settimeout(PATIENCE)
                listener.accept()[0].close()
                served, _ = listener.accept()
                with served:
                    assert served.recv(4096).startswith(b"GET / ")
                    served.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
                assert client.recv(4096).startswith(b"HTTP/1.1 204")


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
            until(lambda: _name(proxy) == "two", "a worker knows it")
            proxy.connections()  # each has answered, and so has heard what it was told before that
            for stream in streams:  # connections that are open stay where they are
                stream.sock.sendall(b"still here")
                assert select.select([stream.sock], [], [], 0.05)[0] == []
            zone.set({})  # there is no such name: what is known stays
            until(lambda: lines(proxy, "name not resolved"), "it is told")
            assert [_name(proxy) for _ in range(4)] == ["two"] * 4
            finish(proxy, streams)
            proxy.stop()
            assert len(lines(proxy, "name not resolved")) == 1


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
            PATIENT,
        )
        with running(text, entry=zone.entry) as proxy:
            assert names(proxy, 6) == {"four": 6}
            six = shown(proxy, f"[::1]:{four.port}")
            if refused:
                assert six["state"] == "ejected"
            else:  # it lost the race: nobody knows what it would have done
                assert (six["state"], six["failures"]) == ("up", 0)
            assert shown(proxy)["retries"] == 0
            proxy.settled()
            six = shown(proxy, f"[::1]:{four.port}")
            assert (six["connections"], shown(proxy)["connections"]) == (0, 0)


def test_the_log_tells_of_names_and_endpoints_in_single_lines(zone: Zone) -> None:
    with running(policy(["app.test:1"], NAMED), entry=zone.entry) as proxy:
        until(lambda: lines(proxy, "name not resolved"), "it is told")
        assert re.fullmatch(
            r'name not resolved name=app\.test why="Name or service not known" addresses_kept=0',
            lines(proxy, "name not resolved")[0],
        )
