"""The sample policies, run: every promise in their comments is kept with real connections.

Each sample is started as it stands but for its addresses, which become free ones. Behind every
endpoint stands a server that says which backend group it belongs to.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from promises import FOLDER, SAMPLES, TRANSPARENT, Promise, read
from proxy import PATIENCE, Proxy

from l7proxy.config import check
from l7proxy.model import Address, Hello, NameAddress, Policy, Request

ALERT_ACCESS_DENIED = 49
_NAMES = re.compile(r"\$\{(?P<name>\w+):-[^}]*:(?P<port>\d+)\}")
PROXY_HEADER = b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 5432\r\n"
_V2 = b"\r\n\r\n\x00\r\nQUIT\n"


class Groups:
    """A server for each endpoint; it answers what comes with the name of its group."""

    def __init__(self) -> None:
        self.heads: list[tuple[str, bytes]] = []  # (group, first bytes)
        self._listeners: list[socket.socket] = []

    def serve(self, group: str, host: str) -> int:
        """Start one; the port that it listens on."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, 0), family=family)
        self._listeners.append(listener)
        threading.Thread(target=self._accept, args=(group, listener), daemon=True).start()
        port: int = listener.getsockname()[1]
        return port

    def _accept(self, group: str, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._answer, args=(group, client), daemon=True).start()

    def _answer(self, group: str, client: socket.socket) -> None:
        client.settimeout(PATIENCE)
        with client, contextlib.suppress(OSError):
            first = got = client.recv(1 << 16)
            if first.startswith(_V2):
                header = 16 + struct.unpack("!H", first[14:16])[0]
                got = first[header:] or client.recv(1 << 16)
            if not got:
                return  # a health check over TCP
            self.heads.append((group, first))
            body = f"{group}\n".encode()
            if re.match(rb"[A-Z]+ /", got):
                close = "Connection: close\r\n"  # as it does
                head = f"HTTP/1.1 200 OK\r\n{close}Content-Length: {len(body)}\r\n\r\n".encode()
                body = head if got.startswith(b"HEAD") else head + body
            client.sendall(body)
            client.shutdown(socket.SHUT_WR)
            while client.recv(1 << 16):
                pass

    def close(self) -> None:
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()


@dataclass
class Run:
    """A sample at work."""

    name: str
    proxy: Proxy
    policy: Policy  # as it is written
    groups: Groups

    @property
    def is_proxied(self) -> bool:
        """Whether connections begin with a PROXY header."""
        return any(one.proxy_protocol for one in self.policy.listeners.values())

    def connect(self, promise: Promise) -> socket.socket:
        (name,) = [
            one.name
            for one in self.policy.listeners.values()
            if not promise.at or str(one.address) == promise.at
        ]
        host, port = self.proxy.address(name)
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return socket.create_connection((host, port), PATIENCE)


@contextlib.contextmanager
def running(name: str) -> Iterator[Run]:
    """The sample as it stands, on free addresses."""
    text = (FOLDER / name).read_text()
    policy = check(str(FOLDER / name)).policy
    assert policy is not None
    groups, patch = Groups(), pytest.MonkeyPatch()
    try:
        for group in policy.backends.values():
            for endpoint in group.endpoints:
                address = endpoint.address
                if isinstance(address, NameAddress):
                    variable = next(
                        one["name"] for one in _NAMES.finditer(text) if address.name in one[0]
                    )
                    port = groups.serve(group.name, "127.0.0.1")
                    patch.setenv(variable, f"localhost:{port}")
                    continue
                assert isinstance(address, Address)
                port = groups.serve(group.name, address.host)
                text = replace(text, str(address), str(Address(address.host, port)))
        for listener in policy.listeners.values():
            assert isinstance(listener.address, Address)
            text = replace(text, str(listener.address), str(Address(listener.address.host, 0)))
        with Proxy(text, "splice2") as proxy:
            yield Run(name, proxy, policy, groups)
            proxy.stop()
    finally:
        groups.close()
        patch.undo()


def replace(text: str, old: str, new: str) -> str:
    """The address in the policy, not the end or the beginning of a longer one, nor a comment."""
    lines = text.splitlines()
    pattern = rf"(?<![\w.:]){re.escape(old)}(?!\d)"
    for at, line in enumerate(lines):
        if not line.startswith("#"):
            lines[at] = re.sub(pattern, new, line)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in TRANSPARENT])
def test_every_promise_is_kept(name: str) -> None:
    promises = read(name)
    assert promises
    with running(name) as run:
        for promise in promises:
            for ask in promise.asks:
                _keep(run, promise, ask)


def _keep(run: Run, promise: Promise, ask: Request | Hello | None) -> None:
    before = len(run.groups.heads)
    run.proxy.forget_records()  # behind a proxy, client ports are the same again and again
    with run.connect(promise) as client:
        port = client.getsockname()[1]
        client.sendall(_first_bytes(run, promise, ask))
        answer = _read(client)
    record = run.proxy.record(40000 if run.is_proxied else port)
    assert record["route"] == promise.route, (promise.what, answer)
    reached = [group for group, _ in run.groups.heads[before:]]
    own = promise.status is not None or promise.denied
    if own:
        assert not [group for group in reached if group.encode() in answer]
    if isinstance(ask, Request):
        if own:
            assert answer.startswith(f"HTTP/1.1 {promise.status} ".encode()), promise.what
            return
        assert answer.startswith(b"HTTP/1.1 200 "), (promise.what, answer)
        answer = answer.partition(b"\r\n\r\n")[2]
    elif promise.denied:
        assert answer[:1] == b"\x15", promise.what  # a TLS alert
        assert answer[6] == ALERT_ACCESS_DENIED
        return
    (route,) = [one for one in run.policy.routes if one.name == promise.route]
    assert answer.decode().strip() in {ref.name for ref in route.backend_refs}, promise.what


def _first_bytes(run: Run, promise: Promise, ask: Request | Hello | None) -> bytes:
    if isinstance(ask, Request):
        target = ask.path if ask.query is None else f"{ask.path}?{ask.query}"
        lines = [f"{ask.method} {target} HTTP/1.1".encode()]
        if not any(name == b"host" for name, _ in ask.headers):
            lines.append(b"host: " + ask.host.encode())
        lines += [name + b": " + value for name, value in ask.headers]
        return b"\r\n".join([*lines, b"content-length: 0", b"", b""])
    if isinstance(ask, Hello):
        return client_hello(ask)
    return PROXY_HEADER + b"hello" if run.is_proxied else b"hello"


def client_hello(hello: Hello) -> bytes:
    """As Python's ssl writes it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if hello.alpn:
        context.set_alpn_protocols(list(hello.alpn))
    out = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=hello.sni or None)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return out.read()


def _read(client: socket.socket) -> bytes:
    got = b""
    client.settimeout(PATIENCE)
    with contextlib.suppress(ConnectionResetError):
        while data := client.recv(1 << 16):
            got += data
            head, mark, body = got.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            if mark and length and len(body) >= int(length[1]):
                return got
    return got


def test_the_database_learns_who_the_client_is() -> None:
    (promise,) = read("proxy-protocol.yaml")
    with running("proxy-protocol.yaml") as run:
        with run.connect(promise) as client:
            client.sendall(PROXY_HEADER + b"hello")
            _read(client)
        group, first = run.groups.heads[-1]
        assert group == "database"
        assert first.startswith(_V2)
        assert socket.inet_aton("192.0.2.7") in first[:64]
        with run.connect(promise) as client:
            client.sendall(b"hello")  # no header: it is required
            client.settimeout(PATIENCE)
            with pytest.raises(ConnectionResetError):
                client.recv(1)


def test_each_request_of_a_connection() -> None:
    """What the sample says beside its promises, on one connection that is kept."""
    with running("each-request.yaml") as run:
        host, port = run.proxy.address("web")
        connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
        with contextlib.closing(connection):

            def ask(method: str, path: str) -> http.client.HTTPResponse:
                connection.request(method, path)
                answer = connection.getresponse()
                answer.read()
                return answer

            found = ask("GET", "/")
            assert found.getheader("X-Content-Type-Options") == "nosniff"
            assert ask("GET", "/api/reports/1").getheader("X-Content-Type-Options") is None
            began = time.monotonic()
            statuses = [ask("POST", "/login").status for _ in range(6)]
            assert statuses[:5] == [200] * 5
            if time.monotonic() - began < 10.0:  # else one has come back, of a machine that stood
                assert statuses[5] == 429
            assert [ask("GET", "/api/items").status for _ in range(30)] == [200] * 30
        requests = run.proxy.stats()["requests"]
        assert requests["mirrors_lost"] == 0
        copies = sum(group == "api-next" for group, _ in run.groups.heads)
        assert copies <= requests["mirrored"] <= 20  # of 30, one in ten
        assert run.proxy.stats()["connections"]["accepted"] == 1
