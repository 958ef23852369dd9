"""Properties of the reader of response heads: for any bytes, in any cut.

- The answer (a Response and what is left over, a refusal, or nothing yet) does not depend on the
  cut, and there is no other exception than BadResponse.
- What the client gets is one head, from which h11 reads the same status, fields and framing.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import h11
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.errors import BadResponse
from l7proxy.gate import Rule
from l7proxy.model import Limits
from l7proxy.response import Response, ResponseReader, ResponseRule, framing, serialise_response

LIMITS = Limits(head_bytes=300, headers=5)

LINES = [
    b"HTTP/1.1 200 OK",
    b"HTTP/1.1 200 OK",
    b"HTTP/1.1 200",
    b"HTTP/1.0 404 Not Found",
    b"HTTP/1.1 204 No Content",
    b"HTTP/1.1 304 Not Modified",
    b"HTTP/1.1 100 Continue",
    b"HTTP/1.1 101 Switching Protocols",
    b"HTTP/1.1 999 \xe4",
    b"HTTP/2 200 OK",
    b"ICY 200 OK",
    b"HTTP/1.1 20 OK",
    b"HTTP/1.1 2000",
    b"",
]
FIELDS = [
    b"Server: a",
    b"Content-Length: 5",
    b"Content-Length: 0",
    b"Content-Length: 5, 5",
    b"Content-Length: +5",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, Chunked",
    b"Content_Length: 5",
    b"Connection: close, x-hop",
    b"Connection: Upgrade",
    b"Connection: keep-alive",
    b"Connection: a b",
    b"Upgrade: h2c, websocket",
    b"Upgrade: websocket",
    b"X-Hop: 1",
    b"Set-Cookie: a=b",
    b"X:  \xe4 \t",
    b"X :1",
    b" folded",
    b"no colon",
]
BREAKERS = [b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b"\x7f", b"\x80", b"a" * 40]


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """A head that is right, or nearly so, and something after it."""
    lines = [draw(st.sampled_from(LINES)), *draw(st.lists(st.sampled_from(FIELDS), max_size=6))]
    data = bytearray(b"\r\n".join(lines) + b"\r\n\r\n")
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(data)))
        end = start + draw(st.integers(0, 3))
        data[start:end] = draw(st.sampled_from([b"", *BREAKERS]))
    return bytes(data) + draw(st.sampled_from([b"", b"body", b"\n", b"\0" * 300]))


ANY = st.one_of(
    heads(),
    st.binary(max_size=400),
    st.lists(st.sampled_from([*LINES, *FIELDS, *BREAKERS]), max_size=12).map(b"".join),
)
RULES = {*ResponseRule, *Rule} - {Rule.PARSER}
METHODS = st.sampled_from(["GET", "HEAD", "CONNECT", "POST"])
OFFERED = st.sampled_from([None, b"websocket", b"a, WebSocket"])


def pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def answer(parts: list[bytes], method: str, offered: bytes | None) -> tuple[object, ...]:
    """Feed until there is an answer: (response, surplus), (rule, detail) or nothing."""
    reader = ResponseReader(method, LIMITS, upgrade=offered)
    for number, part in enumerate(parts):
        try:
            response = reader.feed(part)
        except BadResponse as error:
            return error.rule, error.detail
        if response is not None:
            return response, reader.surplus + b"".join(parts[number + 1 :])
    return ()


@settings(max_examples=250, deadline=None)
@given(ANY, st.sets(st.integers(1, 500), max_size=8), METHODS, OFFERED)
def test_the_cut_makes_no_difference(
    data: bytes, cuts: set[int], method: str, offered: bytes | None
) -> None:
    whole = answer([data], method, offered)
    assert not whole or isinstance(whole[0], Response) or whole[0] in RULES
    assert answer(pieces(data, cuts), method, offered) == whole
    assert answer(pieces(data, range(1, len(data))), method, offered) == whole


@settings(max_examples=250, deadline=None)
@given(heads(), METHODS, OFFERED, st.sampled_from(["1.0", "1.1"]), st.booleans())
def test_what_is_sent_is_one_head_and_the_same_response(
    data: bytes, method: str, offered: bytes | None, version: str, keep: bool
) -> None:
    result = answer([data], method, offered)
    if not result or not isinstance(result[0], Response):
        return
    response = result[0]
    chunked, kept = framing(response, version, keep)
    sent = serialise_response(response, client_version=version, keep_alive=kept, chunked=chunked)
    assert sent.endswith(b"\r\n\r\n")
    assert sent.count(b"\r\n\r\n") == 1
    assert sent.count(b"\n") == sent.count(b"\r") == sent.count(b"\r\n")

    connection = h11.Connection(h11.CLIENT)
    options = [("Host", "a")]
    if offered:
        options += [("Connection", "upgrade"), ("Upgrade", "websocket")]
    target = "/" if method != "CONNECT" else "a:1"
    connection.send(h11.Request(method=method, target=target, headers=options))
    connection.receive_data(sent)
    event = connection.next_event()
    assert isinstance(event, h11.Response | h11.InformationalResponse)
    assert event.status_code == response.status
    assert event.reason == response.reason
    names = [name for name, _ in event.headers]
    for name in (b"content-length", b"transfer-encoding", b"connection", b"upgrade"):
        assert names.count(name) <= 1, name
    assert not (b"content-length" in names and b"transfer-encoding" in names)
    assert b"x-hop" not in names or b"x-hop" not in response.options
    if response.bodiless:
        assert b"transfer-encoding" not in names
        assert method == "HEAD" or response.status == 304 or b"content-length" not in names
    else:
        # One of the three ways to tell an end, and the last of them only with `close`.
        told = (b"content-length" in names) + (b"transfer-encoding" in names)
        assert told == 1 or (version == "1.0" and not kept)
        assert (b"content-length" in names) == (response.content_length is not None)
    if not response.is_interim and response.status != 101 and version == "1.1":
        closes = [value for name, value in event.headers if name == b"connection"]
        assert (not kept) == any(b"close" in value for value in closes)
