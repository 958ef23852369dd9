"""A thread that writes to a file, so that no loop waits for a disk.

A write to a regular file knows no O_NONBLOCK: it goes to the page cache, and it waits when that is
full of what a slow disk has not taken, or when the file system commits its journal; seconds, on a
bad day. So each worker has a thread for it, made with its first line (and so after the fork). It
gathers what came while it slept: a busy worker wakes it a hundred times a second at the most.

It also takes over another descriptor for the same path, when the file was rotated: `dup2` puts it
in the place of the old one, which a write that is under way still uses to its end.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections import deque

from l7proxy.errors import StartupError
from l7proxy.telemetry import sink
from l7proxy.telemetry.sink import Sink

LIMIT = 256 * 1024  # bytes that wait for the disk
_GATHER = 0.01  # seconds
_RETRY = 0.05  # seconds, for a full disk and for another worker's turn
_ROUNDS = 4  # of `_RETRY`, at the end: a process that was stopped still has the others
_PIECE = 64 * 1024  # bytes of one write


class FileWriter:
    """A `Sink` whose `put` never waits. Whole lines in, in order out."""

    datagrams = False

    def __init__(self, out: Sink, path: str, fd: int) -> None:
        self._out = out
        self.path = path
        self.fd = fd
        self.lost = 0
        """Lines that could not be written. Only the thread adds to it."""
        self._chunks: deque[bytes] = deque()
        self._taken = 0  # bytes, by the loop
        self._written = 0  # bytes, by the thread
        self._wake = threading.Event()
        self._in_hand = 0  # lines that the thread is writing
        self._ends = False
        self._rotated = False
        self._thread: threading.Thread | None = None

    def put(self, chunk: bytes) -> bool:
        """Take a chunk of whole lines; False: there is too much already, keep it."""
        if self._taken - self._written + len(chunk) > LIMIT:
            return False
        self._taken += len(chunk)
        self._chunks.append(chunk)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        if not self._wake.is_set():
            self._wake.set()
        return True

    def finish(self) -> bool:
        """Whether all of it has been written."""
        return self._written == self._taken

    def close(self) -> None:
        """End the thread, which may be stuck in a write; close the file if it is not."""
        self._ends = True
        self._wake.set()
        if self._thread is not None:
            for _ in range(_ROUNDS):
                self._thread.join(_RETRY)
            if self._thread.is_alive():
                waiting = sum(chunk.count(b"\n") for chunk in list(self._chunks))
                self.lost += self._in_hand + waiting
                return  # the process leaves all the same
        self._out.close()

    # ---- another file of the same name

    def reopen(self) -> None:
        """Write to what stands at the path now. Raises StartupError; then the old file goes on."""
        if not self.path:
            raise StartupError("standard output has no name to be opened by")
        fresh, fd = sink.open_file(self.path)
        try:
            os.dup2(fd, self.fd, inheritable=False)
        finally:
            fresh.close()

    def take(self, fd: int) -> None:
        """Write to this descriptor from now on, which is closed."""
        os.dup2(fd, self.fd, inheritable=False)
        os.close(fd)
        self._rotated = True

    # ---- the thread

    def _run(self) -> None:
        while not (self._ends and not self._chunks):
            self._wake.wait()
            self._wake.clear()
            self._write()
            if not self._ends:
                time.sleep(_GATHER)

    def _write(self) -> None:
        while self._chunks:
            piece, size = [], 0
            while self._chunks and size < _PIECE:
                chunk = self._chunks.popleft()
                piece.append(chunk)
                size += len(chunk)
            data = b"".join(piece)
            self._in_hand = data.count(b"\n")
            self._put(data)
            self._in_hand = 0
            self._written += size

    def _put(self, data: bytes) -> None:
        """Write it all, however long that takes; only the end of the process is waited for less."""
        self._rotated = False
        try:
            while not self._out.put(data):
                if self._gives_up():
                    self.lost += data.count(b"\n")
                    return
                time.sleep(_RETRY)
            while not self._out.finish():
                if self._gives_up():
                    self.lost += self._out.forget()
                    return
                time.sleep(_RETRY)
        except OSError:
            self.lost += data.count(b"\n")

    def _gives_up(self) -> bool:
        if self._rotated:  # the rest of a line has no place in another file
            self._rotated = False
            self.lost += self._out.forget()
        return self._ends


def open_path(path: str) -> sink.Out:
    """A file by its path, with a thread; a named pipe needs none. Raises StartupError."""
    out, fd = sink.open_file(path)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return out
    return FileWriter(out, os.path.abspath(path), fd)


def open_standard() -> sink.Out:
    """Standard output: with a thread where it goes to a file."""
    out = sink.open_standard(1)
    return FileWriter(out, "", -1) if stat.S_ISREG(os.fstat(1).st_mode) else out
