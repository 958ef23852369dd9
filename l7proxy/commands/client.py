"""Asking a running l7proxy: what the verbs for operators share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from l7proxy.errors import L7ProxyError
from l7proxy.net.adminplace import default_place, is_unix

if TYPE_CHECKING:
    import http.client

_SECONDS = 10.0  # that an answer may take


class AskError(L7ProxyError):
    """Nobody could be asked, or the answer was no."""


def add_admin(parser: Any) -> None:
    """Tell argparse whom to ask; `parser` may be a group of arguments."""
    parser.add_argument(
        "--admin",
        metavar="ADDRESS",
        help="where it serves admin requests: what `run --admin` got (default: what `run` takes"
        " when it got nothing)",
    )


def add_token(parser: argparse.ArgumentParser) -> None:
    """Tell argparse of the token."""
    parser.add_argument(
        "--admin-token-file",
        metavar="FILE",
        help="the token, where the admin server wants one over TCP (default: $L7PROXY_ADMIN_TOKEN)",
    )


def place(options: argparse.Namespace) -> str:
    """Whom to ask. Raises AskError."""
    found: str | None = options.admin or default_place()
    if found is None:
        raise AskError("--admin is wanted: nothing says where l7proxy serves admin requests")
    return found


def ask(
    options: argparse.Namespace,
    method: str,
    path: str,
    body: object = None,
    seconds: float = _SECONDS,
) -> tuple[int, Any]:
    """Status and document of the answer; text where it is none of JSON.

    `options` has what `add_admin` and `add_token` added. Raises AskError when there is no answer,
    and when one wants the token.
    """
    import http.client
    import json

    admin = place(options)
    data = None if body is None else json.dumps(body).encode()
    asked = connection(admin, seconds)
    try:
        asked.request(method, path, data, _headers(admin, options))
        response = asked.getresponse()
        answer = response.read()
    except (OSError, http.client.HTTPException) as error:
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise AskError(f"--admin {admin}: {said.lower()}; does l7proxy run there?") from error
    finally:
        asked.close()
    found: Any = answer.decode("utf-8", "replace")
    if response.headers.get_content_type() in ("application/json", "application/problem+json"):
        try:
            found = json.loads(answer)
        except ValueError:
            raise AskError(f"--admin {admin}: the answer is no JSON") from None
    if response.status in (401, 403):
        detail = found.get("detail", "") if isinstance(found, dict) else found
        raise AskError(f"--admin {admin}: answered {response.status}: {detail}")
    return response.status, found


def wanted(
    options: argparse.Namespace,
    method: str,
    path: str,
    body: object = None,
    seconds: float = _SECONDS,
) -> Any:
    """As `ask`, for what has to succeed: the document. Raises AskError with what was wrong."""
    status, found = ask(options, method, path, body, seconds)
    if status >= 400:
        detail = found.get("detail", found) if isinstance(found, dict) else found
        raise AskError(f"--admin {place(options)}: answered {status}: {str(detail)[:300]}")
    return found


def _headers(admin: str, options: argparse.Namespace) -> dict[str, str]:
    import os
    from pathlib import Path

    headers = {"X-L7proxy": "1"}
    if is_unix(admin):
        return headers
    token = os.environ.get("L7PROXY_ADMIN_TOKEN")
    file = getattr(options, "admin_token_file", None)
    if file:
        try:
            token = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or str(error)
            raise AskError(f"--admin-token-file {file}: {said.lower()}") from None
    return headers | ({"Authorization": f"Bearer {token}"} if token else {})


def connection(admin: str, seconds: float) -> http.client.HTTPConnection:
    """One to the admin server at this address, which is made when something is asked."""
    import http.client
    import socket

    if is_unix(admin):
        path = admin.removeprefix("unix:")

        class UnixConnection(http.client.HTTPConnection):
            def connect(self) -> None:
                self.sock = socket.socket(socket.AF_UNIX)
                self.sock.settimeout(seconds)
                self.sock.connect(path)

        return UnixConnection("localhost", timeout=seconds)
    try:
        return http.client.HTTPConnection(admin, timeout=seconds)
    except http.client.InvalidURL as error:
        raise AskError(f"--admin {admin}: {error}") from error
