"""Where lines go: never torn, never waited for, no flag of somebody else's changed."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import resource
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from l7proxy.errors import StartupError
from l7proxy.telemetry import sink


def in_child(script: str, **streams: object) -> subprocess.Popen[bytes]:
    program = "from l7proxy.telemetry import sink\nimport os\n" + textwrap.dedent(script)
    return subprocess.Popen([sys.executable, "-c", program], **streams)  # type: ignore[call-overload]


def test_nonblock_does_not_leak_into_the_shared_stream() -> None:
    reader, writer = os.pipe()
    with in_child("sink.open_standard(1).put(b'line\\n')", stdout=writer) as process:
        assert process.wait(60) == 0
    assert os.read(reader, 100) == b"line\n"
    assert not fcntl.fcntl(writer, fcntl.F_GETFL) & os.O_NONBLOCK
    os.close(reader)
    os.close(writer)


def test_a_full_pipe_is_not_waited_for() -> None:
    reader, writer = os.pipe()
    script = """
        out = sink.open_standard(1)
        chunk = b"x" * 4095 + b"\\n"
        while out.put(chunk):
            pass
        os.write(2, b"full")
    """
    with in_child(script, stdout=writer, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.read() == b"full"
        assert process.wait(60) == 0
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        data = file.read()
    assert data == (b"x" * 4095 + b"\n") * (len(data) // 4096)


def test_a_terminal_keeps_its_flags() -> None:
    ours, theirs = pty.openpty()
    with in_child("sink.open_standard(1).put(b'line\\n')", stdout=theirs) as process:
        assert process.wait(60) == 0
    assert os.read(ours, 100) == b"line\r\n"
    assert not fcntl.fcntl(theirs, fcntl.F_GETFL) & os.O_NONBLOCK
    os.close(ours)
    os.close(theirs)


def test_stdout_and_stderr_in_one_file_do_not_overwrite_each_other(tmp_path: Path) -> None:
    target = tmp_path / "both"
    with target.open("wb") as file:
        script = """
            out = sink.open_standard(1)
            for _ in range(3):
                out.put(b"access\\n")
                os.write(2, b"log\\n")
        """
        with in_child(script, stdout=file, stderr=file) as process:
            assert process.wait(60) == 0
    assert target.read_text().split() == ["access", "log"] * 3


def test_a_socket_is_written_without_changing_its_flags() -> None:
    ours, theirs = socket.socketpair()
    script = """
        out = sink.open_standard(1)
        chunk = b"x" * 4095 + b"\\n"
        while out.put(chunk):
            pass
    """
    with in_child(script, stdout=theirs.fileno()) as process:
        assert process.wait(60) == 0
    assert not fcntl.fcntl(theirs.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK
    assert ours.recv(4) == b"xxxx"
    ours.close()
    theirs.close()


def test_a_reader_that_is_gone_is_an_error_and_no_signal(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    out = sink.open_path(str(fifo))
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        out.put(b"line\n")
    out.close()


class Narrow:
    """A descriptor that takes a few bytes at a time, as a terminal or a full disk may."""

    def __init__(self, *room: int) -> None:
        self.room = list(room)
        self.data = b""

    def send(self, data: bytes) -> int:
        if not self.room:
            raise BlockingIOError(errno.EAGAIN, "")
        taken = data[: self.room.pop(0)]
        self.data += taken
        return len(taken)


def test_a_line_begun_is_finished_before_the_next() -> None:
    narrow = Narrow(3)
    out = sink.Sink(narrow.send, lambda: None, lock=True)
    assert out.put(b"first\n"), "taken over, though only in part"
    assert not out.put(b"second\n")
    assert not out.finish()
    narrow.room = [2]
    assert not out.put(b"second\n")
    narrow.room = [1]
    assert not out.put(b"second\n"), "the first is complete; there is no room for more"
    assert narrow.data == b"first\n"
    narrow.room = [99]
    assert out.put(b"second\n")
    assert narrow.data == b"first\nsecond\n"
    out.close()


def test_no_other_worker_writes_into_a_line_begun() -> None:
    narrow = Narrow(3)
    out = sink.Sink(narrow.send, lambda: None, lock=True)
    assert out.put(b"first\n")

    def other_can_write() -> bool:
        pid = os.fork()
        if pid == 0:
            out._rest = b""  # what is begun is this process's, not the other's
            narrow.room = [99]
            os._exit(out.put(b"other\n"))
        return os.waitpid(pid, 0)[1] != 0

    assert not other_can_write()
    narrow.room = [99]
    assert out.finish()
    assert other_can_write()
    out.close()


def test_a_full_disk_loses_lines_and_tears_none(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for the disk; it gives a short write, then EFBIG."""
    path = tmp_path / "log"
    script = f"""
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
        out = sink.open_path({str(path)!r})
        line = b"x" * 99 + b"\\n"
        failed = 0
        for _ in range(60):
            try:
                out.put(line * 3)
            except OSError:
                failed += 1
        assert failed, failed
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        for _ in range(3):
            out.put(line)
    """
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] in (resource.RLIM_INFINITY, -1)
    with in_child(script) as process:
        assert process.wait(60) == 0
    lines = path.read_bytes().splitlines()
    assert {len(line) for line in lines} == {99}


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("{tmp}/no/such/dir/log", "mkdir -p"),
        ("{tmp}", "is a directory"),
        ("{tmp}/fifo", "start its reader first"),
    ],
)
def test_what_cannot_be_opened_is_told_with_a_remedy(tmp_path: Path, path: str, says: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(StartupError, match=says):
        sink.open_path(path.format(tmp=tmp_path))
