"""Results in, a report out: Markdown, and one HTML page with plots.

    statistics -> columns, goals -> tables -> markdown
                                 -> bars, curves, courses -> charts -> html

`statistics` knows what a median is of, `tables` and the figures what is shown, the others how.
"""

from __future__ import annotations

from pathlib import Path

from loadtest.results import Results

from .goals import goals
from .html import html
from .markdown import markdown

__all__ = ["goals", "html", "markdown", "write"]


def write(found: Results, path: Path) -> list[Path]:
    """Both reports, beside the raw results at `path`; raises OSError. Returns where they are."""
    written = []
    for suffix, text in ((".md", markdown(found)), (".html", html(found))):
        written.append(path.with_suffix(suffix))
        written[-1].write_text(text, encoding="utf-8")
    return written
