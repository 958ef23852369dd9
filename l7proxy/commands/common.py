"""What several verbs share."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from l7proxy.config.problems import Place, Report

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

PATH_HELP = "the policy: a YAML file, or a folder whose *.yaml and *.yml are one policy"


def print_json(value: object) -> None:
    """One JSON document for programs, in ASCII: whatever a file is called, it can be printed."""
    print(json.dumps(value, indent=2))


def told_if_unusable(report: Report) -> bool:
    """Print what is wrong with a policy that has errors; whether it has."""
    if report.policy is None:
        print(report.render(), file=sys.stderr)
    return report.policy is None


def position(place: Place) -> dict[str, Any]:
    """A stretch of a file as JSON: lines and columns count from 1, `endColumn` is behind it."""
    location = place.location
    return {
        "file": location.file,
        "line": location.line,
        "column": location.column,
        "endLine": location.line,
        "endColumn": location.column + place.width,
    }
