"""The Gateway API's rules for the filters of an HTTPRoute: redirects, and what the backend gets."""

from __future__ import annotations

import pytest

from l7proxy.filters import redirect_location, rewrite
from l7proxy.head import HeadReader, serialise
from l7proxy.model import (
    Filters,
    HeaderChanges,
    Limits,
    PathModifier,
    PathModifierType,
    RedirectTo,
    Request,
    Route,
    UrlRewrite,
)
from tests.routes import match

# HTTPRouteRedirectPortAndScheme, -Path, -HostAndStatus: what the client used, the listener's port,
# what the route says, the path asked for, Location.
FULL, PREFIX = PathModifierType.REPLACE_FULL_PATH, PathModifierType.REPLACE_PREFIX_MATCH


def to(scheme: str | None = None, port: int | None = None) -> RedirectTo:
    return RedirectTo(scheme, "example.org", port=port)


REDIRECTS = [
    ("http", 80, to(), "/x", "http://example.org/x"),
    ("http", 80, to(port=80), "/x", "http://example.org/x"),
    ("http", 80, to(port=8080), "/x", "http://example.org:8080/x"),
    ("http", 80, to("https"), "/x", "https://example.org/x"),
    ("http", 80, to("https", 443), "/x", "https://example.org/x"),
    ("http", 80, to("https", 8443), "/x", "https://example.org:8443/x"),
    ("http", 8080, to(), "/x", "http://example.org:8080/x"),
    ("http", 8080, to(port=80), "/x", "http://example.org/x"),
    ("http", 8080, to("https"), "/x", "https://example.org/x"),
    ("https", 443, to(), "/x", "https://example.org/x"),
    ("https", 443, to(port=443), "/x", "https://example.org/x"),
    ("https", 443, to(port=8443), "/x", "https://example.org:8443/x"),
    ("https", 443, to("http"), "/x", "http://example.org/x"),
    ("https", 443, to("http", 80), "/x", "http://example.org/x"),
    ("https", 443, to("http", 8080), "/x", "http://example.org:8080/x"),
    ("http", 80, RedirectTo(path=PathModifier(PREFIX, "/new")), "/old/lemon", "http://a/new/lemon"),
    ("http", 80, RedirectTo(path=PathModifier(FULL, "/new")), "/old/lemon", "http://a/new"),
    (
        "http",
        80,
        RedirectTo(hostname="b", path=PathModifier(PREFIX, "/")),
        "/old/lemon",
        "http://b/lemon",
    ),
]


@pytest.mark.parametrize(("scheme", "port", "redirect", "path", "location"), REDIRECTS)
def test_redirects(scheme: str, port: int, redirect: RedirectTo, path: str, location: str) -> None:
    asked = Request(host="a", path=path)
    assert redirect_location(redirect, match("/old"), asked, scheme, port) == location


# HTTPRouteRewritePath, -RewriteHost and -RequestHeaderModifier: what the route changes, the head
# that comes, lines that the backend gets, names that it does not get.
CHANGES = HeaderChanges(
    set=(("X-Header-Set", "set-overwrites-values"),),
    add=(("X-Header-Add", "header-val-1"), ("X-Header-Add-Append", "header-val-2")),
    remove=("X-Header-Remove",),
)
SENT = {
    "a prefix goes": (
        "/prefix/one",
        Filters(url_rewrite=UrlRewrite(path=PathModifier(PREFIX, "/one"))),
        "GET /prefix/one/two HTTP/1.1\nHost: a",
        ["GET /one/two HTTP/1.1", "Host: a"],
        [],
    ),
    "a prefix goes and nothing comes": (
        "/strip-prefix",
        Filters(url_rewrite=UrlRewrite(path=PathModifier(PREFIX, "/"))),
        "GET /strip-prefix/three HTTP/1.1\nHost: a",
        ["GET /three HTTP/1.1"],
        [],
    ),
    "the whole path": (
        "/full/one",
        Filters(url_rewrite=UrlRewrite(path=PathModifier(FULL, "/one"))),
        "GET /full/one/two?q HTTP/1.1\nHost: a",
        ["GET /one?q HTTP/1.1"],
        [],
    ),
    "the host": (
        "/",
        Filters(url_rewrite=UrlRewrite("one.example.org")),
        "GET /one HTTP/1.1\nHost: rewrite.example",
        ["GET /one HTTP/1.1", "Host: one.example.org"],
        [],
    ),
    "the path, and headers": (
        "/full/test",
        Filters(CHANGES, UrlRewrite(path=PathModifier(FULL, "/test"))),
        "GET /full/test HTTP/1.1\nHost: a\nX-Header-Remove: remove-val\n"
        "X-Header-Add-Append: append-val-1\nX-Header-Set: set-val",
        [
            "GET /test HTTP/1.1",
            "X-Header-Add: header-val-1",
            "X-Header-Add-Append: append-val-1",
            "X-Header-Add-Append: header-val-2",
            "X-Header-Set: set-overwrites-values",
        ],
        ["X-Header-Remove", "X-Header-Set: set-val"],
    ),
    "headers, in any case": (
        "/",
        Filters(CHANGES),
        "GET / HTTP/1.1\nHost: a\nx-header-remove: r\nx-header-set: s\nAnother-Header: another",
        ["X-Header-Set: set-overwrites-values", "Another-Header: another"],
        ["x-header-remove", "x-header-set: s"],
    ),
}


@pytest.mark.parametrize(
    ("prefix", "changed", "head", "there", "gone"), SENT.values(), ids=SENT.keys()
)
def test_what_the_backend_gets(
    prefix: str, changed: Filters, head: str, there: list[str], gone: list[str]
) -> None:
    raw = head.replace("\n", "\r\n").encode() + b"\r\n\r\n"
    parsed = HeadReader(Limits()).feed(raw)
    assert parsed is not None
    one = Route("r", (match(prefix),), filters=changed)
    sent = serialise(parsed, [], rewriting=rewrite(parsed, one, one.matches[0])).decode()
    found = sent.split("\r\n")
    assert [line for line in there if line not in found] == []
    assert not [line for line in found if line.startswith(tuple(gone))]
