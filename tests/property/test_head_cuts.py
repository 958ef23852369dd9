"""Properties of the head reader: for any bytes, in any cut.

- The answer (a Head and its surplus, a refusal, or nothing yet) does not depend on the cut.
- There is no other exception than BadRequest, and it has a rule and a status.
- What is sent to the backend is one head: h11 and the gate read the same request from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import h11
from heads import written
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.errors import BadRequest
from l7proxy.gate import Rule
from l7proxy.head import Head, HeadReader
from l7proxy.model import Limits

LIMITS = Limits(head_bytes=300, headers=5)

# Pieces that heads are made of, and those that break them.
LINES = [
    b"GET / HTTP/1.1",
    b"GET /a?b HTTP/1.0",
    b"POST http://a.example:80/x HTTP/1.1",
    b"OPTIONS * HTTP/1.1",
    b"OPTIONS http://a.example HTTP/1.1",
    b"PRI * HTTP/2.0",
    b"CONNECT a:1 HTTP/1.1",
    b"GET /",
    b"",
]
FIELDS = [
    b"Host: a.example",
    b"Host: A.EXAMPLE.:80",
    b"host:[::1]:8080",
    b"Content-Length: 5",
    b"Content-Length: 05",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, Chunked",
    b"Connection: close, x-hop",
    b"Connection: Upgrade",
    b"Connection: host",
    b"Upgrade: h2c, websocket",
    b"X-Hop: 1",
    b"X-Forwarded-For: 192.0.2.1",
    b"x_forwarded_for: 192.0.2.2",
    b"Via: 1.0 fred",
    b"Max-Forwards: 70",
    b"Expect: 100-continue",
    b"X:  \xe4 \t",
    b"X :1",
    b" folded",
    b"no colon",
]
BREAKERS = [b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b"#", b"\x7f", b"\x80", b"a" * 40]


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A head that is right, or nearly so, and something after it."""
    lines = [draw(st.sampled_from(LINES)), *draw(st.lists(st.sampled_from(FIELDS), max_size=6))]
    data = bytearray(draw(st.sampled_from([b"", b"", b"\r\n", b"\r\n\r\n", b"\n"])))
    data += b"\r\n".join(lines) + b"\r\n\r\n"
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(data)))
        end = start + draw(st.integers(0, 3))
        data[start:end] = draw(st.sampled_from([b"", *BREAKERS]))
    return bytes(data) + draw(st.sampled_from([b"", b"body", b"\n", b"\0" * 300]))


ANY = st.one_of(
    requests(),
    st.binary(max_size=400),
    st.lists(st.sampled_from([*LINES, *FIELDS, *BREAKERS]), max_size=12).map(b"".join),
)


def pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def answer(parts: list[bytes]) -> tuple[object, ...]:
    """Feed until there is an answer: (head, surplus), (status, rule, detail) or nothing."""
    reader = HeadReader(LIMITS)
    for number, part in enumerate(parts):
        try:
            head = reader.feed(part)
        except BadRequest as error:
            return error.status, error.rule, error.detail
        if head is not None:
            return head, reader.surplus + b"".join(parts[number + 1 :])
    return ()


@settings(max_examples=1500, deadline=None)
@given(ANY, st.sets(st.integers(1, 500), max_size=8))
def test_the_cut_makes_no_difference(data: bytes, cuts: set[int]) -> None:
    whole = answer([data])
    if whole and not isinstance(whole[0], Head):
        assert whole[0] in {400, 414, 417, 431, 501, 505}
        assert whole[1] in set(Rule) - {Rule.PARSER}
    assert answer(pieces(data, cuts)) == whole
    assert answer(pieces(data, range(1, len(data)))) == whole


@settings(max_examples=1500, deadline=None)
@given(ANY)
def test_an_answer_does_not_change_with_what_follows(data: bytes) -> None:
    """What was refused stays refused, and a head stays the same head with more surplus."""
    now = answer([data])
    later = answer([data + b"\r\n\r\n"])
    if now and isinstance(now[0], Head):
        assert later == (now[0], bytes(now[1]) + b"\r\n\r\n")  # type: ignore[call-overload]
    elif now:
        assert later == now


@settings(max_examples=1500, deadline=None)
@given(requests())
def test_what_is_sent_is_one_head_and_the_same_request(data: bytes) -> None:
    result = answer([data])
    if not result or not isinstance(result[0], Head):
        return
    head = result[0]
    sent = written(head)
    assert sent.endswith(b"\r\n\r\n")
    assert sent.count(b"\r\n\r\n") == 1
    assert sent.count(b"\n") == sent.count(b"\r") == sent.count(b"\r\n")

    connection = h11.Connection(h11.SERVER)
    connection.receive_data(sent)
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    assert event.method.decode() == head.method
    assert event.target.decode() == head.target
    assert event.http_version.decode() == head.version
    names = [name for name, _ in event.headers]
    for name in (b"host", b"content-length", b"transfer-encoding", b"connection"):
        assert names.count(name) <= 1, name
    assert (b"transfer-encoding" in names) == head.chunked
    assert (b"content-length" in names) == (head.content_length is not None)
    assert b"x-hop" not in names or b"x-hop" not in head.options

    again = HeadReader(Limits()).feed(sent)
    assert again is not None
    assert (again.host, again.path, again.query) == (head.host, head.path, head.query)
    assert (again.upgrade, again.keep_alive) == (head.upgrade, head.keep_alive)
