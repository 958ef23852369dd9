"""The keys of what a route changes in a request and its response on their way.

The words are those of HTTPHeaderFilter and HTTPURLRewriteFilter (Gateway API v1).
"""

from __future__ import annotations

from l7proxy.config.language.changes import (
    MAX_FIELDS,
    PATH_MODIFIER,
    TO_CHANGE,
    TO_CHANGE_BACK,
    fields_reader,
    pairs,
)
from l7proxy.config.language.common import PRECISE_HOSTNAME
from l7proxy.config.language.requests import MIRROR
from l7proxy.config.nodes import Node
from l7proxy.config.problems import quoted
from l7proxy.config.schema import Fields, Key, ListOf, Made, Record, Table
from l7proxy.config.walker import At, Walker
from l7proxy.model import (
    Filters,
    HeaderChanges,
    UrlRewrite,
)


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
        pairs(fields.get("set")),
        pairs(fields.get("add")),
        tuple(at.value for at in fields.get("remove", [])),
    )


REQUEST_HEADERS = Made(
    Table(
        "`requestHeaders`",
        {
            "set": Key(
                fields_reader(TO_CHANGE, "X-Env: prod"),
                "Header fields that the backend gets in place of what the client sent: a map from"
                " names to values, or a list of `{name, value}`. What the client sent is gone"
                " in every spelling that servers read as the same: `X_Env` for `X-Env`.",
                default="none",
            ),
            "add": Key(
                fields_reader(TO_CHANGE, "X-Env: prod"),
                "Header fields that the backend gets besides what the client sent.",
                default="none",
            ),
            "remove": Key(
                ListOf(TO_CHANGE, "a header name", "write [X-Debug]", most=MAX_FIELDS),
                "Names of header fields that the backend does not get, nor in a spelling that"
                " servers read as the same: `X_Debug` for `X-Debug`.",
                default="none",
            ),
        },
        empty="write `set`, `add` or `remove`",
    ),
    _header_changes,
)

RESPONSE_HEADERS = Made(
    Table(
        "`responseHeaders`",
        {
            "set": Key(
                fields_reader(TO_CHANGE_BACK, "Cache-Control: no-store"),
                "Header fields that the client gets in place of what the backend sent: a map from"
                " names to values, or a list of `{name, value}`.",
                default="none",
            ),
            "add": Key(
                fields_reader(TO_CHANGE_BACK, "Cache-Control: no-store"),
                "Header fields that the client gets besides what the backend sent.",
                default="none",
            ),
            "remove": Key(
                ListOf(TO_CHANGE_BACK, "a header name", "write [Server]", most=MAX_FIELDS),
                "Names of header fields that the client does not get.",
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
            "responseHeaders": Key(
                RESPONSE_HEADERS,
                "Changes of the final response's header fields, whatever its status; answers of"
                " l7proxy's own stay as they are. What one connection or the framing needs cannot"
                " be changed.",
                default="none",
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
            "mirror": Key(
                MIRROR,
                "A second backend that gets requests too, as the first one gets them; not those"
                " with a body of more than 64 KiB, nor upgrades. Nobody waits for it, and what it"
                " answers is dropped.",
                default="none",
            ),
        },
        foreign={
            "requestMirror": "write mirror: {backendRef: {name: NAME}}",
            "requestHeaderModifier": "write `requestHeaders`",
            "responseHeaderModifier": "write `responseHeaders`",
            "requestRedirect": "write `redirect` in the route",
            "set": "write requestHeaders: {set: {...}}",
            "add": "write requestHeaders: {add: {...}}",
            "remove": "write requestHeaders: {remove: [...]}",
        },
        empty="write `requestHeaders`, `responseHeaders`, `urlRewrite` or `mirror`",
    ),
    Filters,
)
