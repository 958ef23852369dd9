"""Another policy while connections come, live and go: nobody notices."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from answering import Answering, Crowd, ask
from peers import PATIENCE, BackendProcess, connect, free_port
from proxy import DATAPATHS, Proxy, resident, until

pytestmark = pytest.mark.net


@pytest.fixture(scope="module")
def blue() -> Iterator[Answering]:
    backend = Answering("blue")
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def green() -> Iterator[Answering]:
    backend = Answering("green")
    yield backend
    backend.close()


def policy(backend: Answering, *more: str, limits: str = "{}", name: str = "web") -> str:
    lines = "\n".join(f"  {line}" for line in more)
    return f"""\
listeners:
  {name}: {{address: 127.0.0.1:0, limits: {limits}}}
{lines}
routes:
  - {{name: all, backendRefs: [{{name: app}}]}}
backends:
  app: {{endpoints: ["127.0.0.1:{backend.port}"]}}
"""


def refused(address: tuple[str, int] | str) -> bool:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(0.3)  # who lets nobody in any more does not answer
        return client.connect_ex(address) != 0


def bound(proxy: Proxy, name: str) -> tuple[str, int]:
    """Where a listener listens by now."""
    host, _, port = proxy.stats()["listeners"][name]["address"].rpartition(":")
    return host.strip("[]").replace("*", "127.0.0.1"), int(port)


def with_reloads(**settings: float) -> tuple[str, str]:
    """What Python is to run: l7proxy with these settings of its module `reload`."""
    text = "import sys; from l7proxy import cli; from l7proxy.supervisor import reload; "
    text += "".join(f"reload.{name} = {value}; " for name, value in settings.items())
    return "-c", text + "sys.exit(cli.main())"


HASTY = with_reloads(PREPARE_SECONDS=5.0)  # more than a machine that stands still takes away
# Where no handshake is under way as a listener goes, a reload need not wait so long for the next.
BRISK = with_reloads(GRACE=0.1)


# ---- nothing fails


def test_ten_thousand_requests_during_a_hundred_reloads(blue: Answering, green: Answering) -> None:
    with Proxy(policy(blue), "copy", workers=2) as proxy:
        address = proxy.address("web")
        crowd = Crowd(lambda: ask(address))
        try:
            for number in range(100):
                other = (blue, green)[number % 2]
                limit = 9_000 + number
                proxy.reload(policy(other, limits=f"{{connections: {limit}}}"))
                wanted = 100 * (number + 1)
                until(lambda: crowd.reached(wanted), "requests go on", 120)  # noqa: B023
        finally:
            crowd.stop()
        assert crowd.failed == []
        assert len(crowd.answers) >= 10_000
        assert {body for _, body in crowd.answers} == {"blue", "green"}
        stats = proxy.settled()
        assert stats["policy"]["generation"] == 101
        assert stats["policy"]["reloads"] == {"ok": 100, "failed": 0}
        assert stats["workers"]["restarts"] == 0
        assert stats["connections"]["accepted"] == len(crowd.answers)
        proxy.stop()


@pytest.mark.parametrize("datapath", DATAPATHS)
def test_a_transfer_goes_on_through_reloads(datapath: str, blue: Answering) -> None:
    """The connection belongs to a listener, a route and a backend that are long gone."""
    with BackendProcess("echo") as backend:
        before = f"""\
listeners:
  raw: {{address: 127.0.0.1:0, protocol: TCP}}
routes:
  - {{name: raw, backendRefs: [{{name: old}}]}}
backends:
  old: {{endpoints: ["127.0.0.1:{backend.port}"]}}
"""
        with (
            Proxy(before, datapath, workers=2, entry=BRISK) as proxy,
            connect(proxy.address("raw")) as client,
        ):
            sent, seen = hashlib.sha256(b"hello"), hashlib.sha256()
            seen.update(client.send(b"hello").read(5))  # the kernel has it from here on
            for number in range(20):
                data = os.urandom(1 << 20)
                sent.update(data)
                reader = threading.Thread(target=lambda: seen.update(client.read(1 << 20)))
                reader.start()
                client.send(data[: 1 << 19])
                proxy.reload(policy(blue, name=f"web{min(number, 3)}"))
                client.send(data[1 << 19 :])
                reader.join(PATIENCE)
            assert sent.digest() == seen.digest()
            stats = proxy.stats()
            assert stats["policy"]["generation"] == 21
            assert stats["pairs"]["active"] == 1
            assert stats["pairs"]["spliced"] == (datapath == "sockmap")
            client.half_close()
            assert client.ending() == "end"
            proxy.settled()
            proxy.stop()


# ---- listeners


def test_listeners_come_and_go(blue: Answering, green: Answering) -> None:
    port = free_port()
    with Proxy(policy(blue), "copy", workers=2, entry=with_reloads(GRACE=60.0)) as proxy:
        web = proxy.address("web")
        proxy.reload(policy(green, f"more: {{address: 127.0.0.1:{port}}}"))
        assert (ask(web), ask(("127.0.0.1", port))) == ("green", "green")
        assert re.search(rf"listening name=more address=127.0.0.1:{port} ", proxy.log())
        with connect(("127.0.0.1", port)) as live:
            live.send(b"GET / HT")
            until(lambda: proxy.stats()["listeners"]["more"]["active"] == 1, "it is accepted")
            proxy.reload(policy(blue))
            assert ask(web) == "blue"
            until(lambda: refused(("127.0.0.1", port)), "it is closed")
            live.send(b"TP/1.1\r\nHost: a.test\r\n\r\n")
            assert live.rest().endswith(b"green"), "what it has accepted is served"
        assert set(proxy.stats()["listeners"]) == {"web"}
        assert "listeners=+1-0" in proxy.log()
        assert "listeners=+0-1" in proxy.log()
        proxy.settled()
        proxy.stop()


def test_a_listener_under_another_name_keeps_its_socket(blue: Answering, green: Answering) -> None:
    port = free_port()
    old = f"a: {{address: 127.0.0.1:{port}}}"
    new = f"b: {{address: 127.0.0.1:{port}}}"
    with Proxy(policy(blue, old), "copy", workers=2) as proxy:
        with connect(("127.0.0.1", port)) as live:
            live.send(b"GET / HT")
            until(lambda: proxy.stats()["listeners"]["a"]["active"] == 1, "it is accepted")
            proxy.reload(policy(green, new))
            assert "listeners=+0-0" in proxy.log()
            assert ask(("127.0.0.1", port)) == "green"
            live.send(b"TP/1.1\r\nHost: a.test\r\n\r\n")
            assert live.rest().endswith(b"green"), "its head came when the new policy was in force"
        until(lambda: len(proxy.records()) == 2, "two records")
        assert {record["listener"] for record in proxy.records()} == {"a", "b"}
        proxy.settled()
        proxy.stop()


def test_who_connects_to_a_listener_that_goes_is_served(blue: Answering) -> None:
    """As it goes, either a connection is not made, or it is served whole; no reset in between."""
    with Proxy(policy(blue), "copy", workers=2) as proxy:
        port = free_port()
        more = f"more: {{address: 127.0.0.1:{port}}}"
        served, broken = [0], []
        stop = threading.Event()

        def hammer() -> None:
            while not stop.is_set():
                with socket.socket() as client:
                    client.settimeout(0.5)
                    if client.connect_ex(("127.0.0.1", port)):
                        continue
                    client.settimeout(PATIENCE)
                    try:
                        client.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
                        seen = b""
                        while data := client.recv(4096):
                            seen += data
                    except OSError as error:
                        broken.append(repr(error))
                        continue
                    if seen.endswith(b"blue"):
                        served[0] += 1
                    else:
                        broken.append(repr(seen))

        threads = [threading.Thread(target=hammer) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(5):
                proxy.reload(policy(blue, more))
                before = served[0]
                until(lambda: served[0] > before + 20, "it serves", 60)  # noqa: B023
                proxy.reload(policy(blue))
        finally:
            stop.set()
            for thread in threads:
                thread.join(2 * PATIENCE)
        assert broken == []
        proxy.settled()
        proxy.stop()


def test_an_address_is_widened_and_narrowed(blue: Answering, green: Answering) -> None:
    """`*:80` cannot be bound while `127.0.0.1:80` is there, unless it is our own."""
    port = free_port()
    narrow, wide = f'm: {{address: "127.0.0.1:{port}"}}', f'm: {{address: "*:{port}"}}'
    with Proxy(policy(blue, narrow), "copy", workers=2, entry=BRISK) as proxy:
        for more, backend in ((wide, green), (narrow, blue), (wide, green)):
            proxy.reload(policy(backend, more))
            body = backend is green
            until(
                lambda: ask(("127.0.0.1", port)) == ("green" if body else "blue"),  # noqa: B023
                "the new one answers",
            )
        assert proxy.stats()["listeners"]["m"]["address"] == f"*:{port}"
        proxy.settled()
        proxy.stop()


def test_all_listeners_or_none(blue: Answering, green: Answering) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port, free = taken.getsockname()[1], free_port()
        with Proxy(policy(blue), "copy", workers=2) as proxy:
            outcome = proxy.reload(
                policy(
                    green,
                    f"good: {{address: 127.0.0.1:{free}}}",
                    f"bad: {{address: 127.0.0.1:{port}}}",
                ),
                ok=False,
            )
            assert f"listener bad: cannot listen on 127.0.0.1:{port}: another" in outcome["text"]
            assert refused(("127.0.0.1", free))
            assert ask(proxy.address("web")) == "blue"
            assert set(proxy.stats()["listeners"]) == {"web"}
            assert "listener bad: cannot listen" in proxy.stats()["policy"]["last_error"]["text"]
            proxy.stop()


def test_unix_listeners_come_change_and_go(
    blue: Answering, green: Answering, tmp_path: Path
) -> None:
    path, name = tmp_path / "web.sock", f"@l7proxy-test-{os.getpid()}"

    def text(mode: str) -> str:
        return f'u: {{address: "unix:{path}", mode: "{mode}"}}'

    abstract = f'x: {{address: "unix:{name}"}}'
    with Proxy(policy(blue, text("0600"), abstract), "copy", workers=2, entry=BRISK) as proxy:
        assert path.stat().st_mode & 0o777 == 0o600
        assert (ask(str(path)), ask("\0" + name[1:])) == ("blue", "blue")
        inode = path.stat().st_ino
        proxy.reload(policy(green, text("0666")))
        assert path.stat().st_mode & 0o777 == 0o666
        assert path.stat().st_ino == inode, "the socket is the same"
        assert ask(str(path)) == "green"
        until(lambda: refused("\0" + name[1:]), "the abstract name is gone")
        proxy.reload(policy(blue))
        assert not path.exists()
        proxy.reload(policy(blue, text("0600")))
        assert ask(str(path)) == "blue"
        proxy.settled()
        proxy.stop()
    assert not path.exists(), "and it takes its file with it"


def test_both_families_on_one_socket(blue: Answering) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("there is no dual stack here")
    with Proxy(policy(blue, 'both: {address: "*:0"}'), "copy") as proxy:
        _, port = bound(proxy, "both")
        assert ask(("127.0.0.1", port)) == ask(("::1", port)) == "blue"
        clients = {
            record["client"].rpartition(":")[0]
            for record in until(lambda: len(proxy.records()) >= 2 and proxy.records(), "records")
        }
        assert clients == {"127.0.0.1", "[::1]"}
        proxy.stop()


# ---- refused


def test_a_bad_policy_is_refused_with_all_that_is_wrong(blue: Answering) -> None:
    with Proxy(policy(blue), "copy", workers=2) as proxy:
        address = proxy.address("web")
        bad = policy(blue).replace("name: app}", "name: ap}").replace("routes:", "rutes:\nroutes:")
        outcome = proxy.reload(bad, ok=False)
        assert outcome["errors"] == 2
        assert outcome["generation"] == 1
        found = [(one["line"], one["message"]) for one in outcome["problems"]]
        assert [line for line, _ in found] == [4, 6]
        assert "ap" in found[1][1]
        assert outcome["text"] in proxy.log()
        assert "policy refused errors=2 generation=1" in proxy.log()
        told = proxy.stats()["policy"]
        assert told["reloads"] == {"ok": 0, "failed": 1}
        assert told["last_error"]["errors"] == 2
        assert told["last_error"]["text"] == outcome["text"]
        assert ask(address) == "blue"
        proxy.reload(policy(blue))
        assert proxy.stats()["policy"]["last_error"] is None
        proxy.stop()


def test_the_verb_tells_the_outcome(blue: Answering) -> None:
    def verb(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "l7proxy", "reload", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    with Proxy(policy(blue), "copy") as proxy:
        good = verb("--admin", f"unix:{proxy.admin}")
        assert (good.returncode, good.stdout) == (0, "policy loaded, generation 2\n")
        proxy.write("listeners: 7\n")
        bad = verb("--pid", str(proxy.process.pid))
        assert bad.returncode == 1
        assert "policy.yaml:1:12: error:" in bad.stderr
        assert bad.stderr.endswith("refused; generation 2 goes on\n")
        nobody = verb("--admin", str(proxy.directory / "nothing"))
        assert nobody.returncode == 1
        assert "does l7proxy run there?" in nobody.stderr
        other = verb("--pid", str(os.getpid()))
        assert "this is no `l7proxy run`" in other.stderr
        proxy.stop()


# ---- when


def test_sighup_reloads(blue: Answering, green: Answering) -> None:
    with Proxy(policy(blue), "copy", workers=2) as proxy:
        proxy.write(policy(green))
        proxy.signal(signal.SIGHUP)
        until(lambda: ask(proxy.address("web")) == "green", "it is in force")
        for worker in proxy.workers:
            os.kill(worker, signal.SIGHUP)  # a terminal that closes tells the whole group
        assert ask(proxy.address("web")) == "green"
        assert proxy.stats()["workers"]["restarts"] == 0
        proxy.stop()


def test_a_config_map_that_is_swapped_is_loaded(
    blue: Answering, green: Answering, tmp_path: Path
) -> None:
    """As the kubelet does it: `policy.yaml` -> `..data/policy.yaml`, `..data` -> `..1`."""

    def swap(version: str, text: str) -> None:
        (tmp_path / version).mkdir()
        (tmp_path / version / "policy.yaml").write_text(text)
        (tmp_path / "..tmp").symlink_to(version)
        (tmp_path / "..tmp").rename(tmp_path / "..data")

    swap("..1", policy(blue))
    (tmp_path / "policy.yaml").symlink_to("..data/policy.yaml")
    with Proxy("", "copy", workers=2, watch=True, path=tmp_path) as proxy:
        address = proxy.address("web")
        assert ask(address) == "blue"
        swap("..2", policy(green))
        until(lambda: ask(address) == "green", "it is in force")
        swap("..3", "listeners: [")
        until(lambda: proxy.stats()["policy"]["reloads"]["failed"] == 1, "it is refused")
        assert ask(address) == "green"
        swap("..4", policy(blue))
        until(lambda: ask(address) == "blue", "it is in force")
        time.sleep(1.5)
        assert proxy.stats()["policy"]["reloads"] == {"ok": 2, "failed": 1}, "once for each swap"
        proxy.stop()


def test_files_that_come_and_go_in_a_folder_are_seen(blue: Answering, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(policy(blue))
    with Proxy("", "copy", watch=True, path=tmp_path) as proxy:
        (tmp_path / "b.yaml").write_text('listeners: {more: {address: "127.0.0.1:0"}}\n')
        until(lambda: "more" in proxy.stats()["listeners"], "the second file is read")
        assert ask(bound(proxy, "more")) == "blue"
        (tmp_path / ".b.yaml.swp").write_text("what an editor leaves")
        (tmp_path / "b.yaml").unlink()
        until(lambda: "more" not in proxy.stats()["listeners"], "and its end is seen")
        proxy.stop()


def test_reloads_during_a_reload_become_one(blue: Answering) -> None:
    with Proxy(policy(blue), "copy", workers=2) as proxy:
        outcomes: list[int] = []
        threads = [
            threading.Thread(target=lambda: outcomes.append(proxy.reload()["generation"]))
            for _ in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert len(outcomes) == 20
        done = proxy.stats()["policy"]["reloads"]["ok"]
        assert max(outcomes) == done + 1
        assert done < 20
        proxy.stop()


def test_no_reload_while_it_drains(blue: Answering, green: Answering) -> None:
    with Proxy(policy(blue), "copy") as proxy, BackendProcess("echo") as echo:
        proxy.reload(
            policy(blue)
            .replace(str(blue.port), str(echo.port))
            .replace("0, limits", "0, protocol: TCP, limits")
        )
        with connect(proxy.address("web")) as live:
            live.send(b"x")
            assert live.read(1) == b"x"
            proxy.signal(signal.SIGTERM)
            until(lambda: proxy.stats()["draining"], "it drains")
            assert "draining" in proxy.reload(policy(green), ok=False)["text"]
            live.send(b"y")
            assert live.read(1) == b"y"
        assert proxy.wait() == 0


def test_new_names_have_addresses_when_the_policy_comes_into_force(
    blue: Answering, green: Answering
) -> None:
    with (
        tempfile.NamedTemporaryFile("w") as known,
        Proxy(
            policy(blue), "copy", workers=2, entry=("-m", "tests.resolving", known.name)
        ) as proxy,
    ):
        json.dump({"green.test": ["127.0.0.1"]}, known)
        known.flush()
        os.chmod(known.name, 0o644)  # the prober is another user
        address = proxy.address("web")
        named = policy(green).replace("127.0.0.1:" + str(green.port), f"green.test:{green.port}")
        for _ in range(3):
            proxy.reload(named)
            assert [ask(address) for _ in range(4)] == ["green"] * 4
            proxy.reload(policy(blue))
            assert ask(address) == "blue"
        nowhere = policy(green).replace("127.0.0.1:" + str(green.port), "nowhere.test:80")
        proxy.reload(nowhere)
        with pytest.raises(OSError, match="503"):
            ask(address)
        proxy.stop()


# ---- workers that die


def large(routes: int, backend: Answering) -> str:
    rules = "\n".join(
        f"  - {{name: r{number}, hostnames: [h{number}.test], matches: [{{path: /a}}],"
        " backendRefs: [{name: app}]}"
        for number in range(routes)
    )
    return policy(backend).replace("routes:\n", f"routes:\n{rules}\n")


def test_a_worker_that_dies_during_a_reload_gets_it_all_the_same(
    blue: Answering, green: Answering
) -> None:
    with Proxy(policy(blue), "copy", workers=2) as proxy:
        address = proxy.address("web")
        for delay in (0.0, 0.3, 0.6, 0.9):
            proxy.write(large(1000, green))
            outcome: list[bool] = []
            reload = threading.Thread(target=lambda: outcome.append(proxy.reload()["ok"]))  # noqa: B023
            reload.start()
            time.sleep(delay)
            os.kill(proxy.workers[0], signal.SIGKILL)
            reload.join(120)
            assert outcome == [True]
            until(lambda: proxy.stats()["workers"]["running"] == 2, "it is replaced")
            assert {ask(address) for _ in range(20)} == {"green"}
            proxy.reload(policy(blue))
            assert {ask(address) for _ in range(20)} == {"blue"}
        proxy.settled()
        proxy.stop()


def test_a_worker_that_hangs_is_replaced_and_not_waited_for(
    blue: Answering, green: Answering
) -> None:
    with Proxy(policy(blue), "copy", workers=2, entry=HASTY) as proxy:
        hung = proxy.workers[1]
        os.kill(hung, signal.SIGSTOP)
        proxy.reload(policy(green))
        until(lambda: hung not in proxy.workers, "it is replaced")
        assert "did not build the policy in time" in proxy.log()
        until(lambda: proxy.stats()["workers"]["running"] == 2, "there are two again")
        assert proxy.stats()["workers"]["restarts"] == 1, "its successor has the new policy"
        assert {ask(proxy.address("web")) for _ in range(20)} == {"green"}
        proxy.stop()


# ---- what is counted


def test_limits_hold_across_a_reload(blue: Answering) -> None:
    port = free_port()

    def text(limit: int, name: str = "few") -> str:
        return policy(
            blue, f"{name}: {{address: 127.0.0.1:{port}, limits: {{connections: {limit}}}}}"
        )

    address = ("127.0.0.1", port)
    with Proxy(text(2), "copy", workers=2) as proxy, contextlib.ExitStack() as stack:

        def active() -> int:
            found: int = proxy.stats()["listeners"]["few"]["active"]
            return found

        def hold() -> None:
            before = active()
            stack.enter_context(connect(address)).send(b"GET ")
            until(lambda: active() == before + 1, "it is accepted")

        def is_reset() -> bool:
            try:
                with connect(address) as client:
                    return client.ending() == "reset"
            except ConnectionResetError:
                return True

        hold()
        hold()
        assert is_reset()
        proxy.reload(text(3))
        assert active() == 2, "who was there before counts"
        hold()
        assert is_reset()
        proxy.reload(text(1))
        assert is_reset()
        assert active() == 3, "nobody is sent away"
        stack.close()
        until(lambda: active() == 0, "they are gone")
        assert ask(address) == "blue"
        proxy.settled()
        proxy.stop()


def test_an_address_can_be_had_again_though_a_worker_was_slow_to_let_it_go(
    blue: Answering,
) -> None:
    port = free_port()
    more = f"more: {{address: 127.0.0.1:{port}}}"
    with Proxy(policy(blue, more), "copy", workers=2, entry=BRISK) as proxy:
        address, slow = ("127.0.0.1", port), proxy.workers[0]
        assert ask(address) == "blue"
        proxy.reload(policy(blue))
        os.kill(slow, signal.SIGSTOP)  # before it hears that the socket is to be closed
        again = threading.Thread(target=proxy.reload, args=[policy(blue, more)])
        again.start()
        time.sleep(0.5)
        os.kill(slow, signal.SIGCONT)
        again.join(PATIENCE)
        until(lambda: ask(address) == "blue", "it is there again")
        assert proxy.stats()["policy"]["reloads"] == {"ok": 2, "failed": 0}
        proxy.stop()


def test_two_hundred_reloads_leave_nothing_behind(blue: Answering, green: Answering) -> None:
    with Proxy(policy(blue), "copy", workers=2) as proxy:
        pids = [proxy.process.pid, *proxy.workers]
        address = proxy.address("web")

        def some(times: int) -> None:
            for number in range(times):
                backend = (blue, green)[number % 2]
                proxy.reload(large(40, backend))
                assert ask(address) == ("blue", "green")[number % 2]

        def held() -> list[int]:
            return [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]

        some(40)
        proxy.settled()
        descriptors, memory = held(), [resident(pid) for pid in pids]
        some(200)
        proxy.settled()

        def no_more() -> bool:  # the first count may have had the end of an admin request in it
            return all(now <= old for now, old in zip(held(), descriptors, strict=True))

        until(no_more, "no more descriptors than before")
        grown = [resident(pid) - old for pid, old in zip(pids, memory, strict=True)]
        assert max(grown) < 3 << 20, grown
        assert proxy.stats()["workers"]["restarts"] == 0
        proxy.stop()


# ---- a large policy


def test_ten_thousand_routes_come_without_a_pause(blue: Answering, green: Answering) -> None:
    with Proxy(policy(blue), "copy", workers=2) as proxy, BackendProcess("echo") as echo:
        raw = """\
  raw: {address: 127.0.0.1:0, protocol: TCP}
routes:
  - {name: raw, listeners: [raw], backendRefs: [{name: echo}]}
"""
        with_echo = f'  echo: {{endpoints: ["127.0.0.1:{echo.port}"]}}\n'
        small = policy(blue).replace("routes:\n", raw) + with_echo
        proxy.reload(small)
        address = proxy.address("web")
        stop = threading.Event()
        rounds, broken = [0], []
        with connect(bound(proxy, "raw")) as live:

            def pace() -> None:
                """A byte there and back, again and again."""
                try:
                    while not stop.is_set():
                        live.send(b"x")
                        assert live.read(1) == b"x"
                        rounds[0] += 1
                        time.sleep(0.001)
                except Exception as error:
                    broken.append(repr(error))

            pacer = threading.Thread(target=pace)
            pacer.start()
            crowd = Crowd(lambda: ask(address), clients=2, pause=0.005)
            try:
                big = large(10_000, green).replace("routes:\n", raw) + with_echo
                before = rounds[0]
                assert proxy.reload(big)["ok"]
                assert rounds[0] > before
            finally:
                stop.set()
                pacer.join(30)
                crowd.stop()
        assert broken == []
        assert crowd.failed == []
        assert {body for _, body in crowd.answers} >= {"blue"}
        assert ask(address) == "green"
        told = proxy.stats()["policy"]
        assert told["routes"] == 10_002
        assert told["longest_slice_ms"] < 1000, "the whole of it takes longer by far"
        print(f"longest slice {told['longest_slice_ms']} ms, {rounds[0]} rounds")
        proxy.settled()
        proxy.stop()
