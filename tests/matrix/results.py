"""pytest plugin of the guest: a result leaves the machine before the next test can kill it.

Results go to the second serial line as JSON, one object a line; the console stays for people. A
test that hangs is interrupted, so that the ones behind it are still heard.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from types import FrameType

import pytest
from serial import KernelLog, send


class Results:
    """Sends outcomes, reads the kernel's log after each test, interrupts tests that hang."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        self._log = KernelLog()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Announce the test; afterwards tell what the kernel said meanwhile."""
        send(doing=item.nodeid)
        result = yield
        if complaints := self._log.complaints():
            send(complaints=complaints)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Iterator[None]:
        """Let the test run for so long and no longer."""
        signal.signal(signal.SIGALRM, self._interrupt)
        signal.alarm(self._seconds)
        try:
            return (yield)
        finally:
            signal.alarm(0)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"the test did not end within {self._seconds} s")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The outcome of the call, or of a setup or teardown that did not pass."""
        if report.when == "call" or report.outcome != "passed":
            outcome = report.outcome if report.when == "call" or report.skipped else "error"
            send(test=report.nodeid, outcome=outcome, why=_why(report))


def _why(report: pytest.TestReport) -> str:
    """One line: the reason of a skip, the exception's message, or nothing."""
    if isinstance(report.longrepr, tuple):
        text = report.longrepr[2]
    else:
        crash = getattr(report.longrepr, "reprcrash", None)
        text = crash.message if crash else report.longreprtext
    return " ".join(text.split())[:300]


def pytest_configure(config: pytest.Config) -> None:
    """Called by pytest: -p results."""
    config.pluginmanager.register(Results(int(os.environ["MATRIX_TEST_SECONDS"])))
