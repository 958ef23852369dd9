"""A DEC VT52: a terminal that curses can draw on, and that a test can read from.

It has no colours and a handful of escapes, so this is all of it. terminfo knows it by `vt52`, which
is in ncurses-base. It cannot address a column behind the 94th.
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from select import select

PATIENCE = 60.0  # seconds
TERM = "vt52"


class Vt52:
    """A program on a terminal of `lines` and `columns`; `lines()` is what stands there."""

    def __init__(
        self, master: int, process: subprocess.Popen[bytes], size: tuple[int, int]
    ) -> None:
        self._master = master
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = ""
        self.process = process
        self._shape(size)

    def _shape(self, size: tuple[int, int]) -> None:
        self._height, self._width = size
        self._cells = [[" "] * self._width for _ in range(self._height)]
        self._row = self._column = 0

    def resize(self, lines: int, columns: int) -> None:
        """As if somebody drew at the window's corner."""
        self._shape((lines, columns))
        packed = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, packed)
        self.process.send_signal(signal.SIGWINCH)

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self._master, keys.encode())

    def lines(self) -> list[str]:
        """The screen, without blanks at the ends of lines."""
        return ["".join(line).rstrip() for line in self._cells]

    def until(self, wanted: str) -> None:
        """Wait until a line matches this regular expression."""
        self._until(lambda: any(re.search(wanted, line) for line in self.lines()), wanted)

    def until_last(self, wanted: str) -> list[str]:
        """The screen once its last line begins so: it is drawn when all others are."""
        self._until(lambda: self.lines()[-1].startswith(wanted), wanted)
        return self.lines()

    def _until(self, true: Callable[[], bool], wanted: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not true():
            screen = "\n".join(self.lines())
            assert time.monotonic() < deadline, f"not on the screen: {wanted}\n{screen}"
            if not self._read(0.2):
                assert self.process.poll() is None, f"it has ended, without {wanted}\n{screen}"

    def end(self) -> int:
        """The program's exit code."""
        while self._read(PATIENCE):
            pass
        return self.process.wait(PATIENCE)

    def _read(self, seconds: float) -> bool:
        if not select([self._master], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: nobody has the other end any more
            return False
        for one in self._decoder.decode(data):
            self._take(one)
        return bool(data)

    def _take(self, one: str) -> None:
        if self._pending or one == "\x1b":
            self._pending += one
            wanted = 4 if self._pending.startswith("\x1bY") else 2
            if len(self._pending) == wanted:
                self._escape(self._pending[1:])
                self._pending = ""
        elif one == "\r":
            self._column = 0
        elif one == "\n":
            self._row = min(self._height - 1, self._row + 1)
        elif one == "\b":
            self._column = max(0, self._column - 1)
        elif one == "\t":
            self._column = min(self._width - 1, self._column // 8 * 8 + 8)
        elif one >= " ":
            self._cells[self._row][self._column] = one
            self._column = min(self._width - 1, self._column + 1)
        else:
            assert one == "\x07", f"not of a VT52: {one!r}"

    def _escape(self, escape: str) -> None:
        row, column = self._row, self._column
        match escape[0]:
            case "Y":
                self._row, self._column = ord(escape[1]) - 32, ord(escape[2]) - 32
            case "H":
                self._row = self._column = 0
            case "A":
                self._row = max(0, row - 1)
            case "B":
                self._row = min(self._height - 1, row + 1)
            case "C":
                self._column = min(self._width - 1, column + 1)
            case "D":
                self._column = max(0, column - 1)
            case "J":
                self._cells[row][column:] = [" "] * (self._width - column)
                for below in range(row + 1, self._height):
                    self._cells[below] = [" "] * self._width
            case "K":
                self._cells[row][column:] = [" "] * (self._width - column)
            case "I":  # reverse line feed
                if row == 0:
                    self._cells = [[" "] * self._width, *self._cells[:-1]]
                self._row = max(0, row - 1)
            case "=" | ">" | "F" | "G":
                pass  # the keypad, the graphics set
            case other:
                raise AssertionError(f"not of a VT52: ESC {other}")


@contextlib.contextmanager
def running(
    command: Sequence[str], size: tuple[int, int] = (24, 80), term: str = TERM
) -> Iterator[Vt52]:
    """The program on such a terminal; it does not live on."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    environment = os.environ | {"TERM": term, "LC_ALL": "C.UTF-8"}
    for name in ("LINES", "COLUMNS"):
        environment.pop(name, None)
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
    )
    os.close(slave)
    try:
        yield Vt52(master, process, size)
    finally:
        process.kill()
        process.wait()
        os.close(master)
