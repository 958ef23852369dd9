"""Readers of single values: text, numbers, words, yes or no.

A reader is a small frozen object with `read(walker, node, what)`. It returns the value, or None
after it has reported why there is none; nobody stops at the first mistake. `what` names the node in
messages ("`address`", "an endpoint"). `schema` puts readers together to lists and maps.

What a reader knows about its values beyond reading them (the pattern of a text, the bounds of a
number) is data of it, for those who walk the language: the JSON Schema and the reference manual.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from l7proxy.config.bad import Bad
from l7proxy.config.nodes import Node, Scalar
from l7proxy.config.problems import quoted
from l7proxy.config.scalars import meaning
from l7proxy.config.syntax import hint_for_brackets
from l7proxy.config.walker import Walker, did_you_mean

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
        hint = hint_for_brackets(walker.written(node))
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


def parsed(walker: Walker, node: Node, text: str, parse: Callable[[str], T]) -> T | None:
    """What `parse` makes of the text of `node`, or None after reporting what it raised."""
    try:
        return parse(text)
    except Bad as bad:
        walker.error(node, bad.message, bad.hint, part=bad.part)
        return None


@dataclass(frozen=True, slots=True)
class Text(Generic[T]):
    """Text that `parse` turns into a value; `parse` raises Bad, its message names the text.

    `refuse` finds a better word for what is no text to YAML. `kind` names what it is ("a duration";
    "" for plain text), `pattern` is what every such text matches (whole, in the syntax that ECMA
    262, RE2 and Python share), `most` its greatest length in characters: all three admit whatever
    `parse` does, and a little more. With `numbers` a whole number needs no quotes.
    """

    parse: Callable[[str], T]
    refuse: Callable[[Scalar], Bad | None] = lambda _: None
    kind: str = ""
    pattern: str = ""
    most: int | None = None
    examples: tuple[str, ...] = ()
    numbers: bool = False

    def read(self, walker: Walker, node: Node, what: str) -> T | None:
        """See Reader."""
        if isinstance(node, Scalar) and node.tag == "str":
            walker.visit(node)
            return parsed(walker, node, node.text, self.parse)
        if self.numbers and isinstance(node, Scalar) and node.tag == "int":
            walker.visit(node)
            return parsed(walker, node, node.text, self.parse)
        if isinstance(node, Scalar) and (bad := self.refuse(node)) is not None:
            walker.visit(node)
            walker.error(node, bad.message, bad.hint)
        else:
            expect_text(walker, node, what)
        return None


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number from `least` to `most`, in decimal and without quotes.

    `unit` is what it counts ("bytes", "percent"), for the reference; `hint` may know more about a
    number out of bounds.
    """

    least: int
    most: int
    unit: str = ""
    hint: Callable[[str], str] = lambda _: ""

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
        elif node.tag == "int" and _DECIMAL.fullmatch(text):
            if len(text) <= 12 and self.least <= int(text) <= self.most:
                return int(text)
            walker.error(node, f"{what} must be {wanted}, and not {quoted(text)}", self.hint(text))
        elif node.tag == "str" and text.isascii() and text.isdecimal():
            digits = text.lstrip("0") or "0"
            walker.error(
                node, f"{what} must be a number, and this is text", f"write {digits} without quotes"
            )
        else:
            walker.error(node, f"{what} must be {wanted}, and not {_said(node)}", self._hint(node))
        return None

    def _hint(self, node: Scalar) -> str:
        if self.unit == "percent" and re.fullmatch(r"(100|[0-9]{1,2}) ?%", node.text):
            return f"write {int(node.text.rstrip(' %'))}: the number is a percentage already"
        strange = node.tag == "int" and not re.fullmatch("[-+]?[1-9][0-9]*", node.text)
        return "write it in decimal digits" if strange else ""


_DECIMAL = re.compile("0|-?[1-9][0-9]*")


def _said(node: Scalar) -> str:
    strange = node.tag != "str" and not re.fullmatch("[-+]?[1-9][0-9]*", node.text)
    return f"{quoted(node.text)}, {meaning(node)} to YAML" if strange else quoted(node.text)


@dataclass(frozen=True, slots=True)
class Flag:
    """`true` or `false`, and none of the other words that YAML 1.1 has for them.

    `empty` is what mends a `false` that says nothing; "" where it says something.
    """

    empty: str = ""

    def read(self, walker: Walker, node: Node, what: str) -> bool | None:
        """See Reader."""
        walker.visit(node)
        wanted = "`true` or `false`"
        if not isinstance(node, Scalar):
            walker.error(node, f"{what} must be {wanted}, and this is {meaning(node)}")
        elif node.tag == "null":
            walker.error(node, f"{what} has no value", f"write {wanted}, or remove it")
        elif node.tag == "bool":
            value = meaning(node) == "the boolean true"
            word = str(value).lower()
            if self.empty and not value:
                walker.error(node, f"{what} that is `{node.text}` says nothing", self.empty)
                return None
            if node.text == word:
                return value
            walker.error(node, f"{what} must be {wanted}, and not {_said(node)}", f"write {word}")
        else:
            unquoted = node.text in ("true", "false")  # so it stands in quotes
            hint = f"write {node.text} without quotes" if unquoted else ""
            walker.error(node, f"{what} must be {wanted}, and not {_said(node)}", hint)
        return None


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of a few whole numbers."""

    numbers: tuple[int, ...]

    def read(self, walker: Walker, node: Node, what: str) -> int | None:
        """See Reader."""
        walker.visit(node)
        wanted, known = alternatives(map(str, self.numbers)), tuple(map(str, self.numbers))
        if not isinstance(node, Scalar):
            walker.error(node, f"{what} must be {wanted}, and this is {meaning(node)}")
        elif node.tag == "null":
            walker.error(node, f"{what} has no value", f"give it {wanted}, or remove it")
        elif node.text not in known:
            walker.error(node, f"{what} must be {wanted}, and not {_said(node)}")
        elif node.tag == "str":
            hint = f"write {node.text} without quotes"
            walker.error(node, f"{what} must be a number, and this is text", hint)
        else:
            return int(node.text)
        return None


Word = TypeVar("Word", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Choice(Generic[Word]):
    """One word of an enum.

    `alone` are words that say too little without more, each with what to do about it. `docs` says
    what each word means, for the reference.
    """

    words: type[Word]
    alone: dict[str, str] | None = None
    docs: dict[str, str] | None = None

    @property
    def known(self) -> list[str]:
        """The words that can be written."""
        return [word.value for word in self.words]

    def read(self, walker: Walker, node: Node, what: str) -> Word | None:
        """See Reader."""
        if isinstance(node, Scalar) and node.tag != "null":
            walker.visit(node)
            text: str | None = node.text  # `yes` in quotes would be as wrong
        else:
            text = expect_text(walker, node, what)
        if text is None:
            return None
        alone = self.alone or {}
        if text in self.words._value2member_map_:
            return self.words(text)
        if text in alone:
            walker.error(node, f"{what} {quoted(text)} says too little", alone[text])
            return None
        known = self.known
        wanted = alternatives(f"`{one}`" for one in known)
        meant = walker.guess(text, known)
        hint = did_you_mean(meant) if meant else f"use {wanted}"
        walker.error(node, f"{what} must be {wanted}, and not {quoted(text)}", hint)
        return None


def alternatives(words: Iterable[str]) -> str:
    """`a`, `b` or `c`."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last
