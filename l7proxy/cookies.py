"""Cookies: what a request brings, and the one by which a client finds its endpoint again. Pure.

The value of a sticky cookie is a token of the endpoint: a keyed hash of its address, under a key
made of its group's name. It is the same in every worker, after every reload and restart, and on
every other l7proxy with that group, because it is made of nothing else. It names an endpoint
without telling its address. It is no secret and no proof: who knows the group's name can try
addresses until one fits, and a client may send any token that it has seen. All that a token can do
is choose among the endpoints that the route would forward to anyway; one that belongs to none of
them is ignored.
"""

from __future__ import annotations

import base64
from hashlib import blake2b

from l7proxy.model import Sticky

_TOKEN_BYTES = 12  # 16 characters; two of a group's endpoints having the same one: never

Headers = tuple[tuple[bytes, bytes], ...]
"""Fields of a head, names in lower case."""


def value(headers: Headers, name: str) -> bytes | None:
    """The value of the first cookie called `name`; None when there is none.

    RFC 6265 section 4.2.1: `cookie-string = cookie-pair *( ";" SP cookie-pair )`. HTTP/1.1 clients
    send one field; several are read in their order. Names are case-sensitive.
    """
    wanted = name.encode()
    for field, text in headers:
        if field != b"cookie":
            continue
        for pair in text.split(b";"):
            key, separator, found = pair.partition(b"=")
            if separator and key.strip(b" \t") == wanted:
                return found.strip(b" \t").strip(b'"')
    return None


def token(group: str, endpoint: str) -> bytes:
    """What stands for an endpoint (its address as text) of a group in a cookie."""
    key = blake2b(group.encode(), digest_size=32, person=b"l7proxy sticky").digest()
    found = blake2b(endpoint.encode(), digest_size=_TOKEN_BYTES, key=key).digest()
    return base64.urlsafe_b64encode(found)


def set_cookie(sticky: Sticky, chosen: bytes) -> bytes:
    """The header line, without its line end, that makes a client keep the token `chosen`."""
    parts = [f"{sticky.cookie}={chosen.decode()}", f"Path={sticky.path}"]
    if sticky.ttl is not None:
        parts.append(f"Max-Age={max(1, int(sticky.ttl))}")
    parts += ["HttpOnly", "SameSite=Lax"]
    if sticky.secure:
        parts.append("Secure")
    return b"Set-Cookie: " + "; ".join(parts).encode()
