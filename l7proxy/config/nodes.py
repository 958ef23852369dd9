"""YAML text -> a tree of nodes that know where they stand.

The tree is built from PyYAML's events and not by its composer, for three reasons: the composer
recurses, and the one on libyaml (`CSafeLoader`) does so in C, where 100,000 opening brackets end
the process; an alias inside its own anchor makes its tree endless; and it resolves scalars before
we can see what they looked like. Here the depth is bounded, cycles are refused, and a scalar keeps
both its text and the type that YAML 1.1 reads into it, so that `no` where text is wanted can be
named as the trap that it is.

Aliases are resolved: the same node then stands in several places of the tree. It is as deep as it
looks but may be wider than memory, so whoever walks it has to count (`walker`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import yaml

from l7proxy.config import syntax
from l7proxy.config.problems import Note, Place, Problem, Severity, Source, quoted

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CORE = "tag:yaml.org,2002:"
# What YAML forbids (YAML 1.1, 5.1 `c-printable`), and the byte order mark anywhere but in front.
FORBIDDEN = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)


@dataclass(eq=False, slots=True)
class Node:
    """A stretch of the source: `start` up to `end`, in characters."""

    start: int
    end: int


@dataclass(eq=False, slots=True)
class Scalar(Node):
    """`tag` is what YAML 1.1 makes of it: str, null, bool, int, float, timestamp, merge, value.

    `plain`: it stands without quotes, and not in a block (`|`, `>`).
    """

    text: str
    tag: str
    plain: bool = False


@dataclass(eq=False, slots=True)
class Sequence(Node):
    """A list."""

    items: list[Node] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Mapping(Node):
    """A map, as written: duplicates and `<<` are still in it."""

    pairs: list[tuple[Node, Node]] = field(default_factory=list)


class SyntaxProblem(Exception):
    """The text is no YAML, or YAML that no policy needs. Carries the only problem to report."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def compose(source: Source, base: int = 0) -> Node | None:
    """The tree of the only document in `source`, or None when there is nothing in it.

    `base` is added to the offsets of all nodes: where this file begins in the text of all of them.
    Raises SyntaxProblem; the first syntax error ends the reading, since what follows it is a guess.
    """
    if (bad := FORBIDDEN.search(source.text)) is not None:
        raise SyntaxProblem(_control_character(source, bad.start()))
    try:
        return _Tree(source, base).read()
    except yaml.YAMLError as error:
        raise SyntaxProblem(syntax.explain(source, error)) from None


class _Tree:
    """One pass over the events, with a stack of our own instead of recursion."""

    def __init__(self, source: Source, base: int) -> None:
        self._source = source
        self._base = base
        self._anchors: dict[str, Node] = {}
        self._open: list[Sequence | Mapping] = []
        self._keys: list[Node | None] = []  # beside _open: the key that waits for its value
        self._root: Node | None = None

    def read(self) -> Node | None:
        documents = 0
        for event in self._events():
            if isinstance(event, yaml.ScalarEvent):  # two of three events: in a hurry
                self._add(event.anchor, self._scalar(event))
            elif isinstance(event, yaml.SequenceStartEvent):
                self._push(event, Sequence(*self._span(event)))
            elif isinstance(event, yaml.MappingStartEvent):
                self._push(event, Mapping(*self._span(event)))
            elif isinstance(event, yaml.CollectionEndEvent):
                self._open.pop().end = self._span(event)[1]
                self._keys.pop()
            elif isinstance(event, yaml.AliasEvent):
                self._add(None, self._alias(event))
            elif isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    start, _ = self._span(event)
                    raise self._problem(
                        start,
                        start + 3,
                        "a policy file holds one YAML document, and a second one begins here",
                        "remove this `---`, or write one file for each policy",
                    )
        root = self._root
        return None if isinstance(root, Scalar) and root.tag == "null" else root

    def _events(self) -> Iterator[yaml.Event]:
        loader = _LOADER(self._source.text)
        try:
            while not isinstance(event := loader.get_event(), yaml.StreamEndEvent):
                yield event
        finally:
            loader.dispose()

    def _place(self, start: int, end: int) -> Place:
        return self._source.place(start - self._base, end - self._base)

    def _problem(
        self, start: int, end: int, message: str, hint: str = "", notes: tuple[Note, ...] = ()
    ) -> SyntaxProblem:
        place = self._place(start, end)
        return SyntaxProblem(Problem(Severity.ERROR, message, place, hint, notes))

    def _push(self, event: yaml.CollectionStartEvent, node: Sequence | Mapping) -> None:
        kind = "map" if isinstance(node, Mapping) else "seq"
        if event.tag not in (None, "!", _CORE + kind):
            raise self._tag(event)
        if len(self._open) == syntax.MAX_DEPTH:
            raise self._problem(node.start, node.start + 1, syntax.TOO_DEEP)
        self._add(event.anchor, node)
        self._open.append(node)
        self._keys.append(None)

    def _add(self, anchor: str | None, node: Node) -> None:
        if anchor is not None:
            self._anchor(anchor, node)
        if not self._open:
            self._root = node
            return
        parent = self._open[-1]
        if isinstance(parent, Sequence):
            parent.items.append(node)
        elif (key := self._keys[-1]) is None:
            self._keys[-1] = node
        else:
            if isinstance(node, Scalar) and node.start == node.end:
                node.start, node.end = key.start, key.end  # nothing there: the key is what to show
            parent.pairs.append((key, node))
            self._keys[-1] = None

    def _anchor(self, name: str, node: Node) -> None:
        first = self._anchors.setdefault(name, node)
        if first is not node:
            raise self._problem(
                node.start,
                node.start + 1 + len(name),
                f"the anchor `&{name}` is given twice",
                "give each its own name: an alias would mean whichever stands before it",
                (Note("the first one", self._place(first.start, first.start + 1 + len(name))),),
            )

    def _scalar(self, event: yaml.ScalarEvent) -> Scalar:
        plain, _ = event.implicit
        if event.tag is not None and event.tag not in ("!", _CORE + "str"):
            raise self._tag(event)
        text: str = event.value
        start, end = self._span(event)
        # Only an escape in double quotes can bring in what the text of the file does not hold.
        if event.style == '"' and (bad := FORBIDDEN.search(text)) is not None:
            raise self._problem(
                start, end, f"this text holds a control character (U+{ord(bad[0]):04X})"
            )
        if not plain or event.tag:
            return Scalar(start, end, text, "str")
        return Scalar(start, end, text, _plain_tag(text), plain=True)

    def _alias(self, event: yaml.AliasEvent) -> Node:
        name = event.anchor
        start, end = self._span(event)
        node = self._anchors.get(name or "")
        if node is None:
            raise self._problem(
                start,
                end,
                f"`*{name}` refers to an anchor, and no `&{name}` stands before it",
                f'where the text is meant, put it in quotes: "*{name}"',
            )
        if any(node is parent for parent in self._open):
            raise self._problem(start, end, f"`*{name}` stands inside of its own anchor `&{name}`")
        return node

    def _span(self, event: yaml.Event) -> tuple[int, int]:
        start, end = event.start_mark, event.end_mark
        assert start is not None  # only events made by hand have none
        assert end is not None
        return start.index + self._base, end.index + self._base

    def _tag(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> SyntaxProblem:
        tag = str(event.tag)
        shown = f"!!{tag.removeprefix(_CORE)}" if tag.startswith(_CORE) else tag
        return self._problem(
            *self._span(event),
            f"the tag {quoted(shown)} has no meaning in a policy",
            "leave the tag out",
        )


@lru_cache(maxsize=4096)  # keys come again and again
def _plain_tag(text: str) -> str:
    """The type of an unquoted scalar, by PyYAML's own YAML 1.1 table."""
    resolvers = yaml.SafeLoader.yaml_implicit_resolvers
    for tag, pattern in resolvers.get(text[:1], ()):
        if pattern.match(text):
            return str(tag).removeprefix(_CORE)
    return "str"


def _control_character(source: Source, at: int) -> Problem:
    char = source.text[at]
    name = "a byte order mark" if char == "\ufeff" else f"the control character U+{ord(char):04X}"
    return Problem(
        Severity.ERROR, f"{name} cannot stand here", source.place(at), "remove the character"
    )
