"""A screen of `l7proxy top`: lines of text for a terminal of any size. Pure.

l7proxy 0.1.0  up 3d 0h  2/2 workers  sockmap  policy 2: policy.yaml                  HEALTHY
to clients   812 MB/s   to backends 1.20 MB/s   new 120/s   errors 0/s
live 4,812              spliced 4,700   relayed 30
kernel 97.3 %           ######################################################..
flow ...:::|||::...                                                          1.02 GB/s at most
1 Connections 4,812  2 Backends 12 (1 ill)  3 Listeners 2  4 Routes 9  5 Errors 2
CLIENT ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from l7proxy.top.figures import clean, count, duration, fit, flow, often, share, width
from l7proxy.top.look import KEYS, TYPING_KEYS, Look
from l7proxy.top.reading import LEVELS, Picture
from l7proxy.top.views import BACKENDS, CONNECTIONS, VIEWS, Ink, arranged, laid_out

Line: TypeAlias = list[tuple[str, Ink]]

PROBLEMS = 2  # lines for them; the first ones are the gravest
_CONDITIONS = {
    "good": ("HEALTHY", Ink.GOOD),
    "draining": ("DRAINING", Ink.WARNING),
    "impaired": ("IMPAIRED", Ink.WARNING),
    "failing": ("FAILING", Ink.BAD),
}


@dataclass(frozen=True, slots=True)
class Glyphs:
    """What bars are drawn with: `steps` from low to high."""

    steps: str = "▁▂▃▄▅▆▇█"
    full: str = "█"
    rest: str = "░"
    down: str = "↓"
    up: str = "↑"


ASCII = Glyphs(steps="_.-:=+*#", full="#", rest=".", down="v", up="^")


@dataclass(frozen=True, slots=True)
class Frame:
    """A screen, and what the keys need to know of it: how many rows there are, and are seen."""

    lines: list[Line]
    rows: int
    page: int


def draw(
    look: Look,
    picture: Picture | None,
    flows: Sequence[float],
    size: tuple[int, int],
    *,
    trouble: str = "",
    glyphs: Glyphs = Glyphs(),
) -> Frame:
    """The screen, exactly `size` (lines, columns) or less.

    `flows` are the rates of bytes of the latest readings, oldest first. `trouble`: why there is no
    newer reading.
    """
    height, columns = size
    lines: list[Line] = []
    rows: list[Any] = []
    page = 0
    if picture is None:
        lines.append([("l7proxy top", Ink.BOLD)])
        lines.append([(clean(trouble or "asking ..."), Ink.BAD if trouble else Ink.DIM)])
    else:
        lines += _summary(look, picture, flows, columns, trouble, glyphs)
        lines.append(_tabs(look, picture, columns))
        rows = arranged(
            VIEWS[look.view], picture, look.order.column, look.order.descending, look.filter
        )
        page = max(0, height - len(lines) - 2)
        lines += _table(look, rows, page, columns, glyphs)
    del lines[max(0, height - 1) :]
    lines += [[] for _ in range(height - 1 - len(lines))]
    lines.append(_keys(look, columns))
    return Frame([_cut(line, columns) for line in lines[-height:]], len(rows), page)


def _summary(
    look: Look, picture: Picture, flows: Sequence[float], columns: int, trouble: str, glyphs: Glyphs
) -> list[Line]:
    stats, rates = picture.stats, picture.rates
    workers, policy = stats["workers"], stats["policy"]
    word, ink = _CONDITIONS.get(stats["condition"]["is"], ("?", Ink.PLAIN))
    if trouble:
        word, ink = "NO ANSWER", Ink.BAD
    about = (
        f"  up {duration(stats['uptime_seconds'])}"
        f"  {workers['running']}/{workers['configured']} workers  {stats['datapath']}"
        f"  policy {policy['generation']}: {policy['source']}"
    )
    name = f"l7proxy {stats['version']}"
    room = columns - len(name) - len(word) - 3
    lines: list[Line] = [
        [(name, Ink.BOLD), (fit(clean(about), room), Ink.PLAIN), (f" {word} ", ink)],
        _figures(
            ("to clients", flow(rates.to_client)),
            ("to backends", flow(rates.to_backend)),
            ("new", often(rates.accepted)),
            ("errors", often(rates.errors)),
        ),
        _figures(
            ("live", count(stats["connections"]["active"])),
            ("spliced", count(stats["pairs"]["spliced"])),
            ("relayed", count(stats["pairs"]["relayed"])),
            ("every", "PAUSED" if look.paused else f"{look.seconds:g}s"),
        ),
        _kernel(rates.share, columns, glyphs),
        _sparkline(flows, columns, glyphs),
    ]
    if trouble:
        lines.append([(clean(trouble), Ink.BAD)])
        return lines
    problems = stats["condition"]["problems"]
    left = len(problems) - PROBLEMS + stats["condition"]["more"]
    for number, problem in enumerate(problems[:PROBLEMS]):
        why = f" ({problem['why']})" if problem["why"] else ""
        more = f", and {left} more" if left > 0 and number == PROBLEMS - 1 else ""
        grave = Ink.BAD if problem["level"] == "failing" else Ink.WARNING
        text = clean(problem["what"] + why)
        room = columns - len(more) - 2
        lines.append([("! ", grave), (fit(text, min(room, width(text))) + more, grave)])
    return lines


def _figures(*parts: tuple[str, str]) -> Line:
    line: Line = []
    for name, value in parts:
        line += [(f"{name} ", Ink.DIM), (fit(value, 11), Ink.BOLD)]
    return line


def _kernel(part: float, columns: int, glyphs: Glyphs) -> Line:
    told = fit(share(part), 8)
    room = max(0, columns - len("kernel ") - len(told))
    full = round(part * room) if part == part else 0
    return [
        ("kernel ", Ink.DIM),
        (told, Ink.BOLD),
        (glyphs.full * full, Ink.KERNEL),
        (glyphs.rest * (room - full), Ink.USER if part == part else Ink.DIM),
    ]


def _sparkline(flows: Sequence[float], columns: int, glyphs: Glyphs) -> Line:
    most = max((one for one in flows if one == one), default=0.0)
    told = f" {flow(most)} at most"
    room = max(0, columns - len("flow   ") - len(told))
    shown = list(flows)[-room:] if room else []
    top = len(glyphs.steps) - 1
    drawn = "".join(
        " " if one != one else glyphs.steps[min(top, int(one / most * top + 0.5)) if most else 0]
        for one in shown
    )
    return [("flow   ", Ink.DIM), (fit(drawn, room, right=True), Ink.KERNEL), (told, Ink.DIM)]


def _tabs(look: Look, picture: Picture, columns: int) -> Line:
    """With how many rows each has, if there is room for that."""
    ill = sum(LEVELS.get(row.state) == "bad" for row in picture.backends)
    counts = [picture.total if view is CONNECTIONS else len(view.rows(picture)) for view in VIEWS]
    for with_counts in (True, False):
        line: Line = []
        for number, (view, many) in enumerate(zip(VIEWS, counts, strict=True)):
            text = f"{number + 1} {view.title}"
            text += f" {many:,}" if with_counts or number == look.view else ""
            text += f" ({ill} ill)" if view is BACKENDS and ill else ""
            line += [(text, Ink.CHOSEN if number == look.view else Ink.PLAIN), ("  ", Ink.PLAIN)]
        del line[-1]
        if sum(width(text) for text, _ in line) <= columns:
            break
    return line


def _table(look: Look, rows: Sequence[Any], page: int, columns: int, glyphs: Glyphs) -> list[Line]:
    view, order = VIEWS[look.view], look.order
    top = min(look.top, max(0, len(rows) - page))
    seen = rows[top : top + page]
    widths, cells = laid_out(view, seen, columns)
    head: Line = []
    for number, wide in widths:
        column = view.columns[number]
        sign = (glyphs.down if order.descending else glyphs.up) if number == order.column else ""
        ink = Ink.BOLD if sign else Ink.DIM
        head += [(fit(column.title + sign, wide, right=column.number), ink), (" ", Ink.PLAIN)]
    lines = [head]
    for row, texts in zip(seen, cells, strict=True):
        line: Line = []
        for (number, _), text in zip(widths, texts, strict=True):
            ink_of = view.columns[number].ink
            line += [(text, ink_of(row) if ink_of else Ink.PLAIN), (" ", Ink.PLAIN)]
        lines.append(line)
    if not rows:
        lines.append([("nothing is like that" if look.filter else view.none, Ink.DIM)])
    return lines


def _keys(look: Look, columns: int) -> Line:
    line: Line = []
    if look.typing:
        line += [("filter: ", Ink.BOLD), (clean(look.filter), Ink.PLAIN), ("_  ", Ink.BOLD)]
    elif look.filter:
        line += [
            (fit(f"/{clean(look.filter)}", min(20, columns // 3)), Ink.WARNING),
            ("  ", Ink.DIM),
        ]
    for key, what in TYPING_KEYS if look.typing else KEYS:
        line += [(key, Ink.BOLD), (f" {what}", Ink.DIM), ("  ", Ink.DIM)]
    return line[:-1]


def _cut(line: Line, columns: int) -> Line:
    """The part of the line that there is room for."""
    found: Line = []
    left = columns
    for text, ink in line:
        if width(text) > left:
            if left > 0:
                found.append((fit(text, left), ink))
            return found
        found.append((text, ink))
        left -= width(text)
    return found
