"""`l7proxy run --guardian`: a process above the supervisor, so that its death ends no connection.

    guardian      what a service manager or a container engine knows as the main process
      supervisor  a child with the same command line; `guarded` is its end of the channel
        workers

The guardian has a duplicate of all that the supervisor has: listening sockets, maps, kept pairs. It
reads no byte of a connection, no policy and no file, and does nothing but what stands here. When
the supervisor dies, its workers see their channels end and leave; when they have, the next
supervisor is started, and this process plays the predecessor to it (`succession`). Clients wait in
the listeners' queues meanwhile.

- Nobody but one process may write to a ledger, so the next supervisor waits for the end of all that
  the last one has started. Each supervisor leads a process group of its own, which its children are
  in, and this process inherits them (PR_SET_CHILD_SUBREAPER): the group is gone when kill(2) with
  signal 0 says so. Orphans of others, which a container's process 1 inherits as well, are reaped
  and not waited for. A terminal's Ctrl-C comes once, too, for the group is not in its foreground.
- An end in order is announced (`Farewell`). Whatever ends without it, a traceback too, has died;
  but one that never came up, with nothing to be saved, is a failed start.
- After an upgrade the successor, a child of the last supervisor, is this process's by inheritance.
  It is the supervisor when the last one says so (`Succeeded`), not before; the last one may still
  drain then, and its pairs are kept until it has ended.
- To a process whose handlers are not there yet, SIGHUP, SIGUSR1 and SIGUSR2 would be the end: the
  supervisor starts with them blocked (`launch` unblocks them).
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from l7proxy.net import channel, privileges
from l7proxy.net.channel import MAX_FDS, Channel, ChannelBroken, ChannelClosed, Received
from l7proxy.net.messages import (
    FROM_SUCCESSOR,
    GUARDIAN,
    SUCCESSION,
    TO_GUARDIAN,
    Complete,
    Entrusted,
    Estate,
    Farewell,
    Heir,
    Installed,
    Listening,
    Maps,
    Ready,
    Returned,
    Succeeded,
    Taken,
    Withdrawn,
)
from l7proxy.supervisor.holdings import Holdings, Word, close_all
from l7proxy.telemetry import log as operational
from l7proxy.telemetry.log import event

log = logging.getLogger(__name__)

EXIT_RESET = 3  # as the supervisor's: told to end while there was none, with pairs
EXIT_GAVE_UP = 5  # supervisors died one after the other

TRIES = 8  # supervisors that may die in a row
HEALTHY = 10.0  # seconds that one has to live after it came up, to be none of these
BACKOFF_FIRST = 0.1  # seconds before the second try; doubled each time
BACKOFF_MOST = 5.0
START_SECONDS = 120.0  # that the next one may take to come up
LEAVE_SECONDS = 5.0  # that what a dead supervisor has started may take to leave; then SIGKILL

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_ENDING = (signal.SIGTERM, signal.SIGINT)
_BLOCKED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_FIRST_FD = 3  # sd_listen_fds(3)
_LOOK = 0.05  # seconds until it is looked again whether a group is gone


@dataclass(slots=True)
class _Line:
    """A channel, what is still to be said on it, and what its supervisor has."""

    end: Channel
    pid: int
    holdings: Holdings = field(default_factory=Holdings)
    news: deque[Iterator[Word]] = field(default_factory=deque)
    has_said_farewell: bool = False

    def add(self, message: object) -> None:
        """Say this after all the rest."""
        self.news.append(iter([(message, [], b"")]))

    def say(self) -> None:
        """What is left to be said, as far as it is read. Raises ChannelClosed, ChannelBroken."""
        self.end.flush()
        while self.news and not self.end.waiting:
            word = next(self.news[0], None)
            if word is None:
                self.news.popleft()
            else:
                self.end.send(*word)


class Guardian:
    """Keeps one supervisor alive. `run` answers with the exit code."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._poll = select.poll()
        self._lines: dict[int, _Line] = {}
        self._supervisor: _Line | None = None
        self._heir: _Line | None = None
        self._handing: _Line | None = None  # to a supervisor that starts
        self._left: Holdings | None = None  # of the one that has died
        self._passed = _passed()
        self._group = 0  # of the one that has died, until it is gone
        self._until = 0.0  # ... and may stay
        self._was_killed = False
        self._start_at = 0.0  # the next one; 0: not now
        self._started_at = 0.0
        self._deaths = 0
        self._up_at = 0.0
        self._is_ending = False
        self._is_hopeless = False
        self._code: int | None = None  # once it is known; one before may still drain

    def run(self) -> int:
        """Until the supervisor has ended in order, or it is hopeless."""
        self._take_signals()
        self._start()
        while self._code is None or (self._lines and not self._is_hopeless):
            for fd, _ in self._poll.poll(self._patience()):
                self._ready(fd)
            self._reap()
            self._go_on()
        return self._code

    def _patience(self) -> float | None:
        """Milliseconds; None: for ever."""
        if self._group:
            return _LOOK * 1000
        if self._start_at:
            return max(0.0, self._start_at - time.monotonic()) * 1000 + 1
        return None if self._handing is None else START_SECONDS * 1000

    # ---- signals

    def _take_signals(self) -> None:
        self._wake, wake = socket.socketpair()
        for end in (self._wake, wake):
            end.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        self._woken = wake  # it lives as long as this
        self._poll.register(self._wake, select.POLLIN)
        for number in _PASSED_ON:
            signal.signal(number, self._pass_on)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

    def _pass_on(self, number: int, _frame: object) -> None:
        self._is_ending |= number in _ENDING
        told = {self._supervisor.pid} if self._supervisor is not None else set()
        if number in _ENDING:  # one that still drains is told as well
            told |= {one.pid for one in self._lines.values() if one is not self._heir}
        for pid in told:
            try:
                os.kill(pid, number)
            except OSError as error:
                log.error(event("signal not passed on", signal=number, why=error.strerror))

    # ---- the supervisor's life

    def _start(self) -> None:
        self._start_at, self._up_at, self._started_at = 0.0, 0.0, time.monotonic()
        ours, theirs = channel.pair()
        handing, heritage = channel.pair()
        with theirs, heritage:
            fds = [theirs.fileno()]
            environment = os.environ | {GUARDIAN: f"{theirs.fileno()},{os.getpid()}"}
            environment.pop("WATCHDOG_PID", None)  # it is the supervisor that gives signs of life
            environment.pop("LISTEN_PID", None)
            if self._left is not None:
                fds.append(heritage.fileno())
                environment[SUCCESSION] = str(heritage.fileno())
            pid = self._fork(fds, environment)
        self._supervisor = self._add(_to(ours), pid)
        if self._left is None:
            handing.close()
            return
        self._handing = self._add(Channel(handing, FROM_SUCCESSOR), pid)
        self._handing.news.append(self._left.bequeath())
        self._say(self._handing)

    def _fork(self, fds: list[int], environment: dict[str, str]) -> int:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                self._be_supervisor(fds, environment)  # never returns
            os.setpgid(pid, pid)
        except PermissionError:
            pass  # it has done so itself, and is another program already
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        log.debug(event("supervisor started", pid=pid))
        return pid

    def _be_supervisor(self, fds: list[int], environment: dict[str, str]) -> None:
        try:
            os.setpgid(0, 0)
            if self._passed:
                environment["LISTEN_PID"] = str(os.getpid())
            for fd in (*fds, *self._passed):
                os.set_inheritable(fd, True)
            for number in (*_PASSED_ON, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, _BLOCKED)
            os.execve(self._command[0], self._command, environment)
        except BaseException as error:
            log.error(event("the supervisor cannot be started", why=error))
        finally:
            os._exit(127)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if self._supervisor is not None and pid == self._supervisor.pid:
                self._ended(self._supervisor, os.waitstatus_to_exitcode(status))

    def _ended(self, line: _Line, code: int) -> None:
        if line.end.fileno() >= 0:
            self._hear(line)  # its last words
        if self._supervisor is not line:
            return  # one of which was that it has been succeeded
        self._supervisor = None
        told = code if code >= 0 else 128 - code
        is_new = self._left is None and not line.holdings.words
        if line.has_said_farewell or is_new or self._is_ending:
            if not line.has_said_farewell and not is_new:
                log.error(event("the supervisor died while it was to end", exit_code=told))
            has_left = self._left is not None and self._left.total
            self._code = EXIT_RESET if has_left else told
            self._hang_up(line)
            return
        self._inherit(line)
        lived = time.monotonic() - self._up_at if self._up_at else 0.0
        self._deaths = 1 if lived > HEALTHY else self._deaths + 1
        assert self._left is not None
        why = {"signal": _name(-code)} if code < 0 else {"exit_code": code}
        log.error(event("supervisor died", pid=line.pid, **why, pairs=self._left.total))
        self._group, self._was_killed = line.pid, False
        self._until = time.monotonic() + LEAVE_SECONDS
        if self._deaths > TRIES:
            self._give_up(event("giving up: supervisors die one after the other", tries=TRIES))

    def _give_up(self, why: str) -> None:
        log.error(why)
        self._code, self._is_hopeless = EXIT_GAVE_UP, True

    def _inherit(self, line: _Line) -> None:
        """What is there for the next one."""
        for one in (self._heir, self._handing):
            if one is not None:
                self._hang_up(one)
        self._heir = self._handing = None
        if self._left is None:
            self._left, line.holdings = line.holdings, Holdings()
        self._hang_up(line)

    def _go_on(self) -> None:
        now = time.monotonic()
        if self._code is not None:
            return
        if self._handing is not None and now > self._started_at + START_SECONDS:
            log.error(event("the supervisor does not come up", seconds=f"{START_SECONDS:g}"))
            os.kill(self._handing.pid, signal.SIGKILL)
            self._started_at = now
        elif self._supervisor is None and self._is_ending:
            self._code = EXIT_RESET if self._left is not None and self._left.total else 0
        elif self._group:
            self._await_group(now)
        elif self._start_at and now >= self._start_at:
            self._start()

    def _await_group(self, now: float) -> None:
        try:
            os.killpg(self._group, 0)
        except ProcessLookupError:
            self._group = 0
            delay = BACKOFF_FIRST * 2.0 ** (self._deaths - 2) if self._deaths > 1 else 0.0
            self._start_at = now + min(BACKOFF_MOST, delay)
            return
        except PermissionError:
            pass  # they are another user's
        if now < self._until:
            return
        if self._was_killed:
            self._give_up(event("giving up: workers of the last one stay", group=self._group))
            return
        log.warning(event("killing workers of the last supervisor", group=self._group))
        try:
            os.killpg(self._group, signal.SIGKILL)
        except OSError as error:
            log.error(event("they cannot be killed", why=error.strerror))
        self._was_killed, self._until = True, now + LEAVE_SECONDS

    # ---- what is said

    def _add(self, end: Channel, pid: int) -> _Line:
        line = self._lines[end.fileno()] = _Line(end, pid)
        self._poll.register(end, select.POLLIN)
        return line

    def _ready(self, fd: int) -> None:
        if fd == self._wake.fileno():
            self._wake.recv(4096)
            return
        line = self._lines.get(fd)
        if line is None:  # hung up in this very round
            return
        if not self._hear(line):
            self._closed(line)
        elif line.end.fileno() >= 0:
            self._say(line)

    def _say(self, line: _Line) -> None:
        try:
            line.say()
        except (ChannelClosed, ChannelBroken) as error:
            log.debug(event("not told", pid=line.pid, why=error))
            return
        waits = select.POLLOUT if line.end.waiting else 0
        try:
            self._poll.modify(line.end, select.POLLIN | waits)
        except OSError:
            pass  # it is closed at its other end, see `_closed`

    def _hear(self, line: _Line) -> bool:
        """All that has come; False: the other end is closed."""
        try:
            while True:
                count = 0
                for received in line.end.receive():
                    count += 1
                    self._take(line, received)
                    if line.end.fileno() < 0:
                        return True
                if not count:
                    return True
        except ChannelClosed:
            return False
        except ChannelBroken as error:
            log.error(event("not understood", pid=line.pid, why=error))
            return False

    def _take(self, line: _Line, received: Received) -> None:
        message, holdings = received.message, line.holdings
        match message:
            case Estate():
                close_all(holdings.coming)
                holdings.coming = [received]
            case Listening() | Maps():
                holdings.coming.append(received)
            case Complete():
                holdings.complete()
                if line is self._supervisor and self._left is None:
                    self._came_up()
            case Entrusted():
                holdings.keep(message, received)
            case Withdrawn():
                holdings.withdraw(message)
                line.add(Returned(message.slot, message.pairs))
            case Heir() if line is self._supervisor and len(received.fds) == 1:
                sock = socket.socket(fileno=received.fds.pop())
                self._heir = self._add(_to(sock), message.pid)
            case Succeeded() if line is self._supervisor:
                self._succeed(line, adopts=message.adopts)
            case Farewell():
                line.has_said_farewell = True
                holdings.stop_listening()
            case Ready() | Taken():
                self._hand_over(line, message)
            case _:
                close_all([received])

    def _succeed(self, old: _Line, *, adopts: bool) -> None:
        heir = self._heir
        if heir is None:
            return  # it has died since: the end of the last one is no end in order then
        if adopts:
            heir.holdings.pairs, old.holdings.pairs = old.holdings.pairs, {}
        self._supervisor, self._heir = heir, None
        self._came_up()
        heir.add(Installed())
        self._say(heir)

    def _hand_over(self, line: _Line, message: Ready | Taken) -> None:
        """The supervisor that starts goes on with what the last one has left."""
        new, left = self._supervisor, self._left
        if line is not self._handing or new is None or left is None:
            return
        if isinstance(message, Ready) and message.adopts:
            line.news.append(left.entrust())
            return
        if isinstance(message, Taken):
            new.holdings.pairs, left.pairs = left.pairs, {}
        elif left.total:
            log.error(event("another layout, what was spliced is reset", pairs=left.total))
        left.close()
        self._left = self._handing = None
        self._came_up()
        new.add(Installed())
        self._say(new)
        self._hang_up(line)

    def _came_up(self) -> None:
        """There is a supervisor that has everything."""
        self._up_at = self._up_at or time.monotonic()
        for fd in self._passed:  # its own by now, or nobody's
            os.close(fd)
        self._passed = []

    def _closed(self, line: _Line) -> None:
        """It has ended, or is about to; waitpid(2) tells how."""
        if line is self._supervisor:
            self._poll.unregister(line.end)
            if not (_is_child(line.pid) or line.has_said_farewell):
                self._ended(line, -signal.SIGKILL)  # the last one, whose child it is, still drains
            return
        if line is self._heir:
            self._heir = None
        if line is self._handing:
            self._handing = None
        self._hang_up(line)

    def _hang_up(self, line: _Line) -> None:
        if self._lines.pop(line.end.fileno(), None) is None:
            return
        try:
            self._poll.unregister(line.end)
        except KeyError:  # it was closed at its other end
            pass
        line.end.close()
        line.holdings.close()


def _to(sock: socket.socket) -> Channel:
    return Channel(sock, TO_GUARDIAN, fds=MAX_FDS, may_lose=True)


def _is_child(pid: int) -> bool:
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _passed() -> list[int]:
    """What a service manager has passed to this process, and the supervisor is to take."""
    count, pid = os.environ.get("LISTEN_FDS", ""), os.environ.get("LISTEN_PID", "")
    if not count.isdecimal() or pid != str(os.getpid()):
        return []
    return list(range(_FIRST_FD, _FIRST_FD + int(count)))


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def run(log_level: str) -> int:
    """Run `l7proxy run` as it was asked for, below a guardian; its exit code."""
    operational.configure(log_level)
    privileges.raise_nofile()
    privileges.inherit_orphans()
    return Guardian([sys.executable, *sys.orig_argv[1:]]).run()
