"""What the demo sends through the proxy, and how it checks every byte that comes back.

Requests are curl's, so that nobody has to trust a client of ours; the WebSocket and the raw stream
are spoken here, because curl does neither everywhere. Each function returns a `Result` or raises
`CheckError` with what was expected and what came.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l7proxy.demo import backends, websocket
from l7proxy.model import Address

_SECONDS = 20  # that a single request may take


class CheckError(Exception):
    """Something came back that is not what was sent, or not from where it should be."""


@dataclass(frozen=True, slots=True)
class Result:
    """One request that went as it should. `port` is the client's, which the access log names."""

    what: str
    answer: str
    port: int
    seconds: float
    size: int = 0  # bytes of payload, both ways; 0 where speed means nothing

    @property
    def speed(self) -> str:
        """MiB/s of payload, or nothing for a small request."""
        return f"{self.size / self.seconds / 2**20:.0f} MiB/s" if self.size else ""


def hello(at: Address, url: str, groups: set[str], scratch: Path) -> Result:
    """A plain request that one of `groups` answers, as one that came through a proxy."""
    reply = _curl(at, url, scratch)
    lines = reply.body.read_text().splitlines()
    _expect(f"status of {url}", reply.status, 200)
    backend = lines[0].removeprefix("backend: ")
    if backend.partition(" ")[0] not in groups:
        raise CheckError(f"{url} went to {backend}, not to {' or '.join(sorted(groups))}")
    headers = {line.partition(":")[0].lower() for line in lines}
    for header in ("x-forwarded-for", "via"):
        if header not in headers:
            raise CheckError(f"{url}: the backend got no {header} header")
    return Result(f"GET {url}", f"200 by {backend}", reply.port, reply.seconds)


def missing(at: Address, url: str, scratch: Path) -> Result:
    """A request that no route takes: the proxy answers 404 by itself."""
    reply = _curl(at, url, scratch)
    _expect(f"status of {url}", reply.status, 404)
    return Result(f"GET {url}", "404 by l7proxy", reply.port, reply.seconds)


def refused(at: Address, host: str, path: str) -> Result:
    """A request with two lengths, as smugglers send (curl might not): 400, no backend sees it."""
    with socket.create_connection((at.host, at.port), timeout=_SECONDS) as connection:
        port = connection.getsockname()[1]
        started = time.monotonic()
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\n"
            "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode()
        )
        with connection.makefile("rb") as stream:
            answer = stream.read()
        seconds = time.monotonic() - started
    url = f"http://{host}{path}"
    _expect(f"status of {url} with two lengths", answer.split()[1:2], [b"400"])
    return Result(f"POST {url}, two lengths", "400 by l7proxy", port, seconds)


def unparsed(at: Address, url: str, group: str, scratch: Path) -> Result:
    """HTTP over a TCP listener: `group` gets the bytes as curl sent them."""
    reply = _curl(at, url, scratch)
    _expect(f"status of {url} over {at}", reply.status, 200)
    lines = reply.body.read_text().splitlines()
    backend = lines[0].removeprefix("backend: ")
    _expect(f"backend group of {url} over {at}", backend.partition(" ")[0], group)
    if any(line.lower().startswith("via:") for line in lines):
        raise CheckError(f"{url}: a TCP listener has added a Via header")
    return Result(f"GET {url} over {at}", f"200 by {backend}", reply.port, reply.seconds)


def download(at: Address, url: str, size: int, scratch: Path, rate: int = 0) -> Result:
    """`size` bytes of the backends' pattern, compared by SHA-256.

    `rate`: bytes per second that the backend sends at most; 0: as fast as it can.
    """
    reply = _curl(at, f"{url}?bytes={size}" + (f"&rate={rate}" if rate else ""), scratch)
    _expect(f"status of {url}", reply.status, 200)
    _expect(f"length of {url}", reply.body.stat().st_size, size)
    with reply.body.open("rb") as body:
        found = hashlib.file_digest(body, "sha256").hexdigest()
    _expect(f"SHA-256 of {url}", found, backends.pattern_sha256(size))
    pace = f" at {rate * 8 / 1e9:g} Gbit/s" if rate else ""
    answer = f"200, {_mib(size)}{pace}, SHA-256 ok"
    return Result(f"GET {url}", answer, reply.port, reply.seconds, size)


def upload(at: Address, url: str, size: int, scratch: Path) -> Result:
    """`size` bytes to a backend, which says their SHA-256."""
    source = scratch / "upload"
    with source.open("wb") as file:
        file.writelines(backends.pattern(size))
    reply = _curl(at, url, scratch, "--upload-file", str(source))
    source.unlink()
    _expect(f"status of {url}", reply.status, 200)
    answer = dict(line.split(": ", 1) for line in reply.body.read_text().splitlines())
    _expect(f"length that {url} got", answer["bytes"], str(size))
    _expect(f"SHA-256 that {url} got", answer["sha256"], backends.pattern_sha256(size))
    return Result(f"PUT {url}", f"200, {_mib(size)}, SHA-256 ok", reply.port, reply.seconds, size)


def web_socket(at: Address, host: str, path: str, messages: int, size: int) -> Result:
    """An upgrade, then `messages` echoed messages of `size` bytes, a ping and a close."""
    url = f"ws://{host}{path}"
    with socket.create_connection((at.host, at.port), timeout=_SECONDS) as connection:
        port = connection.getsockname()[1]
        started = time.monotonic()
        stream = connection.makefile("rb")
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        _expect(f"status of {url}", stream.readline().split()[1:2], [b"101"])
        headers = {}
        while (line := stream.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            headers[name.lower()] = value.strip().decode()
        _expect(
            f"handshake of {url}",
            headers.get(b"sec-websocket-accept"),
            websocket.accept_key(key),
        )
        for opcode, payload in [
            (websocket.Opcode.TEXT, b"hello"),
            *[(websocket.Opcode.BINARY, secrets.token_bytes(size)) for _ in range(messages)],
            (websocket.Opcode.CLOSE, b"\x03\xe8"),  # 1000, a normal closure
        ]:
            connection.sendall(websocket.encode(opcode, payload, secrets.token_bytes(4)))
            if websocket.read_frame(stream) != (opcode, payload):
                raise CheckError(f"{url}: an echoed message is not the one that was sent")
        _expect(f"bytes after the close of {url}", stream.read(), b"")
        seconds = time.monotonic() - started
    backend = headers.get(b"x-backend", "?")
    answer = f"101 by {backend}, {messages} x {_mib(size)} echoed"
    return Result(f"GET {url} over {at}", answer, port, seconds, 2 * messages * size)


def raw_stream(at: Address, group: str, size: int) -> Result:
    """A TCP stream to an echo backend, which speaks first; ended by a half-close."""
    what = f"tcp://{at}"
    with socket.create_connection((at.host, at.port), timeout=_SECONDS) as connection:
        port = connection.getsockname()[1]
        started = time.monotonic()
        stream = connection.makefile("rb")
        backend = stream.readline().decode().strip().removeprefix("backend: ")
        _expect(f"backend group of {what}", backend.partition(" ")[0], group)

        def send() -> None:
            for chunk in backends.pattern(size):
                connection.sendall(chunk)
            connection.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        digest = hashlib.sha256()
        received = 0
        while data := stream.read(256 * 1024):
            digest.update(data)
            received += len(data)
        sender.join()
        seconds = time.monotonic() - started
    _expect(f"length of the echo of {what}", received, size)
    _expect(f"SHA-256 of the echo of {what}", digest.hexdigest(), backends.pattern_sha256(size))
    return Result(what, f"greeting by {backend}, {_mib(size)} echoed", port, seconds, 2 * size)


def admin(path: Path, target: str) -> Any:
    """The JSON that the admin server at the unix socket `path` answers."""
    command = ["curl", "-q", "-sSf", "--max-time", "5", "--unix-socket", str(path)]
    done = subprocess.run([*command, f"http://localhost{target}"], capture_output=True, text=True)
    if done.returncode:
        raise CheckError(f"admin {target}: {done.stderr.strip()}")
    return json.loads(done.stdout)


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    port: int
    seconds: float
    body: Path


def _curl(at: Address, url: str, scratch: Path, *options: str) -> _Reply:
    """Run curl against `at`, whatever host `url` names. The body is in a file of `scratch`."""
    body = scratch / "body"
    body.write_bytes(b"")
    command = ["curl", "-q", "-sS", "--noproxy", "*", "--max-time", str(_SECONDS)]
    command += ["--connect-to", f"::{at}", "--output", str(body), "--write-out", "%{json}"]
    done = subprocess.run([*command, *options, url], capture_output=True, text=True)
    if done.returncode:
        raise CheckError(f"{url}: {done.stderr.strip() or f'curl exits with {done.returncode}'}")
    facts = json.loads(done.stdout)
    return _Reply(facts["http_code"], facts["local_port"], facts["time_total"], body)


def _expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise CheckError(f"{what}: {expected!r} was expected, {found!r} came")


def _mib(size: int) -> str:
    return f"{size / 2**20:g} MiB"
