"""The Gateway API's rules for hostnames: a listener's, its routes' and a request's."""

from __future__ import annotations

import pytest

from l7proxy.head import HeadReader
from l7proxy.model import Limits
from tests.routes import request, router, routes, winner

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
