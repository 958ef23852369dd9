"""Where the admin server listens, and what is asked of clients there."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

from l7proxy.admin.guard import Guard, Token
from l7proxy.errors import StartupError
from l7proxy.net.adminplace import default_place
from l7proxy.net.adminsocket import AdminSocket, open_admin
from l7proxy.telemetry.log import event

log = logging.getLogger(__name__)

TOKEN_VARIABLE = "L7PROXY_ADMIN_TOKEN"  # noqa: S105 - its name
NOWHERE = "off"
_MOST = 4_096  # bytes of a token's file


@dataclass(frozen=True, slots=True)
class Place:
    """A listening socket, and its guard."""

    socket: AdminSocket
    guard: Guard


def open_places(
    asked: Sequence[str] | None, token_file: str | None, *, insists: bool = False
) -> list[Place]:
    """Open all of them; None: the one where operators look for it. Raises StartupError.

    Nobody has asked for the latter, so unless it `insists` it is done without where it cannot be:
    another l7proxy may be there.
    """
    token = find_token(token_file)
    if asked is None:
        return _open_default(token, insists=insists)
    if NOWHERE in asked:
        if len(asked) > 1:
            raise StartupError(f"--admin {NOWHERE}: and another place; leave one of them out")
        return []
    places: list[Place] = []
    try:
        for where in asked:
            places.append(_open(where, token))
    except StartupError:
        for place in places:
            place.socket.remove()
        raise
    return places


def _open_default(token: Token | None, *, insists: bool) -> list[Place]:
    where = default_place()
    if where is None:
        return []
    try:
        return [_open(where, token)]
    except StartupError as error:
        if insists or "L7PROXY_ADMIN" in os.environ:
            raise
        log.warning(
            event("no admin server", why=error, remedy="choose another place with --admin, or off")
        )
        return []


def _open(where: str, token: Token | None) -> Place:
    socket = open_admin(where, has_token=token is not None)
    return Place(socket, Guard(socket.file is not None, token))


def find_token(file: str | None) -> Token | None:
    """The token in this file, or in the environment; None: neither. Raises StartupError.

    The file is the better place: workers are forks, and have the environment in their memory.
    """
    text = os.environ.get(TOKEN_VARIABLE)
    if file is None:
        return None if text is None else Token(text)
    try:
        with open(file, "rb") as opened:
            return Token(opened.read(_MOST).decode("ascii").strip())
    except OSError as error:
        raise StartupError(f"--admin-token-file {file}: {(error.strerror or '').lower()}") from None
    except (UnicodeDecodeError, StartupError):
        raise StartupError(f"--admin-token-file {file}: {_NO_TOKEN}") from None


_NO_TOKEN = "this is no token; make one with: openssl rand -hex 32"  # noqa: S105
