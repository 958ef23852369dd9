"""The reference manual: fresh, its examples are policies, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from policy_cases import SOUND

from l7proxy.config import check_text, manual
from l7proxy.config.jsonschema import schema

POLICIES = Path(__file__).resolve().parents[2] / "policies"
TEXT = manual.text()
EXAMPLES = [
    example
    for example in re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    if not example.startswith("#")
]


def test_the_committed_manual_is_fresh() -> None:
    committed = (POLICIES / "README.md").read_text()
    assert committed == TEXT, "run: l7proxy schema --manual > policies/README.md"


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples(example: str) -> None:
    """Each is a policy, with the sections that it leaves out taken from a small one."""
    written = yaml.safe_load(example)
    rest = "".join(f"{line}\n" for section, line in SOUND.items() if section not in written)
    report = check_text(example + rest)
    assert report.policy is not None, report.render()


def test_inline_examples_of_values() -> None:
    for duration in re.findall(r"`([0-9]+(?:ms|s|m|h))`", TEXT):
        assert check_text(
            "listeners: {web: {address: 127.0.0.1:80, timeouts: {idle: " + duration + "}}}\n"
            f"{SOUND['routes']}\n{SOUND['backends']}\n"
        ).policy


def test_every_key_has_a_row() -> None:
    def keys(part: object) -> set[str]:
        if isinstance(part, list):
            return {name for value in part for name in keys(value)}
        if isinstance(part, dict):
            own = set(part.get("properties", {}))
            return own | {name for value in part.values() for name in keys(value)}
        return set()

    rows = set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE))
    assert keys(schema()) - {"routes", "backends", "accessLog"} == rows


def test_no_two_headings_are_the_same() -> None:
    headings = re.findall(r"^#+ .*$", TEXT, re.MULTILINE)
    assert len(headings) == len(set(headings))


def test_tables_are_tables() -> None:
    for row in re.findall(r"^\|.*$", TEXT, re.MULTILINE):
        assert len(re.findall(r"(?<!\\)\|", row)) in (3, 5), row
