"""Limits that hold over all workers."""

from __future__ import annotations

import pytest
from fronts import OK, get, is_reset
from peers import Backend, Peer, connect
from proxy import Proxy, until

pytestmark = pytest.mark.net

POLICY = """\
listeners:
  few: {{address: 127.0.0.1:0, limits: {{clientConnections: 3}}}}
routes:
  - {{name: all, backendRefs: [{{name: app}}]}}
backends:
  app: {{endpoints: ["127.0.0.1:{app}"]}}
"""


def test_connections_of_one_client_over_all_workers() -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.send(OK)
        peer.rest()

    backend = Backend()
    backend.play(script)
    with Proxy(POLICY.format(app=backend.port), "copy", workers=3) as proxy:
        address = proxy.address("few")
        rounds = 0
        while rounds < 3 or len({r["worker"] for r in proxy.records()}) < 2:
            assert rounds < 100, "the test needs several workers"
            rounds += 1
            clients = [connect(address) for _ in range(3)]
            for client in clients:
                client.send(get())
                assert client.read(len(OK)) == OK
            assert all(is_reset(address) for _ in range(8))
            for client in clients:
                client.close()
            until(lambda: proxy.stats()["connections"]["active"] == 0, "all are over")
        assert proxy.stats()["errors"]["client_limit"] == 8 * rounds
        proxy.stop()
    backend.finish()
    backend.close()
