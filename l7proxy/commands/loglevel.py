"""`l7proxy loglevel`: how much a running l7proxy tells in its log."""

from __future__ import annotations

import argparse

from l7proxy.commands.client import add_admin, add_token, wanted
from l7proxy.commands.common import Subparsers


def add(commands: Subparsers) -> None:
    """Tell argparse about it."""
    loglevel = commands.add_parser(
        "loglevel",
        help="tell or change how much a running l7proxy logs",
        description="Tell how much a running l7proxy logs, or change it, in all its processes and"
        " until it is restarted.",
    )
    loglevel.add_argument(
        "level",
        nargs="?",
        choices=("debug", "info", "warning", "error"),
        help="the level from now on (default: tell which it is)",
    )
    add_admin(loglevel)
    add_token(loglevel)
    loglevel.set_defaults(command=_loglevel)


def _loglevel(options: argparse.Namespace) -> int:
    if options.level is None:
        found = wanted(options, "GET", "/loglevel")
    else:
        found = wanted(options, "POST", "/loglevel", {"level": options.level})
    print(found["level"])
    return 0
