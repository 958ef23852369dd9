"""`l7proxy run` as a process of its own, started as a user starts it, and watched.

`Proxy` writes a policy, starts the command, and waits until it is ready. `stop` wants a clean exit
and a log without a traceback; whatever happens, no process is left when the `with` block ends.
Nothing here waits without a limit.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

DATAPATHS = (pytest.param("sockmap", marks=pytest.mark.kernel), "splice2", "copy")
"""For `pytest.mark.parametrize("datapath", DATAPATHS)`: all of them, sockmap where it is."""

SLOWNESS = float(os.environ.get("L7PROXY_SLOWNESS", "1"))  # an emulated machine's is more than 1
START = 60.0 * SLOWNESS  # seconds; two cores may be busy with other things
PATIENCE = 30.0 * SLOWNESS  # seconds that anything else may take: machines stand still now and then

ALARM = re.compile(r"Traceback|internal error|crashed|Exception", re.IGNORECASE)
"""What the operational log of a healthy proxy never says."""


def until(true: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Poll until `true()` is true, and return what it answered; fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (answer := true()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)
    return answer


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self._path)


class Proxy:
    """`l7proxy run` while the `with` block is open.

    `files` is the limit of open descriptors that it is started with, `entry` what Python is to run:
    see `resolving`. `path` is run in place of the policy, `options` are given to `l7proxy run`.
    """

    def __init__(
        self,
        policy: str,
        datapath: str,
        *,
        workers: int = 1,
        drain_seconds: float = 30.0,
        files: int | None = None,
        entry: Sequence[str] = ("-m", "l7proxy"),
        watch: bool = False,
        more: Sequence[str] = (),
        path: Path | None = None,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        fds: Sequence[int] = (),
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="l7proxy-"))
        self.datapath = datapath
        self._files = files
        self._entry = entry
        self._environment = os.environ | dict(environment or {})
        self._fds = fds
        self._policy = self.directory / "policy.yaml"
        self._policy.write_text(policy)
        self._log = self.directory / "stderr"
        self._access = self.directory / "access.log"
        self.admin = self.directory / "admin.sock"
        self._arguments = [
            "run",
            str(path or self._policy),
            f"--workers={workers}",
            f"--datapath={datapath}",
            f"--admin=unix:{self.admin}",
            f"--access-log={self._access}",
            f"--drain-seconds={drain_seconds:g}",
            *(["--watch"] if watch else []),
            *more,
            *options,
        ]
        self._old = 0

    # ---- start and end

    def __enter__(self) -> Proxy:
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self._entry, *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=self._environment,
                pass_fds=self._fds,
                preexec_fn=self._limit_files if self._files else None,
            )
        try:
            until(self._is_ready, "l7proxy is ready", START)
        except BaseException:
            self._kill()
            raise
        return self

    def _limit_files(self) -> None:
        assert self._files is not None
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._files, self._files))

    def _is_ready(self) -> bool:
        code = self.process.poll()
        assert code is None, f"l7proxy exited with {code}:\n{self.log()}"
        return " ready " in self.log()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            error.add_note(f"l7proxy said:\n{self.log()}")
        self._kill()
        if error is None:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _kill(self) -> None:
        """End what still runs; workers leave by themselves when their supervisor is gone."""
        if self.process.poll() is None:
            below = children(self.process.pid)  # a guardian's supervisor would go on without it
            self.process.kill()
            for pid in below:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        else:  # one that took over may be there
            with contextlib.suppress(OSError, http.client.HTTPException):
                os.kill(self.stats()["pid"], signal.SIGKILL)
        self.process.wait(PATIENCE)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the supervisor."""
        self.process.send_signal(number)

    def wait(self, seconds: float = PATIENCE) -> int:
        """The exit code, once it has ended; its log must be clean."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"l7proxy still runs after {seconds:g} s:\n{self.log()}") from None
        self.check_log()
        return code

    def stop(self, code: int = 0) -> None:
        """SIGTERM; wants this exit code and a clean log."""
        self.signal(signal.SIGTERM)
        found = self.wait()
        assert found == code, f"exit code {found} and not {code}:\n{self.log()}"

    # ---- what it tells

    def log(self) -> str:
        """What it wrote to standard error."""
        return self._log.read_text(errors="replace")

    def check_log(self) -> None:
        """Fail if the log tells of a bug."""
        assert not ALARM.search(self.log()), self.log()

    def address(self, listener: str) -> tuple[str, int]:
        """Where a listener really listens."""
        found = re.search(rf"listening name={listener} address=\[?([^\s\]]+)\]?:(\d+) ", self.log())
        assert found, self.log()
        return found[1], int(found[2])

    def stats(self) -> dict[str, Any]:
        """`GET /stats`."""
        connection = _UnixConnection(str(self.admin))
        with contextlib.closing(connection):
            connection.request("GET", "/stats")
            found: dict[str, Any] = json.loads(connection.getresponse().read())
        return found

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of what the admin server answers."""
        connection = _UnixConnection(str(self.admin))
        with contextlib.closing(connection):
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()

    def policy(self) -> str:
        """What is in the policy's file."""
        return self._policy.read_text()

    def request(
        self, method: str, path: str, body: object = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers by their names in lower case, and body of an admin answer."""
        data = None if body is None else json.dumps(body).encode()
        connection = _UnixConnection(str(self.admin))
        with contextlib.closing(connection):
            connection.request(method, path, data)
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return response.status, headers, response.read()

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Status and document that the admin server answers; None where there is none."""
        status, headers, answer = self.request(method, path, body)
        is_json = "json" in headers.get("content-type", "")
        return status, json.loads(answer) if is_json else answer.decode() or None

    def connections(self, query: str = "") -> list[dict[str, Any]]:
        """`GET /connections`: the rows, once each worker has told its own."""

        def all_told() -> tuple[list[dict[str, Any]]] | None:
            status, found = self.ask("GET", f"/connections?{query}")
            assert status == 200, found
            return None if found["silent_workers"] else (found["connections"],)

        rows: list[dict[str, Any]] = until(all_told, "each worker tells its connections")[0]
        return rows

    def write(self, policy: str) -> None:
        """Put another policy into its file, in one step."""
        new = self._policy.with_suffix(".new")
        new.write_text(policy)
        new.replace(self._policy)

    def reload(self, policy: str | None = None, *, ok: bool = True) -> dict[str, Any]:
        """`POST /reload`, of this policy; its outcome, which has to be `ok`."""
        if policy is not None:
            self.write(policy)
        connection = _UnixConnection(str(self.admin))
        with contextlib.closing(connection):
            connection.request("POST", "/reload")
            assert connection.sock is not None
            connection.sock.settimeout(START * 4)
            outcome: dict[str, Any] = json.loads(connection.getresponse().read())
        assert outcome["ok"] is ok, outcome
        return outcome

    def settled(self, seconds: float = PATIENCE) -> dict[str, Any]:
        """The statistics once no connection is left."""

        def quiet() -> dict[str, Any] | None:
            stats = self.stats()
            return None if stats["connections"]["active"] else stats

        found: dict[str, Any] = until(quiet, "no connection is left", seconds)
        return found

    def records(self) -> list[dict[str, Any]]:
        """The access log: one object for each connection that has ended."""
        whole, _, _ = self._access.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def forget_records(self) -> None:
        """For `record`, only what is logged from now on counts: client ports come again.

        Lines are written by a thread: one of a connection that has ended may still be on its way.
        """
        connections = self.stats()["connections"]
        ended = connections["accepted"] - connections["active"]
        with contextlib.suppress(AssertionError):  # one that was lost with its worker never comes
            until(lambda: len(self.records()) >= ended, "a record of each", 2.0)
        self._old = len(self.records())

    def record(self, port: int, seconds: float = PATIENCE) -> dict[str, Any]:
        """The record of the latest connection that came from this port of a client."""

        def latest() -> dict[str, Any] | None:
            new = reversed(self.records()[self._old :])
            return next((r for r in new if r["client"].endswith(f":{port}")), None)

        found: dict[str, Any] = until(latest, f"a record of client port {port}", seconds)
        return found

    # ---- its processes

    @property
    def workers(self) -> list[int]:
        """Process ids of the workers."""
        return children(self.process.pid)

    def upgrade(self) -> subprocess.CompletedProcess[str]:
        """`l7proxy upgrade`: another one takes over, if it comes up."""
        command = [sys.executable, "-m", "l7proxy", "upgrade", "--admin", str(self.admin)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=START * 6, check=False
        )


def children(pid: int) -> list[int]:
    """Process ids of the children of a process, the oldest first."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def state_of(pid: int) -> str:
    """Of a process, as the kernel calls it: "R" runs, "T" is stopped, "Z" is dead, "" is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def supervisor(proxy: Proxy) -> int:
    """Process id of the one supervisor below a guardian."""
    below = proxy.process.pid
    until(lambda: len([pid for pid in children(below) if alive(pid)]) == 1, "there is one", START)
    (pid,) = (pid for pid in children(below) if alive(pid))
    return pid


def alive(pid: int) -> bool:
    """Whether there is such a process, and it is not dead already."""
    return state_of(pid) not in ("", "Z", "X")


def descriptors(pid: int) -> int:
    """How many descriptors a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def links(pid: int) -> list[str]:
    """What the descriptors of a process are of: paths, `socket:[INODE]` and the like."""
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found.append(os.readlink(fd))
    return found


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, in user space and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Bytes of memory that a process has to itself or shares."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
