"""One health check, against servers that answer as they like."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from peers import Blackhole, refusing_port

from l7proxy.model import Address, HealthCheck, ProbeType, ProxyVersion, SocketAddress, UnixAddress
from l7proxy.prober import checks
from l7proxy.telemetry.findings import Finding, Trouble

pytestmark = pytest.mark.net

HTTP = HealthCheck(
    ProbeType.HTTP, path="/health?x", timeout=60.0, statuses=((200, 299), (404, 404))
)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nready"

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answers(answer: bytes, heard: list[bytes] | None = None) -> Serve:
    """Reads a head, answers, ends."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if heard is not None:
            heard.append(head)
        writer.write(answer)
        writer.close()

    return serve


class Served:
    """A server's handler that can be waited for."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._over = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(reader, writer)
            await writer.wait_closed()
        except ConnectionError:
            pass
        finally:
            self._over.set()

    async def finish(self) -> None:
        await asyncio.wait_for(self._over.wait(), 60)
        await asyncio.sleep(0.01)  # the other end's transport closes too


async def checked(
    serve: Serve, rules: HealthCheck, proxy: ProxyVersion | None = None
) -> tuple[Finding, int]:
    served = Served(serve)
    async with await asyncio.start_server(served, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        found = await checks.check(Address("127.0.0.1", port), rules, "app.test:80", proxy)
        await served.finish()
    return found, port


@pytest.mark.parametrize(
    ("answer", "finding"),
    [
        (OK, Finding()),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, Finding()),
        (b"HTTP/1.0 204 No Content\r\n\r\n", Finding()),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", Finding()),
        (b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", Finding(Trouble.STATUS, 503)),
        (b"HTTP/1.1 301 Away\r\nLocation: /\r\n\r\n", Finding(Trouble.STATUS, 301)),
        (b"", Finding(Trouble.CLOSED)),
        (b"HTTP/1.1 200", Finding(Trouble.NOT_HTTP)),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Finding(Trouble.NOT_HTTP)),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000, Finding(Trouble.NOT_HTTP)),
    ],
)
def test_the_status_decides(answer: bytes, finding: Finding) -> None:
    assert asyncio.run(checked(answers(answer), HTTP))[0] == finding


def chunked(*pieces: bytes) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "finding"),
    [
        (OK, Finding()),
        (chunked(b"re", b"ad", b"y"), Finding()),
        (chunked(b"x" * 50_000, b"ready"), Finding()),
        (b"HTTP/1.0 200 OK\r\n\r\nall is ready", Finding()),
        (chunked(b"not yet"), Finding(Trouble.BODY)),
        (b"HTTP/1.0 200 OK\r\n\r\nnot yet", Finding(Trouble.BODY)),
        (b"HTTP/1.1 204 No Content\r\n\r\n", Finding(Trouble.BODY)),
        (chunked(b"x" * 70_000, b"ready"), Finding(Trouble.BODY)),  # beyond what is looked at
        (b"HTTP/1.1 503 No\r\nContent-Length: 5\r\n\r\nready", Finding(Trouble.STATUS, 503)),
    ],
)
def test_the_body_has_to_hold_the_text(answer: bytes, finding: Finding) -> None:
    rules = HealthCheck(ProbeType.HTTP, timeout=60.0, body="ready", statuses=((200, 299),))
    assert asyncio.run(checked(answers(answer), rules))[0] == finding


@pytest.mark.parametrize(("host", "sent"), [("", b"app.test:80"), ("other.test", b"other.test")])
def test_what_is_asked(host: str, sent: bytes) -> None:
    heard: list[bytes] = []
    rules = HealthCheck(ProbeType.HTTP, path="/health?x", host=host)
    asyncio.run(checked(answers(OK, heard), rules))
    lines = heard[0].split(b"\r\n")
    assert lines[0] == b"GET /health?x HTTP/1.1"
    assert b"Host: " + sent in lines
    assert b"Connection: close" in lines


@pytest.mark.parametrize(
    ("proxy", "begins"),
    [
        (ProxyVersion.V1, b"PROXY UNKNOWN\r\n"),
        (ProxyVersion.V2, b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"),
    ],
)
def test_the_proxy_protocol_is_spoken(proxy: ProxyVersion, begins: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readexactly(len(begins)) == begins:
            await answers(OK)(reader, writer)
        writer.close()

    assert asyncio.run(checked(serve, HTTP, proxy))[0] == Finding()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


def test_a_connection_is_enough_for_tcp() -> None:
    assert asyncio.run(checked(silent, HealthCheck(timeout=60.0)))[0] == Finding()


def test_who_does_not_answer_in_time() -> None:
    rules = HealthCheck(ProbeType.HTTP, timeout=0.1)
    assert asyncio.run(checked(silent, rules))[0] == Finding(Trouble.TIMEOUT)


def test_who_answers_for_ever() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"1\r\nx\r\n")
            await writer.drain()
            await asyncio.sleep(0.001)

    rules = HealthCheck(ProbeType.HTTP, timeout=0.2, body="ready")
    assert asyncio.run(checked(endless, rules))[0] == Finding(Trouble.TIMEOUT)


@pytest.mark.parametrize(
    "rules", [HealthCheck(timeout=60.0), HealthCheck(ProbeType.HTTP, timeout=60.0)]
)
def test_refused(rules: HealthCheck) -> None:
    address = Address("127.0.0.1", refusing_port())
    found = asyncio.run(checks.check(address, rules, "app.test"))
    assert found == Finding(Trouble.ERROR, errno.ECONNREFUSED)
    assert str(found) == "connection refused"


def test_a_dial_that_goes_nowhere() -> None:
    hole = Blackhole()
    try:
        address = Address("127.0.0.1", hole.port)
        found = asyncio.run(checks.check(address, HealthCheck(timeout=0.1), "app.test"))
    finally:
        hole.close()
    assert found == Finding(Trouble.TIMEOUT)


@pytest.mark.parametrize("path", ["{}/sock", "@l7proxy-check-{}"])
def test_unix_sockets(tmp_path: Path, path: str) -> None:
    name = path.format(tmp_path)

    async def check(address: SocketAddress) -> Finding:
        served = Served(answers(OK))
        server = await asyncio.start_unix_server(
            served, "\0" + name[1:] if name.startswith("@") else name
        )
        async with server:
            found = await checks.check(address, HTTP, "localhost")
            await served.finish()
        return found

    assert asyncio.run(check(UnixAddress(name))) == Finding()
    assert not asyncio.run(checks.check(UnixAddress(f"{tmp_path}/none"), HTTP, "")).good


@pytest.mark.parametrize(
    ("finding", "text"),
    [
        (Finding(), ""),
        (Finding(Trouble.ERROR, errno.EHOSTUNREACH), "no route to host"),
        (Finding(Trouble.ERROR, 0), "connection failed"),
        (Finding(Trouble.TIMEOUT), "timeout"),
        (Finding(Trouble.STATUS, 503), "status 503"),
        (Finding(Trouble.BODY), "the expected text is not in the body"),
        (Finding(Trouble.CLOSED), "closed without an answer"),
        (Finding(Trouble.NOT_HTTP), "the answer is no HTTP"),
    ],
)
def test_a_finding_goes_through_a_word_of_memory(finding: Finding, text: str) -> None:
    assert Finding.of(finding.word) == finding
    assert finding.word < 1 << 64
    assert str(finding) == text
