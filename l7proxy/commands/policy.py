"""`l7proxy policy`: the policy that is in force in a running l7proxy."""

from __future__ import annotations

import argparse
import sys

from l7proxy.commands.client import add_admin, add_token, wanted
from l7proxy.commands.common import Subparsers, print_json

_SECONDS = 70.0  # thousands of routes take some

_EXAMPLES = """\
examples:
  l7proxy policy > now.yaml && l7proxy diff now.yaml policy.yaml    what would a reload change?
"""


def add(commands: Subparsers) -> None:
    """Tell argparse about it."""
    policy = commands.add_parser(
        "policy",
        help="print the policy that is in force in a running l7proxy",
        description="Print the policy that is in force, in one piece: variables replaced, defaults"
        " written out. With --json also the file and the line of each route, and what"
        " `splice: auto` chose for it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_admin(policy)
    add_token(policy)
    policy.add_argument("--json", action="store_true", help="as JSON, with the place of everything")
    policy.set_defaults(command=_policy)


def _policy(options: argparse.Namespace) -> int:
    found = wanted(options, "GET", "/policy", seconds=_SECONDS)
    if options.json:
        print_json(found)
    else:
        sys.stdout.write(found["policy"])
    return 0
