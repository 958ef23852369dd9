"""`l7proxy reload`: have a running l7proxy read its policy again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l7proxy.commands.common import Subparsers, print_json
from l7proxy.errors import L7ProxyError

if TYPE_CHECKING:
    import http.client

_SECONDS = 300.0  # a reload is over by then, whatever happens

_EXAMPLES = """\
examples:
  l7proxy reload --admin /run/l7proxy.sock
  l7proxy reload --pid $(pidof -x l7proxy)

exit codes:
  0  the policy is in force
  1  it was refused, and the one before goes on; or nobody could be asked
"""


class ReloadError(L7ProxyError):
    """Nobody could be asked."""


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
    whom = reload.add_mutually_exclusive_group(required=True)
    whom.add_argument(
        "--admin", metavar="ADDRESS", help="where it serves admin requests: what `run --admin` got"
    )
    whom.add_argument(
        "--pid",
        type=int,
        metavar="PID",
        help="its process id; without an admin server it is sent SIGHUP, and its log has the"
        " outcome",
    )
    reload.add_argument("--json", action="store_true", help="the outcome as JSON")
    reload.set_defaults(command=_reload)


def _reload(options: argparse.Namespace) -> int:
    admin = options.admin
    if admin is None:
        admin = _admin_of(options.pid)
    if admin is None:
        return _signal(options.pid)
    outcome = ask(admin)
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


def ask(admin: str) -> dict[str, Any]:
    """The outcome of `POST /reload`. Raises ReloadError when there is none."""
    import http.client
    import json

    asked = connection(admin)
    try:
        asked.request("POST", "/reload", headers={"X-L7proxy": "1"})
        response = asked.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ReloadError(f"--admin {admin}: {said.lower()}; does l7proxy run there?") from error
    finally:
        asked.close()
    try:
        outcome: dict[str, Any] = json.loads(body)
    except ValueError:
        text = body[:200].decode("utf-8", "replace").strip()
        raise ReloadError(f"--admin {admin}: answered {response.status}: {text}") from None
    return outcome


def connection(admin: str, seconds: float = _SECONDS) -> http.client.HTTPConnection:
    """A connection to the admin server there, not made yet. Raises ReloadError."""
    import http.client
    import socket

    if admin.startswith(("unix:", "/")):
        path = admin.removeprefix("unix:")

        class UnixConnection(http.client.HTTPConnection):
            def connect(self) -> None:
                self.sock = socket.socket(socket.AF_UNIX)
                self.sock.settimeout(seconds)
                self.sock.connect(path)

        return UnixConnection("localhost", timeout=seconds)
    try:
        return http.client.HTTPConnection(admin, timeout=seconds)
    except http.client.InvalidURL as error:
        raise ReloadError(f"--admin {admin}: {error}") from error


def _admin_of(pid: int) -> str | None:
    """What `--admin` the process was started with; None when it has none.

    Raises ReloadError unless it is an l7proxy: to most others SIGHUP means to end.
    """
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        raise ReloadError(f"--pid {pid}: there is no such process") from None
    arguments = raw.decode("utf-8", "surrogateescape").split("\0")
    if "run" not in arguments or not any("l7proxy" in one for one in arguments[:4]):
        raise ReloadError(f"--pid {pid}: this is no `l7proxy run`")
    for at, argument in enumerate(arguments):
        if argument == "--admin":
            return arguments[at + 1]
        if argument.startswith("--admin="):
            return argument.removeprefix("--admin=")
    return None


def _signal(pid: int) -> int:
    import os
    import signal

    try:
        os.kill(pid, signal.SIGHUP)
    except OSError as error:
        said = (error.strerror or str(error)).lower()
        raise ReloadError(f"--pid {pid}: {said}") from error
    print("asked; it has no admin server to wait for, its log has the outcome")
    return 0
