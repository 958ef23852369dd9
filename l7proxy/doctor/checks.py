"""What a check is, and how /proc and /sys are read."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class State(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report. `advice` says what to do and is empty when there is nothing to."""

    name: str
    state: State
    value: str
    advice: str = ""


def read(path: Path) -> str | None:
    """The text of a small file, stripped; None when it cannot be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def sysctl(root: Path, name: str) -> str | None:
    """The value of a setting, such as `net.core.somaxconn`; None when there is none."""
    return read(root / "proc/sys" / name.replace(".", "/"))


def numbers(text: str | None, count: int) -> tuple[int, ...] | None:
    """Exactly `count` integers, or None."""
    try:
        found = tuple(map(int, (text or "").split()))
    except ValueError:
        return None
    return found if len(found) == count else None
