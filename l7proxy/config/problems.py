"""What is to say about a policy, and how it is told: where, what, and what to do about it.

A problem keeps everything that its text needs (the line, not the file), so that it can be shown,
sorted and turned into other formats long after the file is gone.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from unicodedata import east_asian_width

from l7proxy.model import Location, Policy

_LINE_END = re.compile(r"\r\n|\n|\r")
_EXCERPT = 120  # columns of a line that are shown; a one-line policy of a megabyte is legal
_BEFORE = 60  # of them before the caret


class Severity(StrEnum):
    """How bad it is: an error keeps the policy from being used, a note is no fault at all."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Place:
    """A stretch of one line. `text` is the whole line, `width` the characters that are meant."""

    location: Location
    text: str = ""
    width: int = 1


@dataclass(frozen=True, slots=True)
class Note:
    """A second place that belongs to a problem."""

    message: str
    place: Place


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `hint` says what to do about it and may be empty."""

    severity: Severity
    message: str
    place: Place
    hint: str = ""
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True)
class Variable:
    """One `${NAME}` of a policy, and whether the environment or its default gave the value.

    The value itself is not kept: it may be a secret.
    """

    name: str
    place: Place
    default: bool


@dataclass(frozen=True, slots=True)
class Report:
    """All that is to say about a policy, in the order of its files.

    `policy` is None exactly when there are errors. `source` is the path that was asked for, `files`
    are those that were read.
    """

    source: str
    policy: Policy | None
    errors: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    notes: tuple[Problem, ...] = ()
    files: tuple[str, ...] = ()
    variables: tuple[Variable, ...] = ()

    def render(self, *, notes: bool = False) -> str:
        """Every problem and a last line that counts them; no newline at the end.

        `notes` adds those that are no fault.
        """
        counts = [
            f"{len(problems)} {word}{'' if len(problems) == 1 else 's'}"
            for word, problems in (("error", self.errors), ("warning", self.warnings))
            if problems
        ]
        summary = printable(f"{self.source}: {', '.join(counts) or 'ok'}")
        shown = self.errors + self.warnings + (self.notes if notes else ())
        return "\n".join([*map(render, sorted(shown, key=_by_place)), summary])


def _by_place(problem: Problem) -> tuple[str, int, int, str]:
    location = problem.place.location
    return location.file, location.line, location.column, problem.message


def in_order(problems: list[Problem]) -> tuple[Problem, ...]:
    """Sorted by file, line and column, each once: an alias can lead to one mistake repeatedly."""
    return tuple(sorted(dict.fromkeys(problems), key=_by_place))


class Source:
    """The text of a policy: turns character offsets into places.

    A policy of several files is one text, file after file, and knows where each begins.
    """

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.begins = [0]  # offset of each file
        self._files = [name]
        self._last = -1, ""  # a line and its text
        self._starts = [0, *(end.end() for end in _LINE_END.finditer(text))]

    @classmethod
    def joined(cls, name: str, files: Sequence[tuple[str, str]]) -> Source:
        """`files` are names and texts; `name` is the folder, which offset 0 stands for.

        `begins` has a first entry for the folder itself.
        """
        source = cls(name, "".join(["\n", *(f"{text}\n" for _, text in files)]))
        begin = 1
        for file, text in files:
            source.begins.append(begin)
            source._files.append(file)
            begin += len(text) + 1
        return source

    def place(self, start: int, end: int | None = None) -> Place:
        """The characters from `start` up to `end`, cut at the end of the first line.

        Lines end as editors see it (LF, CRLF, CR) and count from 1, as columns do; a column is one
        character (code point), tabs included.
        """
        row = bisect_right(self._starts, start) - 1
        line_start, line = self._starts[row], self._line(row)
        column = min(start - line_start, len(line))
        stop = column + 1 if end is None else min(end - line_start, len(line.rstrip()))
        return Place(self._location(start, row, column), line, max(1, stop - column))

    def location(self, start: int) -> Location:
        """Where the place of `start` begins, without its line: cheap, for what has no problem."""
        row = bisect_right(self._starts, start) - 1
        return self._location(start, row, start - self._starts[row])

    def _location(self, start: int, row: int, column: int) -> Location:
        file = bisect_right(self.begins, start) - 1
        first_row = bisect_right(self._starts, self.begins[file]) - 1 if file else 0
        return Location(self._files[file], row - first_row + 1, column + 1)

    def _line(self, row: int) -> str:
        """The text of a line; the last one is kept, since a policy may be one line of megabytes."""
        if self._last[0] != row:
            end = self._starts[row + 1] if row + 1 < len(self._starts) else len(self.text)
            self._last = row, self.text[self._starts[row] : end].rstrip("\r\n")
        return self._last[1]


def render(problem: Problem) -> str:
    """The problem as people read it.

        policy.yaml:3:5: error: unknown key `hostname` in a route
            3 |     hostname: [a.example.com]
              |     ^^^^^^^^
              = did you mean `hostnames`?

    Nothing in it can steer a terminal: characters that do not print are replaced.
    """
    lines = [f"{problem.place.location}: {problem.severity}: {problem.message}"]
    lines += _excerpt(problem.place)
    if problem.hint:
        lines.append(f"      = {problem.hint}")
    for note in problem.notes:
        lines.append(f"{note.place.location}: note: {note.message}")
        lines += _excerpt(note.place)
    return "\n".join(map(printable, lines))


def _excerpt(place: Place) -> list[str]:
    if not place.text:
        return []
    column = place.location.column - 1
    first = 0 if len(place.text) <= _EXCERPT else max(0, column - _BEFORE)
    shown = place.text[first : first + _EXCERPT]
    before, after = ("..." if first else ""), ("..." if first + _EXCERPT < len(place.text) else "")
    indent = " " * len(before) + "".join(map(_blank, shown[: column - first]))
    marked = shown[column - first : column - first + place.width]
    caret = "^" * max(1, sum(len(_blank(char)) for char in marked))
    return [
        f"{place.location.line:5} | {before}{shown}{after}".rstrip(),
        f"      | {indent}{caret}",
    ]


def _blank(char: str) -> str:
    """What takes the same room as `char` in the line above."""
    if char == "\t":
        return char
    return "  " if east_asian_width(char) in "WF" else " "


def printable(text: str) -> str:
    """`text` with everything that does not print replaced, tabs kept."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\t" else "\ufffd" for char in text)


def quoted(text: str) -> str:
    """`text` as it stands in a message: in backquotes, printable, and not longer than a line."""
    if not text:
        return '""'
    short = printable(text if len(text) <= 60 else f"{text[:57]}...").replace("\t", " ")
    return f"'{short}'" if "`" in short else f"`{short}`"
