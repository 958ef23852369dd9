"""`l7proxy connections`: the live connections of a running l7proxy, and the end of one."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from l7proxy.commands.client import add_admin, add_token, wanted
from l7proxy.commands.common import Subparsers, print_json

_FILTERS = ("state", "way", "listener", "route", "backend", "endpoint", "client")
_COLUMNS = ("id", "state", "way", "age", "idle", "route", "client", "endpoint", "up", "down")
_NUMBERS = frozenset(("age", "idle", "up", "down"))
_UNITS = "BKMGTPE"

_EXAMPLES = """\
examples:
  l7proxy connections --sort bytes --limit 20         those that have moved most
  l7proxy connections --route api --client 10.0.0.7   those of one client on one route
  l7proxy connections --reset 0-17                    end one: both ends see a reset

columns: who moves the bytes (way), seconds since accept (age) and since a byte moved (idle), bytes
to the backend (up) and to the client (down), in units of 1024.

exit codes:
  0  told, or done
  1  there is no such connection, or nobody could be asked
"""


def add(commands: Subparsers) -> None:
    """Tell argparse about it."""
    connections = commands.add_parser(
        "connections",
        help="tell of the live connections of a running l7proxy, or end one",
        description="Tell of the live connections of a running l7proxy, or end one.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_admin(connections)
    add_token(connections)
    for name in _FILTERS:
        connections.add_argument(f"--{name}", help=f"only those with this {name}")
    connections.add_argument(
        "--sort",
        default="age",
        metavar="COLUMN",
        help="age (default), idle, bytes, to_backend, to_client, kernel: from the largest; client,"
        " listener, route, backend, endpoint, state: from A; with =-COLUMN the other way round",
    )
    connections.add_argument(
        "--limit", default="100", metavar="N", help="at most so many (default: 100, most: 10000)"
    )
    connections.add_argument("--reset", metavar="ID", help="end this one")
    connections.add_argument("--json", action="store_true", help="as JSON")
    connections.set_defaults(command=_connections)


def _connections(options: argparse.Namespace) -> int:
    from urllib.parse import quote, urlencode

    if options.reset is not None:
        wanted(options, "DELETE", f"/connections/{quote(options.reset, safe='')}")
        print(f"{options.reset} is reset")
        return 0
    query = {name: value for name in _FILTERS if (value := getattr(options, name)) is not None}
    query |= {"sort": options.sort, "limit": options.limit}
    found = wanted(options, "GET", f"/connections?{urlencode(query)}")
    if options.json:
        print_json(found)
        return 0
    print("\n".join(_table([_cells(one) for one in found["connections"]])))
    if found["shown"] < found["total"]:
        print(f"{found['shown']:,} of {found['total']:,}; there are --limit, and more to choose by")
    for worker in found["silent_workers"]:
        print(f"l7proxy: worker {worker} does not answer, its are missing", file=sys.stderr)
    return 0


def _cells(one: dict[str, Any]) -> dict[str, str]:
    moved = one["bytes"]
    return {
        **{name: str(one.get(name) or "-") for name in _COLUMNS},
        "age": f"{one['age_seconds']:.0f}",
        "idle": f"{one['idle_seconds']:.0f}",
        "up": size(moved["to_backend"]),
        "down": size(moved["to_client"]),
    }


def size(count: int) -> str:
    """Bytes in at most five characters: 999B, 1.2K, 12K, 1023M."""
    value, unit = float(count), 0
    while value >= 1023.5 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{value:.1f}{_UNITS[unit]}" if unit and value < 9.95 else f"{value:.0f}{_UNITS[unit]}"


def _table(rows: list[dict[str, str]]) -> list[str]:
    heads = {name: name for name in _COLUMNS}
    widths = {name: max(len(row[name]) for row in [heads, *rows]) for name in _COLUMNS}
    return [
        "  ".join(
            row[name].rjust(widths[name]) if name in _NUMBERS else row[name].ljust(widths[name])
            for name in _COLUMNS
        ).rstrip()
        for row in [heads, *rows]
    ]
