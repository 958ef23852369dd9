"""The schema walker: readers that turn nodes into values and collect every problem on the way.

A reader is a small frozen object with `read(walker, node, what)`. It returns the value, or None
after it has reported why there is none; nobody stops at the first mistake. `what` names the node in
messages ("`address`", "an endpoint"). The language is a tree of readers (`language.py`), so that
what else is to be known about it can be had by walking the same tree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar

from l7proxy.config import nodes
from l7proxy.config.bad import Bad
from l7proxy.config.nodes import Node, Scalar, Sequence
from l7proxy.config.problems import quoted
from l7proxy.config.scalars import meaning
from l7proxy.config.syntax import hint_for_brackets
from l7proxy.config.walker import At, Walker, did_you_mean

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Reader(Protocol[T_co]):
    """What every reader can do."""

    def read(self, walker: Walker, node: Node, what: str) -> T_co | None:
        """The value of `node`, or None after reporting what is wrong with it."""
        ...


def expect_text(walker: Walker, node: Node, what: str) -> str | None:
    """The text of a scalar that YAML reads as text."""
    walker.visit(node)
    if isinstance(node, Scalar) and node.tag == "str":
        return node.text
    if not isinstance(node, Scalar):
        hint = hint_for_brackets(walker.source.text[node.start : node.end])
        walker.error(node, f"{what} must be text, and this is {meaning(node)}", hint)
    elif node.tag == "null":
        walker.error(node, f"{what} has no value", "give it one, or remove it")
    else:
        walker.error(
            node,
            f"{what} must be text, but YAML reads {quoted(node.text)} as {meaning(node)}",
            f'put it in quotes: "{node.text}"',
        )
    return None


@dataclass(frozen=True, slots=True)
class Text(Generic[T]):
    """Text that `parse` turns into a value; `parse` raises Bad, its message names the text."""

    parse: Callable[[str], T]
    refuse: Callable[[Scalar], Bad | None] = lambda _: None  # a better word for what is no text

    def read(self, walker: Walker, node: Node, what: str) -> T | None:
        """See Reader."""
        if isinstance(node, Scalar) and node.tag != "str" and (bad := self.refuse(node)):
            walker.visit(node)
            walker.error(node, bad.message, bad.hint)
            return None
        text = expect_text(walker, node, what)
        if text is None:
            return None
        try:
            return self.parse(text)
        except Bad as bad:
            walker.error(node, bad.message, bad.hint, part=bad.part)
            return None


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number from `least` to `most`, in decimal and without quotes."""

    least: int
    most: int

    def read(self, walker: Walker, node: Node, what: str) -> int | None:
        """See Reader."""
        walker.visit(node)
        wanted = f"a whole number from {self.least} to {self.most}"
        if not isinstance(node, Scalar):
            walker.error(node, f"{what} must be {wanted}, and this is {meaning(node)}")
            return None
        text = node.text
        if node.tag == "null":
            walker.error(node, f"{what} has no value", f"give it {wanted}, or remove it")
        elif node.tag == "int" and text.isdecimal() and (text == "0" or text[0] != "0"):
            if len(text) <= 12 and self.least <= int(text) <= self.most:
                return int(text)
            walker.error(node, f"{what} must be {wanted}, and not {quoted(text)}")
        elif node.tag == "str" and text.isascii() and text.isdecimal():
            digits = text.lstrip("0") or "0"
            walker.error(
                node, f"{what} must be a number, and this is text", f"write {digits} without quotes"
            )
        else:
            strange = node.tag != "str" and not re.fullmatch("[-+]?[1-9][0-9]*", text)
            said = f"{quoted(text)}, {meaning(node)} to YAML" if strange else quoted(text)
            hint = "write it in decimal digits" if strange and node.tag == "int" else ""
            walker.error(node, f"{what} must be {wanted}, and not {said}", hint)
        return None


Word = TypeVar("Word", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Choice(Generic[Word]):
    """One word of an enum; `later` are the words that the language will have and has not yet."""

    words: type[Word]
    later: tuple[str, ...] = ()

    def read(self, walker: Walker, node: Node, what: str) -> Word | None:
        """See Reader."""
        if isinstance(node, Scalar) and node.tag != "null":
            walker.visit(node)
            text: str | None = node.text  # `yes` in quotes would be as wrong
        else:
            text = expect_text(walker, node, what)
        if text is None:
            return None
        known = [word.value for word in self.words if word.value not in self.later]
        if text in known:
            return self.words(text)
        wanted = " or ".join(f"`{word}`" for word in known)
        if text in self.later:
            walker.error(node, f"{what} {quoted(text)} is not supported yet", f"use {wanted}")
        else:
            meant = walker.guess(text, known)
            hint = did_you_mean(meant) if meant else f"use {wanted}"
            walker.error(node, f"{what} must be {wanted}, and not {quoted(text)}", hint)
        return None


@dataclass(frozen=True, slots=True)
class ListOf(Generic[T]):
    """A list with one entry or more.

    `empty` is the hint for a list with none, `plain` the key that a text in place of the list would
    stand for in an entry ("" when entries are texts).
    """

    item: Reader[T]
    noun: str
    empty: str = ""
    plain: str = ""

    def read(self, walker: Walker, node: Node, what: str) -> list[At[T]] | None:
        """See Reader; entries with problems are left out, so the list may be short."""
        walker.visit(node)
        if not isinstance(node, Sequence):
            if isinstance(node, Scalar) and node.tag == "null":
                walker.error(node, f"{what} has no value", self.empty)
            else:
                hint = ""
                if isinstance(node, Scalar) and len(node.text) <= 60:
                    entry = _written(walker, node)
                    if self.plain:
                        entry = f"{{{self.plain}: {entry}}}"
                    hint = f"write it as a list: [{entry}]"
                elif isinstance(node, nodes.Mapping):
                    hint = "begin each entry with `- `"
                walker.error(node, f"{what} must be a list, and this is {meaning(node)}", hint)
            return None
        if not node.items:
            walker.error(node, f"{what} is an empty list", self.empty)
        read = ((self.item.read(walker, item, self.noun), item) for item in node.items)
        return [At(value, item) for value, item in read if value is not None]


@dataclass(frozen=True, slots=True)
class MapOf(Generic[T]):
    """A map from names to things of one kind, with one entry or more."""

    item: Reader[T]
    noun: str
    name: Text[str]

    def read(self, walker: Walker, node: Node, what: str) -> list[tuple[At[str], T | None]] | None:
        """See Reader; (name, thing) in the order of the file, the thing None when it has problems.

        A name counts as given even so, that references to it are not reported as well.
        """
        walker.visit(node)
        if not isinstance(node, nodes.Mapping):
            hint = "write each as `name: {...}`"
            if isinstance(node, Scalar) and node.tag == "null":
                walker.error(node, f"{what} has no value", hint)
            else:
                walker.error(node, f"{what} must be a map, and this is {meaning(node)}", hint)
            return None
        if not node.pairs:
            walker.error(node, f"{what} is empty", f"{self.noun} is needed")
        things: list[tuple[At[str], T | None]] = []
        for text, (key, value) in walker.entries(node).items():
            self.name.read(walker, key, "a name")
            things.append((At(text, key), self.item.read(walker, value, quoted(text))))
        return things


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a table. `doc` is its sentence in the reference."""

    reader: Reader[Any]
    doc: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Fields:
    """What a table holds: `values` of the keys without problems, `keys` of all that are written."""

    values: Mapping[str, Any]
    keys: Mapping[str, Scalar]
    node: nodes.Mapping


@dataclass(frozen=True, slots=True)
class Table:
    """A map with known keys.

    `later` are keys that the language will have and has not yet, with hints; `empty` is the hint
    for a map without keys where that is a mistake by itself; `plain` is the key that a text in
    place of the map would stand for.
    """

    noun: str
    keys: Mapping[str, Key]
    later: Mapping[str, str] = field(default_factory=dict)
    empty: str = ""
    plain: str = ""

    def read(self, walker: Walker, node: Node, what: str) -> Fields | None:
        """See Reader; never None for a map, whatever is wrong inside."""
        walker.visit(node)
        if not isinstance(node, nodes.Mapping):
            wanted = f"a map with {_listed(self.keys)}"
            if isinstance(node, Scalar) and node.tag == "null":
                walker.error(node, f"{what} has no value", f"give it {wanted}")
            else:
                hint = ""
                if self.plain and isinstance(node, Scalar) and len(node.text) <= 60:
                    hint = f"write {{{self.plain}: {_written(walker, node)}}}"
                walker.error(node, f"{what} must be {wanted}, and this is {meaning(node)}", hint)
            return None
        if not node.pairs and self.empty:
            walker.error(node, f"{self.noun} is empty", self.empty)
            return Fields({}, {}, node)
        values: dict[str, Any] = {}
        written: dict[str, Scalar] = {}
        excused: set[str] = set()  # missing, and that follows from what has been reported
        for text, (key, value) in walker.entries(node).items():
            if text in self.keys:
                written[text] = key
                result = self.keys[text].reader.read(walker, value, f"`{text}`")
                if result is not None:
                    values[text] = At(result, value)
            elif text in self.later:
                walker.error(key, f"`{text}` in {self.noun} is not supported yet", self.later[text])
                excused.update(self.keys)  # it may well stand there instead
            else:
                meant = walker.guess(text, self.keys)
                hint = did_you_mean(meant) if meant else f"known are {_listed(self.keys)}"
                walker.error(key, f"unknown key {quoted(text)} in {self.noun}", hint)
                excused.add(meant or "")
        for name, known in self.keys.items():
            if known.required and name not in written and name not in excused:
                shown = Node(node.start, node.start + 1) if node.pairs else node
                walker.error(shown, f"{self.noun} needs `{name}`", known.doc)
        return Fields(values, written, node)


def _written(walker: Walker, node: Scalar) -> str:
    """The text with its quotes, to be copied."""
    written = walker.source.text[node.start : node.end]
    return written if written.strip("\"'") == node.text else node.text


def _listed(keys: Mapping[str, Key]) -> str:
    return ", ".join(f"`{key}`" for key in keys)
