"""How a number reads. Three significant digits, more only where they stand before the point."""

from __future__ import annotations

from math import isinf

from .statistics import Spread

NBSP = "\N{NO-BREAK SPACE}"
EN_DASH = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
MICRO = "\N{MICRO SIGN}"

# What is read for an infinite latency (see `statistics`).
SATURATED = "saturated"


def number(value: float) -> str:
    """12,345 or 123 or 12.3 or 1.23 or 0.123; never an exponent."""
    if isinf(value):
        return SATURATED
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    if size >= 0.9995 or size < 0.0005:
        return f"{value:.2f}" if size >= 0.0005 else "0"
    return f"{value:.3f}"


def ratio(value: float) -> str:
    """A factor: 0.82, 1.30, 12.5."""
    return f"{value:.2f}" if abs(value) < 9.995 else number(value)


def span(spread: Spread, *, factor: bool = False) -> str:
    """Low and high, "" where they read alike."""
    if spread.count < 2:
        return ""
    tell = ratio if factor else number
    low, high = tell(spread.low), tell(spread.high)
    return f"{low}{EN_DASH}{high}" if low != high else ""


def duration(us: float) -> str:
    """Microseconds with the unit that suits them."""
    if isinf(us):
        return SATURATED
    for limit, unit in ((1e6, "s"), (1e3, "ms")):
        if us >= limit:
            return f"{short(us / limit)}{NBSP}{unit}"
    return f"{short(us)}{NBSP}{MICRO}s"


def short(value: float) -> str:
    """For an axis: no digits that say nothing, thousands as k and M."""
    for limit, letter in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            scale = 1e6 if letter == "M" else 1e3
            return f"{value / scale:.3g}{letter}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
