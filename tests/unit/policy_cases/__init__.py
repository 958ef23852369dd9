"""Annotated policies: what `check` says stands under the characters that it says it about.

A case is a description and the lines of a policy, each behind `| `; below a line stand, behind
`! `, the carets, the severity and the message expected there, and after `=` the hint:

    === unknown key
    | routes: [{name: a, hostname: [x]}]
    !                    ^^^^^^^^ error: unknown key `hostname` in a route
    ! = did you mean `hostnames`?

`$ NAME=value` sets a variable of the environment. Sections that a case does not write are taken
from a small sound policy and stand behind it, unless `! whole` says that the case is the whole
file. Nothing but what is expected may be said; notes that are no fault count only where the case
says `! notes`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from l7proxy.config import Place, Report

HERE = Path(__file__).parent
SOUND = {
    "listeners": "listeners: {web: {address: 127.0.0.1:8080}}",
    "routes": "routes: [{name: all, backendRefs: [{name: app}]}]",
    "backends": "backends: {app: {endpoints: [127.0.0.1:9000]}}",
}
_EXPECTED = re.compile(r"(?P<indent> *)(?P<caret>\^+) (?P<severity>\w+): (?P<message>.*)")

_LONG = re.compile(r"@([0-9]+)(?:\*([^@]+))?@")  # that many letters, or times the text

Said = tuple[int, int, int, str, str, str]
"""Line, column, width, severity or "note", message, hint."""


@dataclass(frozen=True, slots=True)
class Case:
    about: str
    policy: str
    expected: tuple[Said, ...]
    environment: dict[str, str] = field(default_factory=dict)
    notes: bool = False


def read(name: str) -> list[Case]:
    """The cases of one file."""
    text = (HERE / f"{name}.txt").read_text(encoding="utf-8")
    return [_case(block) for block in re.split(r"^=== ", text, flags=re.MULTILINE)[1:]]


def _case(block: str) -> Case:
    about, *rest = block.splitlines()
    policy: list[str] = []
    expected: list[Said] = []
    environment: dict[str, str] = {}
    whole = notes = False
    for line in rest:
        mark, body = line[:1], line[2:]
        if mark == "|":
            policy.append(_LONG.sub(lambda found: (found[2] or "a") * int(found[1]), body))
        elif mark == "$":
            name, _, value = body.partition("=")
            environment[name] = value
        elif body == "whole":
            whole = True
        elif body == "notes":
            notes = True
        elif body.startswith("= "):
            expected[-1] = (*expected[-1][:5], body[2:])
        elif found := _EXPECTED.fullmatch(body):
            column, width = len(found["indent"]) + 1, len(found["caret"])
            said = (len(policy), column, width, found["severity"], found["message"], "")
            expected.append(said)
        else:
            raise ValueError(f"not understood: {line!r}")
    if not whole:
        written = {line.partition(":")[0] for line in policy}
        policy += [line for section, line in SOUND.items() if section not in written]
    text = "".join(f"{line}\n" for line in policy)
    return Case(about, text, tuple(expected), environment, notes)


def said(report: Report, *, notes: bool = False) -> list[Said]:
    """What a report says, in the form in which cases expect it."""
    out: list[Said] = []
    for problem in (*report.errors, *report.warnings, *(report.notes if notes else ())):
        out.append(_said(problem.place, str(problem.severity), problem.message, problem.hint))
        out += [_said(note.place, "note", note.message, "") for note in problem.notes]
    return out


def _said(place: Place, severity: str, message: str, hint: str) -> Said:
    return (place.location.line, place.location.column, place.width, severity, message, hint)
