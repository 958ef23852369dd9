"""The Gateway API's rules for HTTPRoute as a table, and the questions that its own suite leaves.

The first cases ask what the conformance suite asks (`HTTPRouteMatching`, `...HeaderMatching` and so
on), written anew from the specification; the others follow after "and".
"""

from __future__ import annotations

import pytest

from tests.routes import lines, request, router, routes, winner

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


@pytest.mark.parametrize(("text", "asked", "expected"), lines(MATCHING))
def test_matching(text: str, asked: str, expected: str) -> None:
    assert winner(router(*routes(text)), request(asked)) == expected
