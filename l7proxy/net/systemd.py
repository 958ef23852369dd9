"""What a service manager hands to a service and is told by it: systemd's protocol, no library.

The facts (sd_listen_fds(3), sd_notify(3)), and what follows:

- Descriptors come in a row from number 3 on, `LISTEN_FDS` of them, for the process `LISTEN_PID`
  alone, each with a name in `LISTEN_FDNAMES`. Those that a service gave into the manager's store in
  an earlier life come in the same row. They are not close-on-exec, and the variables would be
  inherited: both are put right at once, or a program that we start would take them for its own.
- Several descriptors may have one name (a socket unit with several addresses), and one that was
  given none is called `unknown`.
- News are datagrams of `NAME=value` lines to the unix socket `NOTIFY_SOCKET`; `@` at its beginning
  stands for NUL. Who sent one is read from its credentials, so it must come from the main process.
- A datagram takes 253 descriptors (`SCM_MAX_FD`). One that carries descriptors can be lost if its
  sender is gone before the manager looks up who it was: `barrier` waits until it has read all.
- The manager may be away, which is no failure, or slow: its queue holds `max_dgram_qlen` datagrams.
  What it must hear waits for room there, for a moment; a status or a sign of life does not.
"""

from __future__ import annotations

import array
import logging
import os
import select
import socket
import struct
import time
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass

log = logging.getLogger(__name__)

FIRST_FD = 3
MOST_FDS = 253  # in one datagram
MOST_NAME = 255  # characters of a descriptor's name
PATIENCE = 2  # seconds that a datagram may wait for room
UNNAMED = "unknown"

Environment = MutableMapping[str, str]


@dataclass(frozen=True, slots=True)
class Passed:
    """A descriptor that was handed to us, and its name."""

    name: str
    fd: int


def take_passed(environment: Environment = os.environ) -> tuple[Passed, ...]:
    """What was handed to this process; none to a process that starts later. Call it once, early."""
    count = _number(environment.pop("LISTEN_FDS", ""))
    pid = _number(environment.pop("LISTEN_PID", ""))
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if count is None or pid != os.getpid():
        return ()
    passed = []
    for position in range(count):
        fd = FIRST_FD + position
        try:
            os.set_inheritable(fd, False)
        except OSError as error:
            log.warning("descriptor %d of LISTEN_FDS: %s", fd, error.strerror)
            continue
        name = names[position] if position < len(names) else ""
        passed.append(Passed(name or UNNAMED, fd))
    return tuple(passed)


class Manager:
    """Tells the service manager how this service fares; nothing where there is none."""

    def __init__(self, address: str = "", watchdog: float | None = None) -> None:
        """`watchdog`: seconds within which the manager wants a sign of life, if it does."""
        self.watchdog = watchdog
        self._address = b"\0" + os.fsencode(address[1:]) if address[:1] == "@" else address
        self._sock: socket.socket | None = None
        if address[:1] in ("@", "/"):  # else there is none, or one of a kind that we do not know
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            patience = struct.pack("ll", PATIENCE, 0)  # struct timeval
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)

    @classmethod
    def take(cls, environment: Environment = os.environ) -> Manager:
        """The manager of this process, and of none that it starts."""
        address = environment.pop("NOTIFY_SOCKET", "")
        period = _number(environment.pop("WATCHDOG_USEC", ""))
        pid = environment.pop("WATCHDOG_PID", "")
        is_ours = not pid or _number(pid) == os.getpid()
        return cls(address, period / 1e6 if period and is_ours else None)

    @property
    def is_there(self) -> bool:
        """Whether anybody listens to what is told."""
        return self._sock is not None

    def close(self) -> None:
        """Tell nothing any more."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    # ---- how the service fares

    def ready(self, status: str) -> bool:
        """It is up, or has reloaded."""
        return self.tell("READY=1", _status(status))

    def reloading(self, status: str) -> bool:
        """It loads its policy anew; `ready` has to follow."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        return self.tell("RELOADING=1", f"MONOTONIC_USEC={microseconds}", _status(status))

    def stopping(self, status: str, seconds: float) -> bool:
        """It drains, and will be gone within so many seconds whatever TimeoutStopSec= says."""
        return self.tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}", _status(status))

    def status(self, text: str) -> bool:
        """One line for people: `systemctl status` shows it."""
        return self.tell(_status(text), wait=False)

    def alive(self) -> bool:
        """The sign of life for the watchdog."""
        return self.tell("WATCHDOG=1", wait=False)

    # ---- another process in our place

    def environment(self) -> dict[str, str]:
        """For a process that is to take our place: `take` finds the manager in its environment."""
        if self._sock is None:
            return {}
        found = {"NOTIFY_SOCKET": os.fsdecode(self._address).replace("\0", "@", 1)}
        if self.watchdog is not None:
            found["WATCHDOG_USEC"] = str(int(self.watchdog * 1e6))
        return found

    def succeeded(self, pid: int) -> bool:
        """From now on that process is the service; only what it tells is believed."""
        return self.tell(f"MAINPID={pid}")

    # ---- the store of descriptors

    def store(self, name: str, fds: Sequence[int]) -> bool:
        """Give descriptors to be kept beyond our end; they come back under this name.

        The manager keeps duplicates, as many as FileDescriptorStoreMax= says, and drops what lies
        beyond. It does not watch them (`FDPOLL=0`): a connection that ends is ours to take out.
        False if not all of them were sent.
        """
        _check_name(name)
        return all(
            self.tell("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", fds=fds[first : first + MOST_FDS])
            for first in range(0, len(fds), MOST_FDS)
        )

    def forget(self, name: str) -> bool:
        """Have every descriptor of this name taken out of the store."""
        _check_name(name)
        return self.tell("FDSTOREREMOVE=1", f"FDNAME={name}")

    def barrier(self, seconds: float = 5.0) -> bool:
        """Wait until everything that was told before has been read; False if it was not in time."""
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            told = self.tell("BARRIER=1", fds=[theirs])
        finally:
            os.close(theirs)
        poll = select.poll()
        poll.register(ours, 0)  # POLLHUP: its copy is closed too
        try:
            return told and bool(poll.poll(seconds * 1000))
        finally:
            os.close(ours)

    # ---- the wire

    def tell(self, *assignments: str, fds: Sequence[int] = (), wait: bool = True) -> bool:
        """Send `NAME=value` lines in one datagram; False when nobody is there to read it."""
        if self._sock is None:
            return False
        data = "\n".join(assignments).encode(errors="replace")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            # not send_fds: Python 3.11 leaves the address out
            self._sock.sendmsg([data], rights, 0 if wait else socket.MSG_DONTWAIT, self._address)
        except OSError as error:
            log.debug("the service manager could not be told: %s", error.strerror)
            return False
        return True


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _check_name(name: str) -> None:
    if (
        not 0 < len(name) <= MOST_NAME
        or ":" in name
        or not name.isascii()
        or not name.isprintable()
    ):
        raise ValueError(f"{name!r} cannot name a descriptor")
