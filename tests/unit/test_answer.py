"""The head of a response: what is passed on, and where a cookie goes."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.answer import MAX_ANSWER_HEAD, AnswerReader, is_whole

COOKIE = b"Set-Cookie: l7=a; Path=/"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
OK_WITH = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + COOKIE + b"\r\n\r\n"
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"

# what comes, what the client gets, the status, whether it is odd
CASES = {
    "a response": (OK + b"ok", OK_WITH + b"ok", 200),
    "without fields": (
        b"HTTP/1.0 204 No Content\r\n\r\n",
        b"HTTP/1.0 204 No Content\r\n" + COOKIE + b"\r\n\r\n",
        204,
    ),
    "without a reason": (
        b"HTTP/1.1 200\r\nA: b\r\n\r\n",
        b"HTTP/1.1 200\r\nA: b\r\n" + COOKIE + b"\r\n\r\n",
        200,
    ),
    "interim ones first": (CONTINUE + EARLY + OK + b"ok", CONTINUE + EARLY + OK_WITH + b"ok", 200),
    "an upgrade is final": (
        SWITCH + OK,
        SWITCH[:-2] + COOKIE + b"\r\n\r\n" + OK,
        101,
    ),
    "a second response is not touched": (
        OK + b"ok" + OK + b"ok",
        OK_WITH + b"ok" + OK + b"ok",
        200,
    ),
    "an error": (
        b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
        b"HTTP/1.1 502 Bad Gateway\r\n" + COOKIE + b"\r\n\r\n",
        502,
    ),
    "HTTP/0.9": (b"<html>\r\n\r\n", b"<html>\r\n\r\n", None),
    "another protocol": (b"SSH-2.0-x\r\n", b"SSH-2.0-x\r\n", None),
    "HTTP/2": (b"HTTP/2 200\r\n\r\n", b"HTTP/2 200\r\n\r\n", None),
    "a status of two digits": (b"HTTP/1.1 20 x\r\n\r\n", b"HTTP/1.1 20 x\r\n\r\n", None),
    "lines that end with LF": (b"HTTP/1.1 200 OK\nA: b\n\n", b"HTTP/1.1 200 OK\nA: b\n\n", None),
    "one line that ends with LF": (
        b"HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\nx",
        None,
    ),
    "odd after an interim one": (CONTINUE + b"nonsense", CONTINUE + b"nonsense", None),
    "too large": (
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * MAX_ANSWER_HEAD,
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * MAX_ANSWER_HEAD,
        None,
    ),
}


def read(pieces: list[bytes], insert: bytes | None) -> tuple[bytes, AnswerReader]:
    reader, out = AnswerReader(insert), b""
    for piece in pieces:
        out += piece if reader.done else reader.feed(piece)
    return out, reader


@pytest.mark.parametrize("case", CASES)
def test_with_a_cookie(case: str) -> None:
    sent, expected, status = CASES[case]
    out, reader = read([sent], COOKIE)
    assert out == expected
    assert reader.done
    assert reader.status == status
    assert reader.odd == (status is None)
    assert reader.added == len(expected) - len(sent)


@pytest.mark.parametrize("case", CASES)
def test_without_a_cookie_nothing_changes(case: str) -> None:
    sent, _, status = CASES[case]
    out, reader = read([sent], None)
    assert (out, reader.status, reader.added) == (sent, status, 0)


def test_what_is_held_back_at_the_end_of_the_stream() -> None:
    reader = AnswerReader(COOKIE)
    assert reader.feed(CONTINUE + OK[:-2]) == CONTINUE
    assert not reader.done
    assert reader.end() == OK[:-2]
    assert reader.done
    assert reader.odd
    assert reader.end() == b""


def test_interim_responses_do_not_wait_for_the_final_one() -> None:
    reader = AnswerReader(COOKIE)
    assert reader.feed(CONTINUE) == CONTINUE
    assert reader.feed(OK) == OK_WITH


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from([sent for sent, _, status in CASES.values() if status is not None]),
    st.sets(st.integers(1, 120), max_size=6),
)
def test_the_cut_makes_no_difference(sent: bytes, cuts: set[int]) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < len(sent)), len(sent)]
    pieces = [sent[a:b] for a, b in zip(edges, edges[1:], strict=False)]  # noqa: RUF007
    whole, once = read([sent], COOKIE)
    out, reader = read(pieces, COOKIE)
    assert (out, reader.status) == (whole, once.status)


@given(st.lists(st.binary(max_size=30), max_size=5))
def test_anything_else_comes_through_unchanged(pieces: list[bytes]) -> None:
    out, reader = read(pieces, COOKIE)
    if not reader.done:
        out += reader.end()
    assert reader.status is not None or out == b"".join(pieces)


def test_a_dripped_head_costs_no_more_than_its_bytes() -> None:
    """Up to the limit, a byte at a time: looking at everything again would take a minute."""
    reader = AnswerReader(COOKIE)
    began = time.process_time()
    assert reader.feed(b"HTTP/1.1 200 OK\r\nA: ") == b""
    for _ in range(MAX_ANSWER_HEAD - 100):
        assert reader.feed(b"x") == b""
    assert time.process_time() - began < 3
    assert reader.feed(b"\r\n\r\n").endswith(COOKIE + b"\r\n\r\n")


# ---- where it ends

CHUNKED = b"HTTP/1.1 413 Too Large\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE = {
    "a length": ("POST", OK + b"ok"),
    "no body": ("POST", b"HTTP/1.1 204 No Content\r\n\r\n"),
    "HEAD": ("HEAD", OK),
    "chunks": ("PUT", CHUNKED + b"2\r\nno\r\n0\r\n\r\n"),
    "interim ones first": ("POST", CONTINUE + EARLY + OK + b"ok"),
    "HTTP/1.0": ("POST", b"HTTP/1.0 413 No\r\nContent-Length: 1\r\n\r\n!"),
    "a method of its own": ("M-SEARCH", OK + b"ok"),
}
NOT_WHOLE = {
    "nothing": ("GET", b""),
    "half a head": ("GET", OK[:-2]),
    "half a body": ("GET", OK + b"o"),
    "half a chunk": ("GET", CHUNKED + b"2\r\nn"),
    "no last chunk": ("GET", CHUNKED + b"2\r\nno\r\n"),
    "only interim ones": ("GET", CONTINUE),
    "up to the end": ("GET", b"HTTP/1.1 413 Too Large\r\n\r\nno"),
    "more than one": ("GET", OK + b"ok" + OK),
    "an upgrade": ("GET", SWITCH),
    "a tunnel": ("CONNECT", b"HTTP/1.1 200 OK\r\n\r\n"),
    "no HTTP": ("GET", b"220 ready\r\n\r\n"),
}


@pytest.mark.parametrize(("method", "data"), WHOLE.values(), ids=WHOLE)
def test_it_is_whole(method: str, data: bytes) -> None:
    assert is_whole(data, method)


@pytest.mark.parametrize(("method", "data"), NOT_WHOLE.values(), ids=NOT_WHOLE)
def test_it_is_not_whole(method: str, data: bytes) -> None:
    assert not is_whole(data, method)
