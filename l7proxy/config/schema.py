"""The schema walker: readers that put single values together to lists, maps and tables.

The language is a tree of readers (`language`), so that what else is to be known about it can be had
by walking the same tree: `Made` and `Record` have a `reader` below them, `Kinds` up to three, and
`ListOf`, `MapOf` and `Table` what they hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Generic, TypeVar

from l7proxy.config import nodes
from l7proxy.config.nodes import Node, Scalar, Sequence
from l7proxy.config.problems import quoted
from l7proxy.config.readers import Reader, Text
from l7proxy.config.scalars import meaning
from l7proxy.config.walker import At, Walker, did_you_mean

T = TypeVar("T")
S = TypeVar("S")

MAX_ENTRIES = 1_000  # of a list or map, where nothing else is said


@dataclass(frozen=True, slots=True)
class ListOf(Generic[T]):
    """A list with one entry or more, `most` at most.

    `empty` is the hint for a list with none, `plain` the key that a text in place of the list would
    stand for in an entry ("" when entries are texts).
    """

    item: Reader[T]
    noun: str
    empty: str = ""
    plain: str = ""
    most: int = MAX_ENTRIES

    def read(self, walker: Walker, node: Node, what: str) -> list[At[T]] | None:
        """See Reader; entries with problems are left out, so the list may be short."""
        walker.visit(node)
        if not isinstance(node, Sequence):
            if isinstance(node, Scalar) and node.tag == "null":
                walker.error(node, f"{what} has no value", self.empty)
            else:
                hint = ""
                if isinstance(node, Scalar) and len(node.text) <= 60:
                    entry = _copied(walker, node)
                    if self.plain:
                        entry = f"{{{self.plain}: {entry}}}"
                    hint = f"write it as a list: [{entry}]"
                elif isinstance(node, nodes.Mapping):
                    hint = "begin each entry with `- `"
                walker.error(node, f"{what} must be a list, and this is {meaning(node)}", hint)
            return None
        if not node.items:
            walker.error(node, f"{what} is an empty list", self.empty)
        elif len(node.items) > self.most:
            walker.error(
                node.items[self.most],
                f"{what} has more than {self.most:,} entries, and this is the first beyond",
            )
            return None
        read = ((self.item.read(walker, item, self.noun), item) for item in node.items)
        return [At(value, item) for value, item in read if value is not None]


@dataclass(frozen=True, slots=True)
class MapOf(Generic[T]):
    """A map from names to things of one kind, with one entry or more, `most` at most.

    `shown` is how an entry is written, `key` what a name is called in messages.
    """

    item: Reader[T]
    noun: str
    name: Text[str]
    shown: str = "name: {...}"
    key: str = "a name"
    most: int = MAX_ENTRIES

    def read(self, walker: Walker, node: Node, what: str) -> list[tuple[At[str], T | None]] | None:
        """See Reader; (name, thing) in the order of the file, the thing None when it has problems.

        A name counts as given even so, that references to it are not reported as well.
        """
        walker.visit(node)
        if not isinstance(node, nodes.Mapping):
            hint = f"write each as `{self.shown}`"
            if isinstance(node, Scalar) and node.tag == "null":
                walker.error(node, f"{what} has no value", hint)
            else:
                walker.error(node, f"{what} must be a map, and this is {meaning(node)}", hint)
            return None
        if not node.pairs:
            walker.error(node, f"{what} is empty", f"{self.noun} is needed")
        elif len(node.pairs) > self.most:
            walker.error(
                node.pairs[self.most][0],
                f"{what} has more than {self.most:,} entries, and this is the first beyond",
            )
            return None
        things: list[tuple[At[str], T | None]] = []
        for text, (key, value) in walker.entries(node).items():
            name = self.name.read(walker, key, self.key)
            thing = self.item.read(walker, value, quoted(text))
            things.append((At(text if name is None else name, key), thing))
        return things


_BLANK = "a blank is missing behind the `:`"


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a table.

    `doc` is its sentences in the reference: what it is, in which unit, what happens beyond it.
    `default` is what holds when it is left out, as it would be written, or in words; `hint` what
    mends a policy that lacks a required one.
    """

    reader: Reader[Any]
    doc: str
    required: bool = False
    default: str = ""
    hint: str = ""


_NONE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Fields:
    """What a table holds: `values` of the keys without problems, `keys` of all that are written."""

    values: Mapping[str, At[Any]]
    keys: Mapping[str, Node]
    node: Node
    excused: frozenset[str] = _NONE  # keys whose lack follows from what has been reported

    def at(self, key: str) -> At[Any] | None:
        """The value with its place; None when it is left out or wrong."""
        return self.values.get(key)

    def get(self, key: str, default: Any = None) -> Any:
        """The value alone."""
        at = self.values.get(key)
        return default if at is None else at.value

    def wrong(self, key: str) -> bool:
        """Whether the key is written, and its value has been reported."""
        return key in self.keys and key not in self.values


@dataclass(frozen=True, slots=True)
class Table:
    """A map with known keys.

    `later` are keys that the language will have and has not yet, with hints; `foreign` keys that
    others have for what is written in another way here, likewise. `empty` is the hint for a map
    without keys where that is a mistake by itself. `short` is the key that anything but a map is
    read as; `plain` one that a text in its place would surely stand for, and may not.
    """

    noun: str
    keys: Mapping[str, Key]
    later: Mapping[str, str] = field(default_factory=dict)
    foreign: Mapping[str, str] = field(default_factory=dict)
    empty: str = ""
    short: str = ""
    plain: str = ""
    required: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        required = tuple(name for name, key in self.keys.items() if key.required)
        object.__setattr__(self, "required", required)

    def read(self, walker: Walker, node: Node, what: str) -> Fields | None:
        """See Reader; never None for a map, whatever is wrong inside."""
        walker.visit(node)
        if not isinstance(node, nodes.Mapping):
            return self._without_keys(walker, node, what)
        if not node.pairs and self.empty:
            walker.error(node, f"{self.noun} is empty", self.empty)
            return Fields({}, {}, node)
        values: dict[str, At[Any]] = {}
        written: dict[str, Node] = {}
        excused: set[str] = set()
        for text, (key, value) in walker.entries(node).items():
            if (known := self.keys.get(text)) is not None:
                written[text] = key
                result = known.reader.read(walker, value, f"`{text}`")
                if result is not None:
                    values[text] = At(result, value)
            elif text in self.later:
                walker.error(key, f"`{text}` in {self.noun} is not built yet", self.later[text])
                excused.update(self.keys)  # it may well stand there instead
            else:
                meant = None if text in self.foreign else walker.guess(text, self.keys)
                hint = self.foreign.get(text) or f"known are {_listed(self.keys)}"
                if _runs_on(text, self.keys):
                    hint, meant = _BLANK, None
                message = f"unknown key {quoted(text)} in {self.noun}"
                walker.error(key, message, did_you_mean(meant) if meant else hint)
                excused.update([meant] if meant else self.keys if text in self.foreign else ())
        fields = Fields(values, written, node, frozenset(excused) if excused else _NONE)
        for name in self.required:
            self.want(walker, fields, name)
        return fields

    def want(self, walker: Walker, fields: Fields, name: str) -> None:
        """Reports that the key `name` is not written, if so."""
        if name not in fields.keys and name not in fields.excused:
            node, key = fields.node, self.keys[name]
            pairs = node.pairs if isinstance(node, nodes.Mapping) else ()
            shown = Node(node.start, node.start + 1) if pairs else node
            walker.error(shown, f"{self.noun} needs `{name}`", key.hint or key.doc)

    def _without_keys(self, walker: Walker, node: Node, what: str) -> Fields | None:
        if self.short:
            result = self.keys[self.short].reader.read(walker, node, what)
            values = {} if result is None else {self.short: At(result, node)}
            return Fields(values, {self.short: node}, node)
        wanted = f"a map with {_listed(self.required or self.keys)}"
        if isinstance(node, Scalar) and node.tag == "null":
            walker.error(node, f"{what} has no value", f"give it {wanted}")
        else:
            hint = ""
            if isinstance(node, Scalar) and _runs_on(node.text, self.keys):
                hint = _BLANK
            elif self.plain and isinstance(node, Scalar) and len(node.text) <= 60:
                hint = f"write {{{self.plain}: {_copied(walker, node)}}}"
            walker.error(node, f"{what} must be {wanted}, and this is {meaning(node)}", hint)
        return None


@dataclass(frozen=True, slots=True)
class Made(Generic[S, T]):
    """What `make` makes of a value that `reader` read; it reports what is wrong with the whole."""

    reader: Reader[S]
    make: Callable[[Walker, S, Node], T | None]

    def read(self, walker: Walker, node: Node, what: str) -> T | None:
        """See Reader."""
        value = self.reader.read(walker, node, what)
        return None if value is None else self.make(walker, value, node)


@dataclass(frozen=True, slots=True)
class Record(Generic[T]):
    """A dataclass from a table: each key is the field of the same name in snake_case.

    `names` are the exceptions. What is left out or wrong has the default of the dataclass. `check`
    reports what does not go together.
    """

    reader: Table
    make: Callable[..., T]
    names: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[Walker, Fields], None] | None = None

    def read(self, walker: Walker, node: Node, what: str) -> T | None:
        """See Reader; None as well when a required key is missing or wrong."""
        fields = self.reader.read(walker, node, what)
        if fields is None:
            return None
        if self.check is not None:
            self.check(walker, fields)
        if any(name not in fields.values for name in self.reader.required):
            return None
        return self.make(**arguments(fields, self.names))


def arguments(fields: Fields, names: Mapping[str, str], *omit: str) -> dict[str, Any]:
    """The values of a table, those of `omit` left out, by the fields that their keys are for."""
    return {
        names.get(key) or snake_case(key): plain(at)
        for key, at in fields.values.items()
        if key not in omit
    }


@cache
def snake_case(key: str) -> str:
    """`headBytes` -> `head_bytes`."""
    return re.sub("[A-Z]", lambda upper: f"_{upper[0].lower()}", key)


def plain(at: At[Any]) -> Any:
    """The value alone; of a list its values alone, as a tuple."""
    if isinstance(at.value, list):
        return tuple(one.value for one in at.value)
    return at.value


@dataclass(frozen=True, slots=True)
class Kinds(Generic[T]):
    """A reader for each kind of node; what has none is told by the first that there is."""

    scalar: Reader[T] | None = None
    sequence: Reader[T] | None = None
    mapping: Reader[T] | None = None

    def read(self, walker: Walker, node: Node, what: str) -> T | None:
        """See Reader."""
        if isinstance(node, Scalar) or _is_bracketed_text(node):
            reader = self.scalar
        else:
            reader = self.sequence if isinstance(node, Sequence) else self.mapping
        reader = reader or self.scalar or self.mapping or self.sequence
        assert reader is not None
        return reader.read(walker, node, what)


def _is_bracketed_text(node: Node) -> bool:
    """Whether it is a map to YAML and text to its author: in a list, [::1]:80 has a list as key."""
    return (
        isinstance(node, nodes.Mapping)
        and bool(node.pairs)
        and isinstance(node.pairs[0][0], Sequence)
    )


def _runs_on(text: str, keys: Mapping[str, Key]) -> bool:
    """Whether it is `key:value` without the blank that makes it a key and a value."""
    key, colon, value = text.partition(":")
    return key in keys and bool(colon and value)


def _copied(walker: Walker, node: Scalar) -> str:
    """The text with its quotes, to be copied."""
    written = walker.written(node)
    return written if written.strip("\"'") == node.text else node.text


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(f"`{key}`" for key in keys)
