"""How a run goes on, for who watches it: bars on a terminal, a line for each sample elsewhere.

A bar overwrites itself, so in the log of a container or of CI it would be one long line of
fragments: there each sample is told when it was taken, and nothing is redrawn. rich is asked for
only where there is something to draw on; without it, there are lines too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, TextIO

from .results import Sample
from .run import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Rich
    from rich.progress import TaskID


def summary(sample: Sample) -> str:
    """A sample in a line."""
    figures = sample.figures
    parts = [f"{sample.workload:<14}{sample.contender:<17}{sample.load or '':<11}"]
    for key, form in (
        ("rate", "{:>12,.2f}/s"),
        ("p50_us", "p50 {:,.0f} us"),
        ("p99_us", "p99 {:,.0f} us"),
        ("cpu_us", "cpu {:,.1f} us"),
        ("cpu_gb", "cpu {:,.3f} s/GB"),
        ("pss_each_kib", "{:.2f} KiB each"),
        ("growth_kib", "grew {:,.0f} KiB"),
    ):
        if key in figures:
            parts.append(form.format(figures[key]))
    if sample.saturated:
        parts.append("saturated")
    if sample.problems:
        parts.append(f"INVALID: {sample.problems[0]}")
    return "  ".join(parts)


class Lines:
    """Progress as a line for each sample."""

    def __init__(self, total: int, say: Callable[[str], None]) -> None:
        self._total = total
        self._taken = 0
        self._say = say

    def start(self, sample: Sample) -> None:
        """Nothing: the line comes when there are figures."""

    def done(self, sample: Sample) -> None:
        """A line."""
        self._taken += 1
        self._say(f"{self._taken:>4}/{self._total} round {sample.round}  {summary(sample)}")

    def again(self) -> None:
        """Its number is used twice."""
        self._taken -= 1

    def skip(self, count: int) -> None:
        """They count as taken."""
        self._taken += count

    def say(self, text: str) -> None:
        """As it is."""
        self._say(text)


class Bars:
    """Progress as a bar at the bottom, with the time that is left; the samples go by above it."""

    def __init__(self, total: int, rich: Rich) -> None:
        self._rich = rich
        self._task: TaskID = rich.add_task("starting", total=total, invalid="")
        self._invalid = 0

    def start(self, sample: Sample) -> None:
        """What is being taken stands beside the bar."""
        words = [f"round {sample.round}", sample.workload, sample.load or "", sample.contender]
        self._rich.update(self._task, description=" ".join(filter(None, words)))

    def done(self, sample: Sample) -> None:
        """Its line goes above the bar."""
        self._print(summary(sample), "" if sample.valid else "red")
        self._invalid += not sample.valid
        invalid = f"{self._invalid} invalid" if self._invalid else ""
        self._rich.update(self._task, advance=1, invalid=invalid)

    def again(self) -> None:
        """The bar goes back by one."""
        self._rich.advance(self._task, -1)

    def skip(self, count: int) -> None:
        """They count as taken."""
        self._rich.advance(self._task, count)

    def say(self, text: str) -> None:
        """Above the bar."""
        self._print(text)

    def _print(self, text: str, style: str = "") -> None:
        # Neither markup nor emoji nor colours of numbers: a problem may say "[/]" or ":zap:".
        self._rich.console.print(text, style=style, markup=False, emoji=False, highlight=False)


@contextmanager
def progress(total: int, stream: TextIO | None = None) -> Iterator[Progress]:
    """Of `total` samples, told on `stream` (stderr); the bar is gone after the block."""
    stream = stream or sys.stderr
    if not stream.isatty() or not find_spec("rich"):

        def say(text: str) -> None:
            print(text, file=stream, flush=True)

        yield Lines(total, say)
        return
    from rich import progress as bars
    from rich.console import Console

    with bars.Progress(
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(bar_width=None),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("left"),
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.fields[invalid]}", style="red"),
        console=Console(file=stream),
        transient=True,
    ) as rich:
        yield Bars(total, rich)
