"""`l7proxy reload`: have a running l7proxy read its policy again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from l7proxy.commands.client import AskError, add_admin, add_token, ask, place
from l7proxy.commands.common import Subparsers, print_json
from l7proxy.net.adminplace import is_unix

_SECONDS = 300.0  # a reload is over by then, whatever happens

_EXAMPLES = """\
examples:
  l7proxy reload --admin /run/l7proxy.sock
  l7proxy reload --pid $(pidof -x l7proxy)

exit codes:
  0  the policy is in force
  1  it was refused, and the one before goes on; or nobody could be asked
"""


def add(commands: Subparsers) -> None:
    """Tell argparse about it."""
    reload = commands.add_parser(
        "reload",
        help="have a running l7proxy read its policy again",
        description="Have a running l7proxy check its policy and swap it in all workers at once."
        " Waits for the outcome and prints it. Connections that there are go on; a policy with"
        " errors is refused with all of them, and the one before stays in force.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whom = reload.add_mutually_exclusive_group()
    add_admin(whom)
    whom.add_argument(
        "--pid",
        type=int,
        metavar="PID",
        help="its process id; without an admin server it is sent SIGHUP, and its log has the"
        " outcome",
    )
    add_token(reload)
    reload.add_argument("--json", action="store_true", help="the outcome as JSON")
    reload.set_defaults(command=_reload)


def _reload(options: argparse.Namespace) -> int:
    if options.pid is not None:
        options.admin = _admin_of(options.pid)
        if options.admin is None:
            return _signal(options.pid)
    status, outcome = ask(options, "POST", "/reload", seconds=_SECONDS)
    if status not in (200, 422):
        raise AskError(f"--admin {place(options)}: answered {status}: {str(outcome)[:200]}")
    if options.json:
        print_json(outcome)
    else:
        if outcome["text"]:
            print(outcome["text"], file=sys.stdout if outcome["ok"] else sys.stderr)
        if outcome["ok"]:
            print(f"policy loaded, generation {outcome['generation']}")
        else:
            print(f"refused; generation {outcome['generation']} goes on", file=sys.stderr)
    return 0 if outcome["ok"] else 1


def _admin_of(pid: int) -> str | None:
    """Where the process serves admin requests, as far as its command line tells; None: nowhere.

    Raises AskError unless it is an l7proxy: to most others SIGHUP means to end.
    """
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        raise AskError(f"--pid {pid}: there is no such process") from None
    arguments = raw.decode("utf-8", "surrogateescape").split("\0")
    if "run" not in arguments or not any("l7proxy" in one for one in arguments[:4]):
        raise AskError(f"--pid {pid}: this is no `l7proxy run`")
    found = [
        arguments[at + 1] if argument == "--admin" else argument.removeprefix("--admin=")
        for at, argument in enumerate(arguments)
        if argument == "--admin" or argument.startswith("--admin=")
    ]
    asked = [one for one in found if one != "off"]
    return next(filter(is_unix, asked), asked[0] if asked else None)


def _signal(pid: int) -> int:
    import os
    import signal

    try:
        os.kill(pid, signal.SIGHUP)
    except OSError as error:
        said = (error.strerror or str(error)).lower()
        raise AskError(f"--pid {pid}: {said}") from error
    print("asked; it has no admin server to wait for, its log has the outcome")
    return 0
