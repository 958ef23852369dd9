"""`l7proxy health`: whether a running l7proxy is well, as an exit code, for containers' checks."""

from __future__ import annotations

import argparse
import sys

from l7proxy.commands.client import add_admin, ask
from l7proxy.commands.common import Subparsers

_EXAMPLES = """\
examples:
  l7proxy health                                     is it alive?
  l7proxy health --admin /run/l7proxy.sock --ready   should new connections come here?

exit codes:
  0  yes
  1  no: it says so, or does not answer in time
"""


def add(commands: Subparsers) -> None:
    """Tell argparse about it."""
    health = commands.add_parser(
        "health",
        help="is a running l7proxy well? (for HEALTHCHECK and exec probes)",
        description="Ask a running l7proxy whether it is alive (GET /healthz), or ready (GET"
        " /readyz): not while it drains.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_admin(health)
    health.add_argument("--ready", action="store_true", help="ask whether it is ready")
    health.add_argument(
        "--seconds",
        type=float,
        default=2.0,
        metavar="S",
        help="how long to wait for the answer (default: 2)",
    )
    health.set_defaults(command=_health)


def _health(options: argparse.Namespace) -> int:
    path = "/readyz" if options.ready else "/healthz"  # no token is wanted for these
    status, text = ask(options, "GET", path, seconds=options.seconds)
    is_well = status == 200
    print(str(text)[:200].strip(), file=sys.stdout if is_well else sys.stderr)
    return 0 if is_well else 1
