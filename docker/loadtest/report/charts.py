"""Charts as SVG: lines on linear or logarithmic axes, and stacked bars from zero with whiskers.

Why not a library. matplotlib writes SVG, but with numpy and a font stack it is a hundred times the
rest of what the tests install, its colours are fixed when it draws (no dark mode) and its drawings
are one size (at 400 px its labels are 6 px high). plotly would put 4.6 MB of script into each
report, for one that people attach to a mail, and its charts have neither title nor description for
a screen reader. What a report needs of them is below: scales, ticks, and four shapes. Colours are
left to the style sheet, so they follow the reader's mode.

A chart is drawn WIDTH units wide with 12 unit letters and stands in a column of 280 to 600 px, so
its labels stay legible. It says what it shows in <title> and <desc>; each point has a <title> too,
which browsers show where the pointer rests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from xml.etree.ElementTree import Element

from .markup import add, node
from .numbers import short
from .style import Style

WIDTH, HEIGHT = 420.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 14.0, 26.0, 40.0
NAMES, VALUES = 130.0, 60.0  # of bars: room for names before them, and for values behind
ABOVE, ROW, THICK = 8.0, 20.0, 12.0
LETTER = 6.6  # the width of a digit


@dataclass(frozen=True, slots=True)
class Axis:
    """From `low` to `high`, with (value, label) where it is ticked. A log axis is above zero."""

    title: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    log: bool = False

    def at(self, value: float, start: float, end: float) -> float:
        """Where a value stands between two coordinates; what is beyond an end stands on it."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return start + share * (end - start)


def from_zero(title: str, most: float) -> Axis:
    """A linear axis that holds `most`, with ticks at 1, 2 or 5 times a power of ten."""
    most = most if most > 0 else 1.0
    rough = most / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= rough * 0.999)
    count = math.ceil(most / step - 1e-9)
    values = [step * n for n in range(count + 1)]
    return Axis(title, 0.0, values[-1], [(value, short(value)) for value in values])


def until(title: str, end: float) -> Axis:
    """As `from_zero`, but it ends where the values do (time has no more)."""
    whole = from_zero(title, end)
    return replace(whole, high=end, ticks=[tick for tick in whole.ticks if tick[0] <= end])


def logarithmic(
    title: str, least: float, most: float, label: Callable[[float], str] = short
) -> Axis:
    """An axis over both, from and to 1, 2 or 5 times a power of ten; ticked at the powers of ten,
    and at the others too where those are few."""
    exponents = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 2)
    ladder = [step * 10.0**exponent for exponent in exponents for step in (1, 2, 5)]
    low = max(value for value in ladder if value <= least * 1.0001)
    high = min(value for value in ladder if value >= most * 0.9999 and value > low)
    decades = [10.0**exponent for exponent in exponents if low <= 10.0**exponent <= high]
    shown = decades if len(decades) > 2 else [value for value in ladder if low <= value <= high]
    return Axis(title, low, high, [(value, label(value)) for value in shown], log=True)


@dataclass(frozen=True, slots=True)
class Point:
    """`told`: what its <title> says; a point without is not marked. `ring`: around its mark."""

    x: float
    y: float
    told: str = ""
    ring: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """`limit`: an x that is marked at the top of the chart, and what it is."""

    style: Style
    points: Sequence[Point]
    limit: tuple[float, str] | None = None


@dataclass(frozen=True, slots=True)
class Lines:
    """`diagonal`: draw where y equals x."""

    title: str
    description: str
    x: Axis
    y: Axis
    lines: Sequence[Line]
    diagonal: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """`parts` from the left: (class, length). A whisker from `low` to `high`, `text` behind it."""

    style: Style
    parts: Sequence[tuple[str, float]]
    low: float
    high: float
    text: str
    told: str


@dataclass(frozen=True, slots=True)
class Bars:
    """`reference`: a value with a line through all bars."""

    title: str
    description: str
    axis: Axis
    bars: Sequence[Bar]
    reference: float | None = None


Chart = Lines | Bars


def draw(chart: Chart, key: str) -> Element:
    """The <svg>. `key` is unique in the document."""
    height = HEIGHT if isinstance(chart, Lines) else ABOVE + len(chart.bars) * ROW + BOTTOM
    svg = node(
        "svg",
        node("title", chart.title, id=f"{key}-title"),
        node("desc", chart.description, id=f"{key}-desc"),
        viewBox=f"0 0 {WIDTH:g} {height:g}",
        role="img",
        aria_labelledby=f"{key}-title {key}-desc",
    )
    add(svg, *(_lines(chart) if isinstance(chart, Lines) else _bars(chart, height)))
    return svg


# ---- lines -----------------------------------------------------------------------------------

_X = (LEFT, WIDTH - RIGHT)
_Y = (HEIGHT - BOTTOM, TOP)


def _lines(chart: Lines) -> Iterator[Element]:
    x, y = chart.x, chart.y
    for value, label in y.ticks:
        height = y.at(value, *_Y)
        yield node("line", class_="grid", x1=_X[0], x2=_X[1], y1=height, y2=height)
        yield node("text", label, class_="tick", x=_X[0] - 6, y=height + 4, text_anchor="end")
    for value, label in x.ticks:
        across = x.at(value, *_X)
        yield node("line", class_="grid", x1=across, x2=across, y1=_Y[0], y2=_Y[1])
        middle = min(across, WIDTH - 1 - LETTER * len(label) / 2)
        yield node("text", label, class_="tick", x=middle, y=_Y[0] + 16, text_anchor="middle")
    d = f"M{_X[0]:g},{_Y[1]:g}V{_Y[0]:g}H{_X[1]:g}"
    yield node("path", class_="edge", d=d)
    yield node("text", y.title, class_="axis", x=2, y=13)
    yield node("text", x.title, class_="axis", x=_X[1], y=HEIGHT - 5, text_anchor="end")
    if chart.diagonal:
        end = min(x.high, y.high)
        yield node(
            "line",
            class_="guide",
            x1=x.at(0, *_X),
            y1=y.at(0, *_Y),
            x2=x.at(end, *_X),
            y2=y.at(end, *_Y),
        )
    # Ours last, so that others do not hide it where they are alike.
    for line in sorted(chart.lines, key=lambda line: line.style.rank):
        yield _line(chart, line)


def _line(chart: Lines, line: Line) -> Element:
    style = line.style
    group = node("g", class_=f"{style.classes} toggled")
    at = [(chart.x.at(p.x, *_X), chart.y.at(p.y, *_Y)) for p in line.points]
    if len(at) > 1:
        path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in at)
        add(group, node("path", node("title", style.name), class_="line", d=path))
    for (x, y), point in zip(at, line.points, strict=True):
        if point.told:
            shape = node("path", class_="mark", d=style.marker(x, y))
            reach = node("circle", class_="ring" if point.ring else "reach", cx=x, cy=y, r=8)
            add(group, node("g", node("title", f"{style.name}: {point.told}"), shape, reach))
    if line.limit is not None:
        value, told = line.limit
        across = chart.x.at(value, *_X)
        tick = node("path", class_="limit", d=f"M{across:.1f},{_Y[1]}v12")
        reach = node("circle", class_="reach", cx=across, cy=_Y[1] + 6, r=8)
        add(group, node("g", node("title", f"{style.name}: {told}"), tick, reach))
    return group


# ---- bars ------------------------------------------------------------------------------------

_BAR = (NAMES, WIDTH - VALUES)


def _bars(chart: Bars, height: float) -> Iterator[Element]:
    axis, bottom = chart.axis, height - BOTTOM
    for value, label in axis.ticks:
        across = axis.at(value, *_BAR)
        yield node("line", class_="grid", x1=across, x2=across, y1=ABOVE - 4, y2=bottom)
        yield node("text", label, class_="tick", x=across, y=bottom + 16, text_anchor="middle")
    yield node("text", axis.title, class_="axis", x=_BAR[1], y=height - 5, text_anchor="end")
    for number, bar in enumerate(chart.bars):
        yield _bar(axis, bar, ABOVE + number * ROW)
    if chart.reference is not None:
        across = axis.at(chart.reference, *_BAR)
        yield node("line", class_="reference", x1=across, x2=across, y1=ABOVE - 4, y2=bottom)


def _bar(axis: Axis, bar: Bar, top: float) -> Element:
    style = bar.style
    middle = top + ROW / 2
    group = node("g", node("title", f"{style.name}: {bar.told}"), class_=style.classes)
    add(group, node("rect", class_="reach", x=0, y=top, width=WIDTH, height=ROW))
    add(
        group, node("text", style.name, class_="name", x=NAMES - 6, y=middle + 4, text_anchor="end")
    )
    start = 0.0
    for kind, length in bar.parts:
        end = start + max(length, 0.0)
        x, right = axis.at(start, *_BAR), axis.at(end, *_BAR)
        shape = {"x": x, "y": middle - THICK / 2, "width": right - x, "height": THICK}
        add(group, node("rect", class_=f"part {kind}", **shape))
        start = end
    low, high = axis.at(bar.low, *_BAR), axis.at(bar.high, *_BAR)
    if bar.high > bar.low:
        ends = "".join(f"M{x:.1f},{middle - 4:g}v8" for x in (low, high))
        d = f"{ends}M{low:.1f},{middle:g}H{high:.1f}"
        add(group, node("path", class_="whisker", d=d))
    after = max(axis.at(start, *_BAR), high) + 5
    add(group, node("text", bar.text, class_="value", x=after, y=middle + 4))
    return group
