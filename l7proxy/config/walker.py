"""The walker: looks at nodes, counts what it sees, and collects what is wrong."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Generic, TypeVar

from l7proxy.config import nodes
from l7proxy.config.nodes import Node, Scalar, Sequence
from l7proxy.config.problems import Note, Place, Problem, Severity, Source, quoted
from l7proxy.config.scalars import meaning
from l7proxy.model import Location

MAX_VISITS = 2_000_000  # security limit: nodes looked at, aliases and merges counted each time
MAX_PROBLEMS = 1_000  # enough for one sitting
MAX_GUESSES = 20_000  # words compared for "did you mean", a second's worth

T = TypeVar("T")


class Stop(Exception):
    """Reading ends here; the reason has been reported."""


@dataclass(eq=False, slots=True)
class At(Generic[T]):
    """A value and the node that it was read from."""

    value: T
    node: Node


class Walker:
    """Problems found so far, and how much of the tree may still be looked at."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.problems: list[Problem] = []
        self._unknown: list[Node] = []  # kept, so that their ids stay theirs
        self._unknown_ids: set[int] = set()
        self._visits = MAX_VISITS
        self._guesses = MAX_GUESSES

    def visit(self, node: Node) -> None:
        """Counts one look at a node; raises Stop when aliases make the policy too wide."""
        self._visits -= 1
        if self._visits < 0:
            self.error(
                node,
                f"aliases blow this policy up to more than {MAX_VISITS:,} values",
                "write the parts out, or use fewer aliases inside of aliases",
            )
            raise Stop

    def place(self, node: Node, part: slice | None = None) -> Place:
        """Where `node` stands, or the part of its text where that can be told for sure."""
        start, end = node.start, node.end
        if part is not None and isinstance(node, Scalar):
            first, last, _ = part.indices(len(node.text))
            last = max(last, first + 1)
            if (at := self.source.text.find(node.text, start, end)) >= 0:
                start, end = at + first, at + last
            elif (at := self._find_again(node, node.text[first:last], first)) >= 0:
                start, end = at, at + last - first
        return self.source.place(start, end)

    def location(self, node: Node) -> Location:
        """Where `node` begins."""
        return self.source.location(node.start)

    def written(self, node: Node) -> str:
        """How `node` stands in the file, quotes and all."""
        return self.source.text[node.start : node.end]

    def key(self, node: Node, name: str) -> Node | None:
        """The key of that name in a map, of its own or merged in."""
        pair = self._pair(node, name)
        return None if pair is None else pair[0]

    def value(self, node: Node, name: str) -> Node | None:
        """What stands behind that key."""
        pair = self._pair(node, name)
        return None if pair is None else pair[1]

    def _pair(self, node: Node, name: str) -> tuple[Node, Node] | None:
        self.visit(node)
        if not isinstance(node, nodes.Mapping):
            return None
        merged: list[Node] = []
        for key, value in node.pairs:
            if isinstance(key, Scalar) and key.tag == "merge":
                merged += value.items if isinstance(value, Sequence) else [value]
            elif isinstance(key, Scalar) and key.text == name:
                return key, value
        return next((found for part in merged if (found := self._pair(part, name))), None)

    def _find_again(self, node: Scalar, part: str, first: int) -> int:
        """The part in a text that was folded or has escapes: as many times there as here."""
        text, source = node.text, self.source.text
        if not part or text.count(part) != source.count(part, node.start, node.end):
            return -1
        at = node.start - 1
        for _ in range(text.count(part, 0, first) + 1):
            at = source.find(part, at + 1, node.end)
        return at

    def error(
        self,
        node: Node,
        message: str,
        hint: str = "",
        *,
        part: slice | None = None,
        notes: tuple[Note, ...] = (),
    ) -> None:
        """Reports an error at `node`; raises Stop after MAX_PROBLEMS."""
        if id(node) in self._unknown_ids:
            return
        place = self.place(node, part)
        self.problems.append(Problem(Severity.ERROR, message, place, hint, notes))
        if len(self.problems) >= MAX_PROBLEMS:
            raise Stop

    def unknown(self, node: Node) -> None:
        """Nobody can tell what `node` holds: an error says why, and no other is reported at it."""
        self._unknown.append(node)
        self._unknown_ids.add(id(node))

    def warn(
        self,
        node: Node,
        message: str,
        hint: str = "",
        *,
        notes: tuple[Note, ...] = (),
        severity: Severity = Severity.WARNING,
    ) -> None:
        """Reports a warning, or a note that is no fault, at `node`."""
        self.problems.append(Problem(severity, message, self.place(node), hint, notes))

    def note(self, message: str, node: Node) -> Note:
        """A second place for a problem."""
        return Note(message, self.place(node))

    def guess(self, word: str, known: Collection[str]) -> str | None:
        """The known word that was probably meant; None also when too much would be compared."""
        self._guesses -= len(known)
        if self._guesses < 0 or len(word) > 100:
            return None
        by_lower = {name.lower(): name for name in sorted(known, reverse=True)}
        near = get_close_matches(word.lower(), sorted(by_lower), n=1, cutoff=0.6)
        return by_lower[near[0]] if near else None

    def entries(self, mapping: nodes.Mapping) -> dict[str, tuple[Scalar, Node]]:
        """The pairs of a map by key, `<<` merged in; duplicates and odd keys are reported.

        As YAML's merge says: a key of the map itself wins over a merged one, and of several merged
        maps the first wins.
        """
        own: dict[str, tuple[Scalar, Node]] = {}
        merged: dict[str, tuple[Scalar, Node]] = {}
        merge: Scalar | None = None
        for key, value in mapping.pairs:
            self.visit(key)
            if not isinstance(key, Scalar):
                self.error(key, "a key must be plain text", "write it as `key: value`")
            elif key.tag == "merge":
                if merge is not None:
                    first = self.note("first written here", merge)
                    hint = "merge several maps with <<: [*one, *two]"
                    self.error(key, "the key `<<` is written twice", hint, notes=(first,))
                merge = key
                for name, pair in self._merged(value):
                    merged.setdefault(name, pair)
            elif key.text in own:
                first = self.note("first written here", own[key.text][0])
                self.error(key, f"the key {quoted(key.text)} is written twice", notes=(first,))
            else:
                own[key.text] = key, value
        for name, pair in merged.items():
            own.setdefault(name, pair)
        return own

    def _merged(self, value: Node) -> Iterator[tuple[str, tuple[Scalar, Node]]]:
        for part in value.items if isinstance(value, Sequence) else [value]:
            self.visit(part)
            if isinstance(part, nodes.Mapping):
                yield from self.entries(part).items()
            else:
                self.error(
                    part,
                    f"`<<` merges maps, and this is {meaning(part)}",
                    "write `<<: *anchor` with the anchor of a map",
                )


def did_you_mean(word: str) -> str:
    """The hint for a guess."""
    return f"did you mean {quoted(word)}?"
