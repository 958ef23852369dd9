"""The keys of a match: what a request has to be like."""

from __future__ import annotations

from l7proxy.config import values
from l7proxy.config.language.drafts import MatchDraft
from l7proxy.config.nodes import Node
from l7proxy.config.readers import Choice, Text
from l7proxy.config.schema import Fields, Key, Made, Table
from l7proxy.config.walker import Walker
from l7proxy.model import Match, PathMatch, PathType

PATH = Text(values.path, kind="a path", pattern="^/", most=values.MAX_PATH, examples=("/api",))


def _path(_walker: Walker, fields: Fields, _node: Node) -> PathMatch | None:
    value = fields.get("value")
    if value is None or fields.wrong("type"):
        return None
    return PathMatch(fields.get("type", PathType.PATH_PREFIX), value)


PATH_MATCH = Made(
    Table(
        "a path",
        {
            "type": Key(
                Choice(PathType, later={"RegularExpression": "use `Exact` or `PathPrefix`"}),
                "how it is compared; PathPrefix when left out",
            ),
            "value": Key(PATH, "the path, from its first `/`", required=True),
        },
        short="value",
    ),
    _path,
)


def _match(walker: Walker, fields: Fields, node: Node) -> MatchDraft | None:
    path = fields.get("path")
    if path is None:
        return None
    return MatchDraft(Match(path, location=walker.location(node)), fields)


MATCH = Made(
    Table(
        "a match",
        {"path": Key(PATH_MATCH, "a match is `path: /x`, a prefix", required=True)},
        later=dict.fromkeys(
            ("method", "headers", "queryParams"), "this version matches by hostname and path"
        ),
        empty="leave `matches` out to match every path",
        plain="path",
    ),
    _match,
)
