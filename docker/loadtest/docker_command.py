"""`loadtest run`: the driver in the client's container, as compose.yaml starts it."""

from __future__ import annotations

import argparse
from typing import Any

from .containers import ContainerHost
from .drive import add_options, drive, plan


def add(subparsers: Any) -> None:
    """The command."""
    parser = subparsers.add_parser(
        "run",
        help="measure between containers (what compose.yaml starts in the client's)",
        description="Measure what the agents of the other containers start.",
    )
    add_options(parser)
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    wanted = plan(options)
    host = ContainerHost()
    with host.attended():
        return drive(options, host, wanted)
