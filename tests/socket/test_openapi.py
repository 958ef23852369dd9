"""openapi.json: every path of the router is in it, and each real answer is as it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from peers import Backend, Peer, connect
from proxy import Proxy, until

from l7proxy import session
from l7proxy.admin import Router, add_page, description
from l7proxy.model import Splice
from l7proxy.supervisor.inquiry import FILTERS, SORTS
from l7proxy.supervisor.operations import LIMIT, MOST, Operations
from l7proxy.supervisor.scraping import Scraper
from l7proxy.telemetry.log import LEVELS

pytestmark = pytest.mark.net

DOCUMENT: dict[str, Any] = json.loads(description())
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
POLICY = """\
listeners:
  web: {{address: "127.0.0.1:0"}}
  raw: {{address: "127.0.0.1:0", protocol: TCP}}
routes:
  - {{name: app, listeners: [web], splice: connection, backendRefs: [{{name: app}}]}}
  - {{name: old, listeners: [web], matches: [{{path: /old}}], redirect: {{path: /new}}}}
  - {{name: raw, listeners: [raw], backendRefs: [{{name: app}}]}}
backends:
  app: {{endpoints: ["127.0.0.1:{port}", "a.invalid:1"]}}
"""


def described(path: str, method: str) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][path][method.lower()]
    return found


def check(path: str, method: str, status: int, kind: str, body: bytes) -> None:
    """The answer must be one that is described there."""
    answer = described(path, method)["responses"][str(status)]
    if "$ref" in answer:
        answer = DOCUMENT["components"]["responses"][answer["$ref"].rpartition("/")[2]]
    if "content" not in answer:
        assert (kind, body) == ("", b"")
        return
    schema = answer["content"][kind]["schema"]
    value = json.loads(body) if kind.endswith("json") else body.decode()
    whole = {**schema, "components": DOCUMENT["components"]}
    errors = [error.message for error in Draft202012Validator(whole).iter_errors(value)]
    assert errors == [], (path, method, value)


class Asker:
    """Asks, and has each answer checked; remembers what was seen."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self.seen: set[tuple[str, str, int]] = set()

    def __call__(
        self, method: str, target: str, status: int, body: object = None, path: str = ""
    ) -> Any:
        found, headers, answer = self._proxy.request(method, target, body)
        assert found == status, answer
        path = path or target.partition("?")[0]
        kind = headers.get("content-type", "").partition(";")[0]
        check(path, method, status, kind, answer)
        self.seen.add((path, method.lower(), status))
        return json.loads(answer) if kind.endswith("json") else answer


@pytest.fixture(scope="module")
def answering() -> Iterator[tuple[Proxy, Backend]]:
    backend = Backend()
    policy = POLICY.format(port=backend.port)
    with Proxy(policy, "copy", workers=2) as proxy:
        yield proxy, backend
    backend.close()


def test_it_is_openapi() -> None:
    assert DOCUMENT["openapi"] == "3.1.0"
    names = [one["operationId"] for path in DOCUMENT["paths"].values() for one in path.values()]
    assert len(names) == len(set(names))
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    text = description().decode()
    for noun in ("schemas", "responses"):
        used = {part.split('"')[0] for part in text.split(f"#/components/{noun}/")[1:]}
        assert used == DOCUMENT["components"][noun].keys()


def test_every_path_of_the_router_is_in_it_and_no_other() -> None:
    router = Router()
    nobody: Any = None
    Operations(nobody, nobody, nobody, nobody, dict).add_to(router)
    Scraper.add_to(object.__new__(Scraper), router)
    add_page(router)
    there = {(route.path, route.method.lower()) for route in router.routes()}
    assert there == {
        (path, method) for path, methods in DOCUMENT["paths"].items() for method in methods
    }
    public = {
        path
        for path, methods in DOCUMENT["paths"].items()
        for one in methods.values()
        if one.get("security") == [{}]
    }
    assert public == {route.path for route in router.routes() if route.is_public}


def test_it_knows_the_same_words() -> None:
    parameters = {one["name"]: one for one in described("/connections", "get")["parameters"]}
    assert parameters.keys() == {*FILTERS, "sort", "limit"}
    assert set(parameters["sort"]["schema"]["enum"]) == {
        sign + name for name in SORTS for sign in ("", "-")
    }
    limit = parameters["limit"]["schema"]
    assert (limit["maximum"], limit["default"]) == (MOST, LIMIT)
    schemas = DOCUMENT["components"]["schemas"]
    states = {state.value for state in session.State if state is not session.State.CLOSED}
    assert set(schemas["Connection"]["properties"]["state"]["enum"]) == states
    assert set(parameters["state"]["schema"]["enum"]) == states
    assert schemas["LogLevel"]["properties"]["level"]["enum"] == list(LEVELS)
    assert set(schemas["Splice"]["enum"]) == {one.value for one in Splice if one != Splice.AUTO}


def test_each_answer_is_as_it_says(answering: tuple[Proxy, Backend]) -> None:
    proxy, backend = answering

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(ANSWER)
        peer.ending()

    backend.play(script)
    ask = Asker(proxy)
    with connect(proxy.address("web")) as client, connect(proxy.address("web")):
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.read(len(ANSWER)) == ANSWER
        until(lambda: len(proxy.connections()) == 2, "both are there")
        rows = ask("GET", "/connections?sort=age", 200)["connections"]
        assert {row["way"] for row in rows} == {"relay", None}
        ask("GET", "/connections?sort=nothing", 400)
        ask("DELETE", f"/connections/{rows[0]['id']}", 204, path="/connections/{id}")
        ask("DELETE", f"/connections/{rows[0]['id']}", 404, path="/connections/{id}")
    assert ask("GET", "/healthz", 200) == b"ok"
    assert ask("GET", "/readyz", 200) == b"ok"
    ask("GET", "/stats", 200)
    ask("GET", "/metrics", 200)
    ask("GET", "/", 200)
    ask("GET", "/page/page.js", 200, path="/page/{name}")
    ask("GET", "/page/none.js", 404, path="/page/{name}")
    assert ask("GET", "/openapi.json", 200) == DOCUMENT
    assert len(ask("GET", "/policy", 200)["routes"]) == 3
    ask("GET", "/loglevel", 200)
    ask("POST", "/loglevel", 200, {"level": "warning"})
    ask("POST", "/loglevel", 200, {"level": "info"})
    ask("POST", "/loglevel", 400, {"level": "all"})
    ask("POST", "/loglevel", 413, "x" * 5_000)
    ask("POST", "/reload", 200)
    proxy.write("listeners: 7\n")
    ask("POST", "/reload", 422)
    last = ask("GET", "/stats", 200)
    assert last["policy"]["last_error"]["errors"] == 3
    with connect(proxy.address("raw")) as client:  # so that it goes on draining for a while
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.read(len(ANSWER)) == ANSWER
        ask("POST", "/drain", 202)
        assert ask("GET", "/readyz", 503) == b"draining"
        assert ask("POST", "/upgrade", 422)["text"] == "l7proxy is draining"
        ask("GET", "/stats", 200)
    missing = {
        (path, method)
        for path, methods in DOCUMENT["paths"].items()
        for method in methods
        if not any(one[:2] == (path, method) for one in ask.seen)
    }
    assert missing == set()
    assert proxy.wait() == 0


def test_over_tcp_the_refusals_are_as_it_says(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("0123456789abcdef")
    options = ("--admin=127.0.0.1:0", f"--admin-token-file={file}")
    policy = 'listeners: {web: {address: "127.0.0.1:0"}}\nroutes: [{name: all, respond: 200}]\n'
    with Proxy(policy, "copy", options=options) as proxy:
        port = int(proxy.log().rpartition("admin address=127.0.0.1:")[2].split()[0])
        for headers, status in [
            (b"", 401),
            (b"Authorization: Basic OjAxMjM0NTY3ODlhYmNkZWY=\r\n", 403),
        ]:
            with connect(("127.0.0.1", port)) as client:
                client.send(b"POST /drain HTTP/1.1\r\nHost: x\r\n" + headers)
                client.send(b"Connection: close\r\nContent-Length: 0\r\n\r\n")
                head, _, body = client.rest().partition(b"\r\n\r\n")
            assert b" %d " % status in head
            check("/drain", "post", status, "application/problem+json", body)
        proxy.stop()
