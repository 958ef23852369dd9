"""systemd's part: starts l7proxy with descriptors from 3 on, and listens to what it is told."""

from __future__ import annotations

import fcntl
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

# Between fork and exec only the process itself knows its number, so it sets LISTEN_PID.
ENTRY = (
    "-c",
    """
import os, sys
fds = [int(fd) for fd in os.environ.pop("TEST_FDS").split()]
for number, fd in enumerate(fds, 3):
    os.dup2(fd, number, inheritable=True)
for fd in fds:
    if fd >= 3 + len(fds):
        os.close(fd)
os.environ["LISTEN_PID"] = os.environ["WATCHDOG_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "l7proxy", *sys.argv[1:]])
""",
)


def listening(address: tuple[str, int] = ("127.0.0.1", 0)) -> socket.socket:
    """A socket as a socket unit opens it, with a number that is none of those to be passed."""
    with socket.create_server(address) as sock:
        return spare(sock)


def spare(sock: socket.socket) -> socket.socket:
    """The same socket, by a high number."""
    return socket.socket(fileno=fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 100))


def environment(
    names: list[str], socks: Sequence[socket.socket | int], **more: str
) -> dict[str, str]:
    """What the manager says of these sockets."""
    return {
        "LISTEN_FDS": str(len(socks)),
        "LISTEN_FDNAMES": ":".join(names),
        "TEST_FDS": " ".join(str(one if isinstance(one, int) else one.fileno()) for one in socks),
        **more,
    }


class Journal:
    """Everything that is told to NOTIFY_SOCKET, as lines."""

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(path))
        self._sock.settimeout(0.1)
        self._lines: list[str] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while not self._end.is_set():
            try:
                self._lines += self._sock.recv(4096).decode().splitlines()
            except TimeoutError:
                continue

    def until(self, line: str, times: int = 1, seconds: float = 60.0) -> None:
        """Wait until a line that begins so was told that many times."""
        end = time.monotonic() + seconds
        while sum(one.startswith(line) for one in self._lines) < times:
            assert time.monotonic() < end, f"{line} was not told {times} times: {self._lines}"
            time.sleep(0.02)

    def lines(self, *starts: str) -> list[str]:
        """What was told so far; of lines that begin so."""
        return [one for one in self._lines if one.startswith(starts)]

    def close(self) -> None:
        """Listen no more."""
        self._end.set()
        self._thread.join()
        self._sock.close()
