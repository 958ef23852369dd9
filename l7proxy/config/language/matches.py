"""The keys of a match: what a request has to be like.

The words are those of HTTPRouteMatch (Gateway API v1), and so is what they mean.
"""

from __future__ import annotations

from collections.abc import Callable

from l7proxy.config import addresses, httpvalues, values
from l7proxy.config.language.common import refuse
from l7proxy.config.language.drafts import MatchDraft
from l7proxy.config.nodes import Node
from l7proxy.config.readers import Choice, Text, parsed
from l7proxy.config.schema import Fields, Key, Kinds, ListOf, Made, MapOf, Table
from l7proxy.config.walker import At, Walker
from l7proxy.model import Destination, Match, PathMatch, PathType, ValueMatch, ValueType

MAX_VALUES = 64  # security limit: header fields, query parameters, protocols of one match

PATH = Text(
    values.path,
    kind="a path",
    pattern="^/",
    most=values.MAX_PATH,
    examples=("/", "/api", "/v1/users"),
)
PATTERN = "a regular expression in RE2's syntax, which takes linear time whatever it is given"
_ANY_TEXT = Text(str)  # of what it is depends on `type`


def _path(walker: Walker, fields: Fields, _node: Node) -> PathMatch | None:
    value = fields.at("value")
    if value is None or fields.wrong("type"):
        return None
    kind = fields.get("type", PathType.PATH_PREFIX)
    parse = httpvalues.path_pattern if kind is PathType.REGULAR_EXPRESSION else values.path
    text = parsed(walker, value.node, value.value, parse)
    return None if text is None else PathMatch(kind, text)


PATH_MATCH = Kinds(
    scalar=Made(PATH, lambda _walker, text, _node: PathMatch(PathType.PATH_PREFIX, text)),
    mapping=Made(
        Table(
            "a path",
            {
                "type": Key(
                    Choice(
                        PathType,
                        docs={
                            "Exact": "the same path, and nothing else",
                            "PathPrefix": "this path and everything below it, by whole elements:"
                            " `/abc` matches `/abc`, `/abc/` and `/abc/x`, not `/abcd`",
                            "RegularExpression": f"the whole path matches {PATTERN}",
                        },
                    ),
                    "How the path is compared.",
                    default="PathPrefix",
                ),
                "value": Key(
                    _ANY_TEXT,
                    "The path, from its first `/`, or the regular expression.",
                    required=True,
                    hint="the path, from its first `/`",
                ),
            },
        ),
        _path,
    ),
)

_VALUE_TYPE = Choice(
    ValueType,
    docs={
        "Exact": "the same text, in the same case",
        "RegularExpression": f"the whole value matches {PATTERN}",
    },
)


def _values_reader(
    noun: str, name: Text[str], exact: Callable[[str], str], example: str
) -> Kinds[list[At[ValueMatch]]]:
    """`{NAME: VALUE}`, `{NAME: {type, value}}`, or a list of `{name, type, value}`."""

    def make(walker: Walker, fields: Fields, _node: Node) -> ValueMatch | None:
        value = fields.at("value")
        if value is None or fields.wrong("type"):
            return None
        kind = fields.get("type", ValueType.EXACT)
        parse = httpvalues.pattern if kind is ValueType.REGULAR_EXPRESSION else exact
        text = parsed(walker, value.node, value.value, parse)
        return None if text is None else ValueMatch(fields.get("name", ""), text, kind)

    def listed(walker: Walker, fields: Fields, node: Node) -> At[ValueMatch] | None:
        value, name_at = make(walker, fields, node), fields.at("name")
        return None if value is None or name_at is None else At(value, name_at.node)

    keys = {
        "type": Key(_VALUE_TYPE, "How the value is compared.", default="Exact"),
        "value": Key(
            _ANY_TEXT,
            "The value, or the regular expression.",
            required=True,
            hint="what it is compared with",
        ),
    }
    named = {"name": Key(name, f"The name of {noun}.", required=True, hint="its name")}
    one = Kinds(
        scalar=Made(Text(exact), lambda _walker, text, _node: ValueMatch("", text)),
        mapping=Made(Table(noun, keys), make),
    )
    every = MapOf(
        one,
        f"at least one {noun.partition(' ')[2]}",
        name,
        example,
        f"the name of {noun}",
        MAX_VALUES,
    )
    return Kinds(
        mapping=Made(every, _from_map),
        sequence=Made(
            ListOf(
                Made(Table(noun, {**named, **keys}), listed),
                noun,
                f"write {{{example}}}",
                most=MAX_VALUES,
            ),
            lambda _walker, entries, _node: [entry.value for entry in entries],
        ),
    )


def _from_map(
    _walker: Walker, entries: list[tuple[At[str], ValueMatch | None]], _node: Node
) -> list[At[ValueMatch]]:
    return [
        At(ValueMatch(name.value, value.value, value.type), name.node)
        for name, value in entries
        if value is not None
    ]


HEADERS = _values_reader(
    "a header",
    Text(
        httpvalues.header_name_to_match,
        kind="a header name",
        pattern=f"^{httpvalues.TOKEN}$",
        most=httpvalues.MAX_HEADER_NAME,
        examples=("x-canary",),
    ),
    httpvalues.header_value,
    'x-canary: "1"',
)
QUERY_PARAMS = _values_reader(
    "a query parameter",
    Text(
        httpvalues.query_name,
        kind="the name of a query parameter",
        pattern="^[^&=#?]+$",
        most=httpvalues.MAX_QUERY_NAME,
        examples=("version",),
    ),
    httpvalues.query_value,
    'version: "2"',
)
METHOD = Text(
    httpvalues.method,
    kind="a method",
    pattern=f"^{httpvalues.TOKEN}$",
    most=httpvalues.MAX_METHOD,
    examples=("GET", "POST"),
)
ALPN = Text(
    httpvalues.alpn,
    kind="an ALPN protocol id",
    pattern="^[!-~]+$",
    most=httpvalues.MAX_ALPN,
    examples=("h2", "http/1.1"),
)
DESTINATION: Text[Destination] = Text(
    addresses.destination,
    refuse(addresses.no_destination),
    kind="a block, a block and a port, or a port",
    pattern=r"^(\*:[0-9]{1,5}|[0-9.]+(/[0-9]{1,2})?(:[0-9]{1,5})?"
    r"|\[[0-9A-Fa-f:.]+(/[0-9]{1,3})?\]:[0-9]{1,5}|[0-9A-Fa-f:.]+(/[0-9]{1,3})?)$",
    examples=("10.0.0.0/8:5432", "10.0.0.0/8", "*:5432", "[fd00::/8]:5432"),
)


def _match(walker: Walker, fields: Fields, node: Node) -> MatchDraft | None:
    headers, query = fields.get("headers", []), fields.get("queryParams", [])
    match = Match(
        path=fields.get("path", Match().path),
        method=fields.get("method"),
        headers=_first_of_each(headers),
        query=_first_of_each(query),
        alpn=tuple(dict.fromkeys(at.value for at in fields.get("alpn", []))),
        destinations=tuple(dict.fromkeys(at.value for at in fields.get("destinations", []))),
        location=walker.location(node),
    )
    return MatchDraft(match, fields, tuple(headers), tuple(query))


def _first_of_each(written: list[At[ValueMatch]]) -> tuple[ValueMatch, ...]:
    """Gateway API v1, HTTPHeaderMatch: of equivalent names "only the first entry" counts."""
    first: dict[str, ValueMatch] = {}
    for at in written:
        first.setdefault(at.value.name, at.value)
    return tuple(first.values())


MATCH = Made(
    Table(
        "a match",
        {
            "path": Key(
                PATH_MATCH,
                "The path of the request, without its query. A text alone is a `PathPrefix`.",
                default="/",
            ),
            "method": Key(METHOD, "The method, in upper case.", default="every method"),
            "headers": Key(
                HEADERS,
                "Header fields that the request has to have, all of them. A map from names to"
                " values compares them as they are; names have no case. Of two entries with one"
                " name the first counts. A header that the request repeats is one value, joined"
                " with `, `.",
                default="any",
            ),
            "queryParams": Key(
                QUERY_PARAMS,
                "Parameters that the query has to have, all of them, written as `headers` are."
                " Of a parameter that a request repeats, the first one counts. They are compared"
                " as a form is read: `+` is a space, and `%61` is `a`.",
                default="any",
            ),
            "alpn": Key(
                ListOf(ALPN, "a protocol id", "write [h2]", most=MAX_VALUES),
                "On a TLS listener: the client offers one of these protocols, such as `h2` or"
                " `http/1.1`.",
                default="any",
            ),
            "destinations": Key(
                ListOf(DESTINATION, "a destination", 'write ["10.0.0.0/8:5432"]', most=MAX_VALUES),
                "On a transparent listener: the connection was going to one of these, each a CIDR"
                " block, with a port or without, or `*` and a port.",
                default="any",
            ),
        },
        foreign={
            "hostname": "`hostnames` stands in the route",
            "hostnames": "`hostnames` stands in the route",
            "host": "`hostnames` stands in the route",
            "prefix": "write `path: /x`",
            "destination": "write a list, `destinations`",
            "port": 'write destinations: ["*:PORT"]',
        },
        empty="leave `matches` out to match everything",
        plain="path",
    ),
    _match,
)
