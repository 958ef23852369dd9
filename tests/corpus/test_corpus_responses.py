"""Runner 1 of the corpus of responses: what l7proxy's readers and writers make of each case.

For every case, in one piece and byte by byte, from a backend that ends afterwards: the verdict is
the expected one; each response that goes on is one response without a doubt, to h11 and to a
second, strict parser; and the connection is used again exactly where nothing is left over.
"""

from __future__ import annotations

import h11
import pytest
import strictly
from smuggling import Case, Outcome, forward_responses, load

CASES = load("responses")


def shown(message: strictly.Message) -> str:
    """As `sees` has it."""
    status = message.start[1].decode()
    return f"{status} | {message.body.decode('latin-1')}" if message.body else status


def strict(sent: bytes, method: str) -> strictly.Message:
    """The only response there is."""
    message, rest = strictly.response(sent, method, ended=False, any_status=True)
    assert rest == b""
    return message


def by_h11(sent: list[bytes], case: Case) -> list[tuple[int, bytes]]:
    """Status and content of each response, as h11 reads them one after the other."""
    connection = h11.Connection(h11.CLIENT)
    fields = [("Host", "a.test")]
    if case.upgrade:
        fields += [("Connection", "upgrade"), ("Upgrade", case.upgrade.decode())]
    target = "a.test:443" if case.method == "CONNECT" else "/"
    connection.send(h11.Request(method=case.method, target=target, headers=fields))
    connection.send(h11.EndOfMessage())
    if not sent:
        return []
    connection.receive_data(b"".join(sent))
    found: list[tuple[int, bytes]] = []
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Response | h11.InformationalResponse):
            found.append((event.status_code, b""))
        elif isinstance(event, h11.Data):
            found[-1] = found[-1][0], found[-1][1] + event.data
        else:
            assert event in (h11.NEED_DATA, h11.PAUSED) or isinstance(event, h11.EndOfMessage)
            if not isinstance(event, h11.EndOfMessage):
                assert connection.trailing_data[0] == b""
                return found


def check(case: Case, outcome: Outcome) -> None:
    assert (outcome.refused or ("", 0))[0] == (case.refused or "")
    messages = [strict(sent, case.method) for sent in outcome.messages]
    assert tuple(shown(message) for message in messages) == case.sees
    assert by_h11(outcome.messages, case) == [
        (int(message.start[1]), message.body) for message in messages
    ]
    assert outcome.kept == case.kept
    if not case.sees or outcome.begun:
        assert case.waits or outcome.refused
        with pytest.raises(strictly.Incomplete):
            strictly.response(outcome.begun, case.method, ended=False)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_what_the_client_gets(case: Case) -> None:
    check(case, forward_responses([case.raw], case.method, case.upgrade))
    pieces = [bytes([byte]) for byte in case.raw]
    check(case, forward_responses(pieces, case.method, case.upgrade))


def compliant(case: Case) -> bool | None:
    """Whether a server may send this, and no more; None: up to its cut."""
    data = case.raw
    while True:
        try:
            message, data = strictly.response(data, case.method, ended=True)
        except strictly.Malformed:
            return False
        except strictly.Incomplete:
            return None
        status = int(message.start[1])
        if status >= 200 or status == 101:
            tunnel = status == 101 or (case.method == "CONNECT" and status < 300)
            return tunnel or not data


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_what_is_stricter_or_more_lenient_has_its_reason(case: Case) -> None:
    verdict = compliant(case)
    assert bool(case.reason) == (case.refused is not None and verdict is not False)
    taken = case.refused is None and not case.waits
    assert bool(case.lenient) == (taken and verdict is False)


def test_the_corpus_has_every_rule_that_a_proxy_needs() -> None:
    assert len(CASES) >= 200
    assert {case.refused for case in CASES} >= {
        *("status-line", "no-content", "unasked-upgrade", "connection"),
        *("content-length", "length-and-chunked", "transfer-encoding", "chunked-in-1.0"),
        *("chunk-size", "chunk-extension", "chunk-end"),
        *("bare-lf", "bare-cr", "control", "obs-fold", "leading-whitespace", "field-line"),
        *("space-before-colon", "field-twin"),
    }
