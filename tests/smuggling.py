"""The corpus of smuggling as data, and what l7proxy makes of a case without a socket.

A file of `tests/corpus/requests` or `.../responses` is a list of groups:

    what     what the cases of the group have in common
    source   where the field knows it from
    raw      the bytes, in latin-1; `@` stands for what a case puts there (default: the case's own)
    refused  the rule that refuses it
    cases    name, and what differs: put, raw, refused, ...

of a request also

    status   with which it is refused (default 400)
    sees     what the backend gets before: `METHOD TARGET`, or `METHOD TARGET | body`
    waits    true: neither refused nor complete, more has to come
    reason   why something compliant is refused
    lenient  why something is taken that no sender may generate

and of a response

    method   the request's (default GET); `upgrade` is what it offered
    sees     what the client gets: `STATUS`, or `STATUS | body`
    kept     whether the connection to the backend may be used again
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from l7proxy.chunked import Chunked, chunk
from l7proxy.errors import BadRequest, BadResponse
from l7proxy.head import Head, HeadReader, serialise
from l7proxy.model import Limits, Side
from l7proxy.response import ResponseReader, framing, serialise_response

CORPUS = Path(__file__).parent / "corpus"
LIMITS = Limits()
LAST = b"0\r\n\r\n"


class Case(NamedTuple):
    """One case, all defaults filled in."""

    id: str
    raw: bytes
    source: str
    refused: str | None
    status: int
    sees: tuple[str, ...]
    waits: bool
    reason: str
    lenient: str
    method: str
    upgrade: bytes | None
    kept: bool


KEYS = {
    "name",
    "put",
    "raw",
    "refused",
    "status",
    "sees",
    "waits",
    "reason",
    "lenient",
    "source",
} | {
    "method",
    "upgrade",
    "kept",
}


def load(kind: str) -> list[Case]:
    """All cases of `requests` or `responses`, in the order of their files."""
    cases = []
    for path in sorted((CORPUS / kind).glob("*.yaml")):
        groups = yaml.load(path.read_text(), yaml.CSafeLoader)
        for number, group in enumerate(groups, 1):
            shared = {key: group[key] for key in group if key not in ("what", "cases")}
            assert group["what"]
            cases += [_case(f"{path.stem}-{number}", {**shared, **case}) for case in group["cases"]]
    assert len({case.id for case in cases}) == len(cases)
    return cases


def _case(file: str, told: dict[str, Any]) -> Case:
    assert told.keys() <= KEYS, told
    raw = told["raw"].replace("@", told["put"]) if "put" in told else told["raw"]
    refused = told.get("refused")
    upgrade = told.get("upgrade")
    return Case(
        id=f"{file}: {told['name']}",
        raw=raw.encode("latin-1"),
        source=told.get("source", ""),
        refused=refused,
        status=told.get("status", 400),
        sees=tuple(told.get("sees", ())),
        waits=told.get("waits", False),
        reason=told.get("reason", ""),
        lenient=told.get("lenient", ""),
        method=told.get("method", "GET"),
        upgrade=upgrade.encode() if upgrade else None,
        kept=told.get("kept", False),
    )


# ---- what l7proxy makes of it


@dataclass
class Outcome:
    """What went on: whole messages, the begun one, and what ended it."""

    messages: list[bytes] = field(default_factory=list)
    heads: list[Head] = field(default_factory=list)
    begun: bytes = b""
    refused: tuple[str, int] | None = None
    kept: bool = False  # of a response: the backend's connection may be used again
    tunnel: bool = False  # what follows belongs to nobody any more


class Requests:
    """A connection of a client, request after request: what its backends get. Fed in pieces."""

    def __init__(self) -> None:
        self.outcome = Outcome()
        self._reader = HeadReader(LIMITS)
        self._head: Head | None = None
        self._chunked: Chunked | None = None
        self._left = 0
        self._over = False

    def feed(self, data: bytes) -> None:
        """The client's next bytes."""
        try:
            while data and not self._over:
                data = self._body(data) if self._head is not None else self._next_head(data)
        except BadRequest as error:
            self.outcome.refused = error.rule, error.status
            self._over = True

    def _next_head(self, data: bytes) -> bytes:
        head = self._reader.feed(data)
        if head is None:
            return b""
        surplus = self._reader.surplus
        self.outcome.heads.append(head)
        self.outcome.begun = serialise(head.without_claims(), [], kept=True)
        self._head = head
        if head.body_length is None:
            self._chunked = Chunked(Side.CLIENT, LIMITS, without=head.options)
        elif head.body_length == 0:
            self._end()
        else:
            self._left = head.body_length
        return surplus

    def _body(self, data: bytes) -> bytes:
        outcome = self.outcome
        if self._chunked is not None:
            outcome.begun += self._chunked.feed(data)
            if not self._chunked.done:
                return b""
            rest = self._chunked.surplus
            self._end()
            return rest
        outcome.begun += data[: self._left]
        taken = min(self._left, len(data))
        self._left -= taken
        if not self._left:
            self._end()
        return data[taken:]

    def _end(self) -> None:
        head, outcome = self._head, self.outcome
        assert head is not None
        outcome.messages.append(outcome.begun)
        outcome.begun = b""
        self._head = self._chunked = None
        self._reader = HeadReader(LIMITS)
        outcome.tunnel = head.method == "CONNECT" or head.upgrade is not None
        self._over = not head.keep_alive or outcome.tunnel


def forward_requests(pieces: list[bytes]) -> Outcome:
    """What backends get of a client that sends these pieces."""
    requests = Requests()
    for piece in pieces:
        requests.feed(piece)
    return requests.outcome


def forward_responses(pieces: list[bytes], method: str, upgrade: bytes | None) -> Outcome:
    """What an HTTP/1.1 client gets of a backend that sends these pieces and then ends."""
    outcome = Outcome()
    reader = ResponseReader(method, LIMITS, upgrade=upgrade)
    body: Chunked | None = None
    response = None
    left = 0
    surplus = False
    for piece in pieces:
        data = piece
        try:
            while data:
                if response is None:
                    response = reader.feed(data)
                    if response is None:
                        break
                    data = reader.surplus
                    chunked, kept = framing(response, "1.1", True)
                    outcome.begun = serialise_response(
                        response, client_version="1.1", keep_alive=kept, chunked=chunked
                    )
                    if response.is_interim:
                        outcome.messages.append(outcome.begun)
                        outcome.begun = b""
                        response, reader = None, ResponseReader(method, LIMITS, upgrade=upgrade)
                        continue
                    if response.body_length is not None:
                        left = response.body_length
                    elif response.chunked:
                        body = Chunked(Side.BACKEND, LIMITS, without=response.options)
                    if not left and response.body_length is not None:
                        outcome.messages.append(outcome.begun)
                        outcome.begun = b""
                        outcome.tunnel = response.status == 101 or (
                            method == "CONNECT" and response.status < 300
                        )
                elif outcome.tunnel:
                    break
                elif body is not None and not body.done:
                    outcome.begun += body.feed(data)
                    data = body.surplus
                    if body.done:
                        outcome.messages.append(outcome.begun)
                        outcome.begun = b""
                elif left:
                    outcome.begun += data[:left]
                    data, left = data[left:], max(0, left - len(data))
                    if not left:
                        outcome.messages.append(outcome.begun)
                        outcome.begun = b""
                elif response.until_close:
                    outcome.begun += chunk(data)
                    break
                else:  # more than the response: the connection is not used again
                    surplus = True
                    break
        except BadResponse as error:
            outcome.refused = error.rule, 502
            return outcome
    if response is not None and response.until_close:
        outcome.messages.append(outcome.begun + LAST)
        outcome.begun = b""
    outcome.kept = (
        response is not None
        and response.keep_alive
        and not surplus
        and not outcome.begun
        and not outcome.tunnel
    )
    return outcome
