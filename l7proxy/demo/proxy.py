"""The proxy as a process of its own, started as a user starts it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from l7proxy.demo.traffic import CheckError, admin

_START_SECONDS = 15
_STOP_SECONDS = 10


class Proxy:
    """`l7proxy run` while the `with` block is open; killed at its end if it still runs."""

    def __init__(self, policy: Path, scratch: Path, datapath: str) -> None:
        self._admin = scratch / "admin.sock"
        self._access = scratch / "access.log"
        self._log = scratch / "l7proxy.log"
        self.arguments = ["run", str(policy), "--admin", f"unix:{self._admin}"]
        self.arguments += ["--access-log", str(self._access)]
        if datapath != "auto":
            self.arguments += ["--datapath", datapath]

    def __enter__(self) -> Proxy:
        with self._log.open("wb") as log:
            command = [sys.executable, "-m", "l7proxy", *self.arguments]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        return self._process.pid

    def wait_until_healthy(self) -> None:
        """Return when it takes connections. Raises CheckError when it does not get there."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if (code := self._process.poll()) is not None:
                raise CheckError(f"l7proxy exits with {code} at its start:\n{self.log()}")
            try:
                if self._admin.exists() and self.stats():
                    return
            except CheckError:
                pass  # it has the socket and does not answer yet
            time.sleep(0.05)
        raise CheckError(f"l7proxy is not up after {_START_SECONDS} s:\n{self.log()}")

    def stats(self) -> dict[str, Any]:
        """What the admin server tells."""
        found: dict[str, Any] = admin(self._admin, "/stats")
        return found

    def settled_stats(self) -> dict[str, Any]:
        """The statistics once no connection is left; after two seconds, as they are."""
        deadline = time.monotonic() + 2
        while (stats := self.stats())["connections"]["active"] and time.monotonic() < deadline:
            time.sleep(0.05)
        return stats

    def stop(self) -> float:
        """SIGTERM; the seconds that it took. Raises CheckError when it does not leave cleanly."""
        started = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise CheckError(f"l7proxy still runs {_STOP_SECONDS} s after SIGTERM") from None
        if code:
            raise CheckError(f"l7proxy exits with {code} after SIGTERM:\n{self.log()}")
        return time.monotonic() - started

    def records(self) -> dict[int, dict[str, Any]]:
        """The access log by the client's port. Complete after `stop`."""
        records = map(json.loads, self._access.read_text().splitlines())
        return {int(record["client"].rpartition(":")[2]): record for record in records}

    def log(self) -> str:
        """What it wrote to standard error."""
        return self._log.read_text(errors="replace").strip()
