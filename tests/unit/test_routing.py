"""Which route answers: the rules of the Gateway API v1 as tables."""

from __future__ import annotations

import pytest
from routed import decided, route, router

from l7proxy.model import Route

# The tables of the specification: "host path -> route".

CASES = {
    "prefixes go by path element": (
        [route("abc", "/abc"), route("abcx", "/abc/x/")],
        """
        h /abc        -> abc
        h /abc/       -> abc
        h /abc/d      -> abc
        h /abc/d/e/f  -> abc
        h /abcd       -> 404
        h /ab         -> 404
        h /           -> 404
        h /ABC        -> 404
        h /x/abc      -> 404
        h /abc/x      -> abcx
        h /abc/x/     -> abcx
        h /abc/x/y    -> abcx
        h /abc/xy     -> abc
        """,
    ),
    "a trailing slash in a pattern says nothing": (
        [route("slash", "/abc/")],
        """
        h /abc        -> slash
        h /abc/       -> slash
        h /abc/d      -> slash
        h /abcd       -> 404
        """,
    ),
    "PathPrefix / is everything": (
        [route("all")],
        """
        h /           -> all
        h /a/b        -> all
        h *           -> all
        """,
    ),
    "Exact is exact": (
        [route("one", "=/one"), route("slash", "=/two/"), route("root", "=/")],
        """
        h /one        -> one
        h /one/       -> 404
        h /one/x      -> 404
        h /One        -> 404
        h /two        -> 404
        h /two/       -> slash
        h /           -> root
        """,
    ),
    "Exact before prefix, longer prefix before shorter, in any order": (
        [
            route("root"),
            route("a", "/a"),
            route("abc", "/a/b/c"),
            route("ab", "/a/b"),
            route("exact", "=/a/b"),
            route("exact-root", "=/"),
        ],
        """
        h /           -> exact-root
        h /x          -> root
        h /a          -> a
        h /a/x        -> a
        h /a/b        -> exact
        h /a/b/       -> ab
        h /a/b/x      -> ab
        h /a/b/c      -> abc
        h /a/b/c/d    -> abc
        h /a/b/cd     -> ab
        """,
    ),
    "ties go to the earlier route": (
        [route("one", "/x", "=/y"), route("two", "/x", "=/y", "/x/"), route("three", "/z", "/z")],
        """
        h /x/1        -> one
        h /y          -> one
        h /z          -> three
        """,
    ),
    "matches are ORed": (
        [route("a", "/x", "/y", "=/z")],
        """
        h /x          -> a
        h /y/1        -> a
        h /z          -> a
        h /z/1        -> 404
        """,
    ),
    "exact hostname, then the longest wildcard, then none": (
        [
            route("none"),
            route("com", hosts=("*.com",)),
            route("example", hosts=("*.example.com",)),
            route("deep", hosts=("*.deep.example.com",)),
            route("www", hosts=("www.example.com",)),
        ],
        """
        www.example.com         / -> www
        api.example.com         / -> example
        a.b.c.example.com       / -> example
        a.www.example.com       / -> example
        x.deep.example.com      / -> deep
        deep.example.com        / -> example
        example.com             / -> com
        com                     / -> none
        example.org             / -> none
        notexample.com          / -> com
        127.0.0.1               / -> none
        ::1                     / -> none
        """,
    ),
    "a wildcard is never the bare domain": (
        [route("wild", hosts=("*.example.com",))],
        """
        example.com             / -> 404
        .example.com            / -> 404
        a.example.com           / -> wild
        aexample.com            / -> 404
        a.example.com.evil.test / -> 404
        """,
    ),
    "the hostname comes before the path": (
        [
            route("long", "/a/b/c", "=/a/b/c/d"),
            route("wild", "/a/b", hosts=("*.example.com",)),
            route("host", "/a", hosts=("www.example.com",)),
        ],
        """
        www.example.com /a/b/c/d -> host
        api.example.com /a/b/c/d -> wild
        other.test      /a/b/c/d -> long
        """,
    ),
    "what misses the path falls through to a less specific hostname": (
        [
            route("any", "/any"),
            route("wild", "/wild", hosts=("*.example.com",)),
            route("wilder", "/wilder", hosts=("*.com",)),
            route("host", "/host", hosts=("www.example.com",)),
        ],
        """
        www.example.com /host   -> host
        www.example.com /wild   -> wild
        www.example.com /wilder -> wilder
        www.example.com /any    -> any
        www.example.com /none   -> 404
        api.example.com /host   -> 404
        """,
    ),
    "several hostnames": (
        [route("a", "/x", "/y", hosts=("a.test", "*.b.test")), route("c", hosts=("c.test",))],
        """
        a.test   /y -> a
        x.b.test /x -> a
        b.test   /x -> 404
        a.test   /z -> 404
        c.test   /z -> c
        """,
    ),
    "the host of a policy has no case": (
        [route("a", hosts=("A.Example.COM", "*.B.test"))],
        """
        a.example.com / -> a
        x.b.test      / -> a
        """,
    ),
    "dots, percent signs and semicolons in sane paths": (
        [route("api", "/api"), route("known", "/.well-known"), route("rest")],
        """
        h /.well-known/acme   -> known
        h /.well-knownx       -> rest
        h /api/group%2Fname   -> api
        h /api/a%20b          -> api
        h /api/.hidden        -> api
        h /api/..hidden       -> api
        h /api/a;b=c/d        -> api
        h /api/a..b           -> api
        h /api//double        -> api
        h /x%2Fy              -> rest
        """,
    ),
}


def lines() -> list[object]:
    return [
        pytest.param(routes, *line.split("->")[0].split(), line.split()[-1], id=f"{about}: {line}")
        for about, (routes, table) in CASES.items()
        for line in map(str.strip, table.splitlines())
        if line
    ]


@pytest.mark.parametrize(("routes", "host", "path", "expected"), lines())
def test_precedence(routes: list[Route], host: str, path: str, expected: str) -> None:
    assert decided(router(*routes), host, path) == expected


def test_no_host_at_all() -> None:
    """HTTP/1.0 without Host."""
    routes = [route("any", "/any"), route("wild", hosts=("*.test",))]
    assert decided(router(*routes), "", "/any") == "any"
    assert decided(router(*routes), "", "/") == "404"
