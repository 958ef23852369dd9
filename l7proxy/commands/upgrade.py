"""`l7proxy upgrade`: have another l7proxy take the place of a running one."""

from __future__ import annotations

import argparse
import sys

from l7proxy.commands.client import AskError, add_admin, add_token, ask, place
from l7proxy.commands.common import Subparsers, print_json

_SECONDS = 200.0  # an upgrade is over by then, whatever happens

_EXIT_CODES = """\
exit codes:
  0  the new one serves
  1  it did not come up, and the old one goes on; or nobody could be asked
"""


def add(commands: Subparsers) -> None:
    """Tell argparse about it."""
    upgrade = commands.add_parser(
        "upgrade",
        help="have a new l7proxy take over from a running one",
        description="Have a running l7proxy start its own command line anew (another release,"
        " another policy) and hand over its listeners, maps and spliced connections, which live on."
        " The old one exits then; if the new one does not come up, it goes on. SIGUSR2 does the"
        " same. What is not spliced has a second to end. Between releases that would not understand"
        " each other's maps the old one drains instead.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_admin(upgrade)
    add_token(upgrade)
    upgrade.add_argument("--json", action="store_true", help="the outcome as JSON")
    upgrade.set_defaults(command=_upgrade)


def _upgrade(options: argparse.Namespace) -> int:
    status, outcome = ask(options, "POST", "/upgrade", seconds=_SECONDS)
    if status not in (200, 422):
        raise AskError(f"--admin {place(options)}: answered {status}: {str(outcome)[:200]}")
    if options.json:
        print_json(outcome)
    elif outcome["ok"] and outcome["adopts"]:
        print(f"upgraded: process {outcome['pid']}, {outcome['pairs']} spliced connections")
    elif outcome["ok"]:
        print(f"process {outcome['pid']} serves; {outcome['text']}")
    else:
        print(f"not upgraded: {outcome['text']}", file=sys.stderr)
    return 0 if outcome["ok"] else 1
