"""`loadtest report`: Markdown and HTML of results files that are there."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from . import report
from .hosts import LoadTestError
from .results import ResultsError, merged, read


def add(subparsers: Any) -> None:
    """The command."""
    parser = subparsers.add_parser(
        "report",
        help="Markdown and HTML of raw results",
        description="Tables and plots of raw results, of several runs together where they are of "
        "different workloads. Without options: Markdown on stdout.",
    )
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULTS.json")
    parser.add_argument("--html", type=Path, metavar="FILE", help="one page, with the plots")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the tables")
    parser.set_defaults(command=_report)


def _report(options: argparse.Namespace) -> int:
    try:
        found = merged([read(path) for path in options.results])
        if options.html:
            options.html.write_text(report.html(found), encoding="utf-8")
        if options.markdown:
            options.markdown.write_text(report.markdown(found), encoding="utf-8")
        if not options.html and not options.markdown:
            sys.stdout.write(report.markdown(found))
    except (OSError, ResultsError) as error:
        raise LoadTestError(str(error)) from None
    return 0
