"""Whole lines to a descriptor, without ever waiting for whoever reads it.

What Linux does, and what follows:

- A pipe takes a write of at most PIPE_BUF (4096) bytes whole or, when O_NONBLOCK is set, not at all
  (pipe(7)). So lines are written in chunks of at most 4096 bytes, and on a pipe no chunk of one
  worker ever ends up within a line of another.
- O_NONBLOCK belongs to the open file description, which stdout shares with the shell, with stderr
  and with whatever else the parent started: setting it there breaks *them*. Opening
  /proc/self/fd/1 makes a description of our own for the same pipe or terminal.
- That does not work for a socket (ENXIO): there MSG_DONTWAIT asks for the same, call by call. Nor
  for a pipe that another user made (EACCES): there `poll` is asked first.
- A regular file knows no O_NONBLOCK. It keeps the shared description and gets O_APPEND, so that
  `> log 2>&1` does not let one overwrite the other, and neither do two workers.
- Everything but a pipe may take a part of a chunk: a stopped terminal, a TCP socket, a full disk.
  Then the rest goes first, before anything else of anybody's: the writer holds a POSIX record lock
  on a memfd that all workers inherited until its chunk is complete. The kernel drops the lock
  of a process that dies.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import stat
from collections.abc import Callable
from typing import Protocol

from l7proxy.errors import StartupError

CHUNK = 4096  # PIPE_BUF on Linux


class Out(Protocol):
    """Where lines go, as the access log sees it. `lost` are lines that are gone without an error.

    `datagrams`: each line is a message of its own, and `frame` puts before it what belongs there.
    """

    lost: int

    @property
    def datagrams(self) -> bool:
        """Whether a chunk is one line."""

    def put(self, chunk: bytes) -> bool:
        """See `Sink.put`."""

    def finish(self) -> bool:
        """See `Sink.finish`."""

    def close(self) -> None:
        """See `Sink.close`."""


class Sink:
    """Where lines go. Open it before the fork and before privileges are dropped."""

    datagrams = False

    def __init__(
        self, send: Callable[[bytes], int], close: Callable[[], None], *, lock: bool
    ) -> None:
        self.lost = 0
        """Lines that were lost without an error; none, here."""
        self._send = send
        self._close = close
        self._lock_fd = os.memfd_create("l7proxy-sink", os.MFD_CLOEXEC) if lock else -1
        self._rest = b""

    def put(self, chunk: bytes) -> bool:
        """Write a chunk of whole lines, at most `CHUNK` bytes. False: not now, keep it.

        True also when only a part of it fitted: the sink keeps the rest and sends it first.
        Raises OSError when the reader is gone (EPIPE) or the disk is full: the chunk is lost then.
        """
        if self._rest and not self._finish():
            return False
        if not self._lock():
            return False
        try:
            sent = self._send(chunk)
        except BlockingIOError:
            self._unlock()
            return False
        except OSError:
            self._unlock()
            raise
        if sent < len(chunk):
            self._rest = chunk[sent:]
        else:
            self._unlock()
        return True

    def finish(self) -> bool:
        """Send what is left of a chunk that fitted only in part; True when nothing is left."""
        return not self._rest or self._finish()

    def forget(self) -> int:
        """Give up what is left of a chunk; how many lines are lost with it."""
        rest, self._rest = self._rest, b""
        if rest:
            self._unlock()
        return rest.count(b"\n")

    def close(self) -> None:
        """Close the descriptors of this process; other workers keep theirs."""
        self._close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)

    def _finish(self) -> bool:
        try:
            self._rest = self._rest[self._send(self._rest) :]
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return False  # the line is begun: it is finished when there is room again
            self._rest = b""
            self._unlock()
            raise
        if self._rest:
            return False
        self._unlock()
        return True

    def _lock(self) -> bool:
        if self._lock_fd < 0:
            return True
        try:
            fcntl.lockf(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # EACCES or EAGAIN: another worker is in the middle of a chunk
            return False
        return True

    def _unlock(self) -> None:
        if self._lock_fd >= 0:
            fcntl.lockf(self._lock_fd, fcntl.LOCK_UN)


def open_standard(fd: int) -> Sink:
    """A sink on an inherited stream (1 or 2) that leaves the stream's own flags alone."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError as error:
        raise StartupError(f"descriptor {fd} is closed: redirect it somewhere") from error
    if stat.S_ISREG(mode):
        copy = _duplicate(fd)
        fcntl.fcntl(copy, fcntl.F_SETFL, fcntl.fcntl(copy, fcntl.F_GETFL) | os.O_APPEND)
        return _file_sink(copy, lock=True)
    if stat.S_ISSOCK(mode):
        return _socket_sink(_duplicate(fd))
    flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        own = os.open(f"/proc/self/fd/{fd}", flags)
    except OSError:
        copy = _duplicate(fd)
        return _polled_sink(copy)
    return _file_sink(own, lock=not stat.S_ISFIFO(mode))


def open_path(path: str) -> Sink:
    """A sink on a file, which is appended to and made with mode 0640, or on a named pipe."""
    return open_file(path)[0]


def open_file(path: str) -> tuple[Sink, int]:
    """The same, and the descriptor that the sink owns. Raises StartupError."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        fd = os.open(path, flags, 0o640)
    except OSError as error:
        raise StartupError(f"cannot write to {path}: {_remedy(path, error)}") from error
    return _file_sink(fd, lock=not stat.S_ISFIFO(os.fstat(fd).st_mode)), fd


def _remedy(path: str, error: OSError) -> str:
    said = (error.strerror or str(error)).lower()
    if error.errno == errno.ENXIO:
        return "nothing reads from this named pipe or socket; start its reader first"
    if error.errno == errno.ENOENT:
        return f"{said}; make the directory first: mkdir -p {os.path.dirname(path) or '.'}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{said}; choose a file that this user may write"
    return said


def _duplicate(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def _file_sink(fd: int, *, lock: bool) -> Sink:
    return Sink(lambda data: os.write(fd, data), lambda: os.close(fd), lock=lock)


def _polled_sink(fd: int) -> Sink:
    """For a description that others share: the lock makes poll's answer hold until the write."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)

    def send(data: bytes) -> int:
        if not poll.poll(0):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return os.write(fd, data)

    return Sink(send, lambda: os.close(fd), lock=True)


def _socket_sink(fd: int) -> Sink:
    stream = socket.socket(fileno=fd)
    flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
    return Sink(lambda data: stream.send(data, flags), stream.close, lock=True)
