"""A service manager opens the sockets, and is told how it goes: the test plays its part."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import activating
import pytest
from activating import Journal, environment, listening
from answering import ask
from proxy import Proxy, links, until

from l7proxy.errors import StartupError
from l7proxy.model import Address, Listener, UnixAddress
from l7proxy.net.activation import Activation
from l7proxy.net.listen import open_listener, prepare_late
from l7proxy.net.systemd import Manager, Passed
from l7proxy.supervisor import storing

Activate = Callable[..., Activation]

pytestmark = pytest.mark.net

POLICY = """\
listeners:
  web: {{address: "{web}", protocol: TCP}}
routes: [{{name: all, backendRefs: [{{name: app}}]}}]
backends: {{app: {{endpoints: ["{app}"]}}}}
"""


def passed(name: str, sock: socket.socket) -> Passed:
    return Passed(name, sock.dup().detach())


def address(sock: socket.socket) -> Address:
    return Address(*sock.getsockname()[:2])


@pytest.fixture
def activate() -> Iterator[Activate]:
    with ExitStack() as stack:
        yield lambda *given: stack.enter_context(closing(Activation(given)))


# ---- whose is which


def test_a_socket_is_found_by_its_name_or_by_its_address(activate: Activate) -> None:
    with listening() as web, listening() as raw, listening() as other:
        activation = activate(
            passed("web", web), passed("l7proxy.socket", raw), passed("l7proxy.socket", other)
        )
        listeners = [
            Listener("web", address(web)),
            Listener("raw", address(raw)),
            Listener("own", Address("127.0.0.1", 0)),
        ]
        found = [activation.open(one) for one in listeners]
        assert [one and one.address for one in found] == [address(web), address(raw), None]
        assert activation.unused(listeners) == [f"l7proxy.socket {address(other)}"]
        for one in found:
            if one is not None:
                one.close()
        again = activation.open(listeners[0])  # a later policy has it again
        assert again is not None
        assert again.address == address(web)
        again.close()


def test_a_socket_at_another_address_than_the_policy_says_is_refused(activate: Activate) -> None:
    with listening() as web:
        activation = activate(passed("web", web))
        with pytest.raises(StartupError, match=r"says 127.0.0.1:1, .* listens on 127.0.0.1:\d+;"):
            activation.open(Listener("web", Address("127.0.0.1", 1)))
        chosen = activation.open(Listener("web", Address("127.0.0.1", 0)))
        assert chosen is not None
        chosen.close()


def test_both_families_on_one_socket_are_what_a_policy_calls_a_star(activate: Activate) -> None:
    with closing(open_listener(Address("*", 0))) as both:
        port = both.getsockname()[1]
        activation = activate(passed("web", both))
        found = activation.open(Listener("web", Address("*", port)))
        assert found is not None
        found.close()
        with pytest.raises(StartupError):
            activation.open(Listener("web", Address("::", port)))


def test_a_unix_socket_keeps_its_file(activate: Activate, tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    with socket.socket(socket.AF_UNIX) as web:
        web.bind(str(path))
        web.listen()
        found = activate(passed("web", web)).open(Listener("web", UnixAddress(str(path))))
        assert found is not None
        found.stop()
        found.close()
        assert path.exists()


def test_what_does_not_listen_is_left_for_others(activate: Activate) -> None:
    with socket.socket() as idle, listening() as web, open("/dev/null") as file:
        given = [Passed("pair", idle.fileno()), passed("web", web), Passed("state", file.fileno())]
        assert [one.name for one in activate(*given).rest] == ["pair", "state"]
        assert idle.fileno() >= 0
        idle.getsockname()  # still open


def test_what_came_before_us_gets_what_later_ones_inherit(activate: Activate) -> None:
    def linger(sock: socket.socket) -> tuple[int, ...]:
        return struct.unpack("ii", sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))

    with listening() as web:
        early = socket.create_connection(web.getsockname())
        found = activate(passed("web", web)).open(Listener("web", address(web)))
        assert found is not None
        late = socket.create_connection(web.getsockname())
        first, second = found.sock.accept()[0], found.sock.accept()[0]
        assert (linger(first), linger(second)) == ((0, 0), (1, 0))
        prepare_late(first)
        assert linger(first) == (1, 0)
        for sock in (early, late, first, second):
            sock.close()
        found.close()


# ---- a whole life


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "notify")
    yield journal
    journal.close()


def test_a_life_with_a_service_manager(tmp_path: Path, journal: Journal) -> None:
    """A client that is there before us is served; the manager hears of all; the socket stays."""
    with listening() as backend, listening() as web:
        policy = POLICY.format(web=address(web), app=address(backend))
        early = socket.create_connection(web.getsockname(), 60)
        early.sendall(b"early")
        proxy = Proxy(
            policy,
            "splice2",
            entry=activating.ENTRY,
            environment=environment(
                ["web"], [web], NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="1000000"
            ),
            fds=[web.fileno()],
        )
        with proxy:
            assert proxy.address("web") == web.getsockname()
            with backend.accept()[0] as served:
                assert served.recv(5) == b"early"
                journal.until("READY=1")
                journal.until("WATCHDOG=1", 2)
                proxy.reload()
                journal.until("READY=1", 2)
                proxy.reload("listeners: {", ok=False)
                journal.until("READY=1", 3)
                journal.until("STATUS=1 connections, 0 spliced; policy 2, splice2; the last policy")
                proxy.signal(signal.SIGTERM)
                journal.until("STOPPING=1")
                served.sendall(b"late")
                assert early.recv(4) == b"late"
            early.close()
            assert proxy.wait() == 0
        told = [line.partition("=")[0] for line in journal.lines("READY", "RELOADING", "STOPPING")]
        assert told == ["READY", "RELOADING", "READY", "RELOADING", "READY", "STOPPING"]
        # between two lives clients wait in the socket's queue, and are not refused
        with socket.create_connection(web.getsockname(), 5):
            pass


def test_a_socket_that_no_listener_has_is_told(tmp_path: Path) -> None:
    with listening() as web:
        policy = POLICY.format(web="127.0.0.1:0", app="127.0.0.1:1")
        proxy = Proxy(
            policy,
            "splice2",
            entry=activating.ENTRY,
            environment=environment(["wbe"], [web]),
            fds=[web.fileno()],
        )
        with proxy:
            assert f'no listener of the policy has socket="wbe {address(web)}"' in proxy.log()
            proxy.stop()


def test_a_socket_that_a_reload_leaves_goes_on_to_listen_and_can_come_back(tmp_path: Path) -> None:
    """Who connects meanwhile waits; a policy that wants it again serves him."""
    with listening() as web:
        policy = (
            f"listeners: {{web: {{address: '{address(web)}'}}}}\n"
            "routes: [{name: all, respond: {status: 200, body: here}}]\n"
        )
        other = policy.replace(str(address(web)), "127.0.0.1:0").replace("web:", "other:")
        proxy = Proxy(
            policy,
            "splice2",
            entry=activating.ENTRY,
            environment=environment(["web"], [web]),
            fds=[web.fileno()],
        )
        with proxy:
            assert ask(web.getsockname()) == "here"
            mine = f"socket:[{os.fstat(web.fileno()).st_ino}]"

            def held() -> int:
                return max(links(pid).count(mine) for pid in proxy.workers)

            before = held()
            proxy.reload(other)
            until(lambda: "goes on to listen" in proxy.log(), "it is told")
            until(lambda: held() < before, "workers have closed it")
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(ask, web.getsockname())
                time.sleep(0.2)
                assert not waiting.done()
                proxy.reload(policy)
                assert waiting.result(60) == "here"
            proxy.stop()


def test_a_socket_that_comes_beside_what_was_stored_stays_open() -> None:
    with listening() as web, open("/dev/null") as state:
        given = (passed("web", web), Passed("l7proxy-state", os.dup(state.fileno())))
        heritage = storing.restore(given, Manager())
        assert heritage is not None
        with closing(heritage.activation) as activation:
            assert heritage.passed == {str(address(web))}
            found = activation.open(Listener("web", address(web)))
            assert found is not None
            with closing(found), socket.create_connection(web.getsockname(), 5):
                found.sock.accept()[0].close()
