"""The keys of what a route answers by itself.

`redirect` has the words of HTTPRequestRedirectFilter (Gateway API v1).
"""

from __future__ import annotations

import re
from enum import StrEnum

from l7proxy.config import httpvalues
from l7proxy.config.language.changes import (
    PATH_MODIFIER,
    TO_SEND,
    fields_reader,
    pairs,
)
from l7proxy.config.language.common import PRECISE_HOSTNAME
from l7proxy.config.nodes import Node
from l7proxy.config.readers import Choice, OneOf, Text, Whole
from l7proxy.config.schema import Fields, Key, Made, Table, arguments
from l7proxy.config.walker import Walker
from l7proxy.model import (
    RedirectTo,
    StaticResponse,
)

# ---- respond


def _respond(walker: Walker, fields: Fields, _node: Node) -> StaticResponse | None:
    status, body = fields.at("status"), fields.at("body")
    if status is None:
        return None
    if body is not None and body.value and status.value in (204, 205, 304):
        walker.error(
            body.node,
            f"a response with status {status.value} has no body",
            "remove `body`, or answer with another status",
            notes=(walker.note("the status", status.node),),
        )
    return StaticResponse(
        status.value, pairs(fields.get("headers")), "" if body is None else body.value
    )


def _no_final_status(text: str) -> str:
    """RFC 9110, 15.2: 1xx is "an interim response ... prior to ... sending a final response"."""
    return "1xx is no final answer" if re.fullmatch("1[0-9][0-9]", text) else ""


FINAL_STATUS = Whole(200, 599, hint=_no_final_status)

RESPOND = Made(
    Table(
        "`respond`",
        {
            "status": Key(
                FINAL_STATUS,
                "The status, from 200 to 599.",
                required=True,
                hint="such as status: 404",
            ),
            "headers": Key(
                fields_reader(TO_SEND, 'Retry-After: "60"'),
                "Header fields of the answer. `Content-Length` is added.",
                default="none",
            ),
            "body": Key(
                Text(httpvalues.body, kind="text", most=httpvalues.MAX_BODY),
                "The body, at most 64 KiB of UTF-8. Say what it is in `headers`, with"
                " `Content-Type`.",
                default="empty",
            ),
        },
        foreign={"statusCode": "write `status`", "code": "write `status`"},
        short="status",
    ),
    _respond,
)


# ---- redirect


class Scheme(StrEnum):
    """What a redirect may lead to."""

    HTTP = "http"
    HTTPS = "https"


REDIRECT_STATUSES = (301, 302, 303, 307, 308)


def _redirect(walker: Walker, fields: Fields, node: Node) -> RedirectTo:
    if not {"scheme", "hostname", "path", "port"} & set(fields.keys):
        walker.error(
            fields.keys.get("status", node),
            "this redirect leads back to where it came from",
            "add what changes: `scheme`, `hostname`, `path` or `port`",
        )
    return RedirectTo(**arguments(fields, {}))


REDIRECT = Made(
    Table(
        "`redirect`",
        {
            "scheme": Key(
                Choice(Scheme),
                "`http` or `https`. A trusted proxy is believed in which one the client used.",
                default="the one that the client used",
            ),
            "hostname": Key(
                PRECISE_HOSTNAME, "The host to go to.", default="the one that was asked for"
            ),
            "path": Key(
                PATH_MODIFIER,
                "The path to go to. A text alone is a `ReplacePrefixMatch`. The query stays.",
                default="the one that was asked for",
            ),
            "port": Key(
                Whole(1, 65535),
                "The port to go to. Where a trusted proxy tells the scheme, it is the one that it"
                " tells in `X-Forwarded-Port`, or that of the scheme.",
                default="that of `scheme` where it is given, else the listener's",
            ),
            "status": Key(
                OneOf(REDIRECT_STATUSES),
                "301 and 308 are permanent, 302, 303 and 307 temporary; with 307 and 308 a client"
                " repeats the method and the body.",
                default="302",
            ),
        },
        foreign={
            "statusCode": "write `status`",
            "url": "write `scheme`, `hostname`, `path` and `port`",
            "host": "write `hostname`",
        },
    ),
    _redirect,
)
