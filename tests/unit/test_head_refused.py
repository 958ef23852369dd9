"""Heads that go no further: what came in, which status and which rule answered.

Every row is tried in one piece, byte by byte and in every cut in two: the answer is the same.
"""

from __future__ import annotations

from typing import NamedTuple

import h11
import pytest

from l7proxy.errors import BadRequest
from l7proxy.gate import MAX_LENGTH_DIGITS, MAX_METHOD, Rule
from l7proxy.head import HeadReader
from l7proxy.model import Limits

LIMITS = Limits(head_bytes=1024, headers=10)


class Refused(NamedTuple):
    """One row; `data` need not be a whole head."""

    what: str
    data: bytes
    status: int
    rule: str


def fields(*lines: bytes, version: bytes = b"1.1", method: bytes = b"POST") -> bytes:
    """A head whose only suspicious part is in `lines`."""
    return b"\r\n".join([method + b" /x HTTP/" + version, b"Host: a.example", *lines]) + b"\r\n\r\n"


def first_line(line: bytes) -> bytes:
    return line + b"\r\nHost: a.example\r\n\r\n"


def host(*values: bytes) -> bytes:
    lines = [b"Host: " + value for value in values]
    return b"\r\n".join([b"GET / HTTP/1.1", *lines]) + b"\r\n\r\n"


def absolute(target: bytes, value: bytes) -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\nHost: " + value + b"\r\n\r\n"


BYTES = [
    Refused("TLS 1.3 ClientHello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "tls"),
    Refused("one byte of TLS is enough", b"\x16", 400, "tls"),
    Refused("TLS byte, but not the first", b"G\x16", 400, "control"),
    Refused("SSLv2 ClientHello", b"\x80\x2e\x01\x00\x02", 400, "request-line"),
    Refused("SOCKS5 greeting", b"\x05\x01\x00", 400, "control"),
    Refused("SSH banner", b"SSH-2.0-OpenSSH_9.2\r\n", 400, "request-line"),
    Refused(
        "PROXY protocol, version 1", b"PROXY TCP4 1.1.1.1 2.2.2.2 5 6\r\n", 400, "request-line"
    ),
    Refused("PROXY protocol, version 2", b"\r\n\r\n\0\r\nQUIT\n\x21\x11", 400, "empty-line"),
    Refused("NUL at the start", b"\0GET / HTTP/1.1\r\n", 400, "control"),
    Refused("NUL in the method", b"GE\0T / HTTP/1.1\r\n", 400, "control"),
    Refused("NUL in the target", first_line(b"GET /\0 HTTP/1.1"), 400, "control"),
    Refused("DEL in the target", first_line(b"GET /\x7f HTTP/1.1"), 400, "control"),
    Refused("vertical tab for a space", first_line(b"GET\x0b/ HTTP/1.1"), 400, "control"),
    Refused(
        "form feed after the method's space", first_line(b"GET \x0c/ HTTP/1.1"), 400, "control"
    ),
    Refused("NUL in a field name", fields(b"X\0Y: 1"), 400, "control"),
    Refused("NUL in a field value", fields(b"X: a\0b"), 400, "control"),
    Refused("escape in a field value", fields(b"X: \x1b[31m"), 400, "control"),
    Refused(
        "vertical tab before chunked", fields(b"Transfer-Encoding: \x0bchunked"), 400, "control"
    ),
    Refused("NUL in a second line that has no end", b"GET / HTTP/1.1\r\nX: \0", 400, "control"),
    Refused("LF after the request line", b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400, "bare-lf"),
    Refused("LF alone ends the first line, no more", b"GET / HTTP/1.1\n", 400, "bare-lf"),
    Refused("LF before the request line", b"\nGET / HTTP/1.1\r\n", 400, "bare-lf"),
    Refused("LF after a field", b"GET / HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n", 400, "bare-lf"),
    Refused("LF LF as the empty line", b"GET / HTTP/1.1\r\nHost: a\n\n", 400, "bare-lf"),
    Refused("CR LF LF as the empty line", b"GET / HTTP/1.1\r\nHost: a\r\n\n", 400, "bare-lf"),
    Refused("LF CR LF as the empty line", b"GET / HTTP/1.1\r\nHost: a\n\r\n", 400, "bare-lf"),
    Refused("LF hides a field in a value", fields(b"X: 1\nContent-Length: 5"), 400, "bare-lf"),
    Refused("CR in the method", b"G\rET / HTTP/1.1\r\n", 400, "request-line"),
    Refused("CR as a line end", b"GET / HTTP/1.1\rHost: a\r\n\r\n", 400, "bare-cr"),
    Refused("CR in a value", fields(b"X: a\rb"), 400, "bare-cr"),
    Refused(
        "CR hides a field in a value", fields(b"X: 1\rTransfer-Encoding: chunked"), 400, "bare-cr"
    ),
    Refused("CR before the colon", fields(b"X\r: 1"), 400, "bare-cr"),
    Refused("CR CR LF", fields(b"X: 1\r"), 400, "bare-cr"),
    Refused("CR before everything", b"\rGET / HTTP/1.1\r\n", 400, "bare-cr"),
    Refused("CR NUL", fields(b"X: 1\r\0"), 400, "bare-cr"),
    Refused("obs-fold with a space", fields(b"X: 1", b" 2"), 400, "obs-fold"),
    Refused("obs-fold with a tab", fields(b"X: 1", b"\t2"), 400, "obs-fold"),
    Refused("obs-fold hides chunked", fields(b"Transfer-Encoding:", b" chunked"), 400, "obs-fold"),
    Refused("obs-fold in place of the empty line", fields(b"X: 1", b" "), 400, "obs-fold"),
    Refused(
        "whitespace before the first field",
        b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        400,
        "leading-whitespace",
    ),
    Refused(
        "tab before the first field",
        b"GET / HTTP/1.1\r\n\tHost: a\r\n\r\n",
        400,
        "leading-whitespace",
    ),
]

LINES = [
    Refused("two empty lines first", b"\r\n\r\nGET / HTTP/1.1\r\n", 400, "empty-line"),
    Refused("an empty line, then CR", b"\r\n\r", 400, "empty-line"),
    Refused("only empty lines", b"\r\n\r\n\r\n\r\n", 400, "empty-line"),
    Refused("space first", b" GET / HTTP/1.1\r\n", 400, "request-line"),
    Refused("an empty line, then a space", b"\r\n GET / HTTP/1.1\r\n", 400, "request-line"),
    Refused("tab for a space", first_line(b"GET\t/ HTTP/1.1"), 400, "request-line"),
    Refused("two spaces after the method", first_line(b"GET  / HTTP/1.1"), 400, "request-line"),
    Refused("two spaces after the target", first_line(b"GET /  HTTP/1.1"), 400, "request-line"),
    Refused("space after the version", first_line(b"GET / HTTP/1.1 "), 400, "request-line"),
    Refused("space in the target", first_line(b"GET /a b HTTP/1.1"), 400, "request-line"),
    Refused("tab in the target", first_line(b"GET /a\tb HTTP/1.1"), 400, "request-line"),
    Refused(
        "a request inside the target", first_line(b"GET /a HTTP/1.1 HTTP/1.1"), 400, "request-line"
    ),
    Refused("no version (HTTP/0.9)", b"GET /\r\n", 400, "request-line"),
    Refused("no target", first_line(b"GET HTTP/1.1"), 400, "request-line"),
    Refused("method only", b"GET\r\n", 400, "request-line"),
    Refused("no method", first_line(b"/ HTTP/1.1"), 400, "request-line"),
    Refused("a response", first_line(b"HTTP/1.1 200 OK"), 400, "request-line"),
    Refused("a field first", b"Host: a.example\r\n", 400, "request-line"),
    Refused("parenthesis in the method", b"G(T / HTTP/1.1\r\n", 400, "request-line"),
    Refused("non-ASCII in the method", b"G\xc3\x89T / HTTP/1.1\r\n", 400, "request-line"),
    Refused("lower-case http", first_line(b"GET / http/1.1"), 400, "request-line"),
    Refused("two digits of minor version", first_line(b"GET / HTTP/1.10"), 400, "request-line"),
    Refused("two digits of major version", first_line(b"GET / HTTP/01.1"), 400, "request-line"),
    Refused("no minor version", first_line(b"GET / HTTP/1"), 400, "request-line"),
    Refused("comma in the version", first_line(b"GET / HTTP/1,1"), 400, "request-line"),
    Refused("sign in the version", first_line(b"GET / HTTP/+1.1"), 400, "request-line"),
    Refused("another protocol", first_line(b"GET / RTSP/1.0"), 400, "request-line"),
    Refused("version 0.9", b"GET / HTTP/0.9\r\n", 505, "version"),
    Refused("version 1.2", b"GET / HTTP/1.2\r\n", 505, "version"),
    Refused("version 2.0 without preface", b"GET / HTTP/2.0\r\n", 505, "version"),
    Refused("version 3.0", b"GET / HTTP/3.0\r\n", 505, "version"),
    Refused("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "http2"),
    Refused("HTTP/2 preface, first line", b"PRI * HTTP/2.0\r\n", 505, "http2"),
    Refused("endless method", b"A" * (MAX_METHOD + 1), 501, "method"),
    Refused(
        "long method in a whole line",
        first_line(b"A" * (MAX_METHOD + 1) + b" / HTTP/1.1"),
        501,
        "method",
    ),
]

TARGETS = [
    Refused("fragment", first_line(b"GET /a#b HTTP/1.1"), 400, "target"),
    Refused("fragment in the query", first_line(b"GET /a?b#c HTTP/1.1"), 400, "target"),
    Refused("UTF-8 in the path", first_line("GET /ä HTTP/1.1".encode()), 400, "target"),
    Refused("Latin-1 in the query", first_line(b"GET /?\xe4 HTTP/1.1"), 400, "target"),
    Refused("no-break space in the path", first_line(b"GET /a\xa0b HTTP/1.1"), 400, "target"),
    Refused("backslash in the path", first_line(b"GET /a\\..\\b HTTP/1.1"), 400, "target"),
    Refused("encoded NUL in the path", first_line(b"GET /a%00b?c HTTP/1.1"), 400, "target"),
    Refused("quotation mark", first_line(b'GET /"a" HTTP/1.1'), 400, "target"),
    Refused("angle brackets", first_line(b"GET /<script> HTTP/1.1"), 400, "target"),
    Refused("relative path", first_line(b"GET a/b HTTP/1.1"), 400, "target"),
    Refused("query only", first_line(b"GET ?a HTTP/1.1"), 400, "target"),
    Refused("asterisk with GET", first_line(b"GET * HTTP/1.1"), 400, "target"),
    Refused("asterisk with lower-case options", first_line(b"options * HTTP/1.1"), 400, "target"),
    Refused("asterisk and more", first_line(b"OPTIONS *x HTTP/1.1"), 400, "target"),
    Refused("authority-form with GET", first_line(b"GET a.example:80 HTTP/1.1"), 400, "target"),
    Refused("CONNECT to a path", first_line(b"CONNECT / HTTP/1.1"), 400, "host"),
    Refused("CONNECT to a URI", first_line(b"CONNECT http://a.example/ HTTP/1.1"), 400, "host"),
    Refused("CONNECT to *", first_line(b"CONNECT * HTTP/1.1"), 400, "host"),
    Refused("CONNECT without a port", first_line(b"CONNECT a.example HTTP/1.1"), 400, "target"),
    Refused("CONNECT with an empty port", first_line(b"CONNECT a.example: HTTP/1.1"), 400, "host"),
    Refused("CONNECT to port 0", first_line(b"CONNECT a.example:0 HTTP/1.1"), 400, "host"),
    Refused("CONNECT to a service", first_line(b"CONNECT a.example:http HTTP/1.1"), 400, "host"),
    Refused("CONNECT to no host", first_line(b"CONNECT :443 HTTP/1.1"), 400, "host"),
    Refused("CONNECT with a user", first_line(b"CONNECT u@a.example:1 HTTP/1.1"), 400, "host"),
    Refused("CONNECT with a path", first_line(b"CONNECT a.example:1/x HTTP/1.1"), 400, "host"),
    Refused(
        "CONNECT to another host", first_line(b"CONNECT b.example:1 HTTP/1.1"), 400, "host-mismatch"
    ),
    Refused(
        "CONNECT to another port",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a:2\r\n\r\n",
        400,
        "host-mismatch",
    ),
    Refused(
        "CONNECT with content",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nContent-Length: 1\r\n\r\n",
        400,
        "connect",
    ),
    Refused(
        "CONNECT in chunks",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
        "connect",
    ),
    Refused("ftp", first_line(b"GET ftp://a.example/ HTTP/1.1"), 400, "target"),
    Refused("file", first_line(b"GET file:///etc/passwd HTTP/1.1"), 400, "target"),
    Refused(
        "one slash after the scheme", first_line(b"GET http:/a.example/ HTTP/1.1"), 400, "target"
    ),
    Refused("no slash after the scheme", first_line(b"GET http:a.example HTTP/1.1"), 400, "target"),
    Refused("no scheme before //", first_line(b"GET ://a.example/ HTTP/1.1"), 400, "target"),
    Refused(
        "fragment in an absolute-form",
        absolute(b"http://a.example/#x", b"a.example"),
        400,
        "target",
    ),
    Refused("absolute-form without a host", absolute(b"http:///x", b"a.example"), 400, "host"),
    Refused("userinfo", absolute(b"http://u@a.example/", b"a.example"), 400, "host"),
    Refused(
        "userinfo with password", absolute(b"http://u:p@a.example/", b"a.example"), 400, "host"
    ),
    Refused("fragment cuts the authority", absolute(b"http://a#.b/", b"a"), 400, "host"),
    Refused("backslash cuts the authority", absolute(b"http://a\\.b/", b"a"), 400, "host"),
]

HOSTS = [
    Refused("no Host in 1.1", b"GET / HTTP/1.1\r\n\r\n", 400, "host-missing"),
    Refused(
        "no Host beside an absolute-form", b"GET http://a/ HTTP/1.1\r\n\r\n", 400, "host-missing"
    ),
    Refused("two Hosts", host(b"a.example", b"b.example"), 400, "host-repeated"),
    Refused("two equal Hosts", host(b"a.example", b"a.example"), 400, "host-repeated"),
    Refused(
        "two Hosts, other case and 1.0",
        b"GET / HTTP/1.0\r\nhost: a\r\nHOST: b\r\n\r\n",
        400,
        "host-repeated",
    ),
    Refused("empty Host", host(b""), 400, "host"),
    Refused("empty Host in 1.0", b"GET / HTTP/1.0\r\nHost:\r\n\r\n", 400, "host"),
    Refused("port only", host(b":80"), 400, "host"),
    Refused("dot only", host(b"."), 400, "host"),
    Refused("empty label", host(b"a..example"), 400, "host"),
    Refused("dot first", host(b".a.example"), 400, "host"),
    Refused("two dots last", host(b"a.example.."), 400, "host"),
    Refused("space inside", host(b"a.example b.example"), 400, "host"),
    Refused("comma-separated", host(b"a.example, b.example"), 400, "host"),
    Refused("userinfo in Host", host(b"u@a.example"), 400, "host"),
    Refused("userinfo with port", host(b"a.example:80@b.example"), 400, "host"),
    Refused("path in Host", host(b"a.example/x"), 400, "host"),
    Refused("query in Host", host(b"a.example?x"), 400, "host"),
    Refused("URI in Host", host(b"http://a.example"), 400, "host"),
    Refused("percent encoding", host(b"a%2eexample"), 400, "host"),
    Refused("UTF-8 in Host", host("ä.example".encode()), 400, "host"),
    Refused("wildcard", host(b"*.example"), 400, "host"),
    Refused("label of 64", host(b"a" * 64), 400, "host"),
    Refused("name of 254", host(b".".join([b"a" * 63] * 3 + [b"a" * 62])), 400, "host"),
    Refused("empty port", host(b"a.example:"), 400, "host"),
    Refused("port 0", host(b"a.example:0"), 400, "host"),
    Refused("port 65536", host(b"a.example:65536"), 400, "host"),
    Refused("port with a leading zero", host(b"a.example:080"), 400, "host"),
    Refused("port with a sign", host(b"a.example:+80"), 400, "host"),
    Refused("named port", host(b"a.example:http"), 400, "host"),
    Refused("two ports", host(b"a.example:80:81"), 400, "host"),
    Refused("short IPv4", host(b"127.1"), 400, "host"),
    Refused("IPv4 as one number", host(b"2130706433"), 400, "host"),
    Refused("hexadecimal IPv4", host(b"0x7f.0.0.1"), 400, "host"),
    Refused("hexadecimal last label", host(b"127.0.0.0x1"), 400, "host"),
    Refused("octal IPv4", host(b"0177.0.0.1"), 400, "host"),
    Refused("IPv4 out of range", host(b"1.2.3.256"), 400, "host"),
    Refused("IPv6 without brackets", host(b"::1"), 400, "host"),
    Refused("IPv6 not closed", host(b"[::1"), 400, "host"),
    Refused("IPv6 with a zone", host(b"[fe80::1%eth0]"), 400, "host"),
    Refused("IPv6 and more", host(b"[::1]x"), 400, "host"),
    Refused("IPv6 with an empty port", host(b"[::1]:"), 400, "host"),
    Refused("IPv4 in brackets", host(b"[1.2.3.4]"), 400, "host"),
    Refused("IPvFuture", host(b"[v1.x]"), 400, "host"),
    Refused("another host", absolute(b"http://a.example/", b"b.example"), 400, "host-mismatch"),
    Refused("another port", absolute(b"http://a.example:81/", b"a.example"), 400, "host-mismatch"),
    Refused(
        "port of the other scheme",
        absolute(b"https://a.example/", b"a.example:80"),
        400,
        "host-mismatch",
    ),
    Refused("absolute-form, empty Host", absolute(b"http://a.example/", b""), 400, "host"),
]

FIELDS = [
    Refused("space before the colon", fields(b"X : 1"), 400, "space-before-colon"),
    Refused("tab before the colon", fields(b"X\t: 1"), 400, "space-before-colon"),
    Refused(
        "space before the colon of a framing field",
        fields(b"Transfer-Encoding : chunked", b"Content-Length: 3"),
        400,
        "space-before-colon",
    ),
    Refused("no colon", fields(b"X"), 400, "field-line"),
    Refused("empty name", fields(b": 1"), 400, "field-line"),
    Refused("space in the name", fields(b"X Y: 1"), 400, "field-line"),
    Refused("parenthesis in the name", fields(b"X(Y): 1"), 400, "field-line"),
    Refused("non-ASCII in the name", fields("Ä: 1".encode()), 400, "field-line"),
    Refused("a request as a field", fields(b"GET /admin HTTP/1.1"), 400, "field-line"),
    Refused("quoted name", fields(b'"X": 1'), 400, "field-line"),
    Refused("too many fields", fields(*[b"X: 1"] * 10), 431, "too-many-fields"),
    Refused("twin of Content-Length", fields(b"Content_Length: 5"), 400, "field-twin"),
    Refused("twin of Transfer-Encoding", fields(b"transfer_encoding: chunked"), 400, "field-twin"),
    Refused("twin of X-Forwarded-For", fields(b"X_Forwarded-For: 1.1.1.1"), 400, "field-twin"),
    Refused("twin of X-Real-IP", fields(b"X_REAL_IP: 1.1.1.1"), 400, "field-twin"),
    Refused("Connection names Host", fields(b"Connection: Host"), 400, "connection"),
    Refused(
        "Connection names Content-Length",
        fields(b"Connection: close, content-length"),
        400,
        "connection",
    ),
    Refused(
        "Connection names Transfer-Encoding",
        fields(b"Connection: Transfer-Encoding"),
        400,
        "connection",
    ),
    Refused(
        "Connection names X-Forwarded-For",
        fields(b"Connection: X-Forwarded-For"),
        400,
        "connection",
    ),
    Refused(
        "Connection names X-Real-IP",
        fields(b"Connection: close", b"Connection: X-Real-IP"),
        400,
        "connection",
    ),
    Refused(
        "Connection names Authorization", fields(b"Connection: authorization"), 400, "connection"
    ),
    Refused("Connection names Cookie", fields(b"Connection: Cookie"), 400, "connection"),
    Refused("Connection names a twin", fields(b"Connection: x_forwarded_for"), 400, "connection"),
    Refused(
        "Connection is no list of tokens", fields(b"Connection: keep alive"), 400, "connection"
    ),
    Refused("Connection is quoted", fields(b'Connection: "close"'), 400, "connection"),
    Refused(
        "Max-Forwards used up", fields(b"Max-Forwards: 0", method=b"TRACE"), 501, "max-forwards"
    ),
    Refused(
        "Max-Forwards negative", fields(b"Max-Forwards: -1", method=b"OPTIONS"), 400, "max-forwards"
    ),
    Refused("Max-Forwards empty", fields(b"Max-Forwards:", method=b"OPTIONS"), 400, "max-forwards"),
    Refused(
        "Max-Forwards endless",
        fields(b"Max-Forwards: " + b"9" * 20, method=b"TRACE"),
        400,
        "max-forwards",
    ),
    Refused(
        "two Max-Forwards",
        fields(b"Max-Forwards: 1", b"Max-Forwards: 2", method=b"TRACE"),
        400,
        "max-forwards",
    ),
]

FRAMING = [
    Refused("another expectation", fields(b"Expect: x100-continue"), 417, "expect"),
    Refused("an expectation beside it", fields(b"Expect: 100-continue, x"), 417, "expect"),
    Refused("an expectation twice", fields(*[b"Expect: 100-continue"] * 2), 417, "expect"),
    Refused("no expectation", fields(b"Expect:"), 417, "expect"),
    Refused("an odd expectation in 1.0", fields(b"Expect: y", version=b"1.0"), 417, "expect"),
    Refused(
        "two equal lengths",
        fields(b"Content-Length: 5", b"Content-Length: 5"),
        400,
        "content-length",
    ),
    Refused(
        "two lengths", fields(b"Content-Length: 5", b"Content-Length: 6"), 400, "content-length"
    ),
    Refused(
        "two lengths, other case",
        fields(b"content-length: 5", b"CONTENT-LENGTH: 5"),
        400,
        "content-length",
    ),
    Refused("list of equal lengths", fields(b"Content-Length: 5, 5"), 400, "content-length"),
    Refused("list of lengths", fields(b"Content-Length: 5,6"), 400, "content-length"),
    Refused("length with an empty element", fields(b"Content-Length: 5,"), 400, "content-length"),
    Refused("empty length", fields(b"Content-Length:"), 400, "content-length"),
    Refused("length with plus", fields(b"Content-Length: +5"), 400, "content-length"),
    Refused("length with minus", fields(b"Content-Length: -5"), 400, "content-length"),
    Refused("hexadecimal length", fields(b"Content-Length: 0x5"), 400, "content-length"),
    Refused("length that may be octal", fields(b"Content-Length: 010"), 400, "content-length"),
    Refused("length 00", fields(b"Content-Length: 00"), 400, "content-length"),
    Refused("length with an exponent", fields(b"Content-Length: 1e1"), 400, "content-length"),
    Refused("length with a fraction", fields(b"Content-Length: 5.0"), 400, "content-length"),
    Refused("length with an underscore", fields(b"Content-Length: 1_0"), 400, "content-length"),
    Refused("length with a space inside", fields(b"Content-Length: 1 0"), 400, "content-length"),
    Refused("quoted length", fields(b'Content-Length: "5"'), 400, "content-length"),
    Refused(
        "length in other digits", fields("Content-Length: \u0665".encode()), 400, "content-length"
    ),
    Refused("length with no-break space", fields(b"Content-Length: 5\xa0"), 400, "content-length"),
    Refused(
        "length beyond 63 bits",
        fields(b"Content-Length: 9223372036854775808"),
        400,
        "content-length",
    ),
    Refused(
        "length with too many digits",
        fields(b"Content-Length: 1" + b"0" * MAX_LENGTH_DIGITS),
        400,
        "content-length",
    ),
    Refused(
        "length with 500 digits", fields(b"Content-Length: " + b"1" * 500), 400, "content-length"
    ),
    Refused(
        "length and chunked (CL.TE)",
        fields(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        400,
        "length-and-chunked",
    ),
    Refused(
        "chunked and length (TE.CL)",
        fields(b"Transfer-Encoding: chunked", b"Content-Length: 5"),
        400,
        "length-and-chunked",
    ),
    Refused(
        "odd coding and length (TE.CL)",
        fields(b"Transfer-Encoding: xchunked", b"Content-Length: 5"),
        400,
        "length-and-chunked",
    ),
    Refused(
        "chunked twice", fields(b"Transfer-Encoding: chunked, chunked"), 400, "transfer-encoding"
    ),
    Refused(
        "chunked twice (TE.TE)",
        fields(b"Transfer-Encoding: chunked", b"Transfer-encoding: chunked"),
        400,
        "transfer-encoding",
    ),
    Refused(
        "chunked and identity (TE.TE)",
        fields(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"),
        400,
        "transfer-encoding",
    ),
    Refused(
        "chunked and nonsense (TE.TE)",
        fields(b"Transfer-Encoding: chunked", b"Transfer-Encoding: x"),
        400,
        "transfer-encoding",
    ),
    Refused(
        "chunked not last", fields(b"Transfer-Encoding: chunked, gzip"), 400, "transfer-encoding"
    ),
    Refused("gzip without chunked", fields(b"Transfer-Encoding: gzip"), 400, "transfer-encoding"),
    Refused("identity", fields(b"Transfer-Encoding: identity"), 400, "transfer-encoding"),
    Refused("xchunked", fields(b"Transfer-Encoding: xchunked"), 400, "transfer-encoding"),
    Refused("quoted chunked", fields(b'Transfer-Encoding: "chunked"'), 400, "transfer-encoding"),
    Refused(
        "chunked with a parameter",
        fields(b"Transfer-Encoding: chunked;q=1"),
        400,
        "transfer-encoding",
    ),
    Refused(
        "chunked and an empty element",
        fields(b"Transfer-Encoding: chunked,"),
        400,
        "transfer-encoding",
    ),
    Refused("empty coding", fields(b"Transfer-Encoding:"), 400, "transfer-encoding"),
    Refused(
        "chunked with a space inside",
        fields(b"Transfer-Encoding: chun ked"),
        400,
        "transfer-encoding",
    ),
    Refused(
        "chunked with no-break space",
        fields(b"Transfer-Encoding: \xa0chunked"),
        400,
        "transfer-encoding",
    ),
    Refused(
        "gzip, then chunked", fields(b"Transfer-Encoding: gzip, chunked"), 501, "transfer-encoding"
    ),
    Refused(
        "gzip, then chunked, in two fields",
        fields(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"),
        501,
        "transfer-encoding",
    ),
    Refused(
        "empty element, then chunked",
        fields(b"Transfer-Encoding: ,chunked"),
        501,
        "transfer-encoding",
    ),
    Refused(
        "chunked in 1.0",
        fields(b"Transfer-Encoding: chunked", version=b"1.0"),
        400,
        "chunked-in-1.0",
    ),
    Refused(
        "chunked and length in 1.0",
        fields(b"Transfer-Encoding: chunked", b"Content-Length: 5", version=b"1.0"),
        400,
        "chunked-in-1.0",
    ),
]

_ROOM = LIMITS.head_bytes
SIZES = [
    Refused("endless target", b"GET /" + b"a" * _ROOM, 414, "target-too-long"),
    Refused(
        "endless target after an empty line", b"\r\nGET /" + b"a" * _ROOM, 414, "target-too-long"
    ),
    Refused("endless version", b"GET / HTTP/1.1" + b"1" * _ROOM, 414, "target-too-long"),
    Refused("endless value", b"GET / HTTP/1.1\r\nX: " + b"a" * _ROOM, 431, "head-too-large"),
    Refused("endless name", b"GET / HTTP/1.1\r\n" + b"a" * _ROOM, 431, "head-too-large"),
    Refused("endless fields", b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * _ROOM, 431, "head-too-large"),
    Refused("a whole head that is too large", fields(b"X: " + b"a" * _ROOM), 431, "head-too-large"),
    Refused("LF behind the limit", fields(b"X: " + b"a" * _ROOM, b"\n"), 431, "head-too-large"),
    Refused("LF before the limit", fields(b"X: \n" + b"a" * _ROOM), 400, "bare-lf"),
]

TABLE = [*BYTES, *LINES, *TARGETS, *HOSTS, *FIELDS, *FRAMING, *SIZES]

PRECEDENCE = [
    Refused("the method is before the version", b"G@T / HTTP/9.9\r\n", 400, "request-line"),
    Refused("the version is before the LF behind it", b"GET / HTTP/1.2\r\nX\n", 505, "version"),
    Refused("the version is before a fold", b"GET / HTTP/1.2\r\n X\r\n", 505, "version"),
    Refused("the NUL is before the version", b"GET /\0 HTTP/1.2\r\n", 400, "control"),
    Refused("the method is before the NUL", b"G@\0", 400, "request-line"),
    Refused("the second empty line is before the CR", b"\r\n\rX", 400, "empty-line"),
    Refused(
        "fields are before the target",
        b"GET x HTTP/1.1\r\nX : 1\r\n\r\n",
        400,
        "space-before-colon",
    ),
    Refused("bytes are before fields", fields(b"X : 1", b"Y: \0"), 400, "control"),
    Refused("their number is before their form", fields(*[b"X : 1"] * 10), 431, "too-many-fields"),
]


def answer(*pieces: bytes) -> tuple[int, str, str, int]:
    """Feed the pieces; return status, rule, detail and how many bytes it took."""
    reader = HeadReader(LIMITS)
    taken = 0
    for piece in pieces:
        taken += len(piece)
        try:
            head = reader.feed(piece)
        except BadRequest as error:
            return error.status, error.rule, error.detail, taken
        assert head is None, head
    raise AssertionError("not refused")


@pytest.mark.parametrize("case", [*TABLE, *PRECEDENCE], ids=lambda case: case.what)
def test_refused(case: Refused) -> None:
    status, rule, detail, _ = answer(case.data)
    assert (status, rule) == (case.status, case.rule)
    assert detail
    assert detail.isascii()


@pytest.mark.parametrize("case", [*TABLE, *PRECEDENCE], ids=lambda case: case.what)
def test_refused_alike_however_it_is_cut(case: Refused) -> None:
    whole = answer(case.data)[:3]
    data = case.data[: LIMITS.head_bytes + 4]
    assert answer(*[bytes([byte]) for byte in data])[:3] == whole
    for cut in range(1, len(data), 1 if len(data) < 200 else 53):
        assert answer(data[:cut], data[cut:])[:3] == whole, cut


def test_the_table_is_long_and_has_a_row_for_every_rule() -> None:
    assert len(TABLE) >= 120
    assert len({case.what for case in TABLE}) == len(TABLE)
    assert {case.rule for case in TABLE} == set(Rule) - {Rule.PARSER}


EARLY = [
    ("TLS at its first byte", b"\x16", b"\x03\x01"),
    ("HTTP/2 at the end of its first line", b"PRI * HTTP/2.0\r\n", b"\r\nSM\r\n\r\n"),
    ("a bare LF at once", b"GET / HTTP/1.1\n", b"Host: a\n\n"),
    ("a bad method at its first bad byte", b"G(", b"ET / HTTP/1.1\r\n"),
    ("an endless method at its limit", b"A" * (MAX_METHOD + 1), b"A" * 100),
    ("a bad version at the end of its line", b"GET / HTTP/1.3\r\n", b"Host: a\r\n\r\n"),
    ("HTTP/0.9 at the end of its line", b"GET /\r\n", b"Host: a\r\n\r\n"),
    ("a NUL in a field", b"GET / HTTP/1.1\r\nX: \0", b"\r\n\r\n"),
    ("a fold at its whitespace", b"GET / HTTP/1.1\r\nX: 1\r\n ", b"2\r\n\r\n"),
    ("a CR at the byte after it", b"GET / HTTP/1.1\r\nX: 1\r2", b"\r\n\r\n"),
    ("a head that cannot end in time", b"GET / HTTP/1.1\r\nX: ".ljust(_ROOM, b"a"), b"\r\n\r\n"),
]


@pytest.mark.parametrize(("what", "enough", "rest"), EARLY, ids=[row[0] for row in EARLY])
def test_refused_at_the_first_byte_that_shows_it(what: str, enough: bytes, rest: bytes) -> None:
    taken = answer(*[bytes([byte]) for byte in enough + rest])[3]
    assert taken == len(enough)


class H11Sees:
    """Stands in for h11: reads a head that nobody sent."""

    def __init__(self, head: bytes) -> None:
        self.head = head

    def __call__(self, role: object) -> h11.Connection:
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(self.head)
        connection.receive_data = lambda data: None  # type: ignore[method-assign]
        return connection


@pytest.mark.parametrize(
    "head",
    [
        b"GET /other HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n",
    ],
)
def test_what_h11_reads_differently_goes_no_further(
    head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("l7proxy.head.h11", type("h11", (), dict(vars(h11)))())
    monkeypatch.setattr("l7proxy.head.h11.Connection", H11Sees(head))
    assert answer(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")[:2] == (400, "parser")
