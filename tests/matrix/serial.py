"""The guest's two ways to speak: JSON to the host, and what its kernel complained about."""

from __future__ import annotations

import json
import os
import re
from typing import Any

_HOST = "/dev/ttyS1"

_COMPLAINT = re.compile(
    r"WARNING:|BUG:|Oops|general protection|recvmsg seq|soft lockup|detected stall|blocked for more"
    r"|refcount_t|Call Trace|RIP: 0010"
)


def send(**fields: Any) -> None:
    """One JSON object, one line, to the host."""
    with open(_HOST, "a", encoding="utf-8") as line:
        line.write(json.dumps(fields) + "\n")


class KernelLog:
    """The kernel's log from now on (Documentation/ABI/testing/dev-kmsg).

    Every reader of /dev/kmsg has a position of its own.
    """

    def __init__(self) -> None:
        self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._fd, 0, os.SEEK_END)

    def complaints(self) -> list[str]:
        """Lines since the last call that no healthy run writes."""
        return [line for line in self._lines() if _COMPLAINT.search(line)]

    def _lines(self) -> list[str]:
        lines: list[str] = []
        while True:
            try:
                record = os.read(self._fd, 8192)
            except BlockingIOError:
                return lines
            except BrokenPipeError:  # the ring has overwritten what was not read yet
                lines.append("WARNING: kernel log lines were lost")
                continue
            _, _, text = record.decode(errors="replace").partition(";")
            lines.append(text.splitlines()[0] if text else "")
