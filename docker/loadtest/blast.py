"""`blast` from Python: what it is asked to do, what it says, and its life as a child process.

blast (blast.c, load.c, hold.c, origin.c beside this file) is the load and the origin. A client says
`begin` and `end` on its stdout when a reading is due, waits after `end` until its stdin is closed,
and says `result` last. So a sample is

    with blast.client(program, Load(to=("127.0.0.1:8080",), connections=50)) as client:
        client.begin()          # everything is connected and warm
        before = readings()
        client.end()            # `seconds` later
        after = readings()      # the process is still there to be read
        result = client.result()

A client that says nothing for longer than its order can take is killed: LoadTestError.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from .hosts import LoadTestError

HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parents[1] / "build" / "loadtest"
FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror")

# What a client may need beyond its order: its start, and the readings of the driver between lines.
GRACE = 20.0

Kind = Literal["get", "put", "stream", "sink", "echo", "ws"]
ERRORS = ("connect", "reset", "short", "status", "timeout", "corrupt")

# ---- orders --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Load:
    """Exchanges on `connections` connections, dialled to the addresses of `to` in turn.

    `kind`: what an exchange is.
      get     GET `path` on a kept-alive connection: "ok\\n", or N bytes where it is /bytes/N
      put     PUT with a body of `size` bytes, answered with "ok\\n"
      stream  GET of a body that never ends (1 PiB); counts bytes, has no latency
      sink    POST with a body that never ends; counts bytes, has no latency
      echo    `size` bytes over raw TCP, and the same ones back
      ws      the same in one binary WebSocket message of at most 65,535 bytes, after a handshake
    `close` (get only): a connection for each exchange, read to the clean end of the stream.
    `rate`: exchanges per second over all connections, at fixed intervals, with the latency counted
    from the moment of the plan (open loop). 0: each connection goes on as soon as it is answered.
    `warmup`, `seconds` of load, in this order; everything is connected before. `timeout`: seconds
    without progress after which an exchange counts as an error.
    """

    to: Sequence[str]
    kind: Kind = "get"
    connections: int = 1
    path: str = ""
    size: int = 1
    close: bool = False
    rate: float = 0.0
    warmup: float = 1.0
    seconds: float = 5.0
    timeout: float = 10.0


@dataclass(frozen=True, slots=True)
class Hold:
    """`connections` connections that had one GET and then say nothing; at the end (after the driver
    took its readings) each is asked once more.

    With `on` and `rate`: GETs at that rate on so many other connections, between warm-up and end;
    `done` and the latencies of the result are of these. With `seconds` = 0, `end` follows `begin`
    at once and the connections are held for as long as the driver likes.
    """

    to: Sequence[str]
    connections: int
    on: int = 0
    rate: float = 0.0
    warmup: float = 0.0
    seconds: float = 0.0
    timeout: float = 10.0


@dataclass(frozen=True, slots=True)
class Slow:
    """`connections` responses that never end (1 PiB), each read at `bytes_per_second` with small
    steady reads. `rcvbuf`: SO_RCVBUF of the reader in bytes, 0: as the kernel has it."""

    to: Sequence[str]
    connections: int
    bytes_per_second: int
    seconds: float
    warmup: float = 0.0
    rcvbuf: int = 0
    timeout: float = 10.0


Order = Load | Hold | Slow


def arguments(order: Order) -> list[str]:
    """The order as blast's command line, without the program."""
    words = [type(order).__name__.lower()]
    for field in fields(order):
        value = getattr(order, field.name)
        if field.name == "to":
            value = ",".join(value)
        elif isinstance(value, bool):
            value = int(value)
        elif isinstance(value, float):
            value = format(value, ".9g")
        if value != "":
            words.append(f"{field.name}={value}")
    return words


# ---- answers -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mark:
    """What `begin` and `end` say: the clock (CLOCK_MONOTONIC, ns), and totals since the start."""

    ns: int
    done: int
    bytes: int
    errors: int


@dataclass(frozen=True, slots=True)
class Latency:
    """Microseconds, over the exchanges that were planned (closed loop: completed) between `begin`
    and `end`; percentiles within 1.6 %."""

    p50: float
    p90: float
    p99: float
    p999: float
    max: float
    mean: float


@dataclass(frozen=True, slots=True)
class Result:
    """What happened between `begin` and `end`, which lie `seconds` apart.

    `done` exchanges, `rate` of them per second; `bytes` of payload (of a transfer that goes on,
    what came through so far). `errors` by kind, since the start: not connected; reset; ended early
    (or by the other end while it was held); not a 200, or no HTTP; no progress in time; other bytes
    than those sent; `complaint` tells the first one. Open loop: `unsent` were due and found no
    connection until 1 % of its time after the end, so the rate was above what can be had; each
    exchange that was due is done, an error or unsent.
    `reopened`: kept-alive connections that were closed between two exchanges. `alive`: of those
    held or read slowly, how many still answered at the end. `us` is None where nothing was timed.
    `histogram`: (middle of a class in us, count), ascending. `busy`: CPU time of blast's thread per
    second. `lag_us`: p99 of how late blast itself sent when a connection was free at the planned
    moment (0 in a closed loop).
    """

    done: int
    bytes: int
    seconds: float
    rate: float
    errors: Mapping[str, int]
    complaint: str
    unsent: int
    reopened: int
    alive: int
    us: Latency | None
    histogram: Sequence[tuple[float, int]]
    busy: float
    lag_us: float

    @property
    def failed(self) -> int:
        """Errors of all kinds."""
        return sum(self.errors.values())


def parse_mark(text: str) -> Mark:
    """The JSON after `begin` or `end`."""
    return Mark(**json.loads(text))


def parse_result(text: str) -> Result:
    """The JSON after `result`."""
    raw: dict[str, Any] = json.loads(text)
    raw["us"] = Latency(**raw["us"]) if raw["us"] is not None else None
    raw["histogram"] = [(latency, count) for latency, count in raw["histogram"]]
    return Result(**raw)


# ---- processes -----------------------------------------------------------------------------------


def build(directory: Path = OUTPUT) -> Path:
    """The program, compiled when a source is newer. `$LOADTEST_BLAST` names one that is made.

    Raises LoadTestError without a C compiler, or with what the compiler said.
    """
    if made := os.environ.get("LOADTEST_BLAST"):
        return Path(made)
    sources = sorted(HERE.glob("*.[ch]"))
    program = directory / "blast"
    newest = max(source.stat().st_mtime for source in sources)
    if program.exists() and program.stat().st_mtime >= newest:
        return program
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise LoadTestError("no C compiler: apt-get install gcc libc6-dev")
    directory.mkdir(parents=True, exist_ok=True)
    draft = directory / f"blast.{os.getpid()}"
    units = [str(source) for source in sources if source.suffix == ".c"]
    done = subprocess.run(
        [compiler, *FLAGS, "-o", str(draft), *units], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise LoadTestError(f"blast does not compile: {done.stderr.strip()}")
    draft.replace(program)
    return program


class Child:
    """A running blast that says lines of a word and JSON."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._popen = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._said = b""

    @property
    def pid(self) -> int:
        """The process id (with a prefix that forks: of the prefix)."""
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._popen.poll() is None

    def line(self, word: str, seconds: float) -> str:
        """What follows `word` in the next line, which must come within so many seconds."""
        deadline = time.monotonic() + seconds
        assert self._popen.stdout is not None
        pipe = self._popen.stdout.fileno()
        while b"\n" not in self._said:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                raise LoadTestError(f"blast did not say {word!r} within {seconds:.0f} s")
            said = os.read(pipe, 1 << 20)
            if not said:
                raise LoadTestError(f"blast ended before {word!r}: {self._complaint()}")
            self._said += said
        line, _, self._said = self._said.partition(b"\n")
        found, _, rest = line.decode().partition(" ")
        if found != word:
            raise LoadTestError(f"blast said {found!r} for {word!r}: {self._complaint()}")
        return rest

    def go_on(self) -> None:
        """Close its stdin: the readings are taken."""
        assert self._popen.stdin is not None
        self._popen.stdin.close()

    def kill(self) -> None:
        """End it; idempotent."""
        if self._popen.poll() is None:
            self._popen.kill()
        self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            if pipe is not None:
                pipe.close()

    def _complaint(self) -> str:
        if self._popen.poll() is None:
            self._popen.kill()
        assert self._popen.stderr is not None
        said = self._popen.stderr.read().decode(errors="replace").strip()
        return said or f"exit status {self._popen.wait()}"


@contextmanager
def _child(argv: Sequence[str]) -> Iterator[Child]:
    child = Child(argv)
    try:
        yield child
    finally:
        child.kill()


class Client:
    """A load in operation: `begin`, `end` and `result` once each, in this order.

    Each raises LoadTestError when blast ended, or said nothing for longer than its order can take.
    """

    def __init__(self, child: Child, order: Order) -> None:
        self._child = child
        self._order = order

    @property
    def pid(self) -> int:
        """The process id."""
        return self._child.pid

    def begin(self) -> Mark:
        """Wait for the begin of the measured time: connected, warm, under load."""
        # Connecting takes its own timeout, and a Hold asks its connections 64 at once.
        patience = self._order.timeout + self._order.connections / 500 + self._order.warmup
        return parse_mark(self._child.line("begin", patience + GRACE))

    def end(self) -> Mark:
        """Wait for its end. The process waits, quiet, until `result` is called."""
        return parse_mark(self._child.line("end", self._order.seconds + GRACE))

    def result(self) -> Result:
        """Let it finish, and take what it found."""
        self._child.go_on()
        patience = self._order.timeout + self._order.connections / 500
        return parse_result(self._child.line("result", patience + GRACE))


@contextmanager
def client(program: Path, order: Order, prefix: Sequence[str] = ()) -> Iterator[Client]:
    """blast under this order, killed with the block. `prefix`: words before the program, such as
    those of `ip netns exec`."""
    with _child([*prefix, str(program), *arguments(order)]) as child:
        yield Client(child, order)


@contextmanager
def origin(
    program: Path, http: Sequence[str] = (), echo: Sequence[str] = (), prefix: Sequence[str] = ()
) -> Iterator[Child]:
    """An origin that listens on these "HOST:PORT"s, ended with the block.

    On entry it listens; raises LoadTestError with what it said when it cannot.
    """
    argv = [*prefix, str(program), *origin_arguments(http, echo)]
    with _child(argv) as child:
        child.line("ready", GRACE)
        yield child


def origin_arguments(http: Sequence[str], echo: Sequence[str] = ()) -> list[str]:
    """The command line of an origin, without the program."""
    lists = (("http", http), ("echo", echo))
    return ["origin", *(f"{name}={','.join(given)}" for name, given in lists if given)]


def measure(program: Path, order: Order, prefix: Sequence[str] = ()) -> Result:
    """A whole run without readings."""
    with client(program, order, prefix) as running:
        running.begin()
        running.end()
        return running.result()
