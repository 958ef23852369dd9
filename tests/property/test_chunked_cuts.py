"""Properties of the reader of chunked bodies: for any bytes, in any cut.

- What came through, whether it is done, what is left over and what is refused do not depend on the
  cut; and there is no other exception than BadRequest.
- The framed output is one chunked body, and another reader gets the same data and trailers from it.
- A body that somebody framed by the grammar comes through whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import h11
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.chunked import Chunked, ChunkRule, is_trailer
from l7proxy.errors import BadRequest
from l7proxy.gate import Rule
from l7proxy.model import Limits, Side

LIMITS = Limits(head_bytes=120, headers=3)
RULES = {*ChunkRule, *Rule} - {Rule.PARSER}

EXTENSIONS = [b"", b"", b"", b";a", b";a=b", b';a="\\" ;"', b";", b"; a", b";a=\x00", b";\n"]
FIELDS = [b"X: 1", b"Grpc-Status: 0", b"Host: a", b"Content-Length: 5", b"x-y:\t2 ", b"no colon"]
BREAKERS = [b"\r", b"\n", b"\r\n", b"\0", b" ", b";", b"0", b"-", b"0x", b"f" * 17, b'"', b"g"]


class Body(NamedTuple):
    """A chunked body as somebody wrote it, and what its data is."""

    raw: bytes
    data: bytes


@st.composite
def bodies(draw: st.DrawFn) -> Body:
    """By the grammar, but for a few of the extensions and fields."""
    pieces = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=4))
    raw = b""
    for piece in pieces:
        size = b"%0*x" % (draw(st.integers(1, 4)), len(piece))
        raw += size + draw(st.sampled_from(EXTENSIONS[:6])) + b"\r\n" + piece + b"\r\n"
    raw += b"0" * draw(st.integers(1, 3)) + draw(st.sampled_from(EXTENSIONS[:6])) + b"\r\n"
    fields = draw(st.lists(st.sampled_from(FIELDS[:5]), max_size=2))
    raw += b"".join(field + b"\r\n" for field in fields) + b"\r\n"
    return Body(raw, b"".join(pieces))


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """Nearly by the grammar."""
    data = bytearray(draw(bodies()).raw)
    for _ in range(draw(st.integers(1, 2))):
        start = draw(st.integers(0, len(data)))
        end = start + draw(st.integers(0, 3))
        data[start:end] = draw(st.sampled_from([b"", *BREAKERS, *EXTENSIONS, *FIELDS]))
    return bytes(data)


ANY = st.one_of(
    bodies().map(lambda body: body.raw + b"GET"),
    broken(),
    st.binary(max_size=200),
    st.lists(st.sampled_from([*BREAKERS, *EXTENSIONS, *FIELDS, b"3\r\nabc\r\n"]), max_size=9).map(
        b"".join
    ),
)


class Read(NamedTuple):
    """What came of it. `out` is not part of it where it was refused: how much came before."""

    out: bytes
    done: bool
    surplus: bytes
    body_bytes: int
    refused: tuple[int, str, str] | None = None


def read(parts: list[bytes], *, frame: bool) -> Read:
    reader = Chunked(Side.CLIENT, LIMITS, frame=frame)
    out = b""
    for number, part in enumerate(parts):
        try:
            out += reader.feed(part)
        except BadRequest as error:
            return Read(b"", False, b"", 0, (error.status, error.rule, error.detail))
        if reader.done:
            rest = b"".join(parts[number + 1 :])
            return Read(out, True, reader.surplus + rest, reader.body_bytes)
    return Read(out, False, b"", reader.body_bytes)


def pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def reread(framed: bytes) -> tuple[bytes, list[tuple[bytes, bytes]], bool]:
    """Data, trailers and whether it is whole, as h11 reads it; it must find nothing behind."""
    connection = h11.Connection(h11.CLIENT)
    connection.receive_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + framed)
    data = b""
    assert isinstance(connection.next_event(), h11.Response)
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Data):
            data += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert connection.trailing_data == (b"", False)
            return data, list(event.headers), True
        else:
            assert event is h11.NEED_DATA
            return data, [], False


@settings(max_examples=250, deadline=None)
@given(ANY, st.sets(st.integers(1, 220), max_size=8))
def test_the_cut_makes_no_difference(data: bytes, cuts: set[int]) -> None:
    whole = read([data], frame=False)
    assert whole.refused is None or whole.refused[1] in RULES
    assert read(pieces(data, cuts), frame=False) == whole
    assert read(pieces(data, range(1, len(data))), frame=False) == whole
    framed = read(pieces(data, cuts), frame=True)
    assert framed[1:] == whole[1:]
    if whole.refused is None:
        again, trailers, complete = reread(framed.out)
        assert (again, complete) == (whole.out, whole.done)
        assert len(again) == whole.body_bytes
        assert all(is_trailer(name) for name, _ in trailers)


@settings(max_examples=120, deadline=None)
@given(bodies(), st.binary(max_size=9), st.sets(st.integers(1, 220), max_size=8))
def test_what_is_by_the_grammar_comes_through(body: Body, rest: bytes, cuts: set[int]) -> None:
    wanted = Read(body.data, True, rest, len(body.data))
    assert read(pieces(body.raw + rest, cuts), frame=False) == wanted


@settings(max_examples=120, deadline=None)
@given(ANY)
def test_an_answer_does_not_change_with_what_follows(data: bytes) -> None:
    now, later = read([data], frame=False), read([data + b"\r\n0\r\n\r\n"], frame=False)
    if now.refused:
        assert later == now
    elif now.done:
        assert later == now._replace(surplus=now.surplus + b"\r\n0\r\n\r\n")
