"""What the kernel tells of a process, as metrics show it: processor time, memory, descriptors.

Its parent may read all of this of a child of another user; only the number of descriptors may be
missing, before Linux 6.2, where it would have to list them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")

# fields of /proc/PID/stat behind the name (proc_pid_stat(5)), counted from its third one
_UTIME, _STIME, _STARTTIME, _VSIZE, _RSS = 11, 12, 19, 20, 21


@dataclass(frozen=True, slots=True)
class Figures:
    """One process. `started` in seconds since the epoch; `descriptors`: None where unknown."""

    cpu_seconds: float
    resident_bytes: int
    virtual_bytes: int
    started: float
    descriptors: int | None


def look(pid: int) -> Figures | None:
    """The figures of a process; None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    words = text.rpartition(")")[2].split()
    return Figures(
        cpu_seconds=(int(words[_UTIME]) + int(words[_STIME])) / _TICKS,
        resident_bytes=int(words[_RSS]) * _PAGE,
        virtual_bytes=int(words[_VSIZE]),
        started=round(_boot() + int(words[_STARTTIME]) / _TICKS, 2),
        descriptors=_descriptors(pid),
    )


def _descriptors(pid: int) -> int | None:
    folder = f"/proc/{pid}/fd"
    try:
        # since 6.2 the size is their number (f1f1f2569901); to list them takes other rights
        return os.stat(folder).st_size or len(os.listdir(folder))
    except OSError:
        return None


_booted: list[float] = []


def _boot() -> float:
    """When the machine booted; asked once, for it moves with the clock."""
    if not _booted:
        for line in Path("/proc/stat").read_text().splitlines():
            if line.startswith("btime "):
                _booted.append(float(line.split()[1]))
    return _booted[0] if _booted else 0.0


class CpuTimes:
    """Processor seconds by place, over all processes that follow one another there.

    What a process used between the last look and its end is not known, and not counted.
    """

    def __init__(self) -> None:
        self._before: dict[int, float] = {}  # of those that ended, by place
        self._last: dict[int, tuple[int, float]] = {}  # pid and seconds

    def add(self, place: int, pid: int, seconds: float) -> float:
        """A look at the process that is there now; the seconds of all that were."""
        before = self._before.get(place, 0.0)
        last = self._last.get(place)
        if last is not None and last[0] != pid:
            before = self._before[place] = before + last[1]
        elif last is not None:
            seconds = max(seconds, last[1])
        self._last[place] = (pid, seconds)
        return round(before + seconds, 2)
