"""`l7proxy check`: what is wrong with a policy, for people, editors and CI."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from l7proxy.commands.common import PATH_HELP, Subparsers, position, print_json

if TYPE_CHECKING:
    from l7proxy.config.problems import Problem, Report
    from l7proxy.model import Policy

_EXIT_CODES = """\
exit codes:
  0  it can be used; there may be warnings
  1  it has errors, or warnings with --strict
  2  wrong usage

--json prints one object:
  ok         whether the exit code is 0
  problems   severity (error, warning, note), message, hint, and where: file, line, column, endLine,
             endColumn (from 1; endColumn is behind the last character); notes are second places
  files      what was read
  splice     for each route that forwards, on each listener: the mode, whether `auto` chose it, why
  variables  each ${NAME}: where it stands, and whether its default was used (values are not shown)
"""


def add(commands: Subparsers) -> None:
    """Tell argparse about it."""
    check = commands.add_parser(
        "check",
        help="tell what is wrong with a policy",
        description="Check a policy without running it: all errors at once, and warnings for what"
        " is legal and surely wrong.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("policy", metavar="PATH", help=PATH_HELP)
    check.add_argument("--json", action="store_true", help="as JSON, for editors and CI")
    check.add_argument("--strict", action="store_true", help="warnings are errors")
    check.set_defaults(command=_check)


def _check(options: argparse.Namespace) -> int:
    from l7proxy import config

    report = config.check(options.policy)
    refused = bool(report.errors or (options.strict and report.warnings))
    if options.json:
        print_json(_as_dict(report, refused))
        return int(refused)
    text = report.render(notes=True)
    if refused and not report.errors:
        text += ", and with --strict that is an error"
    print(text, file=sys.stderr if refused else sys.stdout)
    return int(refused)


def _as_dict(report: Report, refused: bool) -> dict[str, Any]:
    problems = (*report.errors, *report.warnings, *report.notes)
    return {
        "ok": not refused,
        "source": report.source,
        "problems": [_problem(problem) for problem in problems],
        "files": list(report.files),
        "splice": [] if report.policy is None else _splice(report.policy),
        "variables": [
            {"name": one.name, "default": one.default, **position(one.place)}
            for one in report.variables
        ],
    }


def _splice(policy: Policy) -> list[dict[str, Any]]:
    from l7proxy.routing import chosen

    return [
        {
            "listener": listener.name,
            "route": name,
            "splice": str(choice.mode),
            "auto": choice.chosen,
            "why": choice.why,
        }
        for listener in policy.listeners.values()
        for name, choice in chosen(policy, listener).items()
    ]


def _problem(problem: Problem) -> dict[str, Any]:
    return {
        "severity": str(problem.severity),
        **position(problem.place),
        "message": problem.message,
        "hint": problem.hint,
        "notes": [{"message": note.message, **position(note.place)} for note in problem.notes],
    }
