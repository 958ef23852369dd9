"""Runner 2 of the corpora: every case through the running proxy, on every datapath.

Requests: what a backend sees, over connections that are kept, is what the case says and nothing
else, and each of it is one request to the strict parser. Responses: what the client gets is one
response to the strict parser, or nothing whole; and whoever asks next gets the answer to his own
question, over a connection that nothing was left on.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
import strictly
from proxy import DATAPATHS, PATIENCE, Proxy
from smuggling import Case, load

pytestmark = [pytest.mark.net, pytest.mark.parametrize("datapath", DATAPATHS)]

POLICY = """\
listeners: {{web: {{address: 127.0.0.1:0}}}}
routes:
  - name: all
    splice: request
    matches: [{{path: /}}, {{method: CONNECT}}]
    backendRefs: [{{name: app}}]
backends: {{app: {{endpoints: ["127.0.0.1:{port}"]}}}}
"""
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s"
PROBE = b"GET /probe HTTP/1.1\r\nHost: probe.test\r\nConnection: close\r\n\r\n"


class Origin:
    """A backend that reads by the strict parser alone, and answers as it is told.

    `seen` are the requests, `over` the number of the connection of each; `broken` is what it could
    not read. A request that is not for the probe gets `answer`, if there is one, and then, where
    `ends` says so, the end of the connection.
    """

    def __init__(self) -> None:
        self.seen: list[strictly.Message] = []
        self.over: list[int] = []
        self.broken: list[bytes] = []
        self.answer: bytes | None = None
        self.ends = False
        self._sock = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._sock.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._sock.accept()
                self._open.append(client)
                number = len(self._open)
                threading.Thread(target=self._serve, args=(client, number), daemon=True).start()

    def _serve(self, client: socket.socket, number: int) -> None:
        data = b""
        with contextlib.suppress(OSError), client:
            while more := client.recv(65536):
                data += more
                try:
                    while data:
                        message, data = strictly.request(data, by_browser=True)
                        self.seen.append(message)
                        self.over.append(number)
                        if self._reply(client, message):
                            return
                except strictly.Incomplete:
                    continue
                except strictly.Malformed:
                    self.broken.append(data)
                    return

    def _reply(self, client: socket.socket, message: strictly.Message) -> bool:
        """Answer; whether the connection is to be closed."""
        method, target, _ = message.start
        closes = b"close" in b",".join(message.values(b"connection"))
        if target == b"/probe":
            client.sendall(OK % (5, b"probe"))
        elif self.answer is not None:
            client.sendall(self.answer)
            return self.ends
        elif method == b"CONNECT":
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            return True
        else:
            client.sendall(OK % (2, b"" if method == b"HEAD" else b"ok"))
        return closes

    def close(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        for client in self._open:
            client.close()


@pytest.fixture
def origin() -> Iterator[Origin]:
    origin = Origin()
    yield origin
    origin.close()


def ask(address: tuple[str, int], data: bytes) -> bytes:
    """Send it all and the end; return all that comes, whatever ends it."""
    got = b""
    with socket.create_connection(address, PATIENCE) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while more := client.recv(65536):
                got += more
    return got


def shown(message: strictly.Message) -> str:
    """As `sees` has it, of a request."""
    method, target, _ = message.start
    line = f"{method.decode()} {target.decode()}"
    return f"{line} | {message.body.decode('latin-1')}" if message.body else line


def responses(data: bytes, method: str) -> tuple[list[str], bytes]:
    """The whole responses in `data`, up to the final one, as `sees` has them, and the rest."""
    found = []
    while data:
        message, data = strictly.response(data, method, ended=False, any_status=True)
        status = message.start[1].decode()
        body = message.body.decode("latin-1")
        found.append(f"{status} | {body}" if body else status)
        if int(status) >= 200 or status == "101":
            break
    return found, data


def test_what_a_backend_sees(datapath: str, origin: Origin) -> None:
    cases = load("requests")
    wrong = []
    with Proxy(POLICY.format(port=origin.port), datapath) as proxy:
        for case in cases:
            before = len(origin.seen)
            got = ask(proxy.address("web"), case.raw)
            saw = tuple(map(shown, origin.seen[before:]))
            refused = case.refused is not None and not case.sees
            if saw != case.sees or (refused and got.startswith(b"HTTP/1.1 2")):
                wrong.append((case.id, saw, got[:60]))
        proxy.stop()
    assert wrong == []
    assert origin.broken == []
    assert max(origin.over) < len(origin.over) / 2  # most went over a connection that was kept


def request_of(case: Case) -> bytes:
    target, host = ("case.test:80",) * 2 if case.method == "CONNECT" else ("/case", "case.test")
    upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\n" if case.upgrade else ""
    return f"{case.method} {target} HTTP/1.1\r\nHost: {host}\r\n{upgrade}\r\n".encode()


def needs_an_end(case: Case) -> bool:
    """Whether only the end of the connection tells that there is no more."""
    data = case.raw
    while data:
        try:
            message, data = strictly.response(data, case.method, ended=False, any_status=True)
        except strictly.Incomplete:
            return True
        except strictly.Malformed:
            return False
        status = int(message.start[1])
        if status == 101 or (case.method == "CONNECT" and status < 300):
            return True  # a tunnel
        if status >= 200:
            return False
    return True


def got_rightly(case: Case, got: bytes) -> bool:
    """Whether a client that got this got what the case says."""
    try:
        found, rest = responses(got, case.method)
    except (strictly.Incomplete, strictly.Malformed):
        # It broke off: nothing whole may have come but what was before.
        return case.waits or case.refused is not None
    if case.refused or case.waits:
        return not got or (found == [*case.sees, found[-1]] and found[-1].startswith("502"))
    return tuple(found) == case.sees and (not rest or found[-1] in ("101", "200"))


def test_what_a_client_and_the_next_one_get(datapath: str, origin: Origin) -> None:
    wrong = []
    with Proxy(POLICY.format(port=origin.port), datapath) as proxy:
        address = proxy.address("web")
        for case in load("responses"):
            origin.answer, origin.ends = case.raw, case.waits or needs_an_end(case)
            got = ask(address, request_of(case))
            used = origin.over[-1]
            probe = ask(address, PROBE)
            kept = origin.over[-1] == used
            if not got_rightly(case, got) or kept != case.kept or not probe.endswith(b"\r\nprobe"):
                wrong.append((case.id, got[:80], kept, probe[:60]))
        proxy.stop()
    assert wrong == []
    assert origin.broken == []
