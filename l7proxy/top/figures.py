"""Numbers as an operator reads them, and text that is safe and as wide as it says."""

from __future__ import annotations

import math
import unicodedata

UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
NOTHING = "-"
"""Not known, or not defined: the share of no bytes. NaN and None are written so."""


def _unknown(value: float | None) -> bool:
    return value is None or not math.isfinite(value)


def amount(value: float | None) -> str:
    """Bytes with three digits, thousands of 1000: `999 B`, `1.23 kB`, `45.6 MB`."""
    if value is None or _unknown(value):
        return NOTHING
    left, unit = max(0.0, float(value)), 0
    while unit < len(UNITS) - 1 and left >= 999.5:
        left, unit = left / 1000, unit + 1
    digits = 0 if unit == 0 or left >= 99.95 else 1 if left >= 9.995 else 2
    return f"{left:.{digits}f} {UNITS[unit]}"


def flow(value: float | None) -> str:
    """Bytes in a second."""
    return NOTHING if _unknown(value) else f"{amount(value)}/s"


def count(value: float | None) -> str:
    """A whole number, its thousands apart."""
    return NOTHING if value is None or _unknown(value) else f"{value:,.0f}"


def often(value: float | None) -> str:
    """Events in a second."""
    if value is None or _unknown(value):
        return NOTHING
    if value == 0:
        return "0/s"
    if value < 0.01:
        return "<0.01/s"
    return f"{value:.2f}/s" if value < 1 else f"{value:.1f}/s" if value < 100 else f"{value:,.0f}/s"


def share(value: float | None) -> str:
    """A share in percent; 0 % and 100 % are said only where nothing is missing."""
    if value is None or _unknown(value):
        return NOTHING
    if value in (0, 1):
        return f"{value * 100:.0f} %"
    return f"{min(99.9, max(0.1, value * 100)):.1f} %"


def duration(seconds: float | None) -> str:
    """Seconds in the two units that matter: `0.2s`, `7s`, `3m 12s`, `5h 02m`, `12d 4h`."""
    if seconds is None or _unknown(seconds):
        return NOTHING
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f}s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole // 60 % 60:02d}m"
    return f"{whole // 86400}d {whole // 3600 % 24}h"


def clean(text: object) -> str:
    """Without anything that a terminal would obey, or turn around: such characters become `?`."""
    return "".join(one if one.isprintable() else "?" for one in str(text))


def width(text: str) -> int:
    """Columns that it takes in a terminal."""
    return sum(_columns(one) for one in text)


def _columns(one: str) -> int:
    if one.isascii():
        return 1
    if unicodedata.combining(one):
        return 0
    return 2 if unicodedata.east_asian_width(one) in "WF" else 1


def fit(text: str, columns: int, *, right: bool = False) -> str:
    """Exactly so many columns: filled up with blanks, or cut, which a `~` at the end tells."""
    if width(text) > columns:
        kept, taken = [], 0
        for one in text:
            taken += _columns(one)
            if taken > columns - 1:
                break
            kept.append(one)
        text = "".join(kept) + "~" * (columns > 0)
    blanks = " " * (columns - width(text))
    return blanks + text if right else text + blanks
