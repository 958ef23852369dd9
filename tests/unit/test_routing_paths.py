"""The spellings of a path: nothing reaches a route under the name of another."""

from __future__ import annotations

from dataclasses import replace

import pytest
from routed import decided, route, router

from l7proxy.model import (
    Filters,
    Forward,
    Match,
    PathMatch,
    PathModifier,
    PathModifierType,
    PathType,
    Request,
    Respond,
    UrlRewrite,
)
from l7proxy.routing import AMBIGUOUS, readings

# One path, several spellings: nothing reaches a route under the name of another.

PUBLIC = [route("rest"), route("public", "/public"), route("admin", "/admin"), route("e", "=/e")]


@pytest.mark.parametrize(
    "path",
    [
        "/public/../admin",
        "/public/./../admin/x",
        "/public/%2e%2e/admin",
        "/public/.%2E/admin",
        "/public/..%2fadmin",
        "/public/..%2Fadmin/x",
        "/public%2f..%2fadmin",
        "/public/..%5cadmin",
        "/public/..\\admin",
        "/public\\..\\admin",
        "/public/..;/admin",
        "/public/..;a=b/admin",
        "/admin;x=1",
        "/admin;/users",
        "/public;x/../admin",
        "/public/%2e%2e;/admin",
        "/public/x/../../admin",
        "/public//../admin/..%2f..%2fadmin",
        "/public/../admin/..%2fpublic/x",  # the plain and the lenient reading agree
        "/./admin",
        "/x/../admin",
        "//admin",
        "///admin/x",
        "/%2fadmin",
        "/%2Fadmin",
        "/\\admin",
        "/admin/..",
        "/admin/../",
        "/admin/../x",
        "/admin%2fx",
        "/../admin",
        "/.;/admin",
        "/./e",
        "//e",
        "/x/../e",
    ],
)
def test_ambiguous_paths_are_refused(path: str) -> None:
    assert router(*PUBLIC).decide(Request(host="h", path=path)) is AMBIGUOUS
    assert AMBIGUOUS.status == 400


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/public/../public/x", "public"),
        ("/public/a/../b", "public"),
        ("/public/a//b/./c", "public"),
        ("/public/a%2fb", "public"),
        ("/e/.", "rest"),  # by RFC 3986 that is /e/, and /e/ is not /e
        ("/public/..hidden/.x", "public"),
        ("/public/..x;/y", "public"),
        ("/x/..", "rest"),
        ("/..", "rest"),
        ("/.", "rest"),
        ("//", "rest"),
        ("/%2e", "rest"),
        ("/%", "rest"),
        ("/%2", "rest"),
        ("/%zz/..", "rest"),
        ("*", "rest"),
        # RFC 3986, 6.2.2: the same path, spelled otherwise
        ("/%61dmin", "admin"),
        ("/%61%64%6D%69%6e/x", "admin"),
        ("/%70ublic", "public"),
        ("/%65", "e"),
        # and what is not the same
        ("/admin%20", "rest"),
        ("/adm%2569n", "rest"),
        ("/admi%6", "rest"),
    ],
)
def test_spellings_that_cannot_mislead(path: str, expected: str) -> None:
    assert decided(router(*PUBLIC), "h", path) == expected


@pytest.mark.parametrize("path", ["/a/../b", "//", "/..%2f", "/a\\b", "/%2e%2e/x"])
def test_one_route_forwards_whatever_it_gets(path: str) -> None:
    assert decided(router(route("app")), "h", path) == "app"


def test_ambiguous_is_judged_over_all_hostnames_that_match() -> None:
    one = router(route("a", "/a", hosts=("h.test",)), route("b", "/b"))
    assert decided(one, "h.test", "/a/../b") == "400"
    assert decided(one, "h.test", "/a/x/../b") == "a"
    assert decided(one, "other.test", "/a/../b") == "400"  # plainly 404, resolved b
    assert decided(one, "other.test", "/b/x/../b") == "b"


def test_patterns_are_compared_in_their_normal_form() -> None:
    one = router(route("user", "/%7euser"), route("cafe", "=/caf%c3%a9"))
    assert decided(one, "h", "/~user/x") == "user"
    assert decided(one, "h", "/%7Euser/x") == "user"
    assert decided(one, "h", "/caf%C3%A9") == "cafe"
    assert decided(one, "h", "/caf%c3%a9") == "cafe"


@pytest.mark.parametrize(
    ("path", "plain", "resolved", "lenient"),
    [
        ("/a/b", "/a/b", "/a/b", "/a/b"),
        ("/a/b/", "/a/b/", "/a/b/", "/a/b/"),
        ("/", "/", "/", "/"),
        ("*", "*", "*", "*"),
        ("/a/b/c/./../../g", "/a/b/c/./../../g", "/a/g", "/a/g"),  # RFC 3986, 5.2.4
        ("/../../g", "/../../g", "/g", "/g"),
        ("/a/.", "/a/.", "/a/", "/a/"),
        ("/a/..", "/a/..", "/", "/"),
        ("/a/b/..", "/a/b/..", "/a/", "/a/"),
        ("/a//b", "/a//b", "/a//b", "/a/b"),
        ("/a//..", "/a//..", "/a/", "/"),
        ("//", "//", "//", "/"),
        ("/%41%2f%2d%7e%e4", "/A%2F-~%E4", "/A%2F-~%E4", "/A/-~%E4"),
        ("/a%2f%2e%2e%5cb", "/a%2F..%5Cb", "/a%2F..%5Cb", "/b"),
        ("/a/..;x/b", "/a/..;x/b", "/a/..;x/b", "/b"),
        ("/a/.;/b", "/a/.;/b", "/a/.;/b", "/a/b"),
        ("/a/...;x/b", "/a/...;x/b", "/a/...;x/b", "/a/.../b"),
        ("/admin;x=1", "/admin;x=1", "/admin;x=1", "/admin"),
        ("/a;x/b;y", "/a;x/b;y", "/a;x/b;y", "/a/b"),
        ("/a%3Bx/b", "/a%3Bx/b", "/a%3Bx/b", "/a%3Bx/b"),
        ("/%252e", "/%252e", "/%252e", "/%252e"),
    ],
)
def test_readings(path: str, plain: str, resolved: str, lenient: str) -> None:
    assert readings(path) == (plain, resolved, lenient)


# What is rewritten is read as well.


@pytest.mark.parametrize(
    ("prefix", "value", "path", "status"),
    [
        ("/", "/app", "/x", 0),
        ("/", "/app", "/../secret", 400),
        ("/", "/app", "/x/../y", 0),
        ("/", "/app", "/x/../../y", 400),
        ("/", "/app", "/..%2fsecret", 400),
        ("/", "/app", "/..;/secret", 400),
        ("/", "/app", "//x", 0),
        ("/", "/app", "/x%2fy", 0),
        ("/", "/app", "/./x", 0),
        ("/", "/", "/../secret", 0),
        ("/v1", "/v2", "/v1/../v1/x", 400),
        ("/v1", "/v2", "/v1/x/../y", 0),
    ],
)
def test_no_spelling_leaves_what_replaced_the_prefix(
    prefix: str, value: str, path: str, status: int
) -> None:
    modifier = PathModifier(PathModifierType.REPLACE_PREFIX_MATCH, value)
    one = replace(route("r", prefix), filters=Filters(url_rewrite=UrlRewrite(path=modifier)))
    decision = router(one).decide(Request(host="h", path=path))
    assert (decision.status if isinstance(decision, Respond) else 0) == status


def test_a_path_that_is_replaced_whole_can_be_spelled_as_it_likes() -> None:
    modifier = PathModifier(PathModifierType.REPLACE_FULL_PATH, "/app")
    one = replace(route("r"), filters=Filters(url_rewrite=UrlRewrite(path=modifier)))
    assert isinstance(router(one).decide(Request(path="/../x")), Forward)


def test_readings_that_lead_to_patterns_are_judged_too() -> None:
    number = replace(
        route("n"), matches=(Match(PathMatch(PathType.REGULAR_EXPRESSION, "/[0-9]+")),)
    )
    one = router(number, route("rest"))
    assert decided(one, "h", "/12") == "n"
    assert decided(one, "h", "/x/../12") == "400"
    assert decided(one, "h", "/%31%32") == "n"
