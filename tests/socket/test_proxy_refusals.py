"""What the running proxy answers by itself, and that then nothing reaches a backend.

Every answer is a complete HTTP response with a short body, and the connection ends after it.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

import pytest
from peers import Backend, Peer, connect
from proxy import Proxy, until

pytestmark = pytest.mark.net

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass(frozen=True)
class Reply:
    """A response, taken apart."""

    status: int
    headers: dict[str, str]
    body: bytes


def reply(client: Peer) -> Reply:
    """The one response that comes, which must be complete, and the last thing that does."""
    head, _, body = client.rest().partition(b"\r\n\r\n")
    line, *fields = head.decode("ascii").split("\r\n")
    version, status, _ = line.split(" ", 2)
    assert version == "HTTP/1.1"
    headers = dict(field.lower().split(": ", 1) for field in fields)
    assert headers["connection"] == "close"
    assert 0 < len(body) < 200
    assert len(body) == int(headers["content-length"])
    return Reply(int(status), headers, body)


def get(host: bytes, path: bytes = b"/") -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"


# ---- malformed


@pytest.mark.parametrize(
    ("status", "sent"),
    [
        (400, b"rubbish\r\n\r\n"),
        (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)),  # TLS
        (400, b"GET / HTTP/1.1\r\n\r\n"),  # no Host
        (400, b"GET / HTTP/1.1\r\nHost: app.test\r\nHost: app.test\r\n\r\n"),
        (400, b"GET / HTTP/1.1\nHost: app.test\n\n"),
        (400, b"GET / HTTP/1.1\r\nHost: app.test\r\nA : b\r\n\r\n"),
        (
            400,
            b"POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        ),
        (
            400,
            b"POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 4\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
        ),
        (501, b"POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
        (505, b"GET / HTTP/2.0\r\nHost: app.test\r\n\r\n"),
    ],
    ids=lambda value: value if isinstance(value, int) else value[:24].decode("latin-1"),
)
@pytest.mark.parametrize("in_pieces", [False, True], ids=["whole", "dripped"])
def test_what_is_malformed_goes_nowhere(
    proxy: Proxy, backend: Backend, status: int, sent: bytes, in_pieces: bool
) -> None:
    before = proxy.settled()["errors"]["bad_request"]
    with connect(proxy.address("web")) as client:
        try:
            client.drip(sent) if in_pieces else client.send(sent)
        except (ConnectionResetError, BrokenPipeError):
            pass  # refused before the last byte: then there may be no answer to be read either
        else:
            assert reply(client).status == status
        port = client.port
    record = proxy.record(port)
    assert (record["reason"], record["status"]) == ("bad_request", status)
    assert record["endpoint"] == ""
    assert proxy.settled()["errors"]["bad_request"] == before + 1
    assert backend.accepted == 0


def test_a_client_of_http2_is_told_so_in_http2(proxy: Proxy, backend: Backend) -> None:
    """As one with prior knowledge begins: the preface and SETTINGS (RFC 9113, 3.4)."""
    with connect(proxy.address("web")) as client:
        client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0")
        answer = client.rest()
        port = client.port
    settings, goaway = answer[:9], answer[9:]
    assert settings == b"\0\0\0\x04\0\0\0\0\0"
    assert goaway[3] == 7
    assert goaway[13:17] == b"\0\0\0\x0d"  # HTTP_1_1_REQUIRED
    assert goaway[17:] == b"HTTP/2 is not spoken here: use HTTP/1.1"
    assert len(goaway) == 9 + int.from_bytes(goaway[:3], "big")
    record = proxy.record(port)
    assert (record["reason"], record["rule"], record["status"]) == ("bad_request", "http2", None)
    assert backend.accepted == 0


def test_a_large_body_behind_a_bad_head_does_not_destroy_the_answer(
    proxy: Proxy, backend: Backend
) -> None:
    """RFC 9112 9.6: a server that closes while the client still sends makes TCP reset the answer
    away; so l7proxy half-closes and reads on for a while."""
    with connect(proxy.address("web")) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 300000\r\n\r\n")
        client.send(bytes(300_000))
        assert reply(client).status == 400
    assert backend.accepted == 0


# ---- limits on the head


def test_too_many_headers(proxy: Proxy, backend: Backend) -> None:
    fields = b"".join(b"X-%d: y\r\n" % n for n in range(20))
    with connect(proxy.address("narrow")) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: app.test\r\n" + fields + b"\r\n")
        assert reply(client).status == 431
        port = client.port
    assert proxy.record(port)["reason"] == "bad_request"
    assert backend.accepted == 0


@pytest.mark.parametrize("end", [b"\r\n\r\n", b""], ids=["complete", "endless"])
def test_too_large_a_head(proxy: Proxy, backend: Backend, end: bytes) -> None:
    with connect(proxy.address("narrow")) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: app.test\r\nX-Long: " + b"y" * 3000 + end)
        assert reply(client).status == 431
    assert backend.accepted == 0


# ---- too slow, or gone


def test_a_head_that_does_not_come(proxy: Proxy, backend: Backend) -> None:
    with contextlib.ExitStack() as stack:
        started = time.monotonic()
        clients = [
            stack.enter_context(connect(proxy.address("hasty"))).send(sent)
            for sent in (b"", b"G", b"GET / HTTP/1.1\r\nHost: app.test\r\n")
        ]
        ports = [client.port for client in clients]
        for client in clients:
            assert reply(client).status == 408
            assert time.monotonic() - started > 0.4
            client.close()
        for port in ports:
            record = proxy.record(port)
            assert (record["reason"], record["status"]) == ("head_timeout", 408)
            assert record["head_ms"] is None
    assert backend.accepted == 0


def test_a_head_that_drips_for_ever(proxy: Proxy, backend: Backend) -> None:
    """Slowloris: the time runs from the accept, each byte wins no more of it."""
    with connect(proxy.address("hasty")) as client:
        client.send(b"GET / HTTP/1.1\r\n")
        with pytest.raises((ConnectionResetError, BrokenPipeError, TimeoutError)):  # noqa: PT012
            for _ in range(50):
                client.send(b"A: b\r\n")
                if not client.silent(0.1):
                    assert reply(client).status == 408
                    raise TimeoutError
        port = client.port
    assert proxy.record(port)["reason"] == "head_timeout"
    assert backend.accepted == 0


@pytest.mark.parametrize("sent", [b"", b"GET / HT"])
@pytest.mark.parametrize("how", ["close", "half_close", "reset"])
def test_a_client_that_leaves_before_its_head_is_complete(
    proxy: Proxy, backend: Backend, sent: bytes, how: str
) -> None:
    with connect(proxy.address("web")) as client:
        client.send(sent)
        port = client.port
        getattr(client, how)()
        if how == "half_close":
            assert client.rest() == b""
    record = proxy.record(port)
    # a reset before the accept takes the connection out of the queue with its error
    assert record["reason"] == ("client_reset" if how == "reset" else "client_closed")
    assert record["state"] == "head"
    assert backend.accepted == 0


# ---- no route


@pytest.mark.parametrize(
    ("host", "path"),
    [
        (b"nobody.test", b"/"),
        (b"api.test", b"/"),
        (b"api.test", b"/v1/healthy"),
        (b"api.test", b"/v1/health/"),
        (b"api.test", b"/v22"),
    ],
)
def test_an_unknown_host_or_path(proxy: Proxy, backend: Backend, host: bytes, path: bytes) -> None:
    with connect(proxy.address("web")) as client:
        client.send(get(host, path))
        assert reply(client).status == 404
        port = client.port
    record = proxy.record(port)
    assert (record["reason"], record["status"], record["route"]) == ("local_reply", 404, "")
    assert record["bytes_in"] == len(get(host, path))
    assert backend.accepted == 0


def test_a_local_answer_to_head_has_no_body(proxy: Proxy, backend: Backend) -> None:
    with connect(proxy.address("web")) as client:
        client.send(b"HEAD / HTTP/1.1\r\nHost: nobody.test\r\n\r\n")
        answer = client.rest()
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert answer.endswith(b"\r\n\r\n")
    assert b"Content-Length: 0" not in answer


# ---- no backend


def test_no_endpoint_takes_the_connection(proxy: Proxy, backend: Backend) -> None:
    with connect(proxy.address("web")) as client:
        client.send(get(b"down.test"))
        assert reply(client).status == 503
        port = client.port
    record = proxy.record(port)
    assert (record["reason"], record["status"]) == ("dial_refused", 503)
    assert (record["route"], record["dial_ms"]) == ("down", None)


def test_no_endpoint_takes_a_bare_stream(proxy: Proxy, backend: Backend) -> None:
    """There is no way to say so but a reset: a clean end would be an empty answer."""
    before = proxy.settled()["errors"]["dial_refused"]
    try:
        with connect(proxy.address("lonely")) as client:
            assert client.ending() == "reset"
    except ConnectionResetError:
        pass  # it was faster than our connect()
    assert proxy.settled()["errors"]["dial_refused"] == before + 1


def test_the_next_endpoint_is_tried(proxy: Proxy, backend: Backend) -> None:
    """Twice, so that each of the two endpoints is the first one once."""

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(ANSWER)

    backend.play(script)
    for _ in range(2):
        with connect(proxy.address("web")) as client:
            client.send(get(b"lame.test"))
            assert client.rest() == ANSWER
            port = client.port
        record = proxy.record(port)
        assert (record["reason"], record["status"]) == ("done", None)
        assert record["endpoint"] == f"127.0.0.1:{backend.port}"
    assert backend.accepted == 2


def test_an_endpoint_that_does_not_answer(proxy: Proxy, backend: Backend) -> None:
    with connect(proxy.address("dialling")) as client:
        started = time.monotonic()
        client.send(get(b"blackhole.test"))
        assert reply(client).status == 504
        assert time.monotonic() - started > 0.25
        port = client.port
    record = proxy.record(port)
    assert (record["reason"], record["status"]) == ("dial_timeout", 504)


def test_the_next_endpoint_after_one_that_does_not_answer(proxy: Proxy, backend: Backend) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.send(ANSWER)

    backend.play(script)
    for _ in range(2):
        with connect(proxy.address("dialling")) as client:
            client.send(get(b"slow-start.test"))
            assert client.rest() == ANSWER


def test_a_client_that_resets_during_the_dial(proxy: Proxy, backend: Backend) -> None:
    with connect(proxy.address("patient")) as client:
        client.send(get(b"blackhole.test"))
        port = client.port
        until(lambda: proxy.stats()["backends"]["blackhole"]["pending"], "it is dialled")
        client.reset()
    record = proxy.record(port)
    assert (record["reason"], record["state"]) == ("client_reset", "dial")


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("read", [True, False], ids=["after the head", "at once"])
def test_a_backend_that_ends_without_an_answer(
    proxy: Proxy, backend: Backend, how: str, read: bool
) -> None:
    expected = {502: "backend_closed"}
    if how == "reset" and not read:
        expected[503] = "dial_refused"  # it was faster than connect(2)

    def script(peer: Peer) -> None:
        if read:
            peer.head()
        getattr(peer, how)()

    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(get(b"app.test"))
        assert reply(client).status in expected
        port = client.port
    record = proxy.record(port)
    assert record["reason"] == expected[record["status"]]


def test_a_backend_that_ends_without_an_answer_to_a_large_body(
    proxy: Proxy, backend: Backend
) -> None:
    """What the client still sends must not destroy the answer."""

    def script(peer: Peer) -> None:
        peer.head()
        peer.read(100_000)

    backend.play(script)
    with connect(proxy.address("web")) as client:
        client.send(
            b"POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 400000\r\n\r\n" + bytes(100_000)
        )
        try:
            client.send(bytes(300_000))
        except (ConnectionResetError, BrokenPipeError):
            pytest.fail("reset while sending: a client like this never sees the 502")
        assert reply(client).status == 502


def test_a_local_answer_that_nobody_reads(proxy: Proxy, backend: Backend) -> None:
    """It lingers for a moment and no longer."""
    client = connect(proxy.address("web"))
    client.send(get(b"nobody.test"))
    record = proxy.record(client.port)
    assert record["status"] == 404
    client.close()
