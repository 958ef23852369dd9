"""Heads that are let through: what came in, and what the Head says. And the reader around them."""

from __future__ import annotations

from time import process_time
from typing import Any

import pytest

from l7proxy.errors import BadRequest
from l7proxy.gate import MAX_METHOD
from l7proxy.head import Head, HeadReader, local_response
from l7proxy.model import Limits


def request(line: bytes, *fields: bytes) -> bytes:
    return b"\r\n".join([line, *fields]) + b"\r\n\r\n"


def get(*fields: bytes, host: bytes = b"a.example") -> bytes:
    return request(b"GET / HTTP/1.1", b"Host: " + host, *fields)


def read(data: bytes, limits: Limits | None = None) -> Head:
    head = HeadReader(limits or Limits()).feed(data)
    assert head is not None
    return head


# What came in, and the fields of Head that the row is about.
ACCEPTED: list[tuple[str, bytes, dict[str, Any]]] = [
    (
        "the least of 1.1",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        {
            "method": "GET",
            "target": "/",
            "path": "/",
            "query": None,
            "host": "a",
            "authority": "a",
            "version": "1.1",
            "headers": ((b"host", b"a"),),
            "names": (b"Host",),
            "content_length": None,
            "chunked": False,
            "upgrade": None,
            "keep_alive": True,
            "expect_continue": False,
        },
    ),
    (
        "the least of 1.0",
        b"GET / HTTP/1.0\r\n\r\n",
        {"host": "", "authority": "", "version": "1.0", "headers": (), "keep_alive": False},
    ),
    ("one empty line first", b"\r\n" + get(), {"method": "GET", "host": "a.example"}),
    (
        "path and query",
        request(b"GET /a/b?c=d HTTP/1.1", b"Host: a"),
        {"target": "/a/b?c=d", "path": "/a/b", "query": "c=d"},
    ),
    (
        "empty query",
        request(b"GET /a? HTTP/1.1", b"Host: a"),
        {"target": "/a?", "path": "/a", "query": ""},
    ),
    (
        "second question mark",
        request(b"GET /a?b?c HTTP/1.1", b"Host: a"),
        {"path": "/a", "query": "b?c"},
    ),
    (
        "the path stays as sent",
        request(b"GET //a/../%2e/%zz;x=1 HTTP/1.1", b"Host: a"),
        {"path": "//a/../%2e/%zz;x=1"},
    ),
    (
        "what browsers leave raw",
        request(b"GET /{a}|^`?{b}|\\^` HTTP/1.1", b"Host: a"),
        {"target": "/{a}|^`?{b}|\\^`"},
    ),
    (
        "a URI in the path",
        request(b"GET /http://b/ HTTP/1.1", b"Host: a"),
        {"path": "/http://b/", "host": "a"},
    ),
    ("unknown method", request(b"FLY / HTTP/1.1", b"Host: a"), {"method": "FLY"}),
    ("lower-case method is another one", request(b"get / HTTP/1.1", b"Host: a"), {"method": "get"}),
    (
        "method of odd token characters",
        request(b"A-!#$%&'*+.^_`|~9 / HTTP/1.1", b"Host: a"),
        {"method": "A-!#$%&'*+.^_`|~9"},
    ),
    (
        "longest method",
        request(b"A" * MAX_METHOD + b" / HTTP/1.1", b"Host: a"),
        {"method": "A" * MAX_METHOD},
    ),
    (
        "OPTIONS *",
        request(b"OPTIONS * HTTP/1.1", b"Host: a"),
        {"target": "*", "path": "/", "query": None},
    ),
    (
        "absolute-form",
        request(b"GET http://A.example:8080/x?y HTTP/1.1", b"Host: a.EXAMPLE:8080"),
        {"target": "/x?y", "host": "a.example", "authority": "A.example:8080"},
    ),
    (
        "absolute-form, scheme in upper case",
        request(b"GET HTTP://a/ HTTP/1.1", b"Host: a"),
        {"target": "/", "host": "a"},
    ),
    (
        "absolute-form, https",
        request(b"GET https://a/ HTTP/1.1", b"Host: a:443"),
        {"authority": "a"},
    ),
    (
        "absolute-form, default port",
        request(b"GET http://a:80/ HTTP/1.1", b"Host: a"),
        {"authority": "a:80"},
    ),
    (
        "absolute-form, trailing dot",
        request(b"GET http://a./ HTTP/1.1", b"Host: a"),
        {"authority": "a.", "host": "a"},
    ),
    ("absolute-form, empty path", request(b"GET http://a HTTP/1.1", b"Host: a"), {"target": "/"}),
    (
        "absolute-form, query without path",
        request(b"GET http://a?b HTTP/1.1", b"Host: a"),
        {"target": "/?b", "path": "/"},
    ),
    (
        "absolute-form, 1.0 without Host",
        request(b"GET http://a/ HTTP/1.0"),
        {"host": "a", "authority": "a"},
    ),
    (
        "absolute-form, OPTIONS of the server",
        request(b"OPTIONS http://a:81 HTTP/1.1", b"Host: a:81"),
        {"target": "*", "authority": "a:81"},
    ),
    (
        "absolute-form, OPTIONS of a path",
        request(b"OPTIONS http://a/ HTTP/1.1", b"Host: a"),
        {"target": "/"},
    ),
    (
        "absolute-form, IPv6 in two spellings",
        request(b"GET http://[::1]/ HTTP/1.1", b"Host: [0:0::1]"),
        {"host": "::1", "authority": "[::1]"},
    ),
    (
        "Host in mixed case with port",
        get(host=b"API.Example.COM:8443"),
        {"host": "api.example.com", "authority": "API.Example.COM:8443"},
    ),
    (
        "Host with a trailing dot",
        get(host=b"a.example."),
        {"host": "a.example", "authority": "a.example."},
    ),
    ("Host with an underscore", get(host=b"my_app:80"), {"host": "my_app"}),
    ("Host of IPv4", get(host=b"127.0.0.1:8080"), {"host": "127.0.0.1"}),
    (
        "Host of IPv6",
        get(host=b"[2001:DB8:0::1]:8080"),
        {"host": "2001:db8::1", "authority": "[2001:DB8:0::1]:8080"},
    ),
    ("longest label", get(host=b"a" * 63), {"host": "a" * 63}),
    ("Host with a port of five digits", get(host=b"a:65535"), {"authority": "a:65535"}),
    (
        "whitespace around values",
        get(b"X: \t a \t b\t "),
        {"headers": ((b"host", b"a.example"), (b"x", b"a \t b"))},
    ),
    ("no whitespace around values", request(b"GET / HTTP/1.1", b"Host:a"), {"host": "a"}),
    ("empty value", get(b"X:"), {"headers": ((b"host", b"a.example"), (b"x", b""))}),
    (
        "colons in a value",
        get(b"X: a:b:c"),
        {"headers": ((b"host", b"a.example"), (b"x", b"a:b:c"))},
    ),
    (
        "obs-text in a value",
        get(b"X: \xc3\xa4\x80"),
        {"headers": ((b"host", b"a.example"), (b"x", b"\xc3\xa4\x80"))},
    ),
    (
        "repeated fields keep their order",
        get(b"b: 1", b"A: 2", b"B: 3"),
        {
            "headers": ((b"host", b"a.example"), (b"b", b"1"), (b"a", b"2"), (b"b", b"3")),
            "names": (b"Host", b"b", b"A", b"B"),
        },
    ),
    ("an underscore that imitates nothing", get(b"api_key: 1"), {"names": (b"Host", b"api_key")}),
    ("length", get(b"Content-Length: 5"), {"content_length": 5, "chunked": False}),
    ("length 0", get(b"Content-Length: 0"), {"content_length": 0}),
    ("largest length", get(b"Content-Length: " + b"9" * 18), {"content_length": 10**18 - 1}),
    ("length in 1.0", request(b"POST / HTTP/1.0", b"Content-Length: 7"), {"content_length": 7}),
    ("chunked", get(b"Transfer-Encoding: chunked"), {"chunked": True, "content_length": None}),
    (
        "chunked in other case",
        get(b"TRANSFER-ENCODING: Chunked"),
        {
            "chunked": True,
            "headers": ((b"host", b"a.example"), (b"transfer-encoding", b"chunked")),
            "names": (b"Host", b"TRANSFER-ENCODING"),
        },
    ),
    ("close", get(b"Connection: Close"), {"keep_alive": False, "options": frozenset({b"close"})}),
    ("close among others", get(b"Connection: x-y, ,close"), {"keep_alive": False}),
    (
        "close in a second field",
        get(b"Connection: x-y", b"Connection: close"),
        {"keep_alive": False},
    ),
    ("keep-alive in 1.1", get(b"Connection: keep-alive"), {"keep_alive": True}),
    ("empty Connection", get(b"Connection:"), {"keep_alive": True, "options": frozenset()}),
    (
        "keep-alive in 1.0",
        request(b"GET / HTTP/1.0", b"Connection: Keep-Alive"),
        {"keep_alive": True},
    ),
    (
        "close wins in 1.0",
        request(b"GET / HTTP/1.0", b"Connection: keep-alive, close"),
        {"keep_alive": False},
    ),
    (
        "WebSocket",
        get(b"Connection: keep-alive, Upgrade", b"Upgrade: websocket"),
        {"upgrade": b"websocket"},
    ),
    ("upgrade without the option", get(b"Upgrade: websocket"), {"upgrade": None}),
    ("option without an upgrade", get(b"Connection: upgrade"), {"upgrade": None}),
    (
        "upgrade in 1.0",
        request(b"GET / HTTP/1.0", b"Connection: upgrade", b"Upgrade: websocket"),
        {"upgrade": None},
    ),
    (
        "upgrade to h2c",
        get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c"),
        {"upgrade": None},
    ),
    (
        "upgrade to H2C in upper case",
        get(b"Connection: Upgrade", b"Upgrade: H2C"),
        {"upgrade": None},
    ),
    ("upgrade to HTTP/2.0", get(b"Connection: Upgrade", b"Upgrade: HTTP/2.0"), {"upgrade": None}),
    (
        "upgrade to one of two",
        get(b"Connection: Upgrade", b"Upgrade: h2c, WebSocket"),
        {"upgrade": b"WebSocket"},
    ),
    (
        "upgrades in two fields",
        get(b"Connection: Upgrade", b"Upgrade: a/1", b"Upgrade: b"),
        {"upgrade": b"a/1, b"},
    ),
    (
        "upgrade to nonsense",
        get(b"Connection: Upgrade", b"Upgrade: web socket, @"),
        {"upgrade": None},
    ),
    ("expectation", get(b"Expect: 100-Continue"), {"expect_continue": True}),
    (
        "expectation in 1.0",
        request(b"POST / HTTP/1.0", b"Expect: 100-continue"),
        {"expect_continue": False},
    ),
    (
        "Max-Forwards counts with TRACE",
        request(b"TRACE / HTTP/1.1", b"Host: a", b"Max-Forwards: 10"),
        {"headers": ((b"host", b"a"), (b"max-forwards", b"9"))},
    ),
    (
        "Max-Forwards is nothing to GET",
        get(b"Max-Forwards: x"),
        {"headers": ((b"host", b"a.example"), (b"max-forwards", b"x"))},
    ),
]


@pytest.mark.parametrize(
    ("data", "expected"), [row[1:] for row in ACCEPTED], ids=[row[0] for row in ACCEPTED]
)
def test_accepted(data: bytes, expected: dict[str, Any]) -> None:
    head = read(data)
    assert {name: getattr(head, name) for name in expected} == expected


@pytest.mark.parametrize("data", [row[1] for row in ACCEPTED], ids=[row[0] for row in ACCEPTED])
def test_accepted_alike_however_it_is_cut(data: bytes) -> None:
    whole = read(data)
    for cut in range(1, len(data)):
        reader = HeadReader(Limits())
        assert reader.feed(data[:cut]) is None
        assert reader.feed(data[cut:]) == whole
    reader = HeadReader(Limits())
    assert [reader.feed(bytes([byte])) for byte in data] == [None] * (len(data) - 1) + [whole]


def test_names_stand_beside_headers() -> None:
    for what, data, _ in ACCEPTED:
        head = read(data)
        assert [name.lower() for name in head.names] == [name for name, _ in head.headers], what


def test_what_comes_after_the_head_is_surplus() -> None:
    body = b"\r\n\r\n\x00GET / HTTP/9.9\n"
    reader = HeadReader(Limits())
    assert reader.feed(get(b"Content-Length: 99") + body) is not None
    assert reader.surplus == body


def test_surplus_of_the_last_piece_only() -> None:
    reader = HeadReader(Limits())
    assert reader.feed(get()[:-1]) is None
    assert reader.surplus == b""
    assert reader.feed(b"\nbody") is not None
    assert reader.surplus == b"body"


def test_surplus_does_not_count_as_head() -> None:
    limits = Limits(head_bytes=len(get()))
    reader = HeadReader(limits)
    assert reader.feed(get() + b"a" * 100_000) is not None
    assert len(reader.surplus) == 100_000


def test_started_with_the_first_byte() -> None:
    reader = HeadReader(Limits())
    assert not reader.started
    assert reader.feed(b"") is None
    assert not reader.started
    assert reader.feed(b"G") is None
    assert reader.started


def test_a_head_of_exactly_the_limit_passes_and_one_byte_more_does_not() -> None:
    data = get(b"X: 1")
    assert read(data, Limits(head_bytes=len(data))).method == "GET"
    with pytest.raises(BadRequest) as caught:
        read(data, Limits(head_bytes=len(data) - 1))
    assert caught.value.status == 431


def test_as_many_fields_as_the_limit_pass() -> None:
    data = get(*[b"X: 1"] * 9)
    assert len(read(data, Limits(headers=10)).headers) == 10
    with pytest.raises(BadRequest) as caught:
        read(data, Limits(headers=9))
    assert (caught.value.status, caught.value.rule) == (431, "too-many-fields")


def test_a_reader_gives_one_answer() -> None:
    accepted, refused = HeadReader(Limits()), HeadReader(Limits())
    accepted.feed(get())
    with pytest.raises(BadRequest):
        refused.feed(b"\x16")
    for reader in (accepted, refused):
        with pytest.raises(RuntimeError, match="has given its answer"):
            reader.feed(b"G")


def test_single_bytes_cost_linear_time() -> None:
    """Four times the bytes must not take sixteen times as long."""

    def seconds(size: int) -> float:
        reader = HeadReader(Limits(head_bytes=2 * size))
        pieces = [b"%c" % byte for byte in b"GET /".ljust(size, b"a")]
        start = process_time()
        for piece in pieces:
            reader.feed(piece)
        return process_time() - start

    short = min(seconds(40_000) for _ in range(3))
    long = min(seconds(160_000) for _ in range(3))
    assert long < 7 * short


def test_local_response_is_complete() -> None:
    assert local_response(404, "no route for this host and path") == (
        b"HTTP/1.1 404 Not Found\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n"
        b"Content-Length: 47\r\n"
        b"Cache-Control: no-store\r\n"
        b"Connection: close\r\n"
        b"\r\n"
        b"404 Not Found: no route for this host and path\n"
    )


def test_local_response_without_detail_and_to_head() -> None:
    full = local_response(503)
    head, _, body = full.partition(b"\r\n\r\n")
    assert body == b"503 Service Unavailable\n"
    assert b"Content-Length: %d\r\n" % len(body) in head
    assert local_response(503, method="HEAD") == head + b"\r\n\r\n"


def test_local_response_keeps_detail_on_one_line() -> None:
    body = local_response(400, "a\r\nb\x00\x1b[0mä").partition(b"\r\n\r\n")[2]
    assert body == "400 Bad Request: a??b??[0mä\n".encode()


def test_local_response_of_a_status_without_phrase() -> None:
    assert local_response(499).startswith(b"HTTP/1.1 499 Error\r\n")
    assert local_response(299).startswith(b"HTTP/1.1 299 Response\r\n")


@pytest.mark.parametrize("status", [100, 101, 199, 204, 205, 304, 600, 0, -1])
def test_local_response_refuses_what_has_no_content(status: int) -> None:
    with pytest.raises(ValueError, match="no content or is not final"):
        local_response(status)
