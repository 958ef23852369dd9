"""Another policy at a bad moment: it may be refused, but nobody's connection pays for it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest
from answering import Answering, ask
from peers import BackendProcess, connect
from proxy import DATAPATHS, Proxy, until

pytestmark = pytest.mark.net

POLICY = """\
listeners:
  web: {{address: "127.0.0.1:{port}", protocol: {protocol}}}
routes:
  - {{name: all, backendRefs: [{{name: app}}]}}
backends:
  app: {{endpoints: ["127.0.0.1:{app}"]}}
"""

MORE = """\
listeners:
  web: {{address: "127.0.0.1:0", protocol: TCP}}
  more: {{address: "127.0.0.1:0"}}
routes:
  - {{name: all, backendRefs: [{{name: app}}]}}
backends:
  app: {{endpoints: ["127.0.0.1:{app}"]}}
"""


@pytest.fixture(scope="module")
def blue() -> Iterator[Answering]:
    backend = Answering("blue")
    yield backend
    backend.close()


@pytest.mark.parametrize("datapath", DATAPATHS)
def test_no_descriptor_is_left_for_the_policy(datapath: str) -> None:
    """A worker that has given all of them to clients cannot take another policy. It says so."""
    with BackendProcess("echo") as echo:
        text = POLICY.format(port=0, protocol="TCP", app=echo.port)
        with Proxy(text, datapath, files=64) as proxy:
            address = proxy.address("web")
            with contextlib.ExitStack() as stack:
                live = stack.enter_context(connect(address))
                live.send(b"x")
                assert live.read(1) == b"x"
                for _ in range(80):
                    with contextlib.suppress(ConnectionResetError):
                        stack.enter_context(connect(address))
                until(lambda: proxy.stats()["connections"]["refused"], "descriptors have run out")
                for new in (text, MORE.format(app=echo.port)):
                    outcome = proxy.reload(new, ok=False)
                    assert "a worker could not build it" in outcome["text"]
                live.send(b"y")
                assert live.read(1) == b"y"
            proxy.settled()
            proxy.reload()
            assert set(proxy.stats()["listeners"]) == {"web", "more"}
            assert proxy.stats()["workers"]["restarts"] == 0
            proxy.stop()


HASTY = """\
import sys
from l7proxy import cli
from l7proxy.supervisor import reload
reload.PREPARE_SECONDS = 5.0
sys.exit(cli.main())
"""


def test_nobody_builds_the_policy_in_time() -> None:
    """To replace all workers would be to reset all connections: the policy is refused."""
    with BackendProcess("echo") as echo:
        text = POLICY.format(port=0, protocol="TCP", app=echo.port)
        with Proxy(text, "copy", workers=2, entry=("-c", HASTY)) as proxy:
            with connect(proxy.address("web")) as live:
                live.send(b"x")
                assert live.read(1) == b"x"
                for worker in proxy.workers:
                    os.kill(worker, signal.SIGSTOP)
                outcome = proxy.reload(MORE.format(app=echo.port), ok=False)
                assert "no worker has built it within 5 s" in outcome["text"]
                for worker in proxy.workers:
                    os.kill(worker, signal.SIGCONT)
                live.send(b"y")
                assert live.read(1) == b"y"
                proxy.reload(MORE.format(app=echo.port))
                live.send(b"z")
                assert live.read(1) == b"z"
            assert proxy.settled()["workers"]["restarts"] == 0
            proxy.stop()


def test_an_address_has_another_protocol(blue: Answering) -> None:
    """Who is still sending a head is answered by the policy that the listener had."""
    with Proxy(POLICY.format(port=0, protocol="HTTP", app=blue.port), "copy") as proxy:
        address = proxy.address("web")
        with connect(address) as slow:
            slow.send(b"GET / HTTP/1.1\r\n")
            until(lambda: proxy.stats()["connections"]["active"], "it is accepted")
            proxy.reload(POLICY.format(port=0, protocol="TCP", app=blue.port))
            assert ask(address) == "blue"
            proxy.reload()  # the first one has been retired by now
            slow.send(b"Host: app.test\r\n\r\n")
            assert slow.rest().endswith(b"blue")
        assert proxy.settled()["errors"]["internal"] == 0
        proxy.stop()
