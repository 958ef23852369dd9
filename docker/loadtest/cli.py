"""The command line: `python3 -m loadtest COMMAND`, run in `docker/`."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence

from . import agent, docker_command, native_command, report_command
from .hosts import LoadTestError

# Each has `add(subparsers)`, which sets `command` to a function of the parsed arguments.
COMMANDS = (native_command, docker_command, agent, report_command)


def parser() -> argparse.ArgumentParser:
    """All commands."""
    top = argparse.ArgumentParser(
        prog="python3 -m loadtest",
        description="l7proxy against a direct connection, HAProxy, nginx and Envoy.",
    )
    subparsers = top.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(subparsers)
    return top


def command_line(argv: Sequence[str]) -> str:
    """What was typed, for the head of the results."""
    return shlex.join(["python3", "-m", "loadtest", *argv])


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: every sample was valid in the end; 1: some were not; 2: it could not run."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(words)
    options.typed = command_line(words)
    signal.signal(signal.SIGTERM, _interrupt)  # as Ctrl-C: what was taken is still written
    try:
        code: int = options.command(options)
    except LoadTestError as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return 2
    return code
