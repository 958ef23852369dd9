"""Request rates: exact over all workers, for a route or for each client, and across a reload."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import threading
from collections.abc import Iterator

import pytest
from peers import PATIENCE
from proxy import Proxy, until

pytestmark = pytest.mark.net

POLICY = """\
listeners:
  web: {{address: 127.0.0.1:0}}
  behind: {{address: 127.0.0.1:0, trustedProxies: [127.0.0.1]}}
routes:
  - {{name: route, matches: [{{path: /route}}], rateLimit: {{requests: 3, per: 24h}}, backendRefs: [
      {{name: app}}]}}
  - name: client
    matches: [{{path: /client}}]
    rateLimit: {{requests: {each}, per: 24h, by: client}}
    deny: [203.0.113.9]
    backendRefs: [{{name: app}}]
  - {{name: own, matches: [{{path: /own}}], rateLimit: {{requests: 1, per: 24h}}, respond: 418}}
  - {{name: quick, matches: [{{path: /quick}}], rateLimit: {{requests: 1, per: 1s}}, respond: 204}}
  - {{name: rest, backendRefs: [{{name: app}}]}}
backends:
  app: {{endpoints: ["127.0.0.1:{port}"]}}
"""


class _Origin(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    """An origin that answers everything."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Origin) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(port: int) -> Iterator[Proxy]:
    with Proxy(POLICY.format(each=2, port=port), "copy", workers=2) as running:
        yield running
        running.stop()


def ask(
    proxy: Proxy, path: str, client: str = "", listener: str = "web", method: str = "GET"
) -> tuple[int, str | None, bytes]:
    """Status, Retry-After and body of an answer, on a connection of its own."""
    connection = http.client.HTTPConnection(*proxy.address(listener), timeout=PATIENCE)
    with contextlib.closing(connection):
        headers = {"X-Forwarded-For": client} if client else {}
        connection.request(method, path, headers={**headers, "Connection": "close"})
        answer = connection.getresponse()
        return answer.status, answer.getheader("Retry-After"), answer.read()


def test_rates(proxy: Proxy, port: int) -> None:
    # A route's: three at once, and the fourth comes back after a third of a day.
    answers = [ask(proxy, "/route") for _ in range(9)]
    assert [status for status, _, _ in answers] == [200] * 3 + [429] * 6
    for _, after, body in answers[3:]:
        assert after is not None
        assert 28_700 <= int(after) <= 28_800
        assert body == b"429 Too Many Requests\n"
    assert ask(proxy, "/route", method="HEAD")[2] == b""
    refused = until(
        lambda: [one for one in proxy.records() if one["status"] == 429] or None, "records"
    )
    told = {(one["route"], one["reason"], one["rule"], one["backend"]) for one in refused}
    assert told == {("route", "rate_limited", "rateLimit", "")}
    until(lambda: proxy.stats()["errors"]["rate_limited"] == 7, "they are counted")
    # What has none is not held up, and each client has one of its own: the one that is told.
    assert [ask(proxy, "/")[0] for _ in range(9)] == [200] * 9
    for client in ("203.0.113.1", "203.0.113.2", "2001:db8::1"):
        found = [ask(proxy, "/client", client, "behind")[0] for _ in range(4)]
        assert found == [200, 200, 429, 429]
    assert ask(proxy, "/client", "2001:db8::ffff", "behind")[0] == 429  # of the same /64
    # On a listener that trusts nobody it is who connects, whatever the request says.
    found = [ask(proxy, "/client", f"203.0.113.{n}")[0] for n in range(20, 24)]
    assert found == [200, 200, 429, 429]
    # Who is denied is not counted; answers of our own are.
    assert [ask(proxy, "/client", "203.0.113.9", "behind")[0] for _ in range(3)] == [403] * 3
    assert [ask(proxy, "/own")[0] for _ in range(2)] == [418, 429]
    # Who obeys is let through again.
    assert ask(proxy, "/quick")[0] == 204
    status, after, _ = ask(proxy, "/quick")
    if status == 429:  # else the machine stood still for a second
        assert after == "1"
    until(lambda: ask(proxy, "/quick")[0] == 204, "a second has passed")
    # A reload forgets nothing, but a limit with other figures is another one.
    proxy.reload(POLICY.format(each=3, port=port))
    assert ask(proxy, "/route")[0] == 429
    assert ask(proxy, "/client", "203.0.113.1", "behind")[0] == 200
