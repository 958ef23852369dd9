"""The keys of what a route does with what it matched, but for backends: answers and filters.

The words are those of HTTPRequestRedirectFilter, HTTPHeaderFilter and HTTPURLRewriteFilter (Gateway
API v1).
"""

from __future__ import annotations

import re
from enum import StrEnum

from l7proxy.config import httpvalues, values
from l7proxy.config.language.common import PRECISE_HOSTNAME
from l7proxy.config.nodes import Node
from l7proxy.config.problems import quoted
from l7proxy.config.readers import Choice, OneOf, Text, Whole
from l7proxy.config.schema import Fields, Key, Kinds, ListOf, Made, MapOf, Record, Table, arguments
from l7proxy.config.walker import At, Walker
from l7proxy.model import (
    Filters,
    HeaderChanges,
    PathModifier,
    PathModifierType,
    RedirectTo,
    StaticResponse,
    UrlRewrite,
)

MAX_FIELDS = 64  # security limit: header fields that are set, added or removed

Pairs = tuple[tuple[str, str], ...]

_VALUE = Text(
    httpvalues.header_value,
    kind="a header value",
    pattern=r"^[\t -~]*$",
    most=httpvalues.MAX_HEADER_VALUE,
)
_TO_CHANGE = Text(
    httpvalues.header_name_to_change,
    kind="a header name",
    pattern=f"^{httpvalues.TOKEN}$",
    most=httpvalues.MAX_HEADER_NAME,
    examples=("X-Env",),
)
_TO_SEND = Text(
    httpvalues.header_name_to_send,
    kind="a header name",
    pattern=f"^{httpvalues.TOKEN}$",
    most=httpvalues.MAX_HEADER_NAME,
    examples=("Content-Type",),
)

NamedValues = list[At[tuple[At[str], str]]]
"""Entries, each with the place of its name."""


def _fields_reader(name: Text[str], example: str) -> Kinds[NamedValues]:
    """`{NAME: VALUE}`, or a list of `{name, value}`."""

    def listed(_walker: Walker, fields: Fields, _node: Node) -> tuple[At[str], str] | None:
        written, value = fields.at("name"), fields.at("value")
        return None if written is None or value is None else (written, value.value)

    def mapped(
        _walker: Walker, entries: list[tuple[At[str], str | None]], _node: Node
    ) -> NamedValues:
        return [At((key, value), key.node) for key, value in entries if value is not None]

    table = Table(
        "a header",
        {
            "name": Key(name, "The name of the header.", required=True, hint="its name"),
            "value": Key(
                _VALUE, "Its value.", required=True, hint="its value, in quotes if in doubt"
            ),
        },
    )
    return Kinds(
        mapping=Made(
            MapOf(_VALUE, "at least one header", name, example, "the name of a header", MAX_FIELDS),
            mapped,
        ),
        sequence=ListOf(Made(table, listed), "a header", f"write {{{example}}}", most=MAX_FIELDS),
    )


def _pairs(written: NamedValues | None) -> Pairs:
    return tuple((at.value[0].value, at.value[1]) for at in written or [])


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
        status.value, _pairs(fields.get("headers")), "" if body is None else body.value
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
                _fields_reader(_TO_SEND, 'Retry-After: "60"'),
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


# ---- redirect and urlRewrite

_NEW_PATH = Text(
    values.path, kind="a path", pattern="^/", most=values.MAX_PATH, examples=("/", "/v2")
)


def _modifier(_walker: Walker, fields: Fields, _node: Node) -> PathModifier | None:
    kind, value = fields.get("type"), fields.get("value")
    return None if kind is None or value is None else PathModifier(kind, value)


def _prefix(_walker: Walker, text: str, _node: Node) -> PathModifier:
    return PathModifier(PathModifierType.REPLACE_PREFIX_MATCH, text)


PATH_MODIFIER = Kinds(
    scalar=Made(_NEW_PATH, _prefix),
    mapping=Made(
        Table(
            "a new path",
            {
                "type": Key(
                    Choice(
                        PathModifierType,
                        docs={
                            "ReplaceFullPath": "the whole path",
                            "ReplacePrefixMatch": "what the `PathPrefix` of the match covered, and"
                            " what follows it stays",
                        },
                    ),
                    "What is replaced.",
                    required=True,
                    hint="`ReplaceFullPath` or `ReplacePrefixMatch`",
                ),
                "value": Key(
                    _NEW_PATH,
                    "What stands there instead.",
                    required=True,
                    hint="the new path, from its first `/`",
                ),
            },
            foreign={
                "replaceFullPath": "write {type: ReplaceFullPath, value: /x}",
                "replacePrefixMatch": "write {type: ReplacePrefixMatch, value: /x}",
            },
        ),
        _modifier,
    ),
)


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
                Choice(Scheme), "`http` or `https`.", default="the one that the client used"
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
                "The port to go to.",
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


# ---- filters


def _header_changes(walker: Walker, fields: Fields, _node: Node) -> HeaderChanges:
    names: list[tuple[str, At[str]]] = []
    for key in ("set", "add"):
        names += [(key, at.value[0]) for at in fields.get(key, [])]
    names += [("remove", at) for at in fields.get("remove", [])]
    first: dict[str, tuple[str, At[str]]] = {}
    for key, name in names:
        other_key, other = first.setdefault(name.value.lower(), (key, name))
        if other is name or key == other_key == "add":
            continue
        walker.error(
            name.node,
            f"the header {quoted(name.value)} is named in `{other_key}` already",
            "a header is set, or added to, or removed: name it once",
            notes=(walker.note("the first one", other.node),),
        )
    return HeaderChanges(
        _pairs(fields.get("set")),
        _pairs(fields.get("add")),
        tuple(at.value for at in fields.get("remove", [])),
    )


REQUEST_HEADERS = Made(
    Table(
        "`requestHeaders`",
        {
            "set": Key(
                _fields_reader(_TO_CHANGE, "X-Env: prod"),
                "Header fields that the backend gets in place of what the client sent: a map from"
                " names to values, or a list of `{name, value}`.",
                default="none",
            ),
            "add": Key(
                _fields_reader(_TO_CHANGE, "X-Env: prod"),
                "Header fields that the backend gets besides what the client sent.",
                default="none",
            ),
            "remove": Key(
                ListOf(_TO_CHANGE, "a header name", "write [X-Debug]", most=MAX_FIELDS),
                "Names of header fields that the backend does not get.",
                default="none",
            ),
        },
        empty="write `set`, `add` or `remove`",
    ),
    _header_changes,
)

FILTERS = Record(
    Table(
        "`filters`",
        {
            "requestHeaders": Key(
                REQUEST_HEADERS,
                "Changes of the request's header fields. What one connection or the framing needs"
                " (`Connection`, `Content-Length` and their like) cannot be changed.",
                default="none but those of `forwarded`",
            ),
            "urlRewrite": Key(
                Record(
                    Table(
                        "`urlRewrite`",
                        {
                            "hostname": Key(
                                PRECISE_HOSTNAME,
                                "The `Host` that the backend gets.",
                                default="what the client asked for",
                            ),
                            "path": Key(
                                PATH_MODIFIER,
                                "The path that the backend gets. A text alone is a"
                                " `ReplacePrefixMatch`. The query stays.",
                                default="what the client asked for",
                            ),
                        },
                        empty="write `hostname` or `path`",
                    ),
                    UrlRewrite,
                ),
                "Another host or path for the backend; the client does not see it.",
                default="none",
            ),
        },
        later={
            "responseHeaders": "responses pass through the kernel unseen: let the backend set them",
            "requestMirror": "each request goes to one backend",
            "mirror": "each request goes to one backend",
        },
        foreign={
            "requestHeaderModifier": "write `requestHeaders`",
            "requestRedirect": "write `redirect` in the route",
            "set": "write requestHeaders: {set: {...}}",
            "add": "write requestHeaders: {add: {...}}",
            "remove": "write requestHeaders: {remove: [...]}",
        },
        empty="write `requestHeaders` or `urlRewrite`",
    ),
    Filters,
)
