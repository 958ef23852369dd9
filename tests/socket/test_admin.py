"""The admin server: what it answers, and what it does not let itself in for."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from proxy import until

from l7proxy.admin import Admin, Answer, Guard, Problem, Request, Router, Token, json_answer
from l7proxy.admin import server as module
from l7proxy.errors import StartupError
from l7proxy.net.adminsocket import open_admin

pytestmark = pytest.mark.net

USUAL = module.IDLE_SECONDS

Connect = Callable[[], socket.socket]


def paths(stats: Callable[[], dict[str, Any]]) -> Router:
    """What the server under test is asked for."""

    async def health(_request: Request) -> Answer:
        return Answer(200, b"ok")

    async def tell(_request: Request) -> Answer:
        return json_answer(stats())

    async def echo(request: Request) -> Answer:
        return Answer(200, request.body)

    async def remove(request: Request) -> Answer:
        if request.arguments["id"] == "0":
            raise Problem(404, "gone")
        return Answer(204)

    router = Router()
    router.add("GET", "/healthz", health, is_public=True)
    router.add("GET", "/stats", tell)
    router.add("POST", "/echo", echo, body=1000)
    router.add("DELETE", "/things/{id}", remove)
    return router


def serve(
    scenario: Callable[[Connect], None],
    *,
    path: Path | None = None,
    stats: Callable[[], dict[str, Any]] = lambda: {"version": "x"},
    token: str | None = None,
    servers: list[Admin] | None = None,
) -> None:
    """Run the scenario, in a thread, against an admin server on a unix socket or on loopback."""

    async def main() -> None:
        opened = open_admin(str(path) if path else "127.0.0.1:0")
        server = Admin(paths(stats))
        if servers is not None:
            servers.append(server)
        await server.start(opened.sock, Guard(path is not None, Token(token) if token else None))
        address: Any = str(path) if path else opened.sock.getsockname()

        def connect() -> socket.socket:
            client = socket.socket(opened.sock.family)
            client.settimeout(60)
            client.connect(address)
            return client

        try:
            await asyncio.to_thread(scenario, connect)
        finally:
            await server.close()
            opened.remove()
            await asyncio.sleep(0)  # transports close in the next turn

    asyncio.run(main())


def everything(client: socket.socket) -> bytes:
    """What comes until the end; a reset is one."""
    got = b""
    try:
        while more := client.recv(65536):
            got += more
    except ConnectionResetError:
        pass
    return got


def ask(connect: Connect, request: bytes) -> tuple[bytes, bytes]:
    """Head and body of all that is answered until the server closes."""
    with connect() as client:
        client.sendall(request)
        head, _, body = everything(client).partition(b"\r\n\r\n")
    return head, body


CLOSE = b"Host: localhost\r\nConnection: close\r\n\r\n"


def test_healthz_and_stats() -> None:
    def scenario(connect: Connect) -> None:
        head, body = ask(connect, b"GET /healthz HTTP/1.1\r\n" + CLOSE)
        assert head.startswith(b"HTTP/1.1 200 ")
        assert body == b"ok"
        head, body = ask(connect, b"GET /stats?pretty HTTP/1.1\r\n" + CLOSE)
        assert b"content-type: application/json" in head.lower()
        assert json.loads(body) == {"version": "x"}
        _, body = ask(connect, b"GET http://localhost/healthz HTTP/1.1\r\n" + CLOSE)
        assert body == b"ok"
        _, body = ask(connect, b"GET /healthz HTTP/1.0\r\n\r\n")
        assert body == b"ok"

    serve(scenario)


def test_head_has_the_length_and_no_body() -> None:
    def scenario(connect: Connect) -> None:
        head, body = ask(connect, b"HEAD /healthz HTTP/1.1\r\n" + CLOSE)
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"content-length: 2" in head.lower()
        assert body == b""

    serve(scenario)


def test_a_connection_is_kept_and_pipelined_requests_are_answered_in_turn() -> None:
    def scenario(connect: Connect) -> None:
        one = b"GET /healthz HTTP/1.1\r\nHost: [::1]:9\r\n\r\n"
        with connect() as client:
            client.sendall(one + one.replace(b"GET", b"HEAD") + b"GET /x HTTP/1.1\r\n" + CLOSE)
            answer = everything(client)
        assert answer.count(b"HTTP/1.1 200 ") == 2
        assert answer.count(b"HTTP/1.1 404 ") == 1
        assert answer.index(b" 404 ") > answer.rindex(b" 200 ")

    serve(scenario)


REFUSED = [
    ("another path", b"GET / HTTP/1.1\r\n" + CLOSE, 404),
    ("another method", b"DELETE /stats HTTP/1.1\r\n" + CLOSE, 405),
    ("another method there", b"GET /things/7 HTTP/1.1\r\n" + CLOSE, 405),
    ("a body", b"POST /stats HTTP/1.1\r\nContent-Length: 5\r\n" + CLOSE + b"12345", 405),
    ("a body that never comes", b"GET /stats HTTP/1.1\r\nContent-Length: 5\r\n" + CLOSE, 200),
    ("a bad body", b"GET /stats HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + CLOSE + b"z\n", 200),
    ("rubbish", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400),
    ("no Host", b"GET /stats HTTP/1.1\r\n\r\n", 400),
    ("a Host from elsewhere", b"GET /stats HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
    ("a head beyond the limit", b"GET /stats HTTP/1.1\r\nX: " + b"x" * 40_000, 431),
]


@pytest.mark.parametrize(
    ("request_", "status"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_what_is_refused_gets_a_whole_answer(request_: bytes, status: int) -> None:
    def scenario(connect: Connect) -> None:
        with connect() as client:
            client.sendall(request_)
            answer = b""
            while b"\r\n\r\n" not in answer:
                more = client.recv(65536)
                assert more, f"closed without an answer: {answer!r}"
                answer += more
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert answer.count(b"HTTP/1.1") == 1
        if b"/stats" in request_ and status == 405:
            assert b"allow: get, head\r\n" in answer.lower()
        if status != 200:
            head, _, body = answer.partition(b"\r\n\r\n")
            assert b"content-type: application/problem+json" in head.lower()
            assert json.loads(body)["status"] == status

    serve(scenario)


def test_over_a_unix_socket_any_host_will_do(tmp_path: Path) -> None:
    def scenario(connect: Connect) -> None:
        request = b"GET /stats HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"
        head, _ = ask(connect, request)
        assert head.startswith(b"HTTP/1.1 200 ")

    serve(scenario, path=tmp_path / "admin")


def test_a_bug_in_the_statistics_is_a_500_and_not_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def stats() -> dict[str, Any]:
        raise ZeroDivisionError

    def scenario(connect: Connect) -> None:
        head, _ = ask(connect, b"GET /stats HTTP/1.1\r\n" + CLOSE)
        assert head.startswith(b"HTTP/1.1 500 ")
        head, _ = ask(connect, b"GET /healthz HTTP/1.1\r\n" + CLOSE)
        assert head.startswith(b"HTTP/1.1 200 ")

    serve(scenario, stats=stats)
    assert "admin request failed" in caplog.text


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: a"])
def test_a_client_that_does_not_go_on_is_left(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.1)

    def scenario(connect: Connect) -> None:
        begun = time.monotonic()
        with connect() as client:
            client.sendall(sent)
            assert everything(client) == b""
        assert time.monotonic() - begun < USUAL

    serve(scenario)


def test_a_client_that_trickles_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is for the whole head, not for each byte."""
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.3)

    def scenario(connect: Connect) -> None:
        begun = time.monotonic()
        with connect() as client, contextlib.suppress(ConnectionError):
            while time.monotonic() - begun < USUAL:
                client.sendall(b"x")
                time.sleep(0.05)
        assert 0.2 < time.monotonic() - begun < USUAL

    serve(scenario)


def test_a_client_that_does_not_read_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEND_SECONDS", 0.1)
    asked: list[float] = []

    def stats() -> dict[str, Any]:
        asked.append(time.monotonic())
        return {"version": "x" * 1_000_000}

    def scenario(connect: Connect) -> None:
        with connect() as client:
            client.sendall(b"GET /stats HTTP/1.1\r\nHost: localhost\r\n\r\n" * 40)
            until(lambda: asked and not servers[0]._clients, "it is left")
            got = len(everything(client))
        assert got < 40_000_000

    servers: list[Admin] = []
    serve(scenario, stats=stats, servers=servers)
    assert 0 < len(asked) < 40


def test_there_are_only_so_many_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CLIENTS", 3)

    def scenario(connect: Connect) -> None:
        waiting = [connect() for _ in range(3)]  # they are accepted in this order
        with connect() as one_more:
            assert everything(one_more) == b""
        waiting.pop().close()

        def is_answered() -> bool:
            with contextlib.suppress(ConnectionError):
                return ask(connect, b"GET /healthz HTTP/1.1\r\n" + CLOSE)[1] == b"ok"
            return False

        until(is_answered, "there is room for one")
        for client in waiting:
            client.close()

    serve(scenario)


# ---- where it listens


def test_a_unix_socket_is_for_its_owner_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "admin"
    before = os.umask(0)
    os.umask(before)
    opened = open_admin(f"unix:{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert opened.text == f"unix:{path}"
    assert os.umask(before) == before
    opened.remove()
    assert not path.exists()


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "admin"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    opened = open_admin(str(path))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    opened.remove()


def test_a_socket_in_use_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "admin"
    first = open_admin(str(path))
    with pytest.raises(StartupError, match="another process listens there"):
        open_admin(str(path))
    first.remove()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "admin"
    path.write_text("precious")
    with pytest.raises(StartupError, match="not a socket"):
        open_admin(str(path))
    assert path.read_text() == "precious"


def test_a_successors_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "admin"
    first = open_admin(str(path))
    path.unlink()
    second = open_admin(str(path))
    first.remove()
    assert path.exists()
    second.remove()
    assert not path.exists()


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("0.0.0.0:9000", "a token is wanted"),
        ("[::]:9000", "a token is wanted"),
        ("192.0.2.1:9000", "a token is wanted"),
        ("example.com:9000", "not an IP address"),
        ("9000", "not an address"),
        (":9000", "not an address"),
        ("127.0.0.1:99999", "not an address"),
        ("unix:/no/such/dir/admin", "no such file or directory"),
        ("/" + "x" * 200, "at most 107 bytes"),
    ],
)
def test_where_it_does_not_listen(where: str, says: str) -> None:
    with pytest.raises(StartupError, match=says):
        open_admin(where)


@pytest.mark.parametrize("where", ["127.0.0.1:0", "localhost:0", "127.3.2.1:0"])
def test_where_it_listens(where: str) -> None:
    opened = open_admin(where)
    host = "127.0.0.1" if where.startswith("localhost") else where.removesuffix(":0")
    assert opened.text.startswith(f"{host}:")
    assert not opened.text.endswith(":0")
    opened.remove()


# ---- what changes something, and who may

JSON = "Content-Type: application/json\r\n"
OURS = "X-L7proxy: 1\r\n"
SECRET = "0123456789abcdef"
BASIC = base64.b64encode(f"anyone:{SECRET}".encode()).decode()

ASKING = [
    ("from a program", JSON, 200),
    ("from a program, another way", OURS, 200),
    ("from a form", "Content-Type: application/x-www-form-urlencoded\r\n", 403),
    ("from a form of text", "Content-Type: text/plain\r\n", 403),
    ("from nobody knows", "", 403),
    ("from our page", JSON + "Origin: http://localhost\r\nSec-Fetch-Site: same-origin\r\n", 200),
    ("from another page", JSON + "Origin: http://evil.test\r\n", 403),
    ("from another port", JSON + "Origin: http://localhost:1\r\n", 403),
    ("from a sandbox", JSON + "Origin: null\r\n", 403),
    ("from another site", OURS + "Sec-Fetch-Site: cross-site\r\n", 403),
]


@pytest.mark.parametrize(
    ("headers", "status"), [case[1:] for case in ASKING], ids=[case[0] for case in ASKING]
)
def test_over_tcp_no_page_of_another_origin_changes_anything(headers: str, status: int) -> None:
    def scenario(connect: Connect) -> None:
        request = f"POST /echo HTTP/1.1\r\n{headers}Content-Length: 2\r\n".encode() + CLOSE + b"{}"
        head, _ = ask(connect, request)
        assert head.startswith(b"HTTP/1.1 %d " % status)
        gone, _ = ask(connect, f"DELETE /things/7 HTTP/1.1\r\n{headers}".encode() + CLOSE)
        assert gone.startswith(b"HTTP/1.1 %d " % (204 if status == 200 else status))
        assert b"content-length" not in gone.lower() or status != 200

    serve(scenario)


TOKENS = [
    ("none", "", 401),
    ("bearer", f"Authorization: Bearer {SECRET}\r\n", 200),
    ("bearer, in lower case", f"authorization: bearer {SECRET}\r\n", 200),
    ("another", "Authorization: Bearer 0123456789abcdeg\r\n", 401),
    ("a part of it", "Authorization: Bearer 0123456789abcde\r\n", 401),
    ("empty", "Authorization: Bearer\r\n", 401),
    ("a password", f"Authorization: Basic {BASIC}\r\n", 200),
    ("no base64", "Authorization: Basic ???\r\n", 401),
    ("a scheme that nobody knows", f"Authorization: Digest {SECRET}\r\n", 401),
]


@pytest.mark.parametrize(
    ("header", "status"), [case[1:] for case in TOKENS], ids=[case[0] for case in TOKENS]
)
def test_with_a_token_it_is_wanted(header: str, status: int) -> None:
    def scenario(connect: Connect) -> None:
        host = b"Host: proxy.example\r\nConnection: close\r\n\r\n"
        head, _ = ask(connect, f"GET /stats HTTP/1.1\r\n{header}".encode() + host)
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert head.lower().count(b"www-authenticate") == (2 if status == 401 else 0)
        head, _ = ask(connect, f"GET /nothing HTTP/1.1\r\n{header}".encode() + host)
        assert head.startswith(b"HTTP/1.1 %d " % (404 if status == 200 else 401))
        _, body = ask(connect, b"GET /healthz HTTP/1.1\r\n" + host)
        assert body == b"ok"

    serve(scenario, token=SECRET)


def test_a_password_is_sent_by_browsers_for_any_page_and_a_bearer_token_by_none() -> None:
    def scenario(connect: Connect) -> None:
        for header, status in ((f"Bearer {SECRET}", 204), (f"Basic {BASIC}", 403)):
            request = f"DELETE /things/7 HTTP/1.1\r\nAuthorization: {header}\r\n"
            head, _ = ask(connect, request.encode() + CLOSE)
            assert head.startswith(b"HTTP/1.1 %d " % status)

    serve(scenario, token=SECRET)


@pytest.mark.parametrize("text", ["", "short", "0123456789abcde", "0123456789abcdef\n", "é" * 20])
def test_what_is_no_token(text: str) -> None:
    with pytest.raises(StartupError, match="openssl rand -hex 32"):
        Token(text)


def test_a_token_is_not_kept() -> None:
    token = Token(SECRET)
    assert SECRET not in repr([getattr(token, name) for name in Token.__slots__])


# ---- bodies


def test_a_body_is_read_where_it_is_wanted_and_the_connection_goes_on(tmp_path: Path) -> None:
    def scenario(connect: Connect) -> None:
        chunked = b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        with connect() as client:
            client.sendall(chunked + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
            client.sendall(b"POST /echo HTTP/1.1\r\nContent-Length: 1000\r\n" + CLOSE + b"x" * 1000)
            answer = everything(client)
        assert answer.count(b"HTTP/1.1 200 ") == 2
        assert b"\r\n\r\nabcdeHTTP/1.1" in answer
        assert answer.endswith(b"\r\n\r\n" + b"x" * 1000)

    serve(scenario, path=tmp_path / "admin")


def test_a_body_is_bounded(tmp_path: Path) -> None:
    def scenario(connect: Connect) -> None:
        head, body = ask(
            connect, b"POST /echo HTTP/1.1\r\nContent-Length: 1001\r\n" + CLOSE + b"x" * 1001
        )
        assert head.startswith(b"HTTP/1.1 413 ")
        assert json.loads(body)["detail"] == "a body has at most 1,000 bytes here"
        head, _ = ask(
            connect, b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + CLOSE + b"z\r\n"
        )
        assert head.startswith(b"HTTP/1.1 400 ")

    serve(scenario, path=tmp_path / "admin")


def test_a_body_that_never_comes_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.2)

    def scenario(connect: Connect) -> None:
        begun = time.monotonic()
        assert ask(connect, b"POST /echo HTTP/1.1\r\nContent-Length: 9\r\n" + CLOSE) == (b"", b"")
        assert time.monotonic() - begun < USUAL

    serve(scenario, path=tmp_path / "admin")


def test_a_client_that_asks_first_is_told_to_go_on(tmp_path: Path) -> None:
    def scenario(connect: Connect) -> None:
        head = b"POST /echo HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n" + CLOSE
        with connect() as client:
            client.sendall(head)
            assert client.recv(1000).startswith(b"HTTP/1.1 100 ")
            client.sendall(b"ok")
            assert everything(client).endswith(b"\r\n\r\nok")

    serve(scenario, path=tmp_path / "admin")


# ---- paths


def test_names_in_paths_and_queries(tmp_path: Path) -> None:
    def scenario(connect: Connect) -> None:
        for target, status in [
            ("/things/0", 404),
            ("/things/1", 204),
            ("/things/1/2", 404),
            ("/things/%31", 204),
            ("/things/%ff", 400),
            ("/things/1?a=1&a=2", 400),
            ("/things/1?" + "&".join(f"a{n}=" for n in range(33)), 400),
        ]:
            head, _ = ask(connect, f"DELETE {target} HTTP/1.1\r\n".encode() + CLOSE)
            assert head.startswith(b"HTTP/1.1 %d " % status), target

    serve(scenario, path=tmp_path / "admin")


def test_a_path_has_one_owner() -> None:
    router = paths(dict)
    with pytest.raises(ValueError, match="GET /stats is somebody's already"):
        router.add("GET", "/stats", next(router.routes()).handler)
