"""What a route changes in a request, and where it redirects to: the Gateway API's tables."""

from __future__ import annotations

import pytest
from heads import written

from l7proxy.filters import forbidden_header, guard, modified_path, redirect_location, rewrite
from l7proxy.head import Head, HeadReader
from l7proxy.model import (
    BackendRef,
    Filters,
    HeaderChanges,
    Limits,
    Match,
    PathMatch,
    PathModifier,
    PathModifierType,
    PathType,
    RedirectTo,
    Request,
    Route,
    UrlRewrite,
)

FULL, PREFIX = PathModifierType.REPLACE_FULL_PATH, PathModifierType.REPLACE_PREFIX_MATCH


def match(path: str, kind: PathType = PathType.PATH_PREFIX) -> Match:
    return Match(PathMatch(kind, path))


def route(
    *,
    headers: HeaderChanges | None = None,
    url: UrlRewrite | None = None,
    prefix: str = "/",
    back: HeaderChanges | None = None,
) -> Route:
    filters = Filters(headers, url, back)
    return Route("r", (match(prefix),), (BackendRef("app"),), filters=filters)


def head(raw: str) -> Head:
    found = HeadReader(Limits()).feed(raw.replace("\n", "\r\n").encode("ascii") + b"\r\n")
    assert found is not None
    return found


def sent(raw: str, one: Route) -> list[str]:
    """The lines that a backend gets."""
    parsed = head(raw)
    data = written(parsed, "192.0.2.1", rewriting=rewrite(parsed, one, one.matches[0]))
    return data.decode("ascii").removesuffix("\r\n\r\n").split("\r\n")


# request path, prefix of the match, replacement -> path. The first eleven are the table of
# HTTPPathModifier.
PREFIXES = """
/foo/bar     /foo    /xyz    -> /xyz/bar
/foo/bar     /foo    /xyz/   -> /xyz/bar
/foo/bar     /foo/   /xyz    -> /xyz/bar
/foo/bar     /foo/   /xyz/   -> /xyz/bar
/foo         /foo    /xyz    -> /xyz
/foo/        /foo    /xyz    -> /xyz/
/foo/bar     /foo    ''      -> /bar
/foo/        /foo    ''      -> /
/foo         /foo    ''      -> /
/foo/        /foo    /       -> /
/foo         /foo    /       -> /
/            /       /xyz    -> /xyz/
/a/b         /       /xyz    -> /xyz/a/b
/a/b/c/d     /a/b    /x/y/z  -> /x/y/z/c/d
/~u/x        /%7Eu   /home   -> /home/x
/%7eu/x      /~u     /home   -> /home/x
/foo/a%2fb   /foo    /xyz    -> /xyz/a%2fb
/foo/bar/    /foo    /       -> /bar/
"""


@pytest.mark.parametrize("line", PREFIXES.strip().splitlines())
def test_replace_prefix_match(line: str) -> None:
    path, prefix, value, _, expected = line.replace("''", '""').split()
    modifier = PathModifier(PREFIX, value.strip('"'))
    assert modified_path(modifier, match(prefix), path) == expected


def test_replace_full_path() -> None:
    assert modified_path(PathModifier(FULL, "/new"), match("/a"), "/a/b/c") == "/new"


def test_the_query_stays_and_host_and_path_are_new() -> None:
    one = route(url=UrlRewrite("next.test", PathModifier(PREFIX, "/v2")), prefix="/v1")
    lines = sent("GET /v1/x?a=/v1/b HTTP/1.1\nHost: Old.test:8080\n", one)
    assert lines[:2] == ["GET /v2/x?a=/v1/b HTTP/1.1", "Host: next.test"]


def test_what_is_not_rewritten_stays_as_the_client_wrote_it() -> None:
    only_host = route(url=UrlRewrite("next.test"))
    assert sent("GET /%7Ex? HTTP/1.1\nHost: a.test\n", only_host)[0] == "GET /%7Ex? HTTP/1.1"
    only_path = route(url=UrlRewrite(path=PathModifier(FULL, "/new")))
    assert sent("GET /x HTTP/1.1\nHost: A.test:81\n", only_path)[:2] == [
        "GET /new HTTP/1.1",
        "Host: A.test:81",
    ]


def test_a_host_for_a_request_that_named_none() -> None:
    one = route(url=UrlRewrite("next.test"))
    assert sent("GET / HTTP/1.0\n", one)[:2] == ["GET / HTTP/1.0", "Host: next.test"]


def test_options_of_the_whole_server_has_no_path_to_rewrite() -> None:
    one = route(url=UrlRewrite(path=PathModifier(FULL, "/new")))
    assert sent("OPTIONS * HTTP/1.1\nHost: a.test\n", one)[0] == "OPTIONS * HTTP/1.1"


REQUEST = "GET / HTTP/1.1\nHost: a.test\nX-One: 1\nx-two: 2\nX-One: 11\n"


def test_set_add_remove() -> None:
    changes = HeaderChanges(
        set=(("X-ONE", "new"), ("X-Fresh", "f")), add=(("X-Two", "22"), ("Y", "y")), remove=("X-Z",)
    )
    lines = sent(REQUEST, route(headers=changes))
    assert [line for line in lines if line.lower().startswith(("x-one", "x-two", "x-f", "y"))] == [
        "x-two: 2",
        "X-Forwarded-For: 192.0.2.1",
        "X-ONE: new",
        "X-Fresh: f",
        "X-Two: 22",
        "Y: y",
    ]


def test_remove_takes_every_field_of_the_name_and_no_other() -> None:
    lines = sent(REQUEST, route(headers=HeaderChanges(remove=("x-ONE",))))
    assert not [line for line in lines if line.lower().startswith("x-one")]
    assert "x-two: 2" in lines


def test_a_twin_with_underscores_does_not_come_in_beside() -> None:
    """Servers that follow CGI read X_User as X-User: what is set or removed is gone in both."""
    changes = HeaderChanges(set=(("X-User", "u"), ("My_Key", "k")), remove=("X-Secret-Key",))
    raw = "GET / HTTP/1.1\nHost: a\nX_User: root\nx_secret-KEY: 1\nMy-Key: evil\nX_Other: 1\n"
    lines = sent(raw, route(headers=changes))
    assert [line for line in lines if line.lower().startswith(("x_", "x-u", "x-s", "my"))] == [
        "X_Other: 1",
        "X-User: u",
        "My_Key: k",
    ]


def test_a_route_has_the_last_word_over_fields_of_l7proxy() -> None:
    changes = HeaderChanges(set=(("X-Forwarded-For", "203.0.113.9"),), remove=("Via",))
    lines = sent(
        "GET / HTTP/1.1\nHost: a\nX-Forwarded-For: 1.1.1.1\nVia: 1.1 x\n", route(headers=changes)
    )
    assert [line for line in lines if line.lower().startswith(("x-forwarded-for", "via"))] == [
        "X-Forwarded-For: 203.0.113.9"
    ]


def test_a_client_cannot_strip_what_the_policy_writes() -> None:
    """RFC 9110, 7.6.1: fields named in Connection end here, and only the client's are named."""
    one = route(headers=HeaderChanges(set=(("X-User", "u"),), add=(("X-Env", "prod"),)))
    raw = "GET / HTTP/1.1\nHost: a\nX-Env: evil\nX-User: root\nConnection: X-User, X-Env\n"
    lines = sent(raw, one)
    assert [line for line in lines if line.startswith("X-")] == [
        "X-Forwarded-For: 192.0.2.1",
        "X-User: u",
        "X-Env: prod",
    ]


def test_no_filters_no_rewriting() -> None:
    assert rewrite(Request(), route(), match("/")) is None


@pytest.mark.parametrize(
    "name",
    [
        "Connection",
        "content-length",
        "Transfer-Encoding",
        "TE",
        "Trailer",
        "Upgrade",
        "Keep-Alive",
        "Proxy-Connection",
        "HTTP2-Settings",
        "Expect",
        "HOST",
    ],
)
def test_framing_and_connection_are_out_of_reach(name: str) -> None:
    assert forbidden_header(name)
    for changes in (
        HeaderChanges(set=((name, "x"),)),
        HeaderChanges(add=((name, "x"),)),
        HeaderChanges(remove=(name,)),
    ):
        with pytest.raises(ValueError, match="cannot be changed"):
            guard(route(headers=changes))
        with pytest.raises(ValueError, match="cannot be changed"):
            guard(route(back=changes))


def test_what_may_be_changed() -> None:
    for name in ("X-Env", "Via", "X-Forwarded-For", "Cookie", "Authorization", "Accept"):
        assert forbidden_header(name) is None


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\nb", "a\0b", "é", "\x7f", "\r"])
def test_a_value_cannot_begin_another_line(value: str) -> None:
    with pytest.raises(ValueError, match="not a value of the header X-A"):
        guard(route(headers=HeaderChanges(set=(("X-A", value),))))


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nb", "é"])
def test_a_name_is_a_token(name: str) -> None:
    with pytest.raises(ValueError, match="not a header name"):
        guard(route(headers=HeaderChanges(remove=(name,))))


@pytest.mark.parametrize("value", ["x", "/a b", "/a?b", "/a#b", "/a\r\nX: y", "/é", ""])
def test_a_new_path_is_a_path(value: str) -> None:
    with pytest.raises(ValueError, match="not a path to write"):
        guard(route(url=UrlRewrite(path=PathModifier(FULL, value))))


@pytest.mark.parametrize("value", ["", "a b", "a/b", "a\r\nX: y", "é", "u@a"])
def test_a_new_host_is_a_host(value: str) -> None:
    with pytest.raises(ValueError, match="not a host"):
        guard(route(url=UrlRewrite(value)))
    with pytest.raises(ValueError, match="not a host"):
        guard(Route("r", (match("/a"),), redirect=RedirectTo(hostname=value)))


def test_a_prefix_can_be_replaced_where_a_prefix_matched_only() -> None:
    modifier = PathModifier(PREFIX, "/x")
    exact = match("/a", PathType.EXACT)
    rewriting = Route("r", (exact,), filters=Filters(url_rewrite=UrlRewrite(path=modifier)))
    redirecting = Route("r", (match("/a"), exact), redirect=RedirectTo(path=modifier))
    for one in (rewriting, redirecting):
        with pytest.raises(ValueError, match="without a PathPrefix"):
            guard(one)


def test_sound_filters_pass_the_guard() -> None:
    guard(route())
    guard(route(headers=HeaderChanges(set=(("X-A", "b\tc "),), remove=("Y",))))
    guard(route(url=UrlRewrite("h.test", PathModifier(PREFIX, ""))))
    guard(route(url=UrlRewrite("h.test", PathModifier(FULL, "/a%20b;c=d"))))
    guard(Route("r", (match("/a"),), redirect=RedirectTo(path=PathModifier(PREFIX, "/b"))))


# scheme, listener port, request -> what the route says -> Location
PLAIN = Request(host="a.test", path="/p/q", query="x=1")
REDIRECTS = [
    ("the listener's port, well known", "http", 80, RedirectTo(), "http://a.test/p/q?x=1"),
    ("the listener's port", "http", 8080, RedirectTo(), "http://a.test:8080/p/q?x=1"),
    ("a host", "http", 80, RedirectTo(hostname="b.test"), "http://b.test/p/q?x=1"),
    ("a host, other port", "http", 81, RedirectTo(hostname="b.test"), "http://b.test:81/p/q?x=1"),
    ("to https", "http", 80, RedirectTo("https"), "https://a.test/p/q?x=1"),
    ("to https from another port", "http", 8080, RedirectTo("https"), "https://a.test/p/q?x=1"),
    ("to http from another port", "http", 8080, RedirectTo("http"), "http://a.test/p/q?x=1"),
    ("https, its port", "http", 8080, RedirectTo("https", port=443), "https://a.test/p/q?x=1"),
    ("https, another", "http", 80, RedirectTo("https", port=8443), "https://a.test:8443/p/q?x=1"),
    ("https, port 80", "http", 80, RedirectTo("https", port=80), "https://a.test:80/p/q?x=1"),
    ("http, port 443", "http", 80, RedirectTo("http", port=443), "http://a.test:443/p/q?x=1"),
    ("port 80", "http", 8080, RedirectTo(port=80), "http://a.test/p/q?x=1"),
    ("a port", "http", 80, RedirectTo(port=8080), "http://a.test:8080/p/q?x=1"),
    ("client by https, its port", "https", 443, RedirectTo(), "https://a.test/p/q?x=1"),
    ("client by https", "https", 80, RedirectTo(), "https://a.test:80/p/q?x=1"),
    ("no port at all", "http", None, RedirectTo(), "http://a.test/p/q?x=1"),
    (
        "full path",
        "http",
        80,
        RedirectTo(path=PathModifier(FULL, "/new")),
        "http://a.test/new?x=1",
    ),
    (
        "prefix",
        "http",
        80,
        RedirectTo(path=PathModifier(PREFIX, "/new")),
        "http://a.test/new/q?x=1",
    ),
]


@pytest.mark.parametrize(
    ("scheme", "port", "redirect", "location"),
    [c[1:] for c in REDIRECTS],
    ids=[c[0] for c in REDIRECTS],
)
def test_location(scheme: str, port: int | None, redirect: RedirectTo, location: str) -> None:
    assert redirect_location(redirect, match("/p"), PLAIN, scheme, port) == location


def test_location_of_other_requests() -> None:
    def location(request: Request, redirect: RedirectTo = RedirectTo("https")) -> str | None:
        return redirect_location(redirect, match("/"), request, "http", 80)

    assert location(Request(host="::1", path="/")) == "https://[::1]/"
    assert location(Request(host="::1"), RedirectTo(port=81)) == "http://[::1]:81/"
    assert location(Request(host="a", path="//b.test/")) == "https://a//b.test/"
    assert location(Request(host="a", query="")) == "https://a/?"
    assert location(Request(host="")) is None
    assert location(Request(host=""), RedirectTo(hostname="b.test")) == "http://b.test/"
