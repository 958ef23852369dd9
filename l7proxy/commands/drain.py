"""`l7proxy drain`: have a running l7proxy end in order."""

from __future__ import annotations

import argparse
from typing import Any

from l7proxy.commands.client import AskError, add_admin, add_token, wanted
from l7proxy.commands.common import Subparsers, print_json

_PAUSE = 0.5  # seconds between two looks

_EXAMPLES = """\
It does what SIGTERM does, and asking twice changes nothing: a signal after it does not reset yet.
With --wait it fits a preStop hook.

exit codes:
  0  it drains; with --wait: it has ended
  1  nobody could be asked; with --wait: it had not ended in time
"""


def add(commands: Subparsers) -> None:
    """Tell argparse about it."""
    drain = commands.add_parser(
        "drain",
        help="have a running l7proxy end in order",
        description="Have a running l7proxy end: not ready any more, then no new connections, then"
        " live ones have until its deadline, then what is left is reset.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_admin(drain)
    add_token(drain)
    drain.add_argument("--wait", action="store_true", help="until it has ended, telling how far")
    drain.add_argument(
        "--seconds",
        type=float,
        default=3600.0,
        metavar="S",
        help="how long to wait at the most (default: 3600)",
    )
    drain.add_argument("--json", action="store_true", help="how far it has come, as JSON")
    drain.set_defaults(command=_drain)


def _drain(options: argparse.Namespace) -> int:
    import time

    until = time.monotonic() + options.seconds
    found = wanted(options, "POST", "/drain")
    _tell(options, found)
    while options.wait:
        if time.monotonic() > until:
            raise AskError(f"it still drains after {options.seconds:g} s")
        time.sleep(_PAUSE)
        before = found
        try:
            found = wanted(options, "POST", "/drain")  # which only tells, by now
        except AskError:
            if not options.json:
                print("it has ended")
            return 0
        if any(found.get(name) != before.get(name) for name in ("phase", "connections")):
            _tell(options, found)
    return 0


def _tell(options: argparse.Namespace, found: dict[str, Any]) -> None:
    if options.json:
        print_json(found)
    else:
        left = found.get("connections", 0)
        print(
            f"{found['phase']}: {left:,} connections, {found.get('seconds_left', 0.0):.0f} s left"
        )
