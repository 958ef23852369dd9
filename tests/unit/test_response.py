"""Heads of responses: what is read from them, what the client gets, and which rule refuses."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import h11
import pytest

from l7proxy.errors import BadResponse
from l7proxy.model import HeaderChanges, Limits
from l7proxy.response import Response, ResponseReader, framing, serialise_response

LIMITS = Limits(head_bytes=1024, headers=10)


def read(data: bytes, method: str = "GET", upgrade: bytes | None = None) -> Response:
    response = ResponseReader(method, LIMITS, upgrade=upgrade).feed(data)
    assert response is not None
    return response


def head(*lines: bytes, status: bytes = b"200 OK", version: bytes = b"1.1") -> bytes:
    return b"\r\n".join([b"HTTP/" + version + b" " + status, *lines]) + b"\r\n\r\n"


def cuts(data: bytes) -> list[list[bytes]]:
    every = [data[start:end] for start, end in pairwise(range(len(data) + 1))]
    return [[data], every, *([data[:at], data[at:]] for at in range(1, len(data)))]


def test_a_usual_head() -> None:
    data = head(b"Server: a", b"Content-Length: 5", b"Set-Cookie: a=b", b"set-cookie:\tc=d ")
    for pieces in cuts(data):
        reader = ResponseReader("GET", LIMITS)
        assert reader.feed(b"") is None
        assert not reader.started
        found = [response for piece in pieces if (response := reader.feed(piece)) is not None]
        assert found == [
            Response(
                status=200,
                reason=b"OK",
                version="1.1",
                headers=(
                    (b"server", b"a"),
                    (b"content-length", b"5"),
                    (b"set-cookie", b"a=b"),
                    (b"set-cookie", b"c=d"),
                ),
                names=(b"Server", b"Content-Length", b"Set-Cookie", b"set-cookie"),
                content_length=5,
                chunked=False,
                until_close=False,
                bodiless=False,
                keep_alive=True,
                upgrade=None,
            )
        ]
        assert reader.started
        assert reader.surplus == b""
        with pytest.raises(RuntimeError, match="given"):
            reader.feed(b"x")


def test_what_follows_is_kept() -> None:
    reader = ResponseReader("GET")
    assert reader.feed(b"HTTP/1.1 204 No") is None
    assert reader.feed(b" Content\r\n\r\nHTTP/1.1 200 OK\r\n") is not None
    assert reader.surplus == b"HTTP/1.1 200 OK\r\n"


CL, TE = b"Content-Length: 5", b"Transfer-Encoding: Chunked"
# method, status, fields -> (content_length, chunked, until_close, bodiless, body_length)
BODIES: list[tuple[str, bytes, list[bytes], tuple[object, ...]]] = [
    ("GET", b"200 OK", [CL], (5, False, False, False, 5)),
    ("GET", b"200 OK", [b"Content-Length: 0"], (0, False, False, False, 0)),
    ("GET", b"200 OK", [TE], (None, True, False, False, None)),
    ("GET", b"200 OK", [], (None, False, True, False, None)),
    ("GET", b"404 Not Found", [CL], (5, False, False, False, 5)),
    ("GET", b"205 Reset Content", [], (None, False, True, False, None)),
    ("HEAD", b"200 OK", [CL], (5, False, False, True, 0)),
    ("HEAD", b"200 OK", [TE], (None, True, False, True, 0)),
    ("HEAD", b"200 OK", [], (None, False, False, True, 0)),
    ("head", b"200 OK", [CL], (5, False, False, False, 5)),
    ("GET", b"304 Not Modified", [CL], (5, False, False, True, 0)),
    ("GET", b"304 Not Modified", [TE], (None, True, False, True, 0)),
    ("GET", b"204 No Content", [], (None, False, False, True, 0)),
    ("GET", b"204 No Content", [b"Content-Length: 0"], (None, False, False, True, 0)),
    ("GET", b"100 Continue", [], (None, False, False, True, 0)),
    ("GET", b"103 Early Hints", [b"Link: </a>"], (None, False, False, True, 0)),
    ("CONNECT", b"200 OK", [CL], (None, False, False, True, 0)),
    ("CONNECT", b"299 Fine", [TE], (None, False, False, True, 0)),
    ("CONNECT", b"200 OK", [], (None, False, False, True, 0)),
    ("CONNECT", b"403 No", [CL], (5, False, False, False, 5)),
    ("CONNECT", b"302 There", [], (None, False, True, False, None)),
]


@pytest.mark.parametrize(("method", "status", "fields", "wanted"), BODIES)
def test_where_the_body_ends(
    method: str, status: bytes, fields: list[bytes], wanted: tuple[object, ...]
) -> None:
    response = read(head(*fields, status=status), method)
    assert wanted == (
        response.content_length,
        response.chunked,
        response.until_close,
        response.bodiless,
        response.body_length,
    )


@pytest.mark.parametrize(
    ("version", "fields", "kept"),
    [
        (b"1.1", [CL], True),
        (b"1.1", [CL, b"Connection: keep-alive"], True),
        (b"1.1", [CL, b"Connection: Close"], False),
        (b"1.1", [CL, b"Connection: x-a, close"], False),
        (b"1.1", [], False),  # only the end of the connection tells
        (b"1.0", [CL], False),
        (b"1.0", [CL, b"Connection: Keep-Alive"], True),
        (b"1.0", [CL, b"Connection: keep-alive, close"], False),
    ],
)
def test_whether_the_connection_is_kept(version: bytes, fields: list[bytes], kept: bool) -> None:
    assert read(head(*fields, version=version)).keep_alive is kept


@pytest.mark.parametrize("line", [b"HTTP/1.1 200", b"HTTP/1.1 200 "])
def test_a_reason_may_be_missing(line: bytes) -> None:
    response = read(line + b"\r\n\r\n")
    assert (response.status, response.reason) == (200, b"")
    assert written(response).startswith(b"HTTP/1.1 200 \r\n")


@pytest.mark.parametrize("status", [b"999 Request Denied", b"299 \xe4\t", b"600 "])
def test_odd_but_clear_statuses(status: bytes) -> None:
    response = read(head(status=status))
    assert b"%d %b" % (response.status, response.reason) == status


@pytest.mark.parametrize(
    ("status", "interim"), [(b"100 C", True), (b"103 E", True), (b"200 OK", False), (b"199 ", True)]
)
def test_which_are_interim(status: bytes, interim: bool) -> None:
    assert read(head(status=status)).is_interim is interim


def test_an_upgrade() -> None:
    data = head(b"Upgrade: WebSocket", b"Connection: Upgrade", status=b"101 Switching Protocols")
    response = read(data, upgrade=b"websocket, other")
    assert not response.is_interim
    assert response.upgrade == b"WebSocket"
    assert written(response) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: upgrade\r\n\r\n"
    )


def written(
    response: Response,
    client_version: str = "1.1",
    keep_alive: bool = True,
    changes: HeaderChanges | None = None,
    extra: tuple[tuple[bytes, bytes], ...] = (),
) -> bytes:
    chunked, kept = framing(response, client_version, keep_alive)
    return serialise_response(
        response,
        client_version=client_version,
        keep_alive=kept,
        chunked=chunked,
        changes=changes,
        extra=extra,
    )


def lines(*after: bytes, status: bytes = b"200 OK") -> bytes:
    return head(*after, status=status)


@pytest.mark.parametrize(
    ("data", "version", "keep_alive", "wanted"),
    [
        (head(b"A: 1", CL), "1.1", True, lines(b"A: 1", CL)),
        (head(b"A: 1", CL), "1.1", False, lines(b"A: 1", CL, b"Connection: close")),
        (head(b"A: 1", CL), "1.0", True, lines(b"A: 1", CL, b"Connection: keep-alive")),
        (head(CL, version=b"1.0"), "1.1", True, lines(CL)),
        (head(TE), "1.1", True, lines(b"Transfer-Encoding: chunked")),
        (head(TE), "1.0", True, lines(b"Connection: close")),
        (head(), "1.1", True, lines(b"Transfer-Encoding: chunked")),
        (head(), "1.0", True, lines(b"Connection: close")),
        (head(b"Connection: close", CL), "1.1", True, lines(CL)),
        (
            head(b"Connection: x-a, Close", b"X-A: 1", b"X-B: 2", CL),
            "1.1",
            True,
            lines(b"X-B: 2", CL),
        ),
        (head(b"Keep-Alive: timeout=5", b"Proxy-Connection: a", CL), "1.1", True, lines(CL)),
        (head(b"Via: 1.1 a", CL), "1.1", True, lines(b"Via: 1.1 a", CL)),
        (head(b"Upgrade: h2c", CL), "1.1", True, lines(CL)),
        (
            head(b"Upgrade: a/1", b"Connection: upgrade", CL, status=b"426 No"),
            "1.1",
            False,
            lines(CL, b"Upgrade: a/1", b"Connection: close, upgrade", status=b"426 No"),
        ),
        (
            head(b"Upgrade: a/1", b"Connection: upgrade", CL, status=b"426 No"),
            "1.0",
            True,
            lines(CL, b"Connection: keep-alive", status=b"426 No"),
        ),
        (
            head(b"Content-Length: 0", status=b"204 No Content"),
            "1.1",
            True,
            lines(status=b"204 No Content"),
        ),
        (head(b"Connection: close", status=b"100 C"), "1.1", False, lines(status=b"100 C")),
        (head(CL, status=b"304 Not"), "1.1", True, lines(CL, status=b"304 Not")),
        (head(TE, status=b"304 Not"), "1.1", True, lines(status=b"304 Not")),
    ],
)
def test_what_the_client_gets(data: bytes, version: str, keep_alive: bool, wanted: bytes) -> None:
    assert written(read(data), version, keep_alive) == wanted


def test_what_a_route_changes() -> None:
    changes = HeaderChanges(
        set=(("Server", "mine"),), add=(("X-Add", "1"), ("X-Add", "2")), remove=("x-gone",)
    )
    data = head(b"Server: a", b"X_GONE: 1", b"X-Gone: 2", b"X-Add: 0", CL, b"Set-Cookie: a=b")
    assert written(read(data), changes=changes, extra=((b"Set-Cookie", b"c=d"),)) == lines(
        b"X-Add: 0",
        b"Set-Cookie: a=b",
        b"Server: mine",
        b"X-Add: 1",
        b"X-Add: 2",
        b"Set-Cookie: c=d",
        CL,
    )


REFUSED = [
    ("another version", b"HTTP/1.2 200 OK\r\n\r\n", "status-line"),
    ("HTTP/2", b"HTTP/2 200 OK\r\n\r\n", "status-line"),
    ("HTTP/0.9", b"<html>", "status-line"),
    ("ICY", b"ICY 200 OK\r\n\r\n", "status-line"),
    ("lower case", b"http/1.1 200 OK\r\n\r\n", "status-line"),
    ("an empty line before", b"\r\nHTTP/1.1 200 OK\r\n\r\n", "status-line"),
    ("a space before", b" HTTP/1.1 200 OK\r\n\r\n", "status-line"),
    ("TLS", b"\x15\x03\x01\0\x02\x02\x50", "status-line"),
    ("an empty status", b"HTTP/1.1  OK\r\n\r\n", "status-line"),
    ("two spaces", b"HTTP/1.1  200 OK\r\n\r\n", "status-line"),
    ("a tab", b"HTTP/1.1\t200 OK\r\n\r\n", "status-line"),
    ("no status", b"HTTP/1.1\r\n\r\n", "status-line"),
    ("two digits", b"HTTP/1.1 20 OK\r\n\r\n", "status-line"),
    ("four digits", b"HTTP/1.1 2000 OK\r\n\r\n", "status-line"),
    ("status 099", b"HTTP/1.1 099 OK\r\n\r\n", "status-line"),
    ("a sign", b"HTTP/1.1 +20 OK\r\n\r\n", "status-line"),
    ("no space before the reason", b"HTTP/1.1 200OK\r\n\r\n", "status-line"),
    ("a bare LF", b"HTTP/1.1 200 OK\nA: 1\r\n\r\n", "bare-lf"),
    ("a bare CR in the reason", b"HTTP/1.1 200 O\rK\r\n\r\n", "bare-cr"),
    ("NUL in the reason", b"HTTP/1.1 200 O\0K\r\n\r\n", "control"),
    ("NUL in a value", head(b"A: \0"), "control"),
    ("a fold", head(b"A: 1", b" 2"), "obs-fold"),
    ("a space before the first field", head(b" A: 1"), "leading-whitespace"),
    ("a space before a colon", head(b"Content-Length : 5"), "space-before-colon"),
    ("no colon", head(b"A"), "field-line"),
    ("a twin of a length", head(b"Content_Length: 5"), "field-twin"),
    ("a twin of a coding", head(b"Transfer_Encoding: chunked"), "field-twin"),
    ("both", head(CL, TE), "length-and-chunked"),
    ("two lengths", head(CL, b"Content-Length: 6"), "content-length"),
    ("two equal lengths", head(CL, CL), "content-length"),
    ("a list of lengths", head(b"Content-Length: 5, 5"), "content-length"),
    ("a length with a sign", head(b"Content-Length: +5"), "content-length"),
    ("an empty length", head(b"Content-Length:"), "content-length"),
    ("a negative length", head(b"Content-Length: -1"), "content-length"),
    ("another coding", head(b"Transfer-Encoding: gzip"), "transfer-encoding"),
    ("a coding before", head(b"Transfer-Encoding: gzip, chunked"), "transfer-encoding"),
    ("identity", head(b"Transfer-Encoding: identity"), "transfer-encoding"),
    ("a coding twice", head(TE, TE), "transfer-encoding"),
    ("a coding in 1.0", head(TE, version=b"1.0"), "chunked-in-1.0"),
    ("malformed Connection", head(b"Connection: a b"), "connection"),
    ("a length in 204", head(CL, status=b"204 No"), "no-content"),
    ("a coding in 204", head(TE, status=b"204 No"), "no-content"),
    ("a length in 100", head(CL, status=b"100 C"), "no-content"),
    (
        "101 unasked",
        head(b"Upgrade: a", b"Connection: upgrade", status=b"101 S"),
        "unasked-upgrade",
    ),
    ("too many fields", head(*[b"A: 1"] * 11), "too-many-fields"),
    ("too large", head(b"A: " + b"1" * 1024), "head-too-large"),
    ("no end", b"HTTP/1.1 200 " + b"O" * 1024, "head-too-large"),
]


@pytest.mark.parametrize(("data", "rule"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_refused_in_any_cut(data: bytes, rule: str) -> None:
    found = set()
    for pieces in cuts(data):
        reader = ResponseReader("GET", LIMITS)
        with pytest.raises(BadResponse) as raised:
            assert [reader.feed(piece) for piece in pieces] == []
        found.add((raised.value.rule, raised.value.detail))
        with pytest.raises(RuntimeError):
            reader.feed(b"x")
    assert [rule] == [rule for rule, _ in found]


@pytest.mark.parametrize(
    "fields",
    [
        [b"Upgrade: other", b"Connection: upgrade"],
        [b"Upgrade: websocket"],  # without the option the field does not count
        [b"Connection: upgrade"],
        [b"Upgrade: websocket, other", b"Connection: upgrade"],
    ],
)
def test_an_upgrade_that_was_not_offered(fields: list[bytes]) -> None:
    with pytest.raises(BadResponse, match="unasked-upgrade"):
        read(head(*fields, status=b"101 S"), upgrade=b"websocket")


class H11Sees:
    """Stands in for a connection of h11: reads a head that nobody sent."""

    def __init__(self, head: bytes) -> None:
        self._head = head

    def __call__(self, role: type[h11.Sentinel]) -> h11.Connection:
        connection = h11.Connection(h11.CLIENT)
        connection.receive_data(self._head)
        connection.receive_data = lambda _: None  # type: ignore[method-assign]
        return connection


@pytest.mark.parametrize(
    "seen",
    [
        b"HTTP/1.1 200 O\x00K\r\n\r\n",  # which h11 refuses
        head(CL, status=b"201 OK"),
        head(CL, status=b"200 Fine"),
        head(b"Content-Length: 6"),
        head(CL, b"X: 1"),
        head(b"content-length: 5"),
        b"HTTP/1.1",  # which is no head yet
    ],
)
def test_h11_has_to_agree(seen: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(**{**vars(h11), "Connection": H11Sees(seen)})
    monkeypatch.setattr("l7proxy.response.h11", fake)
    with pytest.raises(BadResponse, match="parser"):
        read(head(CL))
