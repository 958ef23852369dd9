"""YAML syntax errors in words that help.

PyYAML has two parsers, libyaml's and its own, and they word the same mistake differently. Both are
recognised here by what they say and told in one way; most of the traps that policies fall into
(`*.example.com`, `[::1]:80`, tabs) get the hint that mends them.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import yaml

from l7proxy.config.problems import Note, Problem, Severity, Source, quoted

MAX_DEPTH = 32  # security limit: nested lists and maps; the language needs 7

_IPV6 = re.compile(r"\[[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\](?::\d+)?")
_VARIABLE = re.compile(r"\$\{[^{}]*\}")
_WORD = re.compile(r"[^\s,\[\]{}]+")


def explain(source: Source, error: yaml.YAMLError) -> Problem:
    """The problem behind an exception of PyYAML; never raises."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return Problem(Severity.ERROR, f"not valid YAML: {error}", source.place(0))
    # What is missing at the end of the file is missing behind its last character.
    at = min(error.problem_mark.index, len(source.text.rstrip()))
    since = error.context_mark.index if error.context_mark is not None else at
    problem, context = error.problem or "", error.context or ""
    for trap in (_ipv6_near, _variable_near):
        if (found := trap(source, at, since)) is not None:
            return found
    for pattern, tell in _TABLE:
        if re.search(pattern, f"{context}: {problem}"):
            return tell(source, at, since)
    return Problem(Severity.ERROR, f"not valid YAML: {problem}", source.place(at))


def _ipv6_near(source: Source, at: int, since: int) -> Problem | None:
    """An unquoted `[::1]:80` is a list to YAML, and the parser stumbles inside it or behind it."""
    place = source.place(at)
    first = at - (place.location.column - 1)
    for found in _IPV6.finditer(place.text):
        start, end = first + found.start(), first + found.end()
        before = place.text[: found.start()]
        inside_quotes = before.count('"') % 2 or before.count("'") % 2
        if not inside_quotes and (start <= at <= end or start <= since <= end):
            return Problem(
                Severity.ERROR,
                f"{quoted(found[0])} begins with a bracket, which starts a list in YAML",
                source.place(start, end),
                f'put the address in quotes: "{found[0]}"',
            )
    return None


def _variable_near(source: Source, at: int, _since: int) -> Problem | None:
    """Inside of `[..]` and `{..}` an unquoted `${NAME}` is a text `$` and a map behind it."""
    place = source.place(at)
    first = at - (place.location.column - 1)
    for found in _VARIABLE.finditer(place.text):
        start, end = first + found.start(), first + found.end()
        if start <= at <= end:
            return Problem(
                Severity.ERROR,
                f"{quoted(found[0])} holds a brace, which starts a map inside of a list or map",
                source.place(start, end),
                f'put it in quotes: "{found[0]}"; a number needs a line of its own, without quotes',
            )
    return None


def hint_for_brackets(written: str) -> str:
    """For brackets and braces that are YAML, and were not meant to be."""
    if (found := _IPV6.match(written)) is not None:
        return f'put the address in quotes: "{found[0]}"'
    return "this looks like a template that was not filled in" if written[:2] == "{{" else ""


def _tell(message: str, hint: str = "") -> Callable[[Source, int, int], Problem]:
    def tell(source: Source, at: int, _since: int) -> Problem:
        return Problem(Severity.ERROR, message, source.place(at), hint)

    return tell


def _tell_opening(message: str, hint: str) -> Callable[[Source, int, int], Problem]:
    """For what shows only later: the caret stands where it began."""

    def tell(source: Source, _at: int, since: int) -> Problem:
        return Problem(Severity.ERROR, message, source.place(since), hint)

    return tell


def _tell_both(message: str, hint: str, note: str) -> Callable[[Source, int, int], Problem]:
    def tell(source: Source, at: int, since: int) -> Problem:
        notes = (Note(note, source.place(since)),)
        return Problem(Severity.ERROR, message, source.place(at), hint, notes)

    return tell


def _alias(source: Source, _at: int, since: int) -> Problem:
    found = _WORD.match(source.text, since)
    word = found[0] if found else "*"
    place = source.place(since, since + len(word))
    hint = f'put the text in quotes: "{word}"'
    if word == "*":
        hint = "where every host is meant, leave `hostnames` out; else put the text in quotes"
    return Problem(Severity.ERROR, "an unquoted `*` starts an alias in YAML", place, hint)


def _bad_start(source: Source, at: int, _since: int) -> Problem:
    char = source.text[at : at + 1]
    if char == "\t":
        return _TAB(source, at, at)
    return Problem(
        Severity.ERROR,
        f"no plain text can begin with {quoted(char)} in YAML",
        source.place(at),
        "put the text in quotes",
    )


def _escape(source: Source, at: int, _since: int) -> Problem:
    # libyaml marks the backslash, PyYAML's own parser the character behind it.
    start = at if source.text[at : at + 1] == "\\" else at - 1
    return Problem(
        Severity.ERROR,
        f"{quoted(source.text[start : start + 2])} is no escape that YAML knows",
        source.place(start, start + 2),
        "write `\\\\` for a backslash, or use single quotes",
    )


TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"
_TAB = _tell("a tab cannot indent a line in YAML", "use spaces")

_TABLE: tuple[tuple[str, Callable[[Source, int, int], Problem]], ...] = (
    (r"tab character", _TAB),
    (r"nesting depth", _tell(TOO_DEEP)),  # libyaml stops at a depth of its own
    (r"scanning an alias", _alias),
    (r"cannot start any token", _bad_start),
    (r"unknown escape", _escape),
    (
        r"quoted scalar.*unexpected end of stream",
        _tell_opening("this quote is never closed", "close it with the same quote"),
    ),
    (
        r"parsing a flow sequence.*expected ',' or '\]'",
        _tell_both(
            "expected `,` or `]` here",
            "close the list with `]`, or put text with special characters in quotes",
            "the list begins here",
        ),
    ),
    (
        r"parsing a flow mapping.*expected ',' or '\}'",
        _tell_both(
            "expected `,` or `}` here",
            "close the map with `}`, or put text with special characters in quotes",
            "the map begins here",
        ),
    ),
    (
        r"parsing a block (mapping|collection).*(expected key|expected <block end>|'-' indicator)",
        _tell_both(
            "this does not belong to the block that it stands in",
            "align it with the lines that it belongs to",
            "the block begins here",
        ),
    ),
    (
        r"mapping values are not allowed",
        _tell(
            "a `:` is not expected here",
            "check the indentation of this line, and put text that holds `: ` in quotes",
        ),
    ),
    (
        r"could not find expected ':'",
        _tell_opening("a `:` is missing after this", "a key is written as `key: value`"),
    ),
    (r"incompatible YAML document", _tell("policies are YAML 1.1", "remove the directive")),
    (r"expected .?<?document start", _tell("nothing can follow the end of the document")),
    (
        r"node content",
        _tell("a value is expected here", "put text that begins with `,` or `:` in quotes"),
    ),
)
