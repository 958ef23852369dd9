"""Chunked bodies: what comes in, what goes on, and which rule refuses."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import pytest

from l7proxy.chunked import MAX_SIZE_LINE, Chunked, chunk, is_trailer
from l7proxy.errors import BadRequest, BadResponse
from l7proxy.model import Limits, Side

LIMITS = Limits(head_bytes=400, headers=5)


class Read(NamedTuple):
    """What a reader made of some pieces."""

    out: bytes
    done: bool
    surplus: bytes
    body_bytes: int
    refused: tuple[str, str] | None = None


def read(*pieces: bytes, side: Side = Side.CLIENT, frame: bool = True) -> Read:
    reader = Chunked(side, LIMITS, frame=frame)
    out = b""
    for number, piece in enumerate(pieces):
        try:
            out += reader.feed(piece)
        except BadRequest as error:
            return Read(out, False, b"", reader.body_bytes, (error.rule, error.detail))
        if reader.done:
            rest = b"".join(pieces[number + 1 :])
            return Read(out, True, reader.surplus + rest, reader.body_bytes)
    return Read(out, reader.done, reader.surplus, reader.body_bytes)


def bare(*pieces: bytes) -> Read:
    return read(*pieces, frame=False)


def cuts(data: bytes) -> list[list[bytes]]:
    """Whole, byte by byte, and every cut in two."""
    every = [data[start:end] for start, end in pairwise(range(len(data) + 1))]
    return [[data], every, *([data[:at], data[at:]] for at in range(1, len(data)))]


GOOD = [
    ("nothing", b"0\r\n\r\n", b"", b""),
    ("one chunk", b"5\r\nhello\r\n0\r\n\r\n", b"hello", b""),
    ("two chunks", b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", b"hello world", b""),
    (
        "digits in both cases",
        b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n",
        b"01234567890123456789",
        b"",
    ),
    ("leading zeros", b"0005\r\nhello\r\n0000000000000000\r\n\r\n", b"hello", b""),
    ("data that looks like chunks", b"7\r\n0\r\n\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n\r\n", b""),
    ("a request behind", b"1\r\nx\r\n0\r\n\r\nGET / HTTP/1.1\r\n", b"x", b"GET / HTTP/1.1\r\n"),
    ("extension", b"1;name\r\nx\r\n0\r\n\r\n", b"x", b""),
    ("extension with a value", b"1;a=b;c=d\r\nx\r\n0;last\r\n\r\n", b"x", b""),
    ("extension in quotes", b'1;a="; \\" \xe4\t";b\r\nx\r\n0\r\n\r\n', b"x", b""),
    ("the longest line", b"1;" + b"a" * (MAX_SIZE_LINE - 4) + b"\r\nx\r\n0\r\n\r\n", b"x", b""),
    ("trailers of no use", b"1\r\nx\r\n0\r\nHost: a\r\nSet-Cookie: a\r\n\r\n", b"x", b""),
]


@pytest.mark.parametrize(
    ("data", "body", "surplus"), [g[1:] for g in GOOD], ids=[g[0] for g in GOOD]
)
@pytest.mark.parametrize("side", Side)
def test_a_body_in_any_cut(data: bytes, body: bytes, surplus: bytes, side: Side) -> None:
    for pieces in cuts(data):
        assert bare(*pieces) == Read(body, True, surplus, len(body))
        framed = read(*pieces, side=side)
        assert framed._replace(out=b"") == Read(b"", True, surplus, len(body))
        assert bare(framed.out) == Read(body, True, b"", len(body))


def test_one_chunk_for_each_piece_that_came() -> None:
    reader = Chunked(Side.CLIENT)
    assert reader.feed(b"b;ext=1\r\nhel") == b"3\r\nhel\r\n"
    assert reader.feed(b"lo world\r\n") == b"8\r\nlo world\r\n"
    assert reader.feed(b"1\r\n!\r\n1\r\n?\r\n10") == b"2\r\n!?\r\n"
    assert reader.feed(b"\r\n") == b""
    assert reader.feed(b"") == b""
    assert reader.feed(b"0123456789abcdef") == b"10\r\n0123456789abcdef\r\n"
    assert reader.feed(b"\r\n0") == b""
    assert not reader.done
    assert reader.feed(b"\r\n\r\nx") == b"0\r\n\r\n"
    assert reader.done
    assert reader.surplus == b"x"
    assert reader.body_bytes == 29
    with pytest.raises(RuntimeError, match="complete"):
        reader.feed(b"")


def test_trailers_pass_where_they_may() -> None:
    data = (
        b"1\r\nx\r\n0\r\nGrpc-Status:  0 \r\nContent-Length: 5\r\nX-Sum: ab\r\n"
        b"X-Forwarded-For: 1.1.1.1\r\nX-Mine: 1\r\n\r\n"
    )
    wanted = b"0\r\nGrpc-Status: 0\r\nX-Sum: ab\r\n\r\n"
    for pieces in cuts(data):
        reader = Chunked(Side.BACKEND, LIMITS, without=frozenset({b"x-mine"}))
        assert b"".join(reader.feed(piece) for piece in pieces) == b"1\r\nx\r\n" + wanted
    assert bare(data).out == b"x"


@pytest.mark.parametrize(
    "name",
    b"transfer-encoding content-length content-type host authorization set-cookie connection "
    b"trailer te upgrade cache-control set_cookie via forwarded x-forwarded-host x-real-ip "
    b"x_real_ip expect date".split(),
)
def test_what_is_no_trailer(name: bytes) -> None:
    assert not is_trailer(name)


@pytest.mark.parametrize(
    "name", [b"grpc-status", b"etag", b"server-timing", b"x-checksum", b"digest"]
)
def test_what_is_a_trailer(name: bytes) -> None:
    assert is_trailer(name)


def size(line: bytes) -> bytes:
    """A body whose first line is this one."""
    return line + b"\r\nhello\r\n0\r\n\r\n"


def trailers(lines: bytes) -> bytes:
    return b"0\r\n" + lines + b"\r\n"


BAD = [
    ("no size", size(b""), "chunk-size"),
    ("no digits", size(b"x"), "chunk-size"),
    ("0x", size(b"0x5"), "chunk-size"),
    ("plus", size(b"+5"), "chunk-size"),
    ("minus", size(b"-5"), "chunk-size"),
    ("minus zero", size(b"-0"), "chunk-size"),
    ("underscore", size(b"0_5"), "chunk-size"),
    ("a digit that is none of ASCII", size("\u0665".encode()), "chunk-size"),
    ("space before", size(b" 5"), "chunk-size"),
    ("tab before", size(b"\t5"), "chunk-size"),
    ("space behind", size(b"5 "), "chunk-size"),
    ("tab behind", size(b"5\t"), "chunk-size"),
    ("space before the extension", size(b"5 ;a"), "chunk-size"),
    ("NUL behind", size(b"5\0"), "chunk-size"),
    ("CR behind", size(b"5\r"), "chunk-size"),
    ("CR in the size", size(b"0\r5"), "chunk-size"),
    ("17 digits", size(b"00000000000000005"), "chunk-size"),
    ("17 digits, overflow", size(b"10000000000000005"), "chunk-size"),
    ("minus one in 64 bits", size(b"ffffffffffffffff"), "chunk-size"),
    ("2**63", size(b"8000000000000000;a"), "chunk-size"),
    ("decimal point", size(b"5.0"), "chunk-size"),
    ("two sizes", size(b"5,5"), "chunk-size"),
    ("LF alone", b"5\nhello\r\n0\r\n\r\n", "bare-lf"),
    ("LF alone behind an extension", b"5;a\nhello\r\n0\r\n\r\n", "bare-lf"),
    ("LF in an extension", b"2;\nxx\r\n0\r\n\r\n", "bare-lf"),
    ("LF alone after zero", b"0\n\r\n", "bare-lf"),
    ("no name", size(b"5;"), "chunk-extension"),
    ("no name, but a value", size(b"5;=b"), "chunk-extension"),
    ("no value", size(b"5;a="), "chunk-extension"),
    ("space after the semicolon", size(b"5; a"), "chunk-extension"),
    ("space behind", size(b"5;a "), "chunk-extension"),
    ("quotes that do not end", size(b'5;a="b'), "chunk-extension"),
    ("quotes that end in a backslash", size(b'5;a="b\\"'), "chunk-extension"),
    ("text after quotes", size(b'5;a="b"c'), "chunk-extension"),
    ("CR in an extension", size(b"5;a\rb"), "chunk-extension"),
    ("CR in quotes", size(b'5;a="\r"'), "chunk-extension"),
    ("NUL in an extension", size(b"5;a\0"), "chunk-extension"),
    ("NUL in quotes", size(b'5;a="\0"'), "chunk-extension"),
    ("DEL in quotes", size(b'5;a="\x7f"'), "chunk-extension"),
    ("LF in quotes", size(b'5;a="\nb"'), "bare-lf"),
    ("a long extension", b"5;" + b"a" * MAX_SIZE_LINE + b"\r\n", "chunk-line-too-long"),
    (
        "a line one byte too long",
        b"5;" + b"a" * (MAX_SIZE_LINE - 3) + b"\r\n",
        "chunk-line-too-long",
    ),
    ("a line without an end", b"5" * MAX_SIZE_LINE, "chunk-line-too-long"),
    ("data longer than its size", b"5\r\nhello!\r\n0\r\n\r\n", "chunk-end"),
    ("data shorter than its size", b"5\r\nhell\r\n0\r\n\r\n", "chunk-end"),
    ("LF alone after data", b"5\r\nhello\n0\r\n\r\n", "chunk-end"),
    ("CR alone after data", b"5\r\nhello\r0\r\n\r\n", "chunk-end"),
    ("two bytes after data", b"5\r\nhelloXX0\r\n\r\n", "chunk-end"),
    ("no CR LF after data", b"5\r\nhello0\r\n\r\n", "chunk-end"),
    ("LF alone as the end", b"0\r\n\n", "bare-lf"),
    ("CR alone as the end", b"0\r\n\rX", "bare-cr"),
    ("LF alone in trailers", trailers(b"X: 1\nY: 2\r\n"), "bare-lf"),
    ("CR alone in trailers", trailers(b"X: 1\rY: 2\r\n"), "bare-cr"),
    ("NUL in trailers", trailers(b"X: \0\r\n"), "control"),
    ("a fold in trailers", trailers(b"X: 1\r\n 2\r\n"), "obs-fold"),
    ("a space before trailers", trailers(b" X: 1\r\n"), "leading-whitespace"),
    ("a space before a colon", trailers(b"X : 1\r\n"), "space-before-colon"),
    ("no colon in trailers", trailers(b"X\r\n"), "field-line"),
    ("no name in trailers", trailers(b": 1\r\n"), "field-line"),
    ("a twin in trailers", trailers(b"Content_Length: 5\r\n"), "field-twin"),
    ("trailers of a request", trailers(b"GET / HTTP/1.1\r\n"), "field-line"),
    ("too many trailers", trailers(b"X: 1\r\n" * 6), "too-many-fields"),
    ("too long trailers", trailers(b"X: " + b"1" * 400 + b"\r\n"), "head-too-large"),
    ("trailers without an end", b"0\r\n" + b"X" * 400, "head-too-large"),
]


@pytest.mark.parametrize(("data", "rule"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_refused_in_any_cut(data: bytes, rule: str) -> None:
    whole = read(data)
    assert whole.refused is not None
    assert whole.refused[0] == rule
    assert whole.refused[1]
    for pieces in cuts(data):
        assert read(*pieces).refused == whole.refused
    with pytest.raises(BadResponse) as raised:
        Chunked(Side.BACKEND, LIMITS).feed(data)
    assert (raised.value.rule, raised.value.detail) == whole.refused


def test_the_status_tells_which_limit() -> None:
    with pytest.raises(BadRequest) as raised:
        Chunked(Side.CLIENT, LIMITS).feed(b"0\r\n" + b"X" * 400)
    assert raised.value.status == 431


def test_a_chunk_of_nothing_is_none() -> None:
    assert chunk(b"") == b""
    assert chunk(b"x" * 16) == b"10\r\n" + b"x" * 16 + b"\r\n"
