"""Who may ask the admin server.

- A unix socket has a mode, 0600: whoever can connect may ask for everything.
- Over TCP a token is wanted if there is one, and beyond loopback there has to be one. It comes as
  `Authorization: Bearer TOKEN`, or as the password of `Basic`, which a browser asks its user for.
- Over TCP a browser may be made to send what its user never asked for. It is not believed that it
  was the user when the request would change something, unless it has a header that no page of
  another origin can send without asking first (Fetch, "CORS-preflight request"): `X-L7proxy`, a
  content type of JSON, a bearer token. `Origin` and `Sec-Fetch-Site`, where a browser sends them,
  must agree.
- A page whose name was pointed at this machine is of the same origin (DNS rebinding). So without a
  token the Host header must be localhost or an IP address, which no such page can have as its own.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
from dataclasses import dataclass

from l7proxy.admin.message import Problem, Request
from l7proxy.errors import StartupError

SHORTEST_TOKEN = 16  # characters
SAFE = frozenset(("GET", "HEAD"))  # these change nothing (RFC 9110, 9.2.1)

_CHALLENGES = (
    ("WWW-Authenticate", 'Bearer realm="l7proxy"'),
    ("WWW-Authenticate", 'Basic realm="l7proxy", charset="UTF-8"'),
)
_FROM_HERE = frozenset(("same-origin", "none"))


class Token:
    """The secret, as its digest only: workers are forks of this process, and read strangers' bytes.

    So it must be one that cannot be guessed from its digest.
    """

    __slots__ = ("_digest",)

    def __init__(self, text: str) -> None:
        """Raises StartupError for what is no token."""
        if len(text) < SHORTEST_TOKEN or not text.isascii() or not text.isprintable():
            raise StartupError(
                f"the admin token is not {SHORTEST_TOKEN} or more printable ASCII characters on one"
                " line; make one with: openssl rand -hex 32"
            )
        self._digest = _digest(text.encode())

    def accepts(self, given: bytes) -> bool:
        """Whether it is this one; how long that takes tells nothing."""
        return hmac.compare_digest(_digest(given), self._digest)


@dataclass(frozen=True, slots=True)
class Guard:
    """What is asked of clients of one socket. `is_local`: a unix socket, whose file has a mode."""

    is_local: bool = False
    token: Token | None = None

    def admit(self, request: Request, *, is_public: bool = False) -> None:
        """Raises Problem for a request of somebody who may not ask."""
        if self.is_local:
            return
        if self.token is None:
            if not _names_this_machine(request.header(b"host")):
                raise Problem(403, "the Host header must be localhost or an IP address")
        elif not is_public and not self.token.accepts(_given(request)):
            raise Problem(401, "a token is wanted: Authorization: Bearer TOKEN", _CHALLENGES)

    def check_origin(self, request: Request) -> None:
        """Raises Problem for a request of a browser that its user may know nothing of."""
        if self.is_local or request.method in SAFE or _is_bearer(request):
            return
        _check_origin(request)


def _check_origin(request: Request) -> None:
    origin, host = request.header(b"origin"), request.header(b"host")
    site = request.header(b"sec-fetch-site")
    if (origin is not None and origin not in (f"http://{host}", f"https://{host}")) or (
        site is not None and site not in _FROM_HERE
    ):
        raise Problem(403, "not for a page of another origin")
    kind = (request.header(b"content-type") or "").partition(";")[0].strip().lower()
    if request.header(b"x-l7proxy") is None and kind != "application/json":
        raise Problem(
            403, "what changes something wants `X-L7proxy: 1` or `Content-Type: application/json`"
        )


def _is_bearer(request: Request) -> bool:
    """Whether it brings what a browser never sends by itself; `Basic` it does."""
    return (request.header(b"authorization") or "").lower().startswith("bearer ")


def _given(request: Request) -> bytes:
    """The token that the request brings; empty when it brings none."""
    scheme, _, value = (request.header(b"authorization") or "").partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return value.encode("latin-1")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            pass
    return b""


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


def _names_this_machine(host: str | None) -> bool:
    if host is None:
        return True  # HTTP/1.0: no browser
    host = host.lower()
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
