"""Child processes: started with their output in a file, ended by their pid, always waited for."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from .hosts import LoadTestError


class Child:
    """A running program whose stdout and stderr go to `log`. `environment` is added to ours."""

    def __init__(
        self,
        argv: Sequence[str],
        log: Path,
        *,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.argv = list(argv)
        self.log = log
        with log.open("wb") as out:
            self._popen = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=os.environ | (environment or {}),
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._popen.poll() is None

    def tail(self, lines: int = 3) -> str:
        """The end of its output, in one line, for messages."""
        return " / ".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def wait_until(self, ready: Callable[[], bool], seconds: float = 20.0) -> None:
        """Poll `ready`; raise LoadTestError when the program ends first or takes too long."""
        deadline = time.monotonic() + seconds
        while not ready():
            if not self.alive:
                raise LoadTestError(f"{self.argv[0]} ended at its start: {self.tail()}")
            if time.monotonic() > deadline:
                raise LoadTestError(f"{self.argv[0]} not ready in {seconds:.0f} s: {self.tail()}")
            time.sleep(0.02)

    def end(self, seconds: float = 3.0) -> None:
        """SIGTERM twice (a second one ends a drain), then SIGKILL; idempotent."""
        for ask in (self._popen.terminate, self._popen.terminate, self._popen.kill):
            if self._popen.poll() is None:
                ask()
                try:
                    self._popen.wait(seconds)
                except subprocess.TimeoutExpired:
                    continue
        self._popen.wait()


@contextmanager
def child(
    argv: Sequence[str],
    log: Path,
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Child]:
    """A child that ends with the block."""
    running = Child(argv, log, cwd=cwd, environment=environment)
    try:
        yield running
    finally:
        running.end()


def split(address: str) -> tuple[str, int]:
    """ "HOST:PORT" in its parts."""
    host, _, port = address.rpartition(":")
    return host, int(port)


def accepts(address: str) -> bool:
    """Whether "HOST:PORT" takes a connection."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(split(address)) == 0


def first_line(argv: Sequence[str], *, cwd: Path | None = None) -> str:
    """The first line that `argv` prints; "" when it cannot be run."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=10, check=False, cwd=cwd
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines[0].strip() if lines else ""
