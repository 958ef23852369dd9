"""The Gateway API's rules for HTTPRoute as a table, and the questions that its own suite leaves.

The first cases ask what the conformance suite asks (`HTTPRouteMatching`, `...HeaderMatching` and so
on), written anew from the specification; the others follow after "and".
"""

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
from tests.routes import match, request, router, routes, winner

# about: (routes, requests)
MATCHING = {
    "matching": (
        """
        v1 > / | version:one
        v2 > /v2 | version:two
        """,
        """
        /                     -> v1
        /example              -> v1
        / Version:one         -> v1
        /v2                   -> v2
        /v2/example           -> v2
        / Version:two         -> v2
        /v2/ Version:two      -> v2
        /v2example            -> v1
        /foo/v2/example       -> v1
        """,
    ),
    "exact path": (
        """
        one > =/one
        two > =/two
        """,
        """
        /one                  -> one
        /two                  -> two
        /                     -> 404
        /one/example          -> 404
        /two/                 -> 404
        /Two                  -> 404
        """,
    ),
    "headers": (
        """
        v1      > version:one
        v2      > version:two
        orange  > version:two color:orange
        cold    > color:blue | color:green
        warm    > color:red | color:yellow
        """,
        """
        / Version:one                 -> v1
        / Version:two                 -> v2
        / Version:two Color:orange    -> orange
        / Version:two Color:blue      -> v2
        / Color:orange                -> 404
        / Some-Other-Header:one       -> 404
        / Color:blue                  -> cold
        / Color:green                 -> cold
        / Color:red                   -> warm
        / Color:yellow                -> warm
        / Color:purple                -> 404
        / Version:ONE                 -> 404
        """,
    ),
    "method": (
        """
        create  > POST
        read    > GET
        path1   > GET /path1
        header1 > PUT version:one
        all2    > POST /path2 version:two
        either  > PATCH /path3 | DELETE /path4 version:three
        path5   > /path5
        patch   > PATCH
        header4 > version:four
        """,
        """
        POST /                        -> create
        GET /                         -> read
        HEAD /                        -> 404
        get /                         -> 404
        GET /path1                    -> path1
        PUT / version:one             -> header1
        POST /path2 version:two       -> all2
        POST /path2                   -> create
        PATCH /path3                  -> either
        DELETE /path4 version:three   -> either
        DELETE /path4                 -> 404
        PUT /                         -> 404
        PATCH /path5                  -> path5
        PATCH / version:four          -> patch
        """,
    ),
    "query parameters": (
        """
        whale   > ?animal=whale
        dolphin > ?animal=dolphin
        blue    > ?animal=dolphin ?color=blue
        other   > ?ANIMAL=Whale
        path1   > /path1 ?animal=whale
        header1 > version:one ?animal=whale
        all2    > /path2 version:two ?animal=whale
        either  > /path3 ?animal=shark | /path4 version:three ?animal=kraken
        path5   > /path5
        hydra   > ?animal=hydra
        header4 > version:four
        """,
        """
        /?animal=whale                         -> whale
        /?animal=dolphin                       -> dolphin
        /?animal=dolphin&color=blue            -> blue
        /?color=blue&animal=dolphin            -> blue
        /?ANIMAL=Whale                         -> other
        /?animal=whale&otherparam=irrelevant   -> whale
        /?animal=dolphin&color=yellow          -> dolphin
        /?color=blue                           -> 404
        /?animal=dog                           -> 404
        /?animal=whaledolphin                  -> 404
        /                                      -> 404
        /?                                     -> 404
        /path1?animal=whale                    -> path1
        /?animal=whale version:one             -> header1
        /path2?animal=whale version:two        -> all2
        /path3?animal=shark                    -> either
        /path4?animal=kraken version:three     -> either
        /path4?animal=kraken                   -> 404
        /?animal=shark                         -> 404
        /path5?animal=hydra                    -> path5
        /?animal=hydra version:four            -> header4
        """,
    ),
    "path match order": (
        """
        exact3  > =/match/exact/one
        exact2  > =/match/exact
        exact1  > =/match
        prefix1 > /match/
        prefix2 > /match/prefix/
        prefix3 > /match/prefix/one
        """,
        """
        /match/exact/one      -> exact3
        /match/exact          -> exact2
        /match                -> exact1
        /match/prefix/one/any -> prefix3
        /match/prefix/any     -> prefix2
        /match/any            -> prefix1
        """,
    ),
    "matching across routes": (
        """
        v1 example.com example.net > / | version:one
        v2 *.com > /v2 | version:two
        """,
        """
        example.com/                       -> v1
        example.com/example                -> v1
        example.net/example                -> v1
        example.com/example Version:one    -> v1
        example.net/v2                     -> v1
        other.com/v2                       -> v2
        other.com/v2/example               -> v2
        other.com/ Version:two             -> v2
        other.com/                         -> 404
        other.org/v2                       -> 404
        """,
    ),
    "and the hostname comes before everything else": (
        """
        host example.com > /
        wild *.com > =/v2 version:two ?a=1
        """,
        """
        example.com/v2?a=1 version:two     -> host
        other.com/v2?a=1 version:two       -> wild
        """,
    ),
    "and a hostname that misses is no dead end": (
        """
        host example.com > /host
        wild *.com > /wild
        none > /none
        """,
        """
        example.com/host      -> host
        example.com/wild      -> wild
        example.com/none      -> none
        example.com/          -> 404
        """,
    ),
    "and wildcards take any number of labels, never the bare domain": (
        """
        deep *.deep.example.com >
        wild *.example.com >
        """,
        """
        a.example.com/        -> wild
        a.b.c.example.com/    -> wild
        deep.example.com/     -> wild
        a.deep.example.com/   -> deep
        a.b.deep.example.com/ -> deep
        example.com/          -> 404
        xexample.com/         -> 404
        """,
    ),
    "and prefixes go by element, whatever slash ends the pattern": (
        """
        slash > /abc/
        plain > /xyz
        """,
        """
        /abc    -> slash
        /abc/   -> slash
        /abc/d  -> slash
        /abcd   -> 404
        /xyz    -> plain
        /xyz/   -> plain
        /xyzz   -> 404
        """,
    ),
    "and regular expressions come between Exact and PathPrefix, and match the whole path": (
        """
        long   > /users/42/edit
        number > ~/users/[0-9]+
        exact  > =/users/42
        any    > ~/users/.*/edit
        """,
        """
        /users/42             -> exact
        /users/43             -> number
        /users/43/            -> 404
        /x/users/43           -> 404
        /users/42/edit        -> any
        /users/42/edit/x      -> long
        """,
    ),
    "and a regular expression loses to one that asks for more, not to a longer one": (
        """
        first  > ~/a.*
        second > ~/abc.*
        third  > ~/a.* x:1
        """,
        """
        /abc                  -> first
        /abc x:1              -> third
        """,
    ),
    "and values may be regular expressions": (
        """
        header > x-user:~[a-z]+
        query  > ?v=~v[12]
        """,
        """
        / X-User:ann          -> header
        / X-User:Ann          -> 404
        / X-User:             -> 404
        /?v=v1                -> query
        /?v=v3                -> 404
        /?v=xv1x              -> 404
        """,
    ),
    "and a name given twice in a match: the first counts": (
        """
        header > x:1 X:2
        query  > ?a=1 ?a=2
        """,
        """
        / x:1                 -> header
        / x:2                 -> 404
        /?a=1                 -> query
        /?a=2                 -> 404
        """,
    ),
    "and a name given twice counts as one header": (
        """
        twice > x:1 X:2 x:3
        two   > x:1 y:1
        """,
        """
        / x:1 y:1             -> two
        """,
    ),
    "and a header that a request repeats is one value": (
        """
        one  > x:1
        list > x:~1,.2
        """,
        """
        / x:1                 -> one
        / x:1 x:1             -> 404
        / x:1 x:2             -> list
        / x:2 x:1             -> 404
        """,
    ),
    "and cookies are joined by semicolons": (
        """
        cookie > cookie:~a=1;.b=2
        """,
        """
        / Cookie:a=1 Cookie:b=2   -> cookie
        """,
    ),
    "and of a parameter that a request repeats the first one counts": (
        """
        one > ?a=1
        two > ?a=2
        """,
        """
        /?a=1&a=2             -> one
        /?a=2&a=1             -> two
        /?b=1&a=2             -> two
        """,
    ),
    "and parameters are read as forms are": (
        """
        sum   > ?q=~1.1 ?x=
        plus  > ?q=a+b
        """,
        """
        /?q=1+1&x             -> sum
        /?q=1%201&x=          -> sum
        /?%71=1%0A1&x         -> sum
        /?q=1%zz1&x           -> 404
        /?q=a%2bb             -> plus
        /?q=a+b               -> 404
        /?q=a%2Bb&&           -> plus
        """,
    ),
    "and a method counts more than headers, headers more than parameters": (
        """
        query  > ?a=1 ?b=1 ?c=1
        header > x:1
        method > GET
        """,
        """
        GET /?a=1&b=1&c=1 x:1     -> method
        POST /?a=1&b=1&c=1 x:1    -> header
        POST /?a=1&b=1&c=1        -> query
        """,
    ),
    "and ties go by the order of the file, then of the matches": (
        """
        one > /x x:1 | /y
        two > /x x:~1 | /y | /z
        """,
        """
        /x x:1                -> one
        /y                    -> one
        /z                    -> two
        """,
    ),
    "and a higher priority comes before everything else": (
        """
        exact example.com > =/a/b x:1
        urgent@10 > /a
        most@20 *.com > x:9
        last@-1 example.com > =/c
        any > /
        """,
        """
        example.com/a/b x:1   -> urgent
        example.com/a/b x:9   -> most
        example.com/b x:9     -> most
        example.org/a/b x:9   -> urgent
        example.com/c         -> any
        example.com/b         -> any
        """,
    ),
    "and a priority within one hostname and one path": (
        """
        low@-1 > /a x:1
        mid > /a
        high@1 > ~/a/[0-9]+
        exact > =/a/1
        prefix@2 > /a/2
        exact-b > =/b/1
        number > ~/b/[0-9]+
        """,
        """
        /b/1                  -> exact-b
        /b/2                  -> number
        /a x:1                -> mid
        /a/1                  -> high
        /a/2                  -> prefix
        """,
    ),
}


def lines(cases: dict[str, tuple[str, str]]) -> list[object]:
    return [
        pytest.param(found, *map(str.strip, line.split("->")), id=f"{about}: {line.strip()}")
        for about, (found, table) in cases.items()
        for line in table.splitlines()
        if line.strip()
    ]


@pytest.mark.parametrize(("text", "asked", "expected"), lines(MATCHING))
def test_matching(text: str, asked: str, expected: str) -> None:
    assert winner(router(*routes(text)), request(asked)) == expected


# HTTPRouteHostnameIntersection and HTTPRouteListenerHostnameMatching: hostnames of the listener,
# routes, requests.
LISTENERS = {
    "a specific host of both": (
        "very.specific.com",
        "s1 non.matching.com *.nonmatchingwildcard.io very.specific.com > /s1",
        """
        very.specific.com/s1          -> s1
        non.matching.com/s1           -> 404
        foo.nonmatchingwildcard.io/s1 -> 404
        foo.very.specific.com/s1      -> 404
        very.specific.com/other       -> 404
        """,
    ),
    "specific hosts under a wildcard of the listener": (
        "*.wildcard.io",
        "s2 non.matching.com wildcard.io foo.wildcard.io bar.wildcard.io foo.bar.wildcard.io > /s2",
        """
        foo.wildcard.io/s2            -> s2
        bar.wildcard.io/s2            -> s2
        foo.bar.wildcard.io/s2        -> s2
        baz.wildcard.io/s2            -> 404
        wildcard.io/s2                -> 404
        non.matching.com/s2           -> 404
        """,
    ),
    "a wildcard over a specific host of the listener": (
        "very.specific.com",
        "s3 non.matching.com *.specific.com > /s3",
        """
        very.specific.com/s3          -> s3
        foo.specific.com/s3           -> 404
        specific.com/s3               -> 404
        """,
    ),
    "the same wildcard": (
        "*.anotherwildcard.io",
        "s4 *.anotherwildcard.io > /s4",
        """
        one.anotherwildcard.io/s4     -> s4
        one.two.anotherwildcard.io/s4 -> s4
        anotherwildcard.io/s4         -> 404
        """,
    ),
    "no host that both have": (
        "very.specific.com *.wildcard.io",
        "s5 specific.but.wrong.com wildcard.io > /s5",
        """
        specific.but.wrong.com/s5     -> 404
        wildcard.io/s5                -> 404
        very.specific.com/s5          -> 404
        """,
    ),
    "a wildcard below the one of the listener": (
        "*.example.com",
        "deep *.deep.example.com > /\nwide *.com > /wide",
        """
        a.deep.example.com/           -> deep
        a.example.com/                -> 404
        a.example.com/wide            -> wide
        a.deep.example.com/wide       -> deep
        other.com/wide                -> 404
        """,
    ),
    "a route without hostnames takes those of the listener": (
        "bar.com *.foo.com",
        "any > /",
        """
        bar.com/                      -> any
        multiple.prefixes.foo.com/    -> any
        foo.bar.com/                  -> 404
        foo.com/                      -> 404
        no.matching.host/             -> 404
        /                             -> 404
        """,
    ),
    "no host has a case": (
        "*.Example.COM",
        "any WWW.example.com > /",
        """
        www.example.com/              -> any
        """,
    ),
}


@pytest.mark.parametrize(
    ("hostnames", "text", "asked", "expected"),
    [
        pytest.param(hosts, text, *map(str.strip, line.split("->")), id=f"{about}: {line.strip()}")
        for about, (hosts, text, table) in LISTENERS.items()
        for line in table.splitlines()
        if line.strip()
    ],
)
def test_listener_hostnames(hostnames: str, text: str, asked: str, expected: str) -> None:
    one = router(*routes(text), hostnames=tuple(hostnames.split()))
    assert winner(one, request(asked)) == expected


@pytest.mark.parametrize(
    "host", ["Example.COM", "example.com:8080", "example.com.", "EXAMPLE.com.:80"]
)
def test_the_host_of_a_request_has_no_case_port_or_trailing_dot(host: str) -> None:
    head = HeadReader(Limits()).feed(f"GET /x HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert head is not None
    found = router(*routes("host example.com > /")).find(head)
    assert getattr(found, "route", None) is not None


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
