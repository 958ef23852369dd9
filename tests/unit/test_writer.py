"""Files are written by a thread: a disk that does not answer stops nobody."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from l7proxy.errors import StartupError
from l7proxy.telemetry import writer
from l7proxy.telemetry.accesslog import BACKLOG, AccessLog, Record
from l7proxy.telemetry.sink import Sink
from l7proxy.telemetry.writer import LIMIT, FileWriter


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Disk:
    """Takes what is written while `works` is set; `got` is all of it."""

    def __init__(self) -> None:
        self.works = threading.Event()
        self.got = b""
        self.room = 1 << 30
        self.sink = Sink(self._write, lambda: None, lock=False)

    def _write(self, data: bytes) -> int:
        self.works.wait(60)
        taken = data[: self.room]
        if not taken:
            raise BlockingIOError
        self.room -= len(taken)
        self.got += taken
        return len(taken)


def record(number: int) -> Record:
    return Record(1_700_000_000.0, 1, "web", "192.0.2.1:5000", bytes_in=number)


def test_a_disk_that_hangs_costs_lines_in_the_end_and_never_time() -> None:
    disk = Disk()
    log = AccessLog(FileWriter(disk.sink, "/x", -1))
    longest = 0.0
    for number in range(3000):
        begun = time.thread_time(), time.monotonic()
        log.write(record(number))
        log.flush()
        longest = max(longest, time.monotonic() - begun[1] - (time.thread_time() - begun[0]))
    assert longest < 30, "nobody waited for the disk, whose patience is a minute"
    assert log.dropped > 0
    disk.works.set()
    until(lambda: not (log.flush() or log.pending))
    log.close(10)
    lines = disk.got.splitlines()
    assert len(lines) + log.dropped == 3000
    assert len(disk.got) > (BACKLOG + LIMIT) * 0.8, "what was promised to be kept was kept"
    assert b'"bytes_in":0,' in lines[0]


def test_what_comes_while_it_writes_is_gathered() -> None:
    disk = Disk()
    disk.works.set()
    calls: list[int] = []
    real = disk.sink.put

    def put(chunk: bytes) -> bool:
        calls.append(len(chunk))
        return real(chunk)

    disk.sink.put = put  # type: ignore[method-assign]
    out = FileWriter(disk.sink, "/x", -1)
    for number in range(1000):
        assert out.put(b"%d\n" % number)
    until(out.finish)
    out.close()
    assert disk.got == b"".join(b"%d\n" % number for number in range(1000))
    assert len(calls) < 200


def test_a_disk_that_is_full_tears_no_line() -> None:
    disk = Disk()
    disk.works.set()
    disk.room = 3
    out = FileWriter(disk.sink, "/x", -1)
    assert out.put(b"hello\n")
    until(lambda: disk.got == b"hel")
    assert not out.finish()
    disk.room = 100
    until(out.finish)
    out.close()
    assert disk.got == b"hello\n"
    assert out.lost == 0


def test_at_the_end_nobody_waits_for_a_disk_that_hangs() -> None:
    disk = Disk()
    log = AccessLog(FileWriter(disk.sink, "/x", -1))
    for number in range(20):
        log.write(record(number))
        log.flush()
    begun = time.monotonic()
    log.close(0.1)
    assert time.monotonic() - begun < 30
    assert log.dropped == 20
    disk.works.set()


def test_a_rotated_file(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    ours, theirs = writer.open_path(str(path)), writer.open_path(str(path))
    assert isinstance(ours, FileWriter)
    assert isinstance(theirs, FileWriter)
    assert ours.put(b"one\n")
    until(ours.finish)
    path.rename(tmp_path / "access.log.1")
    path.touch(mode=0o600)  # as logrotate's `create` does
    assert ours.put(b"two\n")
    until(ours.finish)
    before = len(os.listdir("/proc/self/fd"))
    ours.reopen()
    theirs.take(os.dup(ours.fd))
    assert len(os.listdir("/proc/self/fd")) == before
    assert ours.put(b"three\n")
    until(ours.finish)
    assert theirs.put(b"four\n")
    until(theirs.finish)
    ours.close()
    theirs.close()
    assert (tmp_path / "access.log.1").read_text() == "one\ntwo\n"
    assert path.read_text() == "three\nfour\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_rest_of_a_line_does_not_go_to_another_file() -> None:
    disk = Disk()
    disk.works.set()
    disk.room = 3
    reader, fd = os.pipe()
    out = FileWriter(disk.sink, "/x", fd)
    assert out.put(b"hello\n")
    until(lambda: disk.got == b"hel")
    out.take(os.dup(fd))
    until(lambda: out.lost == 1)
    disk.room = 100
    assert out.put(b"whole\n")
    until(out.finish)
    out.close()
    os.close(reader)
    os.close(fd)
    assert disk.got == b"helwhole\n"


def test_a_path_that_cannot_be_opened_again_leaves_the_old_file(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    out = writer.open_path(str(folder / "log"))
    assert isinstance(out, FileWriter)
    folder.rename(tmp_path / "gone")
    with pytest.raises(StartupError, match="mkdir -p"):
        out.reopen()
    assert out.put(b"still\n")
    until(out.finish)
    out.close()
    assert (tmp_path / "gone" / "log").read_text() == "still\n"


def test_a_pipe_needs_no_thread(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    out = writer.open_path(str(path))
    assert isinstance(out, Sink)
    assert out.put(b"x\n")
    assert os.read(reader, 10) == b"x\n"
    out.close()
    os.close(reader)
