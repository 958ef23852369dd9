"""The keys of which endpoint of a backend is next."""

from __future__ import annotations

from enum import StrEnum

from l7proxy.config import httpvalues, values
from l7proxy.config.language.common import duration
from l7proxy.config.nodes import Node
from l7proxy.config.readers import Choice, Flag, Text
from l7proxy.config.schema import (
    Fields,
    Key,
    Kinds,
    Made,
    Record,
    Table,
)
from l7proxy.config.walker import Walker
from l7proxy.model import (
    Balance,
    BalanceType,
    HashOn,
    Sticky,
)


class _Plain(StrEnum):
    """What stands in `balance` as a word alone."""

    ROUND_ROBIN = "round_robin"
    LEAST_CONNECTIONS = "least_connections"
    RANDOM = "random"


class _HashOn(StrEnum):
    """What stands in `hash` as a word alone."""

    CLIENT = "client"
    PATH = "path"
    SNI = "sni"


_HASH_KEY = "`hash`"


def _hash_key(walker: Walker, fields: Fields, node: Node) -> Balance | None:
    if len(fields.keys) > 1:
        walker.error(node, "`hash` is on a header or on a cookie, not on both", "remove one")
        return None
    for key, on in (("header", HashOn.HEADER), ("cookie", HashOn.COOKIE)):
        if (at := fields.at(key)) is not None:
            return Balance(BalanceType.HASH, on, at.value)
    return None


COOKIE = Text(
    httpvalues.cookie_name,
    kind="a cookie's name",
    pattern=f"^{httpvalues.TOKEN}$",
    most=httpvalues.MAX_COOKIE_NAME,
    examples=("session",),
)
HASH = Kinds(
    scalar=Made(
        Choice(
            _HashOn,
            alone={
                "header": "say which one: {hash: {header: x-user}}",
                "cookie": "say which one: {hash: {cookie: session}}",
            },
            docs={
                "client": "the client's address",
                "path": "the path of the request",
                "sni": "the name that a TLS client asks for",
            },
        ),
        lambda _walker, word, _node: Balance(BalanceType.HASH, HashOn(word)),
    ),
    mapping=Made(
        Table(
            _HASH_KEY,
            {
                "header": Key(
                    Text(
                        httpvalues.header_name_to_match,
                        kind="a header name",
                        pattern=f"^{httpvalues.TOKEN}$",
                        most=httpvalues.MAX_HEADER_NAME,
                        examples=("x-user",),
                    ),
                    "The value of this header field.",
                ),
                "cookie": Key(COOKIE, "The value of this cookie."),
            },
            empty="write {header: NAME} or {cookie: NAME}",
        ),
        _hash_key,
    ),
)


def _hash(_walker: Walker, fields: Fields, _node: Node) -> Balance | None:
    balance: Balance | None = fields.get("hash")
    return balance


BALANCE = Kinds(
    scalar=Made(
        Choice(
            _Plain,
            alone={"hash": "say on what: {hash: client}, or {hash: {header: x-user}}"},
            docs={
                "round_robin": "endpoints take turns",
                "least_connections": "the one with the fewest connections for its weight",
                "random": "the less loaded of two that chance picks",
            },
        ),
        lambda _walker, word, _node: Balance(BalanceType(word)),
    ),
    mapping=Made(
        Table(
            "`balance`",
            {
                "hash": Key(
                    HASH,
                    "What is alike goes to the same endpoint (Maglev: when one of n endpoints"
                    " leaves, no more than its share moves). On `client`, `path`, `sni`,"
                    " `{header: NAME}` or `{cookie: NAME}`; where a request has none of it, chance"
                    " decides.",
                    required=True,
                    hint="such as {hash: client}",
                ),
            },
        ),
        _hash,
    ),
)


# ---- sticky


def _cookie_prefix(walker: Walker, fields: Fields) -> None:
    """RFC 6265bis, 4.1.3: what browsers ask of cookies whose names begin so."""
    cookie = fields.at("cookie")
    if cookie is None:
        return
    name, path = cookie.value.lower(), fields.get("path", "/")
    wanted = []
    if name.startswith(("__secure-", "__host-")) and not fields.get("secure", False):
        wanted.append("`secure: true`")
    if name.startswith("__host-") and path != "/":
        wanted.append("`path: /`")
    if wanted:
        prefix = cookie.value[: cookie.value.index("-") + 1]
        walker.error(
            cookie.node,
            f"browsers refuse a cookie that begins with `{prefix}` without {' and '.join(wanted)}",
            f"add {' and '.join(wanted)}, or choose another name",
        )


STICKY = Record(
    Table(
        "`sticky`",
        {
            "cookie": Key(
                COOKIE,
                "The name of a cookie that l7proxy sets, and that brings a client back to the"
                " endpoint it had. It tells nothing about the endpoint.",
                required=True,
                hint="the name of the cookie: cookie: session",
            ),
            "ttl": Key(
                duration(values.duration_of("1s", "576h"), "1h"),
                "How long browsers keep the cookie.",
                default="as long as the browser's session",
            ),
            "path": Key(
                Text(
                    httpvalues.cookie_path,
                    kind="a path",
                    pattern="^/",
                    most=values.MAX_PATH,
                    examples=("/",),
                ),
                "The path that browsers send the cookie to.",
                default="/",
            ),
            "secure": Key(
                Flag(), "Whether browsers send the cookie over HTTPS only.", default="false"
            ),
        },
        short="cookie",
    ),
    Sticky,
    check=_cookie_prefix,
)
