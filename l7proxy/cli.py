"""The command line. Only what a command needs is imported, once it is known which it is."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from l7proxy import __version__
from l7proxy.errors import L7ProxyError

if TYPE_CHECKING:
    from l7proxy.config.problems import Problem

_ABOUT = """\
l7proxy is a layer-7 TCP proxy. It reads the first request of a connection, decides from a policy
which backend it goes to, and then lets the kernel move the bytes (eBPF SOCKMAP).
"""

_EXAMPLES = """\
examples:
  l7proxy check policy.yaml                  is this policy right?
  sudo l7proxy run policy.yaml               run it (root loads the BPF program; workers are nobody)
  l7proxy run policy.yaml --datapath splice2 run it without BPF, as any user
  l7proxy doctor                             can the kernel splice here, and if not, why?
"""

_EXIT_CODES = """\
SIGTERM or Ctrl-C drains: no new connections, live ones may end. A second one resets them.

exit codes:
  0  stopped, every connection had ended
  1  could not start (the reason is printed), or workers could not
  3  stopped, and connections had to be reset
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


def _run(options: argparse.Namespace) -> int:
    from l7proxy import launch

    return launch.run(
        launch.Options(
            policy=options.policy,
            workers=options.workers,
            datapath=options.datapath,
            admin=options.admin,
            access_log=options.access_log,
            drain_seconds=options.drain_seconds,
            user=options.user,
            log_level=options.log_level,
        )
    )


def _check(options: argparse.Namespace) -> int:
    from l7proxy import config

    report = config.check(options.policy)
    if options.json:
        import json

        problems = [_as_dict(problem) for problem in (*report.errors, *report.warnings)]
        print(json.dumps({"ok": not report.errors, "problems": problems}, indent=2))
    else:
        print(report.render(), file=sys.stderr if report.errors else sys.stdout)
    return 1 if report.errors else 0


def _doctor(options: argparse.Namespace) -> int:
    from l7proxy import doctor

    return doctor.main(options.json)


def _as_dict(problem: Problem) -> dict[str, object]:
    location = problem.place.location
    return {
        "severity": str(problem.severity),
        "file": location.file,
        "line": location.line,
        "column": location.column,
        "message": problem.message,
        "hint": problem.hint,
    }


def _workers(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 1024")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to 86400")
    return value


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="l7proxy", description=_ABOUT, epilog=_EXAMPLES, formatter_class=formatter
    )
    parser.add_argument("--version", action="version", version=f"l7proxy {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = commands.add_parser(
        "run",
        help="run the proxy with a policy",
        description="Run the proxy in the foreground. Needs no rights to relay; to splice, root or"
        " CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (workers give all of it up).",
        epilog=_EXIT_CODES,
        formatter_class=formatter,
    )
    run.add_argument("policy", metavar="POLICY", help="the policy, a YAML file")
    run.add_argument(
        "--workers",
        type=_workers,
        metavar="N",
        help="worker processes (default: one for each CPU that l7proxy may use)",
    )
    run.add_argument(
        "--datapath",
        choices=("auto", "sockmap", "splice2", "copy"),
        default="auto",
        help="what moves the bytes: sockmap = the kernel (fails where it cannot), splice2 = user"
        " space with splice(2), copy = user space with recv and send, auto = sockmap where it"
        " works, else splice2 (default)",
    )
    run.add_argument(
        "--admin",
        metavar="ADDRESS",
        help="serve GET /healthz and GET /stats on unix:PATH, /PATH or 127.0.0.1:PORT (default:"
        " nowhere)",
    )
    run.add_argument(
        "--access-log",
        default="-",
        metavar="WHERE",
        help="a JSON line for each connection: - for stdout (default), a file, or off",
    )
    run.add_argument(
        "--drain-seconds",
        type=_seconds,
        default=30.0,
        metavar="S",
        help="how long live connections may go on after SIGTERM (default: 30)",
    )
    run.add_argument(
        "--user",
        help="whom workers become when started as root (default: nobody; root: stay root, without"
        " any capability)",
    )
    run.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="how much to tell on stderr (default: info)",
    )
    run.set_defaults(command=_run)

    check = commands.add_parser(
        "check",
        help="tell what is wrong with a policy",
        description="Check a policy without running it. Exit code 0 when it can be used (there may"
        " be warnings), 1 when not.",
    )
    check.add_argument("policy", metavar="POLICY", help="the policy, a YAML file")
    check.add_argument("--json", action="store_true", help="problems as JSON, for editors and CI")
    check.set_defaults(command=_check)

    doctor = commands.add_parser(
        "doctor",
        help="tell whether the kernel can splice here, and what to do if not",
        description="Check this machine: kernel, BTF, libbpf, capabilities, a self-test of the"
        " verdict program over loopback, and limits. Exit code 0 when l7proxy can splice, 1 when"
        " it can only relay.",
    )
    doctor.add_argument("--json", action="store_true", help="the checks as JSON")
    doctor.set_defaults(command=_doctor)
    return parser
