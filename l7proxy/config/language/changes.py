"""What answers and filters share: lists of header fields, and new paths."""

from __future__ import annotations

from l7proxy.config import httpvalues, values
from l7proxy.config.nodes import Node
from l7proxy.config.readers import Choice, Text
from l7proxy.config.schema import Fields, Key, Kinds, ListOf, Made, MapOf, Table
from l7proxy.config.walker import At, Walker
from l7proxy.model import (
    PathModifier,
    PathModifierType,
)

MAX_FIELDS = 64  # security limit: header fields that are set, added or removed

Pairs = tuple[tuple[str, str], ...]

_VALUE = Text(
    httpvalues.header_value,
    kind="a header value",
    pattern=r"^[\t -~]*$",
    most=httpvalues.MAX_HEADER_VALUE,
)
TO_CHANGE = Text(
    httpvalues.header_name_to_change,
    kind="a header name",
    pattern=f"^{httpvalues.TOKEN}$",
    most=httpvalues.MAX_HEADER_NAME,
    examples=("X-Env",),
)
TO_CHANGE_BACK = Text(
    httpvalues.header_name_of_response,
    kind="a header name",
    pattern=f"^{httpvalues.TOKEN}$",
    most=httpvalues.MAX_HEADER_NAME,
    examples=("Cache-Control",),
)
TO_SEND = Text(
    httpvalues.header_name_to_send,
    kind="a header name",
    pattern=f"^{httpvalues.TOKEN}$",
    most=httpvalues.MAX_HEADER_NAME,
    examples=("Content-Type",),
)

NamedValues = list[At[tuple[At[str], str]]]
"""Entries, each with the place of its name."""


def fields_reader(name: Text[str], example: str) -> Kinds[NamedValues]:
    """Header fields: `{NAME: VALUE}`, or a list of `{name, value}`."""

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


def pairs(written: NamedValues | None) -> Pairs:
    """The entries without their places."""
    return tuple((at.value[0].value, at.value[1]) for at in written or [])


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
