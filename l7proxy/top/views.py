"""The tables of `l7proxy top`: which columns they have, and in what order rows come. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from l7proxy.top.figures import amount, clean, count, duration, fit, flow, often, share, width
from l7proxy.top.reading import LEVELS, Picture


class Ink(Enum):
    """How text is written; a terminal without colours has bold and reverse for what matters."""

    PLAIN = auto()
    DIM = auto()
    BOLD = auto()
    CHOSEN = auto()  # reverse
    KERNEL = auto()
    USER = auto()
    GOOD = auto()
    WARNING = auto()
    BAD = auto()


@dataclass(frozen=True, slots=True)
class Column:
    """`text` is what stands there, `key` what rows are sorted by (None: they cannot be).

    `drop`: columns with the largest number go first when there is no room for all; 0 stays. `asks`
    is the order that `/connections` is asked for.
    """

    title: str
    text: Callable[[Any], str]
    key: Callable[[Any], Any] | None = None
    number: bool = False
    drop: int = 0
    ink: Callable[[Any], Ink] | None = None
    asks: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """A table. `rows` are those that there are, `sort` the column that orders them at first."""

    title: str
    columns: tuple[Column, ...]
    rows: Callable[[Picture], Sequence[Any]]
    sort: int | None = None
    none: str = "none"

    def descends(self, column: int | None) -> bool:
        """Whether an order by this column begins with the largest, as numbers do."""
        return column is not None and self.columns[column].number


def _way(row: Any) -> Ink:
    return {"kernel": Ink.KERNEL, "relay": Ink.USER}.get(row.way, Ink.PLAIN)


_INKS = {"good": Ink.GOOD, "warning": Ink.WARNING, "bad": Ink.BAD}


def _part(row: Any) -> float:
    return row.kernel / row.moved if row.moved else math.nan


CONNECTIONS = View(
    "Connections",
    (
        Column("CLIENT", lambda row: row.client, lambda row: row.client, asks="client"),
        Column("ROUTE", lambda row: row.route, lambda row: row.route, drop=2, asks="route"),
        Column("ENDPOINT", lambda row: row.endpoint, lambda row: row.endpoint, asks="endpoint"),
        Column("STATE", lambda row: row.state, lambda row: row.state, ink=_way, asks="state"),
        Column("RATE", lambda row: flow(row.rate), lambda row: row.rate, True, asks="bytes"),
        Column("BYTES", lambda row: amount(row.moved), lambda row: row.moved, True, asks="bytes"),
        Column("KERNEL", lambda row: share(_part(row)), _part, True, drop=1, asks="kernel"),
        Column("AGE", lambda row: duration(row.age), lambda row: row.age, True, asks="age"),
        Column(
            "IDLE", lambda row: duration(row.idle), lambda row: row.idle, True, drop=3, asks="idle"
        ),
        Column(
            "LISTENER", lambda row: row.listener, lambda row: row.listener, drop=4, asks="listener"
        ),
    ),
    lambda picture: picture.connections,
    sort=4,
    none="no connection lives now",
)

BACKENDS = View(
    "Backends",
    (
        Column("BACKEND", lambda row: row.backend, lambda row: row.backend),
        Column("ENDPOINT", lambda row: row.address, lambda row: row.address),
        Column(
            "STATE",
            lambda row: row.state,
            lambda row: row.state,
            ink=lambda row: _INKS.get(LEVELS.get(row.state, ""), Ink.PLAIN),
        ),
        Column("LIVE", lambda row: count(row.connections), lambda row: row.connections, True),
        Column("NEW", lambda row: often(row.rate), lambda row: row.rate, True),
        Column("FAILED", lambda row: count(row.failures), lambda row: row.failures, True, drop=1),
        Column("WEIGHT", lambda row: count(row.weight), lambda row: row.weight, True, drop=2),
        Column("WHY", lambda row: row.why),
    ),
    lambda picture: picture.backends,
)

LISTENERS = View(
    "Listeners",
    (
        Column("LISTENER", lambda row: row.name, lambda row: row.name),
        Column("PROTOCOL", lambda row: row.protocol, lambda row: row.protocol),
        Column("ADDRESS", lambda row: row.address, lambda row: row.address),
        Column("LIVE", lambda row: count(row.active), lambda row: row.active, True),
    ),
    lambda picture: picture.listeners,
)

ROUTES = View(
    "Routes",
    (
        Column("ROUTE", lambda row: row.name, lambda row: row.name),
        Column("LISTENERS", lambda row: row.listeners, lambda row: row.listeners),
        Column("SPLICE", lambda row: row.splice, lambda row: row.splice),
        Column("DEFINED AT", lambda row: row.place),
        Column("BECAUSE", lambda row: row.why, drop=1),
    ),
    lambda picture: picture.routes,
)

ERRORS = View(
    "Errors",
    (
        Column("REASON", lambda row: row.reason, lambda row: row.reason),
        Column("NOW", lambda row: often(row.rate), lambda row: row.rate, True),
        Column("SINCE THE START", lambda row: count(row.total), lambda row: row.total, True),
    ),
    lambda picture: picture.errors,
    sort=2,
    none="nothing went wrong since the start",
)

VIEWS = (CONNECTIONS, BACKENDS, LISTENERS, ROUTES, ERRORS)

FIELDS = ("client", "listener", "route", "backend", "endpoint", "state", "way")


def chosen(text: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """A filter's parts: `route:api` is for the proxy to choose by, other words for `arranged`."""
    fields, words = {}, []
    for word in text.split():
        name, colon, value = word.partition(":")
        if colon and value and name in FIELDS:
            fields[name] = value
        else:
            words.append(word.lower())
    return fields, tuple(words)


def arranged(
    view: View, picture: Picture, sort: int | None, descending: bool, text: str = ""
) -> list[Any]:
    """The view's rows with every word of the filter somewhere in them, in order.

    What is not known comes last, whichever way the order goes.
    """
    words = chosen(text)[1] if view is CONNECTIONS else tuple(text.lower().split())
    rows = list(view.rows(picture))
    if words:
        rows = [row for row in rows if _has(view, row, words)]
    key = None if sort is None else view.columns[sort].key
    if key is not None:
        known = [row for row in rows if not _is_nan(key(row))]
        unknown = [row for row in rows if _is_nan(key(row))]
        known.sort(key=key, reverse=descending)
        rows = known + unknown
    return rows


def _has(view: View, row: Any, words: Sequence[str]) -> bool:
    text = " ".join(column.text(row) for column in view.columns if not column.number).lower()
    return all(word in text for word in words)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def laid_out(
    view: View, rows: Sequence[Any], columns: int
) -> tuple[tuple[tuple[int, int], ...], list[list[str]]]:
    """Which columns fit, as (number, width), and the cells of the rows, cut to these widths.

    First columns are left out, by their `drop`; then the widest text is cut.
    """
    cells = [[clean(column.text(row)) for column in view.columns] for row in rows]
    widths = {
        number: min(columns, max([len(column.title) + 1, *(width(cell[number]) for cell in cells)]))
        for number, column in enumerate(view.columns)
    }

    def needed() -> int:
        return sum(widths.values()) + len(widths) - 1

    droppable = sorted(
        (n for n in widths if view.columns[n].drop), key=lambda n: -view.columns[n].drop
    )
    for number in droppable:
        if needed() > columns:
            del widths[number]
    while needed() > columns:
        text = [n for n in widths if not view.columns[n].number] or list(widths)
        widest = max(text, key=lambda n: widths[n])
        if widths[widest] <= 4:
            break
        widths[widest] -= 1
    fitted = [
        [fit(cell[n], wide, right=view.columns[n].number) for n, wide in widths.items()]
        for cell in cells
    ]
    return tuple(widths.items()), fitted
