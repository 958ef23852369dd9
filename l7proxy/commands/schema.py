"""`l7proxy schema`: the language for editors and for readers."""

from __future__ import annotations

import argparse

from l7proxy.commands.common import Subparsers


def add(commands: Subparsers) -> None:
    """Tell argparse about it."""
    schema = commands.add_parser(
        "schema",
        help="print the JSON Schema of policies, or the reference manual",
        description="Print the JSON Schema (2020-12) of policies. An editor with a YAML language"
        " server uses it where a policy begins with `# yaml-language-server: $schema=schema.json`.",
    )
    schema.add_argument(
        "--manual", action="store_true", help="the reference manual instead, in Markdown"
    )
    schema.set_defaults(command=_schema)


def _schema(options: argparse.Namespace) -> int:
    from l7proxy.config import jsonschema, manual

    print(manual.text() if options.manual else jsonschema.text(), end="")
    return 0
