"""What the admin server is asked, and what it answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

MAX_FIELDS = 32  # of a query


class Problem(Exception):
    """An answer that says what is wrong, as `application/problem+json` (RFC 9457)."""

    def __init__(self, status: int, detail: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers

    def answer(self) -> Answer:
        """The problem as it is sent. Its `type` is `about:blank`, so its title is the status's."""
        body = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        data = json.dumps(body).encode() + b"\n"
        return Answer(self.status, data, "application/problem+json", self.headers)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response."""

    status: int
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose head was read; `body` is there where its path takes one.

    Names of `headers` are lower case. `arguments` are what stands for `{name}` in the path.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    arguments: Mapping[str, str] = field(default_factory=dict)

    def header(self, name: bytes) -> str | None:
        """The first header of this name, in lower case; None when there is none."""
        return next((value.decode("latin-1") for key, value in self.headers if key == name), None)

    def json(self) -> Any:
        """The body as JSON. Raises Problem."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise Problem(400, "the body is not JSON") from None


def split_target(target: bytes) -> tuple[str, dict[str, str]]:
    """Path and query of a request target. Raises Problem.

    A server accepts absolute-form too (RFC 9112, 3.2.2).
    """
    if target[:7].lower() == b"http://":
        target = b"/" + target[7:].partition(b"/")[2]
    raw, _, query = target.partition(b"?")
    try:
        path = unquote_to_bytes(raw).decode()
        fields = parse_qsl(
            query.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict"
        )
    except ValueError:
        raise Problem(400, "the path and the query are UTF-8, and few fields") from None
    found = dict(fields)
    if len(found) != len(fields):
        raise Problem(400, "a field of the query is there twice")
    return path, found


@cache
def description() -> bytes:
    """`openapi.json`: every path, and what it answers."""
    return (Path(__file__).parent / "openapi.json").read_bytes()


def json_answer(value: object, status: int = 200) -> Answer:
    """A JSON document, written for people too."""
    return Answer(status, json.dumps(value, indent=2).encode() + b"\n", "application/json")
