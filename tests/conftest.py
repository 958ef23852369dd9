"""What all tests share: the marker `kernel`, and an eye on the kernel log.

A test marked `kernel` is skipped, with the reason, where BPF cannot be loaded. With CI=true in the
environment such a skip is a failure: a green run must have tried the kernel.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache

import pytest
from hypothesis import HealthCheck, settings
from kernellog import KernelLog

from l7proxy.datapath.sockmap import load_splicers
from l7proxy.errors import DatapathUnavailable

# How long an example takes says more about the machine.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@cache
def why_not() -> str:
    """Why the kernel cannot be tested here; empty if it can."""
    try:
        for splicer in load_splicers(1, 1):
            splicer.close()
    except DatapathUnavailable as error:
        return str(error)
    return ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("kernel") is None:
        return
    if reason := why_not():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must try the kernel: {reason}", pytrace=False)
        pytest.skip(reason)


_known: list[str] = []


@pytest.fixture(scope="session", autouse=True)
def kernel_log() -> Iterator[KernelLog]:
    """A run in which the kernel complained is a failed run; the known warning is only told."""
    log = KernelLog()
    yield log
    alarms = log.alarms()
    log.close()
    _known.extend(log.known)
    assert not alarms, f"the kernel complained: {alarms}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _known:
        terminalreporter.section("known warnings of the kernel (tests/kernellog.py)")
        for line in _known:
            terminalreporter.write_line(line)
