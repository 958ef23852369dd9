"""Responses that a policy writes."""

from __future__ import annotations

import pytest

from l7proxy.model import StaticResponse
from l7proxy.responses import http2_refusal, local_response, redirect_response, static_response

STATIC = [
    (
        StaticResponse(200, (), "hello\n"),
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 6\r\n"
        b"Connection: close\r\n\r\nhello\n",
    ),
    (
        StaticResponse(503, (("Retry-After", "60"), ("content-type", "text/html")), "<p>\u00e4"),
        b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 60\r\ncontent-type: text/html\r\n"
        b"Content-Length: 5\r\nConnection: close\r\n\r\n<p>\xc3\xa4",
    ),
    (StaticResponse(200), b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
    (
        StaticResponse(204, (), "not sent"),
        b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
    ),
    (StaticResponse(304), b"HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n"),
    (
        StaticResponse(205, (), "not sent"),
        b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    ),
    (
        StaticResponse(418, (), "x"),
        b"HTTP/1.1 418 Error\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 1\r\n"
        b"Connection: close\r\n\r\nx",
    ),
]


@pytest.mark.parametrize(("response", "sent"), STATIC)
def test_static(response: StaticResponse, sent: bytes) -> None:
    assert static_response(response) == sent
    head, _, _ = sent.partition(b"\r\n\r\n")
    assert static_response(response, method="HEAD") == head + b"\r\n\r\n"


def test_redirect() -> None:
    assert redirect_response(301, "https://a.example/x?y") == (
        b"HTTP/1.1 301 Moved Permanently\r\nLocation: https://a.example/x?y\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\nContent-Length: 22\r\n"
        b"Connection: close\r\n\r\n301 Moved Permanently\n"
    )
    assert redirect_response(302, "http://a/", method="HEAD").endswith(b"close\r\n\r\n")


def test_a_short_answer_of_our_own() -> None:
    assert local_response(403).endswith(b"\r\n\r\n403 Forbidden\n")


def test_a_client_of_http2_is_told_in_http2() -> None:
    assert http2_refusal("no") == (
        b"\0\0\0\x04\0\0\0\0\0"  # SETTINGS
        b"\0\0\x0a\x07\0\0\0\0\0"  # GOAWAY
        b"\0\0\0\0"
        b"\0\0\0\x0dno"  # HTTP_1_1_REQUIRED
    )
