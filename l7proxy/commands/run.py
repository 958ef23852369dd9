"""`l7proxy run`."""

from __future__ import annotations

import argparse
import os

from l7proxy.commands.common import PATH_HELP, Subparsers
from l7proxy.net.messages import GUARDIAN, SUCCESSION

_EXIT_CODES = """\
SIGHUP (or `l7proxy reload`) reads the policy again; a bad one is refused, the old one goes on.
SIGUSR1 opens the file of the access log again, for who has moved it away (logrotate).
SIGTERM or Ctrl-C ends it in order: not ready any more (--drain-delay), then no new connections,
live ones may end (--drain-seconds), what is left is reset. A second one resets at once.

exit codes:
  0  stopped, every connection had ended by itself
  1  could not start (the reason is printed), or workers could not
  2  the command line is wrong
  3  stopped, and connections had to be reset; the last line of the log says how many
  4  stopped, but a worker could not be ended (the reason is in the log)
  5  with --guardian: supervisors died one after the other, everything was reset
 >128  with --guardian: the supervisor died by signal N-128 while it was to end
"""


def add(commands: Subparsers) -> None:
    """Tell argparse about it."""
    run = commands.add_parser(
        "run",
        help="run the proxy with a policy",
        description="Run the proxy in the foreground. Needs no rights to relay; to splice, root or"
        " CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (workers give all of it up).",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("policy", metavar="PATH", help=PATH_HELP)
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
        action="append",
        help="where to serve admin requests: unix:PATH, /PATH or IP:PORT, several times for several"
        " places, or off (default: $L7PROXY_ADMIN, else unix:/run/l7proxy.sock as root,"
        " unix:$XDG_RUNTIME_DIR/l7proxy.sock as anyone else). A unix socket is its owner's alone;"
        " beyond loopback a token is wanted",
    )
    run.add_argument(
        "--admin-token-file",
        metavar="FILE",
        help="the token that admin requests over TCP have to bring (default: that in"
        " $L7PROXY_ADMIN_TOKEN, or none)",
    )
    run.add_argument(
        "--access-log",
        default="-",
        metavar="WHERE",
        help="where the access log goes to: - for stdout (default), a file (SIGUSR1 opens it"
        " again), syslog[:/dev/log | :IP:PORT][?facility=local0], or off; what is in it is"
        " `accessLog` of the policy",
    )
    run.add_argument(
        "--drain-delay",
        type=_seconds,
        default=0.0,
        metavar="S",
        help="how long listeners stay open after SIGTERM while readiness is off already, so that"
        " load balancers hear of it; in Kubernetes 5 to 15 (default: 0)",
    )
    run.add_argument(
        "--drain-seconds",
        type=_seconds,
        default=30.0,
        metavar="S",
        help="how long live connections may go on after that (default: 30)",
    )
    run.add_argument(
        "--drain-idle",
        type=_seconds,
        default=1.0,
        metavar="S",
        help="meanwhile, a kept-alive HTTP connection through which nothing has gone for so long is"
        " ended between two requests (default: 1)",
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
    run.add_argument(
        "--watch",
        action="store_true",
        help="reload when the files of the policy change (a file, a folder, a mounted ConfigMap)",
    )
    run.add_argument(
        "--keep-in-store",
        action="store_true",
        help="on SIGTERM, give listeners and spliced connections into the service manager's store"
        " of descriptors, for whoever starts next (systemctl restart), instead of draining; needs"
        " FileDescriptorStoreMax=",
    )
    run.add_argument(
        "--guardian",
        action="store_true",
        help="run below a small process that has everything once more: if the supervisor is killed,"
        " it starts the next one, and spliced connections live on. It is the main process then,"
        " passes signals on, reaps what a container's process 1 has to, and lets `upgrade` work"
        " there",
    )
    run.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    if options.guardian and not {SUCCESSION, GUARDIAN} & os.environ.keys():
        from l7proxy.supervisor import guardian

        return guardian.run(options.log_level)
    from l7proxy.supervisor import launch

    return launch.run(
        launch.Options(
            policy=options.policy,
            workers=options.workers,
            datapath=options.datapath,
            admin=None if options.admin is None else tuple(options.admin),
            admin_token_file=options.admin_token_file,
            access_log=options.access_log,
            drain_delay=options.drain_delay,
            drain_seconds=options.drain_seconds,
            drain_idle=options.drain_idle,
            user=options.user,
            log_level=options.log_level,
            watch=options.watch,
            keep_in_store=options.keep_in_store,
        )
    )


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
