"""`loadtest native` and `loadtest scaling`: everything on this machine, without containers."""

from __future__ import annotations

import argparse
from typing import Any

from . import netns
from .drive import add_options, drive, plan
from .hosts import LoadTestError
from .native import NETWORKS, NativeHost
from .workloads import DEFAULT, QUICK, SCALING


def add(subparsers: Any) -> None:
    """Both commands."""
    native = subparsers.add_parser(
        "native",
        help="measure on this machine, on loopback or in network namespaces",
        description="Measure on this machine, without containers. As root: a network of its own.",
    )
    _options(native)
    native.set_defaults(command=_native, workloads=(DEFAULT, QUICK))
    scaling = subparsers.add_parser(
        "scaling",
        help="a connection per request with 1, 2 and 4 workers",
        description="The same as `native`, of how connections per second grow with the workers.",
    )
    _options(scaling)
    scaling.set_defaults(command=_native, workloads=(SCALING, SCALING))


def _options(parser: argparse.ArgumentParser) -> None:
    add_options(parser)
    parser.add_argument(
        "--network",
        choices=NETWORKS,
        default=NETWORKS[0],
        help="all on one loopback, or client, contender and origins in a namespace each, joined by "
        "veth and a bridge (%(default)s)",
    )
    parser.add_argument(
        "--host-sysctls",
        action="store_true",
        help="keep the host's TCP settings in the namespaces, not the kernel's defaults",
    )


def _native(options: argparse.Namespace) -> int:
    wanted = plan(options, *options.workloads)
    sysctls = not options.host_sysctls
    if not netns.isolate(sysctls=sysctls) and options.network == "namespaces":
        raise LoadTestError("network namespaces need root")
    return drive(options, NativeHost(options.network, sysctls=sysctls), wanted)
