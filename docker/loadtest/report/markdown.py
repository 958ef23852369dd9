"""The report as Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from loadtest.results import Results

from . import scaling
from .statistics import Statistics
from .tables import (
    READING,
    Table,
    contender_table,
    facts,
    goal_table,
    invalid_table,
    sections,
)

TITLE = "Load test"


def markdown(results: Results) -> str:
    """The whole report, ending in a newline."""
    return "\n\n".join(_parts(results)) + "\n"


def _parts(results: Results) -> Iterator[str]:
    statistics = Statistics(results)
    yield f"# {TITLE}"
    yield "\n".join(f"- {name}: {_inline(value)}" for name, value in facts(results))
    if (goals := goal_table(results)) is not None:
        yield "## Goals"
        yield table(goals)
    if scaled := list(scaling.scaling_tables(statistics)):
        yield f"## {scaling.TITLE}"
        yield scaling.CAPTION
        for one in scaled:
            yield f"{one.caption}:"
            yield table(one)
    for section in sections(statistics):
        yield f"## {_escape(section.workload.title)}"
        yield f"`{section.workload.name}`"
        for one in section.tables:
            yield f"{one.caption}:"
            yield table(one)
    yield "## Contenders"
    yield table(contender_table(results))
    if invalid := statistics.invalid():
        yield "## Invalid samples"
        yield table(invalid_table(invalid))
    yield "## How to read it"
    yield from READING


def table(one: Table) -> str:
    """A pipe table. Contenders' names are code."""
    numbers = len(one.head) - one.words
    lines = [[_escape(title) for title in one.head], ["---"] * one.words + ["---:"] * numbers]
    for row in one.rows:
        cells = [_escape(cell.flat) for cell in row.cells]
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _inline(value: str) -> str:
    """A fact; a command as code."""
    return f"`{value}`" if value.startswith("python3 ") else _escape(value)


def _escape(text: str) -> str:
    """So that no character of it is markup, or ends the cell."""
    for character in "\\|`*_<[":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
