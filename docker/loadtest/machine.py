"""The machine under the load: its TCP settings, limits, kernel log and what it says of itself."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"

# What every namespace is set to: one takes these over from the host, and hosts differ. The values
# are the kernel's own defaults, but for the port range and tcp_tw_reuse (a connection per request
# must not run out of ports; 1, since outside of loopback 2 does nothing). The first value that the
# kernel takes is used: an algorithm that is not in the host's tcp_allowed_congestion_control is
# refused to a namespace. reno and cubic do not differ without loss; bbr, as some hosts have it,
# would pace a loopback stream and measure its timer.
SYSCTLS = {
    "net/ipv4/tcp_congestion_control": ("cubic", "reno"),
    "net/ipv4/tcp_rmem": ("4096 131072 6291456",),
    "net/ipv4/tcp_wmem": ("4096 16384 4194304",),
    "net/ipv4/ip_local_port_range": ("10000 65535",),
    "net/ipv4/tcp_tw_reuse": ("1",),
    "net/core/somaxconn": ("4096",),
}

# A line of the kernel's log that makes the figures of the sample meaningless, or that is a bug.
ALARM = re.compile(
    r"table full|SYN flooding|WARNING:|BUG:|[Oo]ut of memory|recvmsg seq|"
    r"hogged CPU|soft lockup|rcu.*stall"
)


def set_sysctls() -> None:
    """Set SYSCTLS in the network namespace of this thread."""
    for name, candidates in SYSCTLS.items():
        for value in candidates:
            try:
                (Path("/proc/sys") / name).write_text(value)
            except OSError:
                continue
            break


def raise_limits(descriptors: int = 65536) -> None:
    """Enough descriptors for the idle workload; as many as are allowed without privilege."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, max(hard, descriptors)))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class KernelLog:
    """What the kernel said since the last look; silent where /dev/kmsg may not be read."""

    def __init__(self) -> None:
        try:
            self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            self._fd = -1
        else:
            os.lseek(self._fd, 0, os.SEEK_END)

    @property
    def readable(self) -> bool:
        """Whether there is a log to watch."""
        return self._fd >= 0

    def alarms(self) -> list[str]:
        """New lines that make a sample void."""
        found = []
        while self._fd >= 0:
            try:
                record = os.read(self._fd, 8192).decode(errors="replace")
            except BlockingIOError:
                break
            except BrokenPipeError:  # the ring overtook us: go on with what is still there
                continue
            text = record.partition(";")[2].partition("\n")[0]
            if ALARM.search(text):
                found.append(text)
        return found


def tcp_counters() -> dict[str, int]:
    """The TCP counters of the client's namespace that tell of trouble."""
    wanted = ("ListenOverflows", "ListenDrops", "TCPTimeouts", "RetransSegs", "TCPRcvQDrop")
    found: dict[str, int] = {}
    for file in ("/proc/net/netstat", "/proc/net/snmp"):  # pairs of lines: names, values
        lines = Path(file).read_text().splitlines()
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            pairs = zip(names.split()[1:], values.split()[1:], strict=True)
            found |= {name: int(value) for name, value in pairs if name in wanted}
    return found


def find(program: str) -> str | None:
    """A program on PATH or where the distributions put daemons."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the figures depend on, for the head of the report. `memory` in KiB."""

    kernel: str
    processors: str
    memory: int
    settings: str


def facts() -> Facts:
    """Of this machine and the network namespace of this thread."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    settings = []
    for name in SYSCTLS:
        path = Path("/proc/sys") / name
        if path.exists():
            settings.append(f"{path.name} = {' '.join(path.read_text().split())}")
    _, descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
    settings.append(f"RLIMIT_NOFILE = {descriptors}")
    if note := os.environ.get("LOADTEST_NOTE"):  # what cannot be seen from inside a container
        settings.append(note)
    return Facts(
        kernel=platform.release(),
        processors=f"{os.cpu_count()} x {model}",
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1024,
        settings="; ".join(settings),
    )
