"""Policies: from YAML files to a checked, frozen `model.Policy`, or to everything wrong with it.

    sources      a path -> the texts of a file or of a folder's files
    nodes        YAML text -> nodes that know where they stand (`syntax`: what cannot be read)
    environment  `${NAME}` in values
    merging      the trees of several files -> one
    walker       looks at nodes and collects problems (`scalars`: what YAML makes of a value)
    schema       `readers`: nodes -> values (`values`, `addresses`, `httpvalues`: texts)
    language     the keys of a policy -> a draft
    references   a draft -> a policy: what only the whole shows (`rules`: what cannot go together)
    lint         warnings and notes
    problems     how all of it is told

The words are those of the Kubernetes Gateway API. Nothing that stands in a file raises: it becomes
a problem with file, line and column. A policy is trusted input, but it is written by people and by
templates, so its size, depth and aliases are bounded all the same.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from l7proxy.config import environment as variables
from l7proxy.config import language, lint, merging, nodes, references, sources
from l7proxy.config.problems import (
    Note,
    Place,
    Problem,
    Report,
    Severity,
    Source,
    Variable,
    in_order,
    render,
)
from l7proxy.config.walker import Stop, Walker
from l7proxy.errors import PolicyError
from l7proxy.model import Policy

__all__ = [
    "Note",
    "Place",
    "Problem",
    "Report",
    "Severity",
    "Variable",
    "check",
    "check_text",
    "check_texts",
    "load",
    "render",
]


def load(path: str, environment: Mapping[str, str] | None = None) -> Policy:
    """The policy at `path`, as `check` reads it.

    Raises PolicyError when it has errors; `str()` of it is the whole report, warnings included.
    """
    report = check(path, environment)
    if report.policy is None:
        raise PolicyError(report.render())
    return report.policy


def check(path: str, environment: Mapping[str, str] | None = None) -> Report:
    """All that is to say about the policy at `path`; never raises for what is there.

    `path` is a file, or a folder whose `*.yaml` and `*.yml` are one policy; `environment` is what
    `${NAME}` is replaced from, by default that of the process.
    """
    texts = sources.read(path)
    if texts.problems:
        return replace(_report(path, texts.problems), files=tuple(texts.names))
    values = os.environ if environment is None else environment
    if not texts.folder:
        return check_text(texts.files[0][1], path, values)
    return check_texts(texts.files, path, values)


def check_text(
    text: str, name: str = "policy.yaml", environment: Mapping[str, str] | None = None
) -> Report:
    """As `check`, of a text that is called `name` in messages; no variable is set by default."""
    source = Source(name, text.removeprefix("\ufeff"))
    return replace(_check(source, [source], environment or {}), files=(name,))


def check_texts(
    files: Sequence[tuple[str, str]], name: str, environment: Mapping[str, str] | None = None
) -> Report:
    """As `check_text`, of a folder called `name`; `files` are names and texts."""
    parts = [Source(file, text.removeprefix("\ufeff")) for file, text in files]
    source = Source.joined(name, [(part.name, part.text) for part in parts])
    report = _check(source, parts, environment or {})
    return replace(report, files=tuple(file for file, _ in files))


def _check(source: Source, parts: list[Source], environment: Mapping[str, str]) -> Report:
    """`source` is the text of all `parts`.

    A tree of a million nodes is built and dropped here, without a cycle in it. The collector of
    cycles would look through it again and again, which takes as long as all the rest.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _checked(source, parts, environment)
    finally:
        if collecting:
            gc.enable()


def _checked(source: Source, parts: list[Source], environment: Mapping[str, str]) -> Report:
    roots: list[nodes.Node] = []
    unread: list[Problem] = []
    for part, base in zip(parts, source.begins[-len(parts) :], strict=True):
        try:
            root = nodes.compose(part, base)
        except nodes.SyntaxProblem as syntax:
            unread.append(syntax.problem)
            continue
        if root is None:
            hint = "a policy has `listeners`, `routes` and `backends`"
            if len(source.begins) > len(parts):
                hint = "write a policy into it, or give it a name that does not end with .yaml"
            unread.append(Problem(Severity.ERROR, "this file is empty", part.place(0), hint))
        else:
            roots.append(root)
    if unread:
        return _report(source.name, unread)
    walker = Walker(source)
    policy = None
    used: tuple[Variable, ...] = ()
    try:
        used = variables.substitute(walker, roots, environment)
        root = roots[0] if len(source.begins) == 1 else merging.merge(walker, roots)
        if root is not None:
            draft = language.read(walker, root)
            references.check(walker, draft)
            if not walker.problems:
                policy = references.policy(walker, draft)
                lint.check(walker, draft, policy)
    except Stop:
        policy = None
    return replace(_report(source.name, walker.problems, policy), variables=used)


def _report(name: str, problems: list[Problem], policy: Policy | None = None) -> Report:
    def of(severity: Severity) -> tuple[Problem, ...]:
        return in_order([problem for problem in problems if problem.severity is severity])

    return Report(
        source=name,
        policy=policy,
        errors=of(Severity.ERROR),
        warnings=of(Severity.WARNING),
        notes=of(Severity.NOTE),
    )
