"""The JSON Schema (2020-12) of a policy, made from the language's own tables.

For editors: it knows every key, its type, its bounds and its description. It admits whatever
`check` admits and a little more, since a schema cannot look at two places at once; `check` has the
last word. Two things are wider on purpose: no section is required, because one of several files
may hold the others, and wherever a text, a number or a word may stand, `${NAME}` may.
"""

from __future__ import annotations

import json
import re
from typing import Any

from l7proxy.config import language
from l7proxy.config.language.routes import ACTIONS
from l7proxy.config.readers import Choice, Flag, OneOf, Text, Whole
from l7proxy.config.schema import Key, Kinds, ListOf, Made, MapOf, Record, Table

Schema = dict[str, Any]

_VARIABLE = {"$ref": "#/$defs/variable"}
_ONE_ACTION: list[Schema] = [
    {"required": [key], **({"properties": {"deny": {"const": True}}} if key == "deny" else {})}
    for key in ACTIONS
]


def schema() -> Schema:
    """The schema as a value."""
    made = _Schema()
    policy = made.table(language.POLICY, "")
    del policy["required"]
    made.definitions["variable"] = {
        "type": "string",
        "pattern": r"^(\$\{[^{}]*\})+$",
        "description": "A variable of the environment: `${NAME}` or `${NAME:-default}`.",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "l7proxy policy",
        "description": "What l7proxy listens on, and where it sends what it gets.",
        **policy,
        "minProperties": 1,
        "$defs": dict(sorted(made.definitions.items())),
    }


def text() -> str:
    """The schema as it is committed: JSON, with a newline at the end."""
    return json.dumps(schema(), indent=2) + "\n"


class _Schema:
    """Walks the readers; each table becomes a definition, named by the keys that lead to it."""

    def __init__(self) -> None:
        self.definitions: dict[str, Schema] = {}
        self._names: dict[int, str] = {}  # by the table's id: some stand in two places

    def table(self, table: Table, path: str) -> Schema:
        """The schema of a map with known keys."""
        required = [name for name, key in table.keys.items() if key.required]
        one_action = {"oneOf": _ONE_ACTION} if set(ACTIONS) <= set(table.keys) else {}
        return {
            "type": "object",
            "properties": {name: self._key(key, name, path) for name, key in table.keys.items()},
            **({"required": required} if required else {}),
            **one_action,
            **({"minProperties": 1} if table.empty else {}),
            "additionalProperties": False,
        }

    def _key(self, key: Key, name: str, path: str) -> Schema:
        value = default_value(key.default)
        return {
            "description": described(key),
            **({} if value is None else {"default": value}),
            **self._reader(key.reader, f"{path}.{name}" if path else name),
        }

    def _reader(self, reader: Any, path: str) -> Schema:
        if isinstance(reader, Made | Record):
            return self._reader(reader.reader, path)
        if isinstance(reader, Table):
            return self._reference(reader, path)
        if isinstance(reader, Kinds):
            kinds = [reader.scalar, reader.sequence, reader.mapping]
            return _any_of([self._reader(kind, path) for kind in kinds if kind is not None])
        if isinstance(reader, ListOf):
            return {
                "type": "array",
                "items": self._reader(reader.item, path),
                "minItems": 1,
                "maxItems": reader.most,
            }
        if isinstance(reader, MapOf):
            return {
                "type": "object",
                "propertyNames": _text(reader.name, variables=False),
                "additionalProperties": self._reader(reader.item, path),
                "minProperties": 1,
                "maxProperties": reader.most,
            }
        return _value(reader)

    def _reference(self, table: Table, path: str) -> Schema:
        name = self._names.get(id(table))
        if name is None:
            name = path
            while name in self.definitions:
                name += "'"
            self._names[id(table)] = name
            self.definitions[name] = {}  # takes the place in the order of the language
            self.definitions[name] = self.table(table, path)
        reference = {"$ref": f"#/$defs/{name}"}
        if not table.short:
            return reference
        return _any_of([self._reader(table.keys[table.short].reader, path), reference])


def _value(reader: Any) -> Schema:
    """The schema of a single value; TypeError for a reader that nobody told this module about."""
    if isinstance(reader, Text):
        text = _text(reader, variables=True)
        return _any_of([{"type": "integer"}, text]) if reader.numbers else text
    if isinstance(reader, Whole):
        whole = {"type": "integer", "minimum": reader.least, "maximum": reader.most}
        return _any_of([whole, _VARIABLE])
    if isinstance(reader, Flag):
        return _any_of([{"type": "boolean"}, _VARIABLE])
    if isinstance(reader, OneOf):
        return _any_of([{"enum": list(reader.numbers)}, _VARIABLE])
    if isinstance(reader, Choice):
        docs = reader.docs or {}
        words: Schema = {"enum": reader.known}
        if docs:  # beyond the standard; editors show it beside each word
            words["markdownEnumDescriptions"] = [docs[word] for word in reader.known]
        return _any_of([words, _VARIABLE])
    raise TypeError(f"no JSON Schema for {type(reader).__name__}")


def _text(reader: Text[Any], *, variables: bool) -> Schema:
    schema: Schema = {"type": "string"}
    if reader.pattern:
        schema["pattern"] = rf"{reader.pattern}|\$\{{" if variables else reader.pattern
    if reader.most is not None:
        schema["maxLength"] = reader.most
    if reader.examples:
        schema["examples"] = list(reader.examples)
    return schema


def _any_of(schemas: list[Schema]) -> Schema:
    """One of them; what is an alternative already is not nested."""
    flat: list[Schema] = []
    for one in schemas:
        for part in one["anyOf"] if set(one) == {"anyOf"} else [one]:
            if part not in flat:
                flat.append(part)
    return flat[0] if len(flat) == 1 else {"anyOf": flat}


_LITERAL = re.compile(r"[0-9A-Za-z/_.-]+")


def default_value(default: str) -> Any:
    """The default as a value, None where it is a phrase: "the one that the client used"."""
    if re.fullmatch(r"-?[0-9]+", default):
        return int(default)
    if default in ("true", "false"):
        return default == "true"
    return default if _LITERAL.fullmatch(default) and default not in PHRASES else None


PHRASES = frozenset({"any", "everybody", "nobody", "everything", "none", "empty"})
"""Defaults of one word that is none of the language."""


def described(key: Key) -> str:
    """The sentences of a key, with what holds when it is left out where that is a phrase."""
    if not key.default or default_value(key.default) is not None:
        return key.doc
    return f"{key.doc} Left out: {key.default}."
