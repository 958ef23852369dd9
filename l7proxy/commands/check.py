"""`l7proxy check`: what is wrong with a policy, for people, editors and CI."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from l7proxy.commands.common import PATH_HELP, Subparsers, position, print_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from l7proxy.config.problems import Problem, Report
    from l7proxy.model import Policy
    from l7proxy.routing.ways import Ways

_SHOWN = 5  # routes that are named of those whose bytes go the same way

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
  splice     for each route that forwards, on each listener: the mode, whether `auto` chose it, why,
             and `ways`: which way heads, small and large bodies, and what was upgraded go
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
    if report.policy is not None:
        *problems, end = text.split("\n")
        text = "\n".join((*problems, *_ways(report.policy), end))
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


def _ways(policy: Policy) -> Iterator[str]:
    """For people: routes of a listener whose bytes go the same way stand together."""
    from l7proxy.config.problems import printable
    from l7proxy.routing import chosen
    from l7proxy.routing.ways import as_dict, lines, ways

    for listener in policy.listeners.values():
        choices = chosen(policy, listener)
        together: dict[tuple[str, Ways], list[str]] = {}
        for route in policy.routes:
            if (choice := choices.get(route.name)) is not None:
                mode = f"`splice: {choice.mode}`{', chosen by auto' if choice.chosen else ''}"
                way = ways(policy, listener, route, choice.mode)
                together.setdefault((mode, way), []).append(f"`{route.name}`")
        for (mode, way), names in together.items():
            shown = ", ".join(names[:_SHOWN])
            if len(names) > _SHOWN:
                shown += f" and {len(names) - _SHOWN:,} more"
            yield printable(f"listener `{listener.name}`, {shown}: {mode}")
            yield from (f"    {name:12} {what}" for name, what in lines(as_dict(way)))


def _splice(policy: Policy) -> list[dict[str, Any]]:
    from l7proxy.routing import chosen
    from l7proxy.routing.ways import as_dict, ways

    routes = {route.name: route for route in policy.routes}
    return [
        {
            "listener": listener.name,
            "route": name,
            "splice": str(choice.mode),
            "auto": choice.chosen,
            "why": choice.why,
            "ways": as_dict(ways(policy, listener, routes[name], choice.mode)),
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
