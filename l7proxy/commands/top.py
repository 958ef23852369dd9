"""`l7proxy top`: what a running l7proxy does, in a terminal."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from l7proxy.commands.client import AskError, add_admin, add_token, ask, wanted
from l7proxy.commands.common import Subparsers, print_json

if TYPE_CHECKING:
    from l7proxy.top.look import Look
    from l7proxy.top.reading import Reading

_EXAMPLES = """\
examples:
  l7proxy top                                     the one that runs here; q leaves
  l7proxy top --admin /run/l7proxy.sock -f route:api
  l7proxy top --once                              one plain text, for a ticket
  l7proxy top --once --json | jq .rates           for scripts

exit codes:
  0  it was told
  1  nobody could be asked
"""

_LISTED = 200  # connections that are asked for at a time


def add(commands: Subparsers) -> None:
    """Tell argparse about it."""
    top = commands.add_parser(
        "top",
        help="watch a running l7proxy: is it well, what flows, which connections are large",
        description="Watch a running l7proxy: whether it is well, how much flows and how much of it"
        " the kernel moves, backends, listeners, routes, live connections. Where standard output is"
        " no terminal, it is told once, as plain text.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_admin(top)
    add_token(top)
    top.add_argument(
        "-s",
        "--seconds",
        type=_seconds,
        metavar="S",
        help="between two readings (default: 2; 1 with --once)",
    )
    top.add_argument(
        "-f",
        "--filter",
        default="",
        metavar="TEXT",
        help="only connections with every word of it; client:, listener:, route:, backend:,"
        " endpoint:, state: and way: before a word choose exactly",
    )
    top.add_argument("--once", action="store_true", help="tell it once, and leave")
    top.add_argument("--json", action="store_true", help="once, as JSON")
    top.add_argument(
        "-n",
        "--limit",
        type=_limit,
        default=100,
        metavar="N",
        help="connections that --once tells of, those with the largest rate (default: 100)",
    )
    top.set_defaults(command=_top)


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0.1 <= found <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0.1 to 3600")
    return found


def _limit(text: str) -> int:
    if not text.isdecimal() or int(text) > 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 10000")
    return int(text)


def _top(options: argparse.Namespace) -> int:
    if options.once or options.json or not sys.stdout.isatty():
        return _once(options)
    from l7proxy.top.look import Look
    from l7proxy.top.terminal import show
    from l7proxy.top.views import VIEWS

    filters = (options.filter, *[""] * (len(VIEWS) - 1))
    asking = _Asking(options)
    show(asking.read, Look(seconds=options.seconds or 2.0, filters=filters))
    return 0


def _once(options: argparse.Namespace) -> int:
    import time

    from l7proxy.top.document import as_document, as_text
    from l7proxy.top.look import Look
    from l7proxy.top.reading import compare

    asking = _Asking(options, listed=max(_LISTED, options.limit))
    look = Look(filters=(options.filter, *Look().filters[1:]))
    before = asking.read(look)
    time.sleep(options.seconds or 1.0)
    picture = compare(before, asking.read(look))
    if options.json:
        print_json(as_document(picture, options.limit, options.filter))
    else:
        print(as_text(picture, options.limit, options.filter))
    return 0


class _Asking:
    """Takes readings; of the policy only when there is another one."""

    def __init__(self, options: argparse.Namespace, listed: int = _LISTED) -> None:
        self._options = options
        self._listed = listed
        self._policy: dict[str, object] | None = None
        self._generation = -1

    def read(self, look: Look) -> Reading:
        """Raises AskError. An l7proxy without `/connections` or `/policy` is shown without them."""
        import time
        from urllib.parse import urlencode

        from l7proxy.top.reading import Reading
        from l7proxy.top.views import chosen

        stats = wanted(self._options, "GET", "/stats")
        if not isinstance(stats, dict) or "condition" not in stats:
            raise AskError("what answers there is no l7proxy of this version")
        at = time.monotonic()
        fields, _ = chosen(look.filters[0])
        query = urlencode({**fields, "limit": self._listed, "sort": look.asks})
        status, listed = ask(self._options, "GET", f"/connections?{query}")
        if stats["policy"]["generation"] != self._generation:
            found, policy = ask(self._options, "GET", "/policy")
            self._policy = policy if found == 200 else None
            self._generation = stats["policy"]["generation"]
        return Reading(at, stats, listed if status == 200 else None, self._policy)
