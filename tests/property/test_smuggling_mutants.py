"""Mutants of the corpora: whatever is sent, what goes on is one message without a doubt.

Bytes of a case are replaced, doubled or moved, and another case may stand behind it. There is no
verdict to compare with; what holds is that each message that goes on is one message to h11 and to
the strict parser, with nothing behind it, that what was begun is none, and that the cut makes no
difference.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import h11
import strictly
from hypothesis import given, settings
from hypothesis import strategies as st
from smuggling import Outcome, forward_requests, forward_responses, load

REQUESTS = [case.raw for case in load("requests")]
RESPONSES = load("responses")
LINES = [b"\r\nContent-Length: 5", b"\r\nTransfer-Encoding: chunked", b"\r\nConnection: close"]
MESSAGES = [b"0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"]
BYTES = b"\r|\n|\r\n|\r\n\r\n| |\t|\0|:|;|,|0|5|\xff|_".split(b"|")
SEASONING = [*BYTES, *LINES, *MESSAGES]


def mutants(raws: list[bytes]) -> st.SearchStrategy[bytes]:
    """Of one of these, and perhaps with another one behind."""

    @st.composite
    def mutant(draw: st.DrawFn) -> bytes:
        data = bytearray(draw(st.sampled_from(raws)))
        for _ in range(draw(st.integers(0, 3))):
            at = draw(st.integers(0, len(data)))
            end = at + draw(st.integers(0, 4))
            new = draw(st.sampled_from([b"", *SEASONING]) | st.just(bytes(data[at - 9 : at + 9])))
            data[at:end] = new
        if draw(st.booleans()):
            data += draw(st.sampled_from(raws))
        return bytes(data)

    return mutant()


def pieces(data: bytes, cuts: set[int]) -> list[bytes]:
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


CUTS = st.sets(st.integers(1, 400), max_size=6)


def same(one: Outcome, two: Outcome) -> bool:
    """Whether the verdicts are, and what went on is but for its chunks."""
    return (one.refused, one.kept, len(one.messages)) == (two.refused, two.kept, len(two.messages))


@settings(max_examples=120, deadline=None)
@given(mutants(REQUESTS), CUTS)
def test_requests(data: bytes, cuts: set[int]) -> None:
    outcome = forward_requests([data])
    assert same(outcome, forward_requests(pieces(data, cuts)))
    for sent in outcome.messages:
        message, rest = strictly.request(sent, by_browser=True)
        assert rest == b""
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(sent)
        request, body = connection.next_event(), b""
        assert isinstance(request, h11.Request)
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            assert isinstance(event, h11.Data)
            body += event.data
        assert connection.trailing_data == (b"", False)
        assert (request.method, request.target, body) == (*message.start[:2], message.body)
    if outcome.begun:
        try:
            strictly.request(outcome.begun, by_browser=True)
        except strictly.Incomplete:
            pass
        else:
            raise AssertionError("what was begun is a whole message")


@settings(max_examples=120, deadline=None)
@given(
    mutants([case.raw for case in RESPONSES]),
    CUTS,
    st.sampled_from(["GET", "HEAD", "CONNECT"]),
    st.sampled_from([None, b"websocket"]),
)
def test_responses(data: bytes, cuts: set[int], method: str, upgrade: bytes | None) -> None:
    outcome = forward_responses([data], method, upgrade)
    assert same(outcome, forward_responses(pieces(data, cuts), method, upgrade))
    for number, sent in enumerate(outcome.messages):
        message, rest = strictly.response(sent, method, ended=False, any_status=True)
        assert rest == b""
        final = int(message.start[1]) >= 200 or message.start[1] == b"101"
        assert final == (number == len(outcome.messages) - 1) or not outcome.kept
    if outcome.kept:
        # Nobody's bytes are left on a connection that is used again: all of them were read.
        left = data
        with suppress(strictly.Malformed):  # what is taken although no server may generate it
            for _ in outcome.messages:
                _, left = strictly.response(left, method, ended=True, any_status=True)
            assert left == b""
    if outcome.begun:
        try:
            strictly.response(outcome.begun, method, ended=False, any_status=True)
        except strictly.Incomplete:
            pass
        else:
            raise AssertionError("what was begun is a whole message")
