"""The command line. Only what a command needs is imported, once it is known which it is."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from l7proxy import __version__
from l7proxy.commands import (
    check,
    connections,
    diff,
    doctor,
    drain,
    explain,
    health,
    loglevel,
    policy,
    reload,
    run,
    schema,
    sidecar,
    top,
    upgrade,
)
from l7proxy.errors import L7ProxyError

_VERBS = (
    *(run, reload, upgrade, drain, top, connections, policy, loglevel, health),
    *(check, explain, diff, schema, doctor, sidecar),
)

_ABOUT = """\
l7proxy is a layer-7 TCP proxy. It reads the first request of a connection, decides from a policy
which backend it goes to, and then lets the kernel move the bytes (eBPF SOCKMAP).
"""

_EXAMPLES = """\
examples:
  l7proxy check policy.yaml                  is this policy right?
  l7proxy explain policy.yaml GET http://h/x where does this request go, and why?
  l7proxy diff policy.yaml new.yaml          what would the new one change?
  sudo l7proxy run policy.yaml               run it (root loads the BPF program; workers are nobody)
  l7proxy run policy.yaml --datapath splice2 run it without BPF, as any user
  l7proxy top                                what does it do now?
  l7proxy sidecar enable policy.yaml         bring this namespace's connections to it
  l7proxy doctor                             can the kernel splice here, and if not, why?
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Expected errors are told in a line, without a traceback."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        code = command(options)
        sys.stdout.flush()
    except L7ProxyError as error:
        for line in str(error).splitlines():
            print(f"l7proxy: error: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `l7proxy doctor | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="l7proxy",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"l7proxy {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for verb in _VERBS:
        verb.add(commands)
    return parser
