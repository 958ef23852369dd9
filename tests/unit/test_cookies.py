"""The cookie by which a client finds its endpoint again."""

from __future__ import annotations

import pytest

from l7proxy import cookies
from l7proxy.model import Sticky

A, B = "10.0.0.1:80", "10.0.0.2:80"


def test_a_token_is_stable_and_tells_nothing() -> None:
    token = cookies.token("app", A)
    assert token == b"cKm7h9xzFmSM7JvY"
    assert len({token, cookies.token("app", B), cookies.token("api", A)}) == 3


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ([(b"cookie", b"at=one")], b"one"),
        ([(b"cookie", b"x=1; at=one; y=2")], b"one"),
        ([(b"cookie", b"x=1;at=one")], b"one"),
        ([(b"cookie", b'at="one"')], b"one"),
        ([(b"cookie", b"at=one=two==")], b"one=two=="),
        ([(b"cookie", b"at=one; at=two")], b"one"),
        ([(b"cookie", b"x=1"), (b"cookie", b"at=one")], b"one"),
        ([(b"cookie", b"at=")], b""),
        ([(b"cookie", b"At=one; atx=two; xat=three; at")], None),
        ([(b"x-cookie", b"at=one")], None),
        ([(b"cookie", b"")], None),
        ([], None),
    ],
)
def test_the_value_of_a_cookie(fields: list[tuple[bytes, bytes]], found: bytes | None) -> None:
    assert cookies.value(tuple(fields), "at") == found


@pytest.mark.parametrize(
    ("sticky", "line"),
    [
        (Sticky("at"), b"Set-Cookie: at=T; Path=/; HttpOnly; SameSite=Lax"),
        (
            Sticky("at", ttl=3600.5, path="/shop", secure=True),
            b"Set-Cookie: at=T; Path=/shop; Max-Age=3600; HttpOnly; SameSite=Lax; Secure",
        ),
        # Max-Age=0 would delete it
        (Sticky("at", ttl=0.5), b"Set-Cookie: at=T; Path=/; Max-Age=1; HttpOnly; SameSite=Lax"),
    ],
)
def test_the_header_line(sticky: Sticky, line: bytes) -> None:
    assert cookies.set_cookie(sticky, b"T") == line
