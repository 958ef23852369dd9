"""The load tools as child processes: `blast` with its lines, and a watchdog for all of them."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .procs import BenchError


@contextmanager
def blast(program: Path, seconds: float, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """`blast` with these arguments, killed when it takes longer than `seconds`.

    It says on stdout when a reading is due, and stays until its stdin is closed.
    """
    argv = [str(program), *map(str, arguments)]
    client = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    watchdog = Watchdog(client, seconds)
    try:
        with watchdog:
            yield client
    finally:
        if client.poll() is None:
            client.kill()
        client.wait()
        for pipe in (client.stdin, client.stdout, client.stderr):
            if pipe is not None:
                pipe.close()


class Watchdog:
    """SIGALRM after `seconds` kills the client, so that a line that never comes is an error."""

    def __init__(self, client: subprocess.Popen[str], seconds: float) -> None:
        self._client = client
        self._seconds = seconds
        self._bitten = False

    def __enter__(self) -> None:
        signal.signal(signal.SIGALRM, self._bite)
        signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def __exit__(self, *error: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        if self._bitten:
            raise BenchError(f"the client was stuck for {self._seconds:.0f} s")

    def _bite(self, number: int, frame: object) -> None:
        self._bitten = True
        self._client.kill()


def line_of(client: subprocess.Popen[str], name: str) -> dict[str, float]:
    """The next line, which must be `name key=number ...`."""
    assert client.stdout is not None
    line = client.stdout.readline()
    if not line.startswith(f"{name} "):
        client.kill()
        _, errors = client.communicate()
        raise BenchError(f"client said {line.strip()!r} for {name!r}: {errors.strip()}")
    return {key: float(value) for key, value in re.findall(r"(\w+)=([\d.]+)", line)}


def close(stream: IO[str] | None) -> None:
    """Close a pipe that was asked for."""
    assert stream is not None
    stream.close()
