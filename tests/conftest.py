"""What all tests share: the marker `kernel`, and an eye on the kernel log.

A test marked `kernel` is skipped, with the reason, where BPF cannot be loaded. With CI=true in the
environment such a skip is a failure: a green run must have tried the kernel.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache

import pytest

from l7proxy.datapath.sockmap import load_splicers
from l7proxy.errors import DatapathUnavailable

# What a kernel prints when it caught itself, or one of us, doing wrong.
ALARM = re.compile(
    r"WARNING:|BUG:|BUG |Oops|general protection|Call Trace|lockup|hung task|refcount_t|"
    r"recvmsg seq # bug|list_(add|del) corruption|rcu: INFO|KASAN|UBSAN"
)


class KernelLog:
    """New lines of /dev/kmsg; none where it cannot be read."""

    def __init__(self) -> None:
        try:
            self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
            os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            self._fd = -1

    def alarms(self) -> list[str]:
        """The alarming ones among the lines since the last call."""
        found: list[str] = []
        while self._fd >= 0:
            try:
                record = os.read(self._fd, 8192)
            except BlockingIOError:
                break
            except BrokenPipeError:  # records were overwritten before we read them
                continue
            line = record.decode(errors="replace").partition(";")[2].splitlines()[0]
            if ALARM.search(line):
                found.append(line)
        return found

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


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


@pytest.fixture(scope="session", autouse=True)
def kernel_log() -> Iterator[KernelLog]:
    """A run in which the kernel complained is a failed run."""
    log = KernelLog()
    yield log
    alarms = log.alarms()
    log.close()
    assert not alarms, f"the kernel complained: {alarms}"
