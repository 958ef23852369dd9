"""Runner 1 of the corpus of requests: what l7proxy's readers and writers make of each case.

For every case, in one piece and byte by byte: the verdict is the expected one; each message that
goes on is one request without a doubt, to h11 and to a second, strict parser, with one length; and
what is refused midway went on as no complete request. What is compliant and refused has its reason
beside it, and so has what is taken although no sender may generate it.
"""

from __future__ import annotations

import h11
import pytest
import strictly
from smuggling import Case, Outcome, forward_requests, load

CASES = load("requests")


def shown(message: strictly.Message) -> str:
    """As `sees` has it."""
    method, target, _ = message.start
    line = f"{method.decode()} {target.decode()}"
    return f"{line} | {message.body.decode('latin-1')}" if message.body else line


def strict(sent: bytes) -> strictly.Message:
    """The only message there is, with one length or one coding."""
    message, rest = strictly.request(sent, by_browser=True)
    assert rest == b""
    assert len(message.values(b"content-length") + message.values(b"transfer-encoding")) <= 1
    return message


def by_h11(sent: bytes) -> tuple[bytes, bytes, bytes]:
    """Method, target and content, as h11 reads the only message there is."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(sent)
    request = connection.next_event()
    assert isinstance(request, h11.Request)
    body = b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Data)
        body += event.data
    assert connection.trailing_data == (b"", False)
    return request.method, request.target, body


def check(case: Case, outcome: Outcome) -> None:
    verdict = None if case.refused is None else (case.refused, case.status)
    assert outcome.refused == verdict
    messages = [strict(sent) for sent in outcome.messages]
    assert tuple(shown(message) for message in messages) == case.sees
    for sent, message in zip(outcome.messages, messages, strict=True):
        assert by_h11(sent) == (*message.start[:2], message.body)
    unread = bool(outcome.begun) or len(outcome.messages) < len(case.sees)
    if case.waits:
        assert outcome.refused is None
    if unread:
        assert case.waits or outcome.refused
        with pytest.raises(strictly.Incomplete):
            strictly.request(outcome.begun)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_what_the_backend_gets(case: Case) -> None:
    check(case, forward_requests([case.raw]))
    check(case, forward_requests([bytes([byte]) for byte in case.raw]))


def compliant(data: bytes) -> bool | None:
    """Whether each message in `data` is one that a sender may generate; None: up to its cut."""
    while data:
        try:
            message, data = strictly.request(data)
        except strictly.Malformed:
            return False
        except strictly.Incomplete:
            return None
        version, options = message.start[2], b",".join(message.values(b"connection")).lower()
        kept = b"keep-alive" in options if version == b"HTTP/1.0" else b"close" not in options
        if not kept or message.start[0] == b"CONNECT" or b"upgrade" in options:
            return True
    return True


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_what_is_stricter_or_more_lenient_has_its_reason(case: Case) -> None:
    verdict = compliant(case.raw)
    assert bool(case.reason) == (case.refused is not None and verdict is not False)
    taken = case.refused is None and not case.waits
    assert bool(case.lenient) == (taken and verdict is False)


def test_the_corpus_is_long_and_has_every_rule_that_a_proxy_needs() -> None:
    assert len(CASES) >= 500
    assert {case.refused for case in CASES} >= {
        *("content-length", "length-and-chunked", "transfer-encoding", "chunked-in-1.0"),
        *("chunk-size", "chunk-extension", "chunk-end", "chunk-line-too-long"),
        *("bare-lf", "bare-cr", "control", "obs-fold", "leading-whitespace", "field-line"),
        *("space-before-colon", "field-twin", "connection", "expect", "connect", "empty-line"),
        *("host", "host-missing", "host-repeated", "host-mismatch", "target", "request-line"),
    }
