"""How long a retry waits, and which bodies are kept for one."""

from __future__ import annotations

import pytest

from l7proxy.head import Head, HeadReader
from l7proxy.model import Limits, Retry, Route
from l7proxy.worker.copying import REPLAY, Copied, copy_of, copying, kept_of
from l7proxy.worker.retrying import pause
from l7proxy.worker.transfer import Cut, Sized

RETRY = Retry(backoff=0.1)


def test_pauses_double_up_to_ten_times_and_are_never_shorter() -> None:
    least = [pause(RETRY, attempt, 0.0) for attempt in range(1, 7)]
    assert least == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    most = [pause(RETRY, attempt, 0.999) for attempt in range(1, 7)]
    assert all(short < long < short * 1.5 for short, long in zip(least, most, strict=True))


def head(method: str = "PUT", fields: str = "Content-Length: 5\r\n") -> Head:
    found = HeadReader(Limits()).feed(f"{method} / HTTP/1.1\r\nHost: a\r\n{fields}\r\n".encode())
    assert found is not None
    return found


def test_what_is_kept() -> None:
    again, plain = Route("r", (), retry=RETRY), Route("r", ())
    assert kept_of(plain, head(), mirrored=False) == 0
    assert kept_of(again, head(), mirrored=False) == REPLAY
    assert kept_of(again, head("POST"), mirrored=False) == 0
    assert kept_of(again, head("POST"), mirrored=True) == REPLAY


def test_a_copy_of_a_body() -> None:
    body = copying(Sized(5), head(), 5)
    assert isinstance(body, Copied)
    assert bytes(body.take(memoryview(b"ab"))) == b"ab"
    assert (body.done, copy_of(body)) == (False, None)
    assert bytes(body.take(memoryview(b"cdeGET"))) == b"cde"
    assert (body.done, copy_of(body), body.surplus) == (True, b"abcde", b"GET")
    with pytest.raises(Cut):
        copying(Sized(5), head(), 5).end()


def test_no_copy_of_what_is_too_large() -> None:
    assert not isinstance(copying(Sized(5), head(), 4), Copied)
    chunked = head(fields="Transfer-Encoding: chunked\r\n")
    body = copying(Sized(5), chunked, 4)  # in chunks nobody knows beforehand
    for piece in (b"abc", b"de"):
        assert bytes(body.take(memoryview(piece))) == piece
    assert (body.done, copy_of(body)) == (True, None)
    assert copy_of(None) == b""
    assert copy_of(Sized(0)) is None
