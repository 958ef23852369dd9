"""Transcripts: `>>` is what the client sent, `<<` what the backend gets, byte for byte."""

from __future__ import annotations

import pytest
from heads import written

from l7proxy.filters import Rewriting
from l7proxy.head import Head, HeadReader, serialise
from l7proxy.model import ForwardedFields, Limits

TRANSCRIPTS = [
    (
        "a browser",
        """
        >> GET /a?b=c HTTP/1.1
        >> User-Agent: Mozilla/5.0
        >> Host: www.example.com:8080
        >> Accept: */*
        >> accept-LANGUAGE: de
        >> Connection: keep-alive
        >> Cookie: a=b; c=d
        << GET /a?b=c HTTP/1.1
        << Host: www.example.com:8080
        << User-Agent: Mozilla/5.0
        << Accept: */*
        << accept-LANGUAGE: de
        << Cookie: a=b; c=d
        << X-Forwarded-For: 192.0.2.7
        << Via: 1.1 l7proxy
        """,
    ),
    (
        "whitespace is normalised, values are not",
        """
        >> GET / HTTP/1.1
        >> Host:a.example
        >> X:a  b,\tc
        >> Y:
        << GET / HTTP/1.1
        << Host: a.example
        << X: a  b,\tc
        << Y:_
        << X-Forwarded-For: 192.0.2.7
        << Via: 1.1 l7proxy
        """,
    ),
    (
        "an upload: framing, Expect and Trailer stay, TE goes",
        """
        >> POST /up HTTP/1.1
        >> Host: a.example
        >> Transfer-Encoding: Chunked
        >> Expect: 100-continue
        >> Trailer: Digest
        >> TE: trailers
        >> Connection: TE, close
        << POST /up HTTP/1.1
        << Host: a.example
        << Transfer-Encoding: chunked
        << Expect: 100-continue
        << Trailer: Digest
        << X-Forwarded-For: 192.0.2.7
        << Via: 1.1 l7proxy
        << Connection: close
        """,
    ),
    (
        "a length stays",
        """
        >> PUT / HTTP/1.1
        >> Host: a.example
        >> Content-Length: 12
        << PUT / HTTP/1.1
        << Host: a.example
        << Content-Length: 12
        << X-Forwarded-For: 192.0.2.7
        << Via: 1.1 l7proxy
        """,
    ),
    (
        "hop-by-hop fields and what Connection names go",
        """
        >> GET / HTTP/1.1
        >> Host: a.example
        >> Connection: X-Hop, keep-alive
        >> Connection: x-hop-2
        >> X-Hop: 1
        >> x-HOP-2: 2
        >> X-Hop-3: 3
        >> Keep-Alive: timeout=5
        >> Proxy-Connection: keep-alive
        >> Proxy-Authorization: Basic eDp5
        >> Proxy-Authenticate: Basic
        >> TE: gzip
        << GET / HTTP/1.1
        << Host: a.example
        << X-Hop-3: 3
        << X-Forwarded-For: 192.0.2.7
        << Via: 1.1 l7proxy
        """,
    ),
    (
        "absolute-form becomes origin-form, Host is its authority",
        """
        >> GET http://A.Example/x?y HTTP/1.1
        >> Host: a.example:80
        << GET /x?y HTTP/1.1
        << Host: A.Example
        << X-Forwarded-For: 192.0.2.7
        << Via: 1.1 l7proxy
        """,
    ),
    (
        "OPTIONS *",
        """
        >> OPTIONS * HTTP/1.1
        >> Host: a.example
        >> Max-Forwards: 3
        << OPTIONS * HTTP/1.1
        << Host: a.example
        << Max-Forwards: 2
        << X-Forwarded-For: 192.0.2.7
        << Via: 1.1 l7proxy
        """,
    ),
    (
        "OPTIONS of a whole server, absolute-form",
        """
        >> OPTIONS http://www.example.org:8001 HTTP/1.1
        >> Host: www.example.org:8001
        << OPTIONS * HTTP/1.1
        << Host: www.example.org:8001
        << X-Forwarded-For: 192.0.2.7
        << Via: 1.1 l7proxy
        """,
    ),
    (
        "WebSocket",
        """
        >> GET /chat HTTP/1.1
        >> Host: a.example
        >> Upgrade: websocket
        >> Connection: keep-alive, Upgrade
        >> Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==
        >> Sec-WebSocket-Version: 13
        << GET /chat HTTP/1.1
        << Host: a.example
        << Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==
        << Sec-WebSocket-Version: 13
        << X-Forwarded-For: 192.0.2.7
        << Via: 1.1 l7proxy
        << Upgrade: websocket
        << Connection: upgrade
        """,
    ),
    (
        "an upgrade and a close",
        """
        >> GET /chat HTTP/1.1
        >> Host: a.example
        >> Upgrade: websocket
        >> Connection: upgrade, close
        << GET /chat HTTP/1.1
        << Host: a.example
        << X-Forwarded-For: 192.0.2.7
        << Via: 1.1 l7proxy
        << Upgrade: websocket
        << Connection: close, upgrade
        """,
    ),
    (
        "h2c is not offered",
        """
        >> GET / HTTP/1.1
        >> Host: a.example
        >> Connection: Upgrade, HTTP2-Settings
        >> Upgrade: h2c
        >> HTTP2-Settings: AAMAAABkAARAAAAA
        << GET / HTTP/1.1
        << Host: a.example
        << X-Forwarded-For: 192.0.2.7
        << Via: 1.1 l7proxy
        """,
    ),
    (
        "Upgrade and HTTP2-Settings that Connection does not name go as well",
        """
        >> GET / HTTP/1.1
        >> Host: a.example
        >> Upgrade: websocket
        >> HTTP2-Settings: AAMAAABkAARAAAAA
        << GET / HTTP/1.1
        << Host: a.example
        << X-Forwarded-For: 192.0.2.7
        << Via: 1.1 l7proxy
        """,
    ),
    (
        "1.0 stays 1.0 and closes",
        """
        >> GET / HTTP/1.0
        << GET / HTTP/1.0
        << X-Forwarded-For: 192.0.2.7
        << Via: 1.0 l7proxy
        << Connection: close
        """,
    ),
    (
        "1.0 with keep-alive",
        """
        >> GET / HTTP/1.0
        >> Host: a.example
        >> Connection: Keep-Alive
        << GET / HTTP/1.0
        << Host: a.example
        << X-Forwarded-For: 192.0.2.7
        << Via: 1.0 l7proxy
        << Connection: keep-alive
        """,
    ),
    (
        "what a stranger says of hops before it goes no further; Via grows at the end",
        """
        >> GET / HTTP/1.1
        >> Host: a.example
        >> X-Forwarded-For: 203.0.113.1, 203.0.113.2
        >> Via: 1.0 fred
        >> x-forwarded-for: 203.0.113.3
        >> via: 1.1 p.example
        >> X-Forwarded-For:
        >> X-Forwarded-Proto: https
        >> X-Forwarded-Prefix: /x
        >> X-Real-IP: 203.0.113.1
        >> Forwarded: for=203.0.113.1
        << GET / HTTP/1.1
        << Host: a.example
        << X-Forwarded-For: 192.0.2.7
        << Via: 1.0 fred, 1.1 p.example, 1.1 l7proxy
        """,
    ),
    (
        "repeated fields stay apart and in order",
        """
        >> GET / HTTP/1.1
        >> Host: a.example
        >> Cookie: a=1
        >> X: 1
        >> Cookie: b=2
        << GET / HTTP/1.1
        << Host: a.example
        << Cookie: a=1
        << X: 1
        << Cookie: b=2
        << X-Forwarded-For: 192.0.2.7
        << Via: 1.1 l7proxy
        """,
    ),
]


def side(transcript: str, mark: str) -> bytes:
    """One side of a transcript; `:_` stands for a colon and a space at the end of a line."""
    lines = [line.strip(" ") for line in transcript.splitlines()]
    chosen = [line[3:].replace(":_", ": ") for line in lines if line.startswith(mark)]
    return "\r\n".join(chosen).encode() + b"\r\n\r\n"


def read(data: bytes) -> Head:
    head = HeadReader(Limits()).feed(data)
    assert head is not None
    return head


@pytest.mark.parametrize(
    "transcript", [row[1] for row in TRANSCRIPTS], ids=[row[0] for row in TRANSCRIPTS]
)
def test_transcript(transcript: str) -> None:
    assert written(read(side(transcript, ">>"))) == side(transcript, "<<")


@pytest.mark.parametrize(
    "transcript", [row[1] for row in TRANSCRIPTS], ids=[row[0] for row in TRANSCRIPTS]
)
def test_what_is_sent_passes_the_gate_again(transcript: str) -> None:
    """A second l7proxy behind the first reads the same request."""
    first = read(side(transcript, ">>"))
    second = read(written(first))
    for name in ("method", "target", "path", "query", "host", "authority", "version"):
        assert getattr(second, name) == getattr(first, name), name
    for name in ("content_length", "chunked", "upgrade", "keep_alive", "expect_continue"):
        assert getattr(second, name) == getattr(first, name), name


def test_obs_text_is_forwarded_as_it_is() -> None:
    head = read(b"GET / HTTP/1.1\r\nHost: a\r\nX: \xe4\xff\r\n\r\n")
    assert b"\r\nX: \xe4\xff\r\n" in written(head)


def test_the_empty_line_before_the_request_is_not_forwarded() -> None:
    assert written(read(b"\r\nGET / HTTP/1.0\r\n\r\n")).startswith(b"GET / ")


def test_an_ipv6_client_stands_without_brackets() -> None:
    head = read(b"GET / HTTP/1.0\r\n\r\n")
    assert b"\r\nX-Forwarded-For: 2001:db8::7\r\n" in written(head, "2001:db8::7")


def test_a_head_without_spellings_is_sent_in_lower_case() -> None:
    head = read(b"GET / HTTP/1.1\r\nHost: a\r\nX-Y: 1\r\n\r\n")
    plain = head._replace(names=(), options=frozenset())
    assert b"\r\nx-y: 1\r\n" in written(plain)


CHAIN = (
    b"GET / HTTP/1.1\r\nHost: a.example\r\nX-Forwarded-For: 203.0.113.1\r\nVia: 1.0 fred\r\n"
    b"x-forwarded-for: 203.0.113.3\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Prefix: /x\r\n\r\n"
)


def test_what_is_usual_from_a_trusted_proxy_and_from_a_stranger() -> None:
    usual = ForwardedFields()
    assert written(read(CHAIN), fields=usual, trusted=True) == (
        b"GET / HTTP/1.1\r\nHost: a.example\r\nX-Forwarded-Prefix: /x\r\n"
        b"X-Forwarded-For: 203.0.113.1, 203.0.113.3, 192.0.2.7\r\nX-Forwarded-Proto: https\r\n"
        b"X-Forwarded-Host: a.example\r\nVia: 1.0 fred, 1.1 l7proxy\r\n\r\n"
    )
    assert written(read(CHAIN), fields=usual) == (
        b"GET / HTTP/1.1\r\nHost: a.example\r\n"
        b"X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: http\r\n"
        b"X-Forwarded-Host: a.example\r\nVia: 1.0 fred, 1.1 l7proxy\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("version", "fields", "wanted"),
    [
        (b"1.1", b"", b""),
        (b"1.1", b"Connection: close\r\n", b""),
        (b"1.1", b"Connection: keep-alive\r\nKeep-Alive: 5\r\n", b""),
        (b"1.0", b"", b""),
        (b"1.0", b"Connection: keep-alive\r\n", b""),
        (b"1.1", b"content-length:  5\r\n", b"Content-Length: 5\r\n"),
        (b"1.0", b"Content-Length: 0\r\n", b"Content-Length: 0\r\n"),
        (b"1.1", b"Transfer-encoding: CHUNKED\r\n", b"Transfer-Encoding: chunked\r\n"),
        (b"1.1", b"Expect: 100-continue\r\n", b"Expect: 100-continue\r\n"),
        (b"1.0", b"Expect: 100-continue\r\n", b""),
        (
            b"1.1",
            b"Connection: upgrade, close\r\nUpgrade: a\r\n",
            b"Upgrade: a\r\nConnection: upgrade\r\n",
        ),
        (b"1.1", b"TE: trailers\r\nConnection: TE\r\n", b""),
    ],
)
def test_a_connection_that_is_kept(version: bytes, fields: bytes, wanted: bytes) -> None:
    head = read(b"GET / HTTP/" + version + b"\r\nHost: a\r\n" + fields + b"\r\n")
    assert serialise(head, [], kept=True) == b"GET / HTTP/1.1\r\nHost: a\r\n" + wanted + b"\r\n"


def test_no_connection_is_kept_for_a_request_without_a_host() -> None:
    head = read(b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\n")
    assert serialise(head, [], kept=True) == (
        b"POST / HTTP/1.0\r\nContent-Length: 5\r\nConnection: close\r\n\r\n"
    )
    named = Rewriting(authority="b.example")
    assert serialise(head, [], kept=True, rewriting=named) == (
        b"POST / HTTP/1.1\r\nHost: b.example\r\nContent-Length: 5\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("fields", "length"),
    [(b"", 0), (b"Content-Length: 7\r\n", 7), (b"Transfer-Encoding: chunked\r\n", None)],
)
def test_the_length_of_a_body(fields: bytes, length: int | None) -> None:
    assert read(b"POST / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n").body_length == length


CONNECT = (
    b"CONNECT a.example:443 HTTP/1.1\r\n"
    b"Host: A.example\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
)


def test_a_tunnel() -> None:
    head = read(CONNECT)
    assert (head.path, head.query, head.host, head.upgrade) == ("/", None, "a.example", None)
    asked = b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n"
    assert serialise(head, []) == asked
    assert serialise(head, [], kept=True) == asked
    assert serialise(read(b"CONNECT a.example:443 HTTP/1.0\r\n\r\n"), [], kept=True) == asked


def test_what_a_route_changes_of_a_tunnel() -> None:
    path = Rewriting(path="/other")
    assert serialise(read(CONNECT), [], rewriting=path) == serialise(read(CONNECT), [])
    host = Rewriting(path="/other", authority="b.example")
    assert serialise(read(CONNECT), [], rewriting=host) == (
        b"CONNECT b.example:443 HTTP/1.1\r\nHost: b.example:443\r\n\r\n"
    )
