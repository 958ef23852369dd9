"""`l7proxy health`: whether a running l7proxy is well, as an exit code, for containers' checks."""

from __future__ import annotations

import argparse
import sys

from l7proxy.commands.common import Subparsers
from l7proxy.errors import L7ProxyError

_EXAMPLES = """\
examples:
  l7proxy health --admin /run/l7proxy.sock           is it alive?
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
    health.add_argument(
        "--admin",
        required=True,
        metavar="ADDRESS",
        help="where it serves admin requests: what `run --admin` got",
    )
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
    import http.client

    from l7proxy.commands.reload import connection

    asked = connection(options.admin, options.seconds)
    try:
        asked.request("GET", "/readyz" if options.ready else "/healthz")
        response = asked.getresponse()
        text = response.read(200).decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException) as error:
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise L7ProxyError(f"--admin {options.admin}: {said.lower()}") from error
    finally:
        asked.close()
    is_well = response.status == 200
    print(text, file=sys.stdout if is_well else sys.stderr)
    return 0 if is_well else 1
