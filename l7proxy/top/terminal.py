"""The screen: curses, a thread that asks, and a loop that draws.

Facts behind it:

- curses knows the terminal by $TERM and by terminfo, of which a small image has a few only. What it
  does not know is taken for an xterm, as nearly all are.
- An answer may take seconds when a machine is in trouble, which is when somebody looks. So another
  thread asks, and keys are heard meanwhile.
- The size may change at any time: curses tells by a key, and a line that no longer fits is cut.
"""

from __future__ import annotations

import curses
import locale
import os
import threading
import time
from collections import deque
from collections.abc import Callable

from l7proxy.errors import L7ProxyError
from l7proxy.top.frame import ASCII, Frame, Glyphs, draw
from l7proxy.top.look import Look, press
from l7proxy.top.reading import Picture, Reading, compare
from l7proxy.top.views import Ink

_TICK = 200  # ms in which a key or a reading is waited for
_FLOWS = 600  # readings whose rate is remembered for the chart

_KEYS = {
    curses.KEY_UP: "up",
    curses.KEY_DOWN: "down",
    curses.KEY_LEFT: "left",
    curses.KEY_RIGHT: "right",
    curses.KEY_PPAGE: "page_up",
    curses.KEY_NPAGE: "page_down",
    curses.KEY_HOME: "home",
    curses.KEY_END: "end",
    curses.KEY_BTAB: "back_tab",
    curses.KEY_ENTER: "enter",
    curses.KEY_BACKSPACE: "backspace",
    "\n": "enter",
    "\r": "enter",
    "\t": "tab",
    "\x1b": "escape",
    "\x7f": "backspace",
    "\b": "backspace",
}


class Asker(threading.Thread):
    """Asks again and again, until the program ends. `ask(look)` may raise L7ProxyError."""

    def __init__(self, ask: Callable[[Look], Reading], look: Look) -> None:
        super().__init__(daemon=True)
        self._ask = ask
        self._wake = threading.Event()
        self.look = look
        self.latest: Reading | None = None
        self.trouble = ""

    def run(self) -> None:
        """What the thread does."""
        while True:
            begun = time.monotonic()
            if not self.look.paused:
                try:
                    self.latest = self._ask(self.look)
                    self.trouble = ""
                except L7ProxyError as error:
                    self.trouble = str(error)
                except Exception as error:  # an answer of another version: the screen says so
                    self.trouble = f"{type(error).__name__}: {error}"
            self._wake.wait(max(0.05, self.look.seconds - (time.monotonic() - begun)))
            self._wake.clear()

    def see(self, look: Look) -> None:
        """Ask for what is looked at now; at once when other connections are wanted."""
        old, self.look = self.look, look
        filters = (old.filters[0], look.filters[0])
        if look.asks != old.asks or (filters[0] != filters[1] and ":" in filters[1] + filters[0]):
            self._wake.set()


def show(ask: Callable[[Look], Reading], look: Look) -> None:
    """Show it until somebody has seen enough. Raises L7ProxyError where there is no terminal."""
    locale.setlocale(locale.LC_ALL, "")
    os.environ.setdefault("ESCDELAY", "25")  # ms; a second is what curses waits by itself
    try:
        curses.setupterm()
    except curses.error:
        os.environ["TERM"] = "xterm"
    try:
        curses.wrapper(_loop, ask, look)
    except curses.error as error:
        raise L7ProxyError(f"the terminal cannot show it ({error}); try --once") from error


def _loop(screen: curses.window, ask: Callable[[Look], Reading], look: Look) -> None:
    inks = _inks()
    utf8 = locale.getpreferredencoding(False).lower().replace("-", "") == "utf8"
    glyphs = Glyphs() if utf8 else ASCII
    screen.timeout(_TICK)
    asker = Asker(ask, look)
    asker.start()
    shown: Reading | None = None
    picture: Picture | None = None
    flows: deque[float] = deque(maxlen=_FLOWS)
    while True:
        latest = asker.latest
        if latest is not None and latest is not shown:
            picture, shown = compare(shown, latest), latest
            flows.append(picture.rates.kernel + picture.rates.user)
        size = screen.getmaxyx()
        frame = draw(look, picture, flows, size, trouble=asker.trouble, glyphs=glyphs)
        _put(screen, frame, inks)
        for key in _pressed(screen):
            after = press(look, key, frame.rows, frame.page)
            if after is None:
                return
            look = after
        asker.see(look)


def _pressed(screen: curses.window) -> list[str]:
    """Keys by their names; none when nobody pressed any in time."""
    try:
        key = screen.get_wch()
    except curses.error:
        return []
    if key == curses.KEY_RESIZE:
        curses.update_lines_cols()
        screen.clear()  # and not erase: nobody knows what the terminal kept
        return []
    name = _KEYS.get(key)
    return [name] if name else [key] if isinstance(key, str) else []


def _put(screen: curses.window, frame: Frame, inks: dict[Ink, int]) -> None:
    screen.erase()
    for number, line in enumerate(frame.lines):
        try:
            screen.move(number, 0)
            for text, ink in line:
                screen.addstr(text, inks[ink])
        except curses.error:
            pass  # the last cell of the screen, or it has become smaller since
        except UnicodeEncodeError:
            screen.addstr("?")
    screen.refresh()


def _inks() -> dict[Ink, int]:
    inks = {
        Ink.PLAIN: curses.A_NORMAL,
        Ink.DIM: curses.A_NORMAL,
        Ink.BOLD: curses.A_BOLD,
        Ink.CHOSEN: curses.A_REVERSE,
        Ink.KERNEL: curses.A_NORMAL,
        Ink.USER: curses.A_NORMAL,
        Ink.GOOD: curses.A_BOLD,
        Ink.WARNING: curses.A_BOLD,
        Ink.BAD: curses.A_REVERSE | curses.A_BOLD,
    }
    try:
        curses.curs_set(0)
    except curses.error:
        pass
    if os.environ.get("NO_COLOR") or not curses.has_colors():
        return inks
    curses.start_color()
    curses.use_default_colors()
    colours = {
        Ink.KERNEL: curses.COLOR_CYAN,
        Ink.USER: curses.COLOR_YELLOW,
        Ink.GOOD: curses.COLOR_GREEN,
        Ink.WARNING: curses.COLOR_YELLOW,
        Ink.BAD: curses.COLOR_RED,
    }
    for number, (ink, colour) in enumerate(colours.items(), 1):
        curses.init_pair(number, colour, -1)
        inks[ink] |= curses.color_pair(number)
    return inks
