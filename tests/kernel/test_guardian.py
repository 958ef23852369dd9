"""Below a guardian, spliced pairs outlive the supervisor as well, and l7proxy is its own successor
wherever it runs, as process 1 of a container too."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from peers import PATIENCE, Peer, connect, digest, stream
from proxy import Proxy, alive, children, descriptors, state_of, supervisor, until

from .test_survival import Crowd, echoing
from .test_worker_death import MIB, House, opened

pytestmark = [pytest.mark.kernel, pytest.mark.net, pytest.mark.slow]

START = 120.0  # seconds that the next supervisor may take; two cores may be busy with other things
POLICY = """\
listeners:
  raw: {{address: 127.0.0.1:0, protocol: TCP}}
  slow: {{address: 127.0.0.1:0, protocol: TCP}}
routes:
  - {{name: raw, listeners: [raw], backendRefs: [{{name: echo}}]}}
  - {{name: slow, listeners: [slow], backendRefs: [{{name: slow}}]}}
backends:
  echo: {{endpoints: ["127.0.0.1:{echo}"]}}
  slow: {{endpoints: ["127.0.0.1:{slow}"]}}
"""
GUARDIAN = ["--guardian"]
UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
# its /proc is private anyway; below a chroot, the root is no mount that can be made so
UNSHARE += ("--propagation", "unchanged")


def guarded(proxy: Proxy, pairs: int) -> None:
    until(lambda: proxy.stats()["kept"].get("guarded") == pairs, f"{pairs} are guarded", START)


def kill(proxy: Proxy) -> int:
    """`kill -9` of the supervisor, until the next one answers; the process id of that."""
    gone = supervisor(proxy)
    admins = proxy.log().count(" admin address=")
    os.kill(gone, signal.SIGKILL)
    until(lambda: proxy.log().count(" admin address=") > admins, "the next one serves", START)
    found = supervisor(proxy)
    assert found != gone
    return found


def stopped(proxy: Proxy, code: int = 0) -> None:
    """In order: the guardian ends as its supervisor does, and nothing is left of either."""
    last = supervisor(proxy)
    proxy.signal(signal.SIGTERM)
    assert proxy.wait(START) == code, proxy.log()
    assert not alive(last)


@pytest.fixture(scope="module")
def shared() -> Iterator[House]:
    with opened(more=GUARDIAN) as made:
        yield made
        stopped(made.proxy)


@pytest.fixture
def house(shared: House) -> Iterator[House]:
    """One that others use, too; each test leaves it empty, with the policy that it had."""
    yield shared
    for peer in shared.peers:
        peer.close()
    shared.peers.clear()
    if shared.proxy.policy() != shared.policy:
        shared.proxy.reload(shared.policy)
    shared.proxy.settled()
    guarded(shared.proxy, 0)
    shared.proxy.check_log()


@pytest.fixture
def own() -> Iterator[House]:
    """One that may end."""
    with opened(more=GUARDIAN) as made:
        yield made
        if made.proxy.process.poll() is None:
            stopped(made.proxy)
        made.proxy.check_log()


def talk(client: Peer, backend: Peer) -> None:
    client.send(b"question")
    assert backend.read(8) == b"question"
    backend.send(b"answer")
    assert client.read(6) == b"answer"


def end(client: Peer, backend: Peer) -> None:
    client.half_close()
    assert backend.rest() == b""
    backend.half_close()
    assert client.rest() == b""


def test_nothing_is_lost_with_the_supervisor() -> None:
    """Three times: talkers in both directions, a pair in overflow, one at rest, and newcomers."""
    size = 24 * MIB
    with (
        echoing() as port,
        socket.create_server(("127.0.0.1", 0)) as server,
        Proxy(
            POLICY.format(echo=port, slow=server.getsockname()[1]), "sockmap", more=GUARDIAN
        ) as proxy,
    ):
        crowd = Crowd(proxy.address("raw"), 20)
        try:
            source = connect(proxy.address("slow"))
            source.send(b"first")
            sink = Peer(server.accept()[0])
            assert sink.read(5) == b"first"
            sink.send(b"yes")
            assert source.read(3) == b"yes"
            idle = connect(proxy.address("slow"))
            idle.send(b"idle")
            idle_backend = Peer(server.accept()[0])
            assert idle_backend.read(4) == b"idle"
            idle_backend.send(b"yes")
            assert idle.read(3) == b"yes"
            guarded(proxy, 22)
            failed: list[BaseException] = []

            def speak() -> None:
                try:
                    for piece in stream(7, size):
                        source.send(piece)
                except OSError as error:
                    failed.append(error)

            speaking = threading.Thread(target=speak)
            source.sock.settimeout(4 * START)
            speaking.start()
            until(lambda: proxy.stats()["overflows"] > 0, "a direction overflows")
            crowd.go_on()
            held = descriptors(proxy.process.pid)
            for round in range(3):
                newcomer = threading.Thread(target=kill, args=[proxy])
                before = supervisor(proxy)
                newcomer.start()
                until(lambda pid=before: not alive(pid), "it is dead")
                with connect(proxy.address("slow")) as client:  # waits in the listener's queue
                    client.sock.settimeout(START)
                    client.send(b"%d" % round)
                    server.settimeout(START)
                    with Peer(server.accept()[0]) as served:
                        assert served.read(1) == b"%d" % round
                newcomer.join()
                crowd.go_on()
                guarded(proxy, 22)
            until(lambda: descriptors(proxy.process.pid) == held, "it holds as much as before")
            kept = {"pairs": 22, "adopted": 22, "guarded": 22}
            until(lambda: proxy.stats()["kept"] == kept, "all are adopted")
            assert sink.digest_of(size) == digest(7, size)
            speaking.join(PATIENCE)
            assert not failed
            stats = proxy.stats()
            assert stats["pairs"]["spliced"] == 22
            assert stats["connections"]["active"] == 22
            assert [one["active"] for one in stats["listeners"].values()] == [20, 2]
            groups = {name: one["connections"] for name, one in stats["backends"].items()}
            assert groups == {"echo": 20, "slow": 2}
            end(source, sink)
            end(idle, idle_backend)
        finally:
            crowd.close()
        proxy.settled()
        until(lambda: proxy.stats()["kept"]["pairs"] == 0, "no duplicate is left")
        guarded(proxy, 0)
        until(lambda: descriptors(proxy.process.pid) == held - 44, "all of theirs are closed")
        assert not crowd.failures
        for peer, count in ((source, 5 + size), (idle, 4)):
            record = proxy.record(peer.port)
            assert (record["reason"], record["bytes_in"]) == ("done", count)
        for peer in (source, sink, idle, idle_backend):
            peer.close()
        until(lambda: len(proxy.records()) >= 22, "all are in the log")
        records = [one for one in proxy.records() if one["listener"] == "raw"]
        assert sorted(one["bytes_in"] for one in records) == sorted(
            one.sent for one in crowd.talkers
        )
        assert len({one["client"] for one in records}) == len(records) == 20
        stopped(proxy)


def test_an_upgrade_below_it_and_a_death_after_that(house: House) -> None:
    """By a signal to the guardian; listeners of another policy are handed on as well."""
    proxy = house.proxy
    client, backend = house.pair()
    guarded(proxy, 1)
    first, address = supervisor(proxy), proxy.address("raw")
    admins = proxy.log().count(" admin address=")
    policy = house.policy.replace("  web:", "  more: {address: 127.0.0.1:0}\n  web:")
    proxy.write(policy.replace("one, web]", "one, web, more]"))
    proxy.signal(signal.SIGUSR2)
    until(lambda: not alive(first), "the old one is gone", START)
    until(lambda: proxy.log().count(" admin address=") > admins, "the new one serves", START)
    second = supervisor(proxy)
    assert f"upgraded pid={second} pairs=1" in proxy.log()
    talk(client, backend)
    more = proxy.address("more")
    guarded(proxy, 1)
    assert kill(proxy) not in (first, second)
    talk(client, backend)
    assert (proxy.address("raw"), proxy.address("more")) == (address, more)
    with connect(more) as another:
        another.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        with house.accept() as served:
            assert served.head().startswith(b"GET / ")
    client.half_close()
    assert backend.rest() == b""
    backend.half_close()
    assert client.rest() == b""
    assert proxy.record(client.port)["bytes_in"] == 5 + 2 * 8


def test_an_upgrade_that_fails_changes_nothing(house: House) -> None:
    """It dies when the old one's workers have left: not the guardian, the old one replaces it."""
    client, backend = house.pair()
    guarded(house.proxy, 1)
    first = supervisor(house.proxy)
    house.proxy.write(house.policy + "# DIE\n")
    assert house.proxy.upgrade().returncode == 1
    house.proxy.write(house.policy)
    assert supervisor(house.proxy) == first
    until(lambda: house.proxy.stats()["kept"]["adopted"] == 1, "adopted by the old one")
    assert kill(house.proxy) != first
    talk(client, backend)
    client.reset()
    assert backend.ending() == "reset"
    house.proxy.settled()


def test_another_layout_drains_beside_the_new_one(own: House) -> None:
    """The old one's pairs are still its own; the new one may die meanwhile and is replaced."""
    client, backend = own.pair()
    guarded(own.proxy, 1)
    first = supervisor(own.proxy)
    own.proxy.write(own.policy + "# ODD\n")
    done = own.proxy.upgrade()
    assert "another layout" in done.stdout, done.stderr
    talk(client, backend)
    (second,) = set(map(int, re.findall(r"process (\d+)", done.stdout)))
    until(lambda: own.proxy.log().count(" ready ") == 2, "the new one serves", START)
    os.kill(second, signal.SIGKILL)
    until(lambda: own.proxy.log().count(" ready ") == 3, "the next one serves", START)
    talk(client, backend)
    assert alive(first)
    end(client, backend)
    until(lambda: not alive(first), "it is gone", START)
    until(lambda: own.proxy.log().count(" admin address=") == 2, "the new one answers", START)
    own.pair()[0].reset()
    own.proxy.settled()


def test_signals_are_passed_on(own: House) -> None:
    proxy = own.proxy
    loaded = proxy.stats()["policy"]["generation"]
    proxy.signal(signal.SIGHUP)
    until(lambda: proxy.stats()["policy"]["generation"] > loaded, "it has reloaded")
    proxy.signal(signal.SIGUSR1)
    until(lambda: "access log opened again" in proxy.log(), "it has a new log")
    client, _backend = own.pair()
    proxy.signal(signal.SIGTERM)
    until(lambda: "draining connections=1" in proxy.log(), "it drains")
    proxy.signal(signal.SIGINT)
    assert client.ending() == "reset"
    assert proxy.wait() == 3


def test_a_reload_takes_a_listener_from_the_guardian_too(house: House) -> None:
    """What is not listened to any more refuses clients, though somebody had a duplicate."""
    gone = house.proxy.address("one")
    house.proxy.reload(
        "\n".join(line for line in house.policy.splitlines() if "  one:" not in line).replace(
            "one, ", ""
        )
    )

    def refuses() -> bool:
        try:
            socket.create_connection(gone, 0.5).close()
        except ConnectionRefusedError:
            return True
        except (TimeoutError, ConnectionResetError):
            pass
        return False

    until(refuses, "it refuses")
    house.proxy.reload(house.policy)  # which has it again
    port = re.findall(r"listening name=one address=[^\s:]+:(\d+)", house.proxy.log())[-1]
    with connect((gone[0], int(port))) as client:
        client.send(b"hello")
        with house.accept() as served:
            assert served.read(5) == b"hello"


def test_one_that_dies_over_and_over_is_given_up(own: House) -> None:
    client, backend = own.pair()
    guarded(own.proxy, 1)
    own.proxy.write(own.policy + "# DIE\n")
    began = time.monotonic()
    os.kill(supervisor(own.proxy), signal.SIGKILL)
    until(lambda: "exit_code=9" in own.proxy.log(), "the next one has died", START)
    os.kill(own.proxy.process.pid, signal.SIGSTOP)
    until(lambda: state_of(own.proxy.process.pid) == "T", "it is stopped")
    if "giving up" not in own.proxy.log():  # else the machine stood still just now
        talk(client, backend)  # as long as there is hope
    os.kill(own.proxy.process.pid, signal.SIGCONT)
    assert own.proxy.process.wait(START) == 5
    assert time.monotonic() - began > 0.3
    assert client.ending() == backend.ending() == "reset"
    log = own.proxy.log()
    assert log.count("supervisor died") == 3
    assert "giving up" in log


def test_told_to_end_while_there_is_no_supervisor(own: House) -> None:
    """Nobody is there to drain: what is spliced is reset, and the exit code says so."""
    client, backend = own.pair()
    guarded(own.proxy, 1)
    pid = supervisor(own.proxy)
    own.proxy.write("listeners: nonsense\n")
    os.kill(pid, signal.SIGKILL)
    until(lambda: "exit_code=1" in own.proxy.log(), "the next one has not come up", START)
    own.proxy.signal(signal.SIGTERM)
    assert own.proxy.process.wait(START) == 3
    assert client.ending() == backend.ending() == "reset"


def test_what_dies_while_it_drains_is_not_replaced(own: House) -> None:
    client, backend = own.pair()
    own.proxy.signal(signal.SIGTERM)
    until(lambda: "draining connections=1" in own.proxy.log(), "it drains")
    os.kill(supervisor(own.proxy), signal.SIGKILL)
    assert own.proxy.process.wait(START) == 128 + signal.SIGKILL
    assert client.ending() == backend.ending() == "reset"


def test_without_its_guardian_a_supervisor_goes_on(own: House) -> None:
    """What was to be let go of by the guardian is free, and nothing waits for it."""
    pairs = [own.pair() for _ in range(3)]
    guarded(own.proxy, 3)
    pid = supervisor(own.proxy)
    os.kill(own.proxy.process.pid, signal.SIGSTOP)  # so that an answer is outstanding
    pairs[0][0].reset()
    until(lambda: own.kept == 2, "one has ended")
    os.kill(own.proxy.process.pid, signal.SIGKILL)
    own.proxy.process.wait(PATIENCE)
    until(lambda: "the guardian has gone" in own.proxy.log(), "it says so")
    assert own.proxy.stats()["kept"] == {"pairs": 2, "adopted": 0, "guarded": None}
    (problem,) = own.proxy.stats()["condition"]["problems"]
    assert "guardian" in problem["what"]
    talk(*pairs[1])
    end(*pairs[1])
    own.pair()
    os.kill(pid, signal.SIGTERM)
    until(lambda: "draining" in own.proxy.log(), "it drains")
    os.kill(pid, signal.SIGTERM)
    until(lambda: not alive(pid), "it ends", START)


def test_a_start_that_fails_is_no_death() -> None:
    proxy = Proxy("listeners: nonsense\n", "sockmap", more=GUARDIAN)
    with pytest.raises(AssertionError, match="exited with 1"), proxy:
        pass
    assert "supervisor died" not in proxy.log()
    shutil.rmtree(proxy.directory)


@pytest.fixture
def container() -> Iterator[House]:
    """l7proxy as process 1 of a PID namespace, with a /proc of its own."""
    house = House(more=GUARDIAN)
    proxy = house.proxy
    with proxy._log.open("wb") as log:
        proxy.process = subprocess.Popen(
            [*UNSHARE, sys.executable, *proxy._entry, *proxy._arguments],
            stderr=log,
        )
    try:
        until(proxy._is_ready, "l7proxy is ready", START)
        yield house
    finally:
        proxy.process.kill()
        proxy.process.wait(PATIENCE)
        house.close()
        shutil.rmtree(proxy.directory, ignore_errors=True)


def test_as_process_1_it_is_upgraded_and_survives(container: House) -> None:
    proxy = container.proxy
    client, backend = container.pair()
    guarded(proxy, 1)
    (guardian,) = children(proxy.process.pid)
    (first,) = children(guardian)
    orphan = subprocess.Popen(
        ["nsenter", "-t", str(guardian), "-p", "-m", "sh", "-c", "sh -c 'sleep 60' & exit"]
    )
    assert orphan.wait(PATIENCE) == 0
    until(lambda: len(children(guardian)) == 2, "process 1 has inherited an orphan")
    (stranger,) = set(children(guardian)) - {first}
    done = proxy.upgrade()
    assert done.returncode == 0, done.stderr
    assert "process 1," not in done.stdout
    until(lambda: not alive(first), "the old one is gone", START)
    talk(client, backend)
    until(lambda: proxy.log().count(" admin address=") == 2, "the new one serves", START)
    guarded(proxy, 1)
    (second,) = set(children(guardian)) - {stranger}
    os.kill(second, signal.SIGKILL)
    until(lambda: proxy.log().count(" admin address=") == 3, "the next one serves", START)
    talk(client, backend)
    assert alive(stranger), "it neither holds anything up nor is harmed"
    os.kill(stranger, signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{stranger}"), "the orphan is reaped")
    end(client, backend)
    assert proxy.record(client.port)["bytes_in"] == 5 + 2 * 8
    os.kill(guardian, signal.SIGTERM)
    assert proxy.process.wait(START) == 0
    proxy.check_log()
