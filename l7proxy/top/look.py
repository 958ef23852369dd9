"""What is looked at, and what the keys do about it. Pure: a look and a key in, a look out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from l7proxy.top.views import CONNECTIONS, VIEWS, View

FASTEST = 0.5  # seconds between two readings
SLOWEST = 60.0
LONGEST = 200  # characters of a filter

KEYS = (
    ("q", "quit"),
    ("1-5", "show"),
    ("<>", "sort"),
    ("r", "reverse"),
    ("/", "filter"),
    ("p", "pause"),
    ("+-", "speed"),
    ("arrows", "scroll"),
)
"""What the last line of the screen says."""

TYPING_KEYS = (("Enter", "keep"), ("Esc", "no filter"), ("route:x way:relay", "exactly these"))


@dataclass(frozen=True, slots=True)
class Order:
    """The column that rows are sorted by (None: as they come), and which end is first."""

    column: int | None
    descending: bool


def _first_order(view: View) -> Order:
    return Order(view.sort, view.descends(view.sort))


@dataclass(frozen=True, slots=True)
class Look:
    """`view` is a number in VIEWS; `orders` and `filters` are for each. `top` is the first row.

    `seconds` between two readings. `typing`: keys go into the filter.
    """

    view: int = 0
    orders: tuple[Order, ...] = tuple(_first_order(view) for view in VIEWS)
    filters: tuple[str, ...] = ("",) * len(VIEWS)
    top: int = 0
    seconds: float = 2.0
    paused: bool = False
    typing: bool = False

    @property
    def order(self) -> Order:
        """Of the table that is shown."""
        return self.orders[self.view]

    @property
    def filter(self) -> str:
        """Of the table that is shown."""
        return self.filters[self.view]

    @property
    def asks(self) -> str:
        """The order to ask for connections in, so that those which are shown first are there."""
        order = self.orders[VIEWS.index(CONNECTIONS)]
        if order.column is None:
            return "bytes"
        column = CONNECTIONS.columns[order.column]
        if not column.asks:
            return "bytes"
        # `/connections` tells numbers from the largest and words from A, the other way behind a -
        turned = order.descending != column.number
        return ("-" if turned else "") + column.asks


def press(look: Look, key: str, rows: int, page: int) -> Look | None:
    """The look after this key; None: leave.

    `key` is a character or a name: up, down, page_up, page_down, home, end, left, right, enter,
    escape, backspace, tab, back_tab. `rows` is how many the table has, `page` how many are seen.
    """
    if look.typing:
        return _typed(look, key)
    last = max(0, rows - page)
    moves = {
        "up": look.top - 1,
        "down": look.top + 1,
        "page_up": look.top - page,
        " ": look.top + page,
        "page_down": look.top + page,
        "home": 0,
        "end": last,
    }
    if key in moves:
        return replace(look, top=min(last, max(0, moves[key])))
    if key in ("q", "Q"):
        return None
    if key.isdecimal() and 1 <= int(key) <= len(VIEWS):
        return replace(look, view=int(key) - 1, top=0)
    if key in ("tab", "back_tab"):
        step = 1 if key == "tab" else -1
        return replace(look, view=(look.view + step) % len(VIEWS), top=0)
    if key in ("<", "left", ">", "right"):
        return _sorted(look, -1 if key in ("<", "left") else 1)
    if key in ("r", "R"):
        return _ordered(look, replace(look.order, descending=not look.order.descending))
    if key == "/":
        return replace(look, typing=True)
    if key == "escape" and look.filter:
        return _filtered(look, "")
    if key in ("p", "P"):
        return replace(look, paused=not look.paused)
    if key in ("+", "-"):
        seconds = look.seconds * (0.5 if key == "+" else 2)
        return replace(look, seconds=min(SLOWEST, max(FASTEST, seconds)))
    return look


def _typed(look: Look, key: str) -> Look:
    if key == "enter":
        return replace(look, typing=False)
    if key == "escape":
        return replace(_filtered(look, ""), typing=False)
    if key == "backspace":
        return _filtered(look, look.filter[:-1])
    if len(key) == 1 and key.isprintable() and len(look.filter) < LONGEST:
        return _filtered(look, look.filter + key)
    return look


def _filtered(look: Look, text: str) -> Look:
    filters = (*look.filters[: look.view], text, *look.filters[look.view + 1 :])
    return replace(look, filters=filters, top=0)


def _sorted(look: Look, step: int) -> Look:
    """The next column that can be sorted by; behind the last one: as the rows come."""
    view = VIEWS[look.view]
    can: list[int | None] = [n for n, column in enumerate(view.columns) if column.key]
    can.append(None)
    column = can[(can.index(look.order.column) + step) % len(can)]
    return _ordered(look, Order(column, view.descends(column)))


def _ordered(look: Look, order: Order) -> Look:
    orders = (*look.orders[: look.view], order, *look.orders[look.view + 1 :])
    return replace(look, orders=orders, top=0)
