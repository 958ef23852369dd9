"""Policies: from a YAML file to a checked, frozen `model.Policy`, or to everything wrong with it.

    nodes        YAML text -> nodes that know where they stand (`syntax`: what cannot be read)
    walker       looks at nodes and collects problems (`scalars`: what YAML makes of a value)
    schema       readers: nodes -> values (`values`, `addresses`: texts that mean something)
    language     the keys of a policy -> a draft
    references   a draft -> a policy: what only the whole shows
    lint         warnings
    problems     how all of it is told

The words are those of the Kubernetes Gateway API. Nothing that stands in a file raises: it becomes
a problem with file, line and column. A policy is trusted input, but it is written by people and by
templates, so its size, depth and aliases are bounded all the same.
"""

from __future__ import annotations

from l7proxy.config import language, lint, nodes, references
from l7proxy.config.problems import (
    Note,
    Place,
    Problem,
    Report,
    Severity,
    Source,
    in_order,
    render,
)
from l7proxy.config.walker import Stop, Walker
from l7proxy.errors import PolicyError
from l7proxy.model import Location, Policy

__all__ = [
    "Note",
    "Place",
    "Problem",
    "Report",
    "Severity",
    "check",
    "check_text",
    "load",
    "render",
]

MAX_BYTES = 16 * 1024 * 1024  # security limit: 10,000 routes are about 2 MiB


def load(path: str) -> Policy:
    """The policy in the file `path`.

    Raises PolicyError when it has errors; `str()` of it is the whole report, warnings included.
    """
    report = check(path)
    if report.policy is None:
        raise PolicyError(report.render())
    return report.policy


def check(path: str) -> Report:
    """All errors and warnings of the policy in the file `path`; never raises for what is in it."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else None
        return _unreadable(path, f"cannot read this file: {reason or error}")
    if len(data) > MAX_BYTES:
        return _unreadable(path, f"a policy has at most {MAX_BYTES // 1024 // 1024} MiB")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return _not_utf8(path, data, error.start)
    return check_text(text, path)


def check_text(text: str, name: str = "policy.yaml") -> Report:
    """As `check`, of a text that is called `name` in messages."""
    source = Source(name, text.removeprefix("\ufeff"))
    try:
        root = nodes.compose(source)
    except nodes.SyntaxProblem as syntax:
        return _report(source.name, [syntax.problem])
    if root is None:
        place = source.place(0)
        hint = "a policy has `listeners`, `routes` and `backends`"
        return _report(name, [Problem(Severity.ERROR, "this file is empty", place, hint)])
    walker = Walker(source)
    policy = None
    try:
        draft = language.read(walker, root)
        references.check(walker, draft)
        if not walker.problems:
            policy = references.policy(walker, draft)
            lint.check(walker, draft, policy)
    except Stop:
        policy = None
    return _report(name, walker.problems, policy)


def _report(name: str, problems: list[Problem], policy: Policy | None = None) -> Report:
    return Report(
        source=name,
        policy=policy,
        errors=in_order([one for one in problems if one.severity is Severity.ERROR]),
        warnings=in_order([one for one in problems if one.severity is Severity.WARNING]),
    )


def _unreadable(path: str, message: str, hint: str = "") -> Report:
    place = Place(Location(path, 1, 1))
    return _report(path, [Problem(Severity.ERROR, message, place, hint)])


def _not_utf8(path: str, data: bytes, at: int) -> Report:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return _unreadable(path, "this file is UTF-16", "save it as UTF-8")
    source = Source(path, data.decode("utf-8", errors="replace"))
    place = source.place(len(data[:at].decode("utf-8")))
    message = f"the byte 0x{data[at]:02x} is not UTF-8"
    return _report(path, [Problem(Severity.ERROR, message, place, "save the file as UTF-8")])
