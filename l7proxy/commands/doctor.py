"""`l7proxy doctor`."""

from __future__ import annotations

import argparse

from l7proxy.commands.common import Subparsers


def add(commands: Subparsers) -> None:
    """Tell argparse about it."""
    doctor = commands.add_parser(
        "doctor",
        help="tell whether the kernel can splice here, and what to do if not",
        description="Check this machine: kernel, BTF, libbpf, capabilities, a self-test of the"
        " verdict program over loopback, and limits. Exit code 0 when l7proxy can splice, 1 when"
        " it can only relay.",
    )
    doctor.add_argument("--json", action="store_true", help="the checks as JSON")
    doctor.set_defaults(command=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from l7proxy import doctor

    return doctor.main(options.json)
