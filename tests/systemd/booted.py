"""A systemd of its own: the real one, as process 1 of new namespaces, with our units alone.

It sees the machine's files, but /run, /opt, /etc and the control groups are its own, /proc/sys can
only be read, and the network is a new one. It ends by SIGKILL of its process 1, so that it never
shuts anything down.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SYSTEMD = Path("/usr/lib/systemd/systemd")
PYTHON = Path("/usr/bin/python3")  # a service with ProtectHome= sees no other one
SECONDS = 150.0  # that anything may take

# What our units name; nothing of the machine's own.
TARGETS = "basic sysinit shutdown umount final local-fs paths timers sockets multi-user"
TARGETS += " network-online nss-lookup"

_BOOT = """\
set -e
mount --make-rprivate /
mount --bind /proc/sys /proc/sys
mount -o remount,ro,bind /proc/sys
cp -a /etc "$BOOTED/etc"
mkdir -p "$BOOTED/etc/l7proxy"
mount --bind "$BOOTED/etc" /etc
mount -t tmpfs tmpfs /opt
mkdir -p /opt/l7proxy/bin /opt/l7proxy/src/l7proxy /opt/l7proxy/site
cp "$BOOTED/l7proxy" /opt/l7proxy/bin/l7proxy
mount --bind "$ROOT/l7proxy" /opt/l7proxy/src/l7proxy
mount --bind "$SITE" /opt/l7proxy/site
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system
if [ -d /sys/fs/cgroup/systemd ]; then
    mount -t tmpfs tmpfs /sys/fs/cgroup
    mkdir /sys/fs/cgroup/systemd /sys/fs/cgroup/unified
    mount -t cgroup -o none,name=systemd,xattr none /sys/fs/cgroup/systemd
    mount -t cgroup2 none /sys/fs/cgroup/unified
else
    mount -t cgroup2 none /sys/fs/cgroup
fi
ip link set lo up
exec env -i PATH="$PATH" container=test SYSTEMD_UNIT_PATH="$BOOTED/units" "$SYSTEMD" --system \\
    --unit=basic.target --log-target=console --show-status=no --crash-reboot=no </dev/null
"""

_LOG = """\
[Service]
StandardOutput=append:/run/services.log
StandardError=append:/run/services.log
"""

_PROGRAM = """\
#!/usr/bin/python3
import sys
sys.dont_write_bytecode = True
sys.path[:0] = ["/opt/l7proxy/src", "/opt/l7proxy/site"]
from l7proxy.cli import main
sys.exit(main())
"""


class Booted:
    """A systemd that runs. `call` runs a command in its namespaces."""

    def __init__(self, folder: Path, units: Sequence[tuple[str, str]], policy: str) -> None:
        self._folder = folder
        self._groups = [
            Path("/sys/fs/cgroup", one, f"l7proxy-test-{os.getpid()}")
            for one in ("systemd", "unified", ".")
            if Path("/sys/fs/cgroup", one, "cgroup.procs").exists()
        ]
        places = folder / "units"
        places.mkdir()
        for name in TARGETS.split():
            (places / f"{name}.target").write_text(f"[Unit]\nDescription={name}\n")
        for name, text in units:
            (places / name).write_text(text)
            drop_in = places / f"{name}.d"
            if name.endswith(".service"):  # there is no journal
                drop_in.mkdir()
                (drop_in / "log.conf").write_text(_LOG)
        (folder / "boot").write_text(_BOOT)
        (folder / "l7proxy").write_text(_PROGRAM)
        (folder / "l7proxy").chmod(0o755)
        self._process: subprocess.Popen[bytes] | None = None
        self._init = 0
        self._policy = policy

    def start(self) -> None:
        """Boot it; skips the test where that cannot be done."""
        for group in self._groups:
            group.mkdir(exist_ok=True)

        def enter() -> None:
            for group in self._groups:
                (group / "cgroup.procs").write_text(str(os.getpid()))

        namespaces = [f"--{name}" for name in ("pid", "mount", "cgroup", "ipc", "uts", "net")]
        boot = str(self._folder / "boot")
        self._log = (self._folder / "log").open("wb")
        self._process = subprocess.Popen(
            ["unshare", "--fork", "--mount-proc", "--kill-child", *namespaces, "bash", boot],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            preexec_fn=enter,
            env=os.environ
            | {
                "BOOTED": str(self._folder),
                "ROOT": str(ROOT),
                "SITE": sysconfig.get_path("platlib"),
                "SYSTEMD": str(SYSTEMD),
            },
        )
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        end = time.monotonic() + SECONDS
        while True:
            if self._process.poll() is None and (found := children.read_text().split()):
                self._init = int(found[0])
                if self.call("systemctl", "is-active", "basic.target").stdout == "active\n":
                    break
            said = (self._folder / "log").read_text(errors="replace")
            if self._process.poll() is not None:
                pytest.skip(f"systemd cannot run in namespaces here: {said[-300:].strip()}")
            assert time.monotonic() < end, f"systemd does not come up: {said}"
            time.sleep(0.1)
        self.write(self._policy)

    def write(self, policy: str) -> None:
        """Put a policy into /etc/l7proxy."""
        (self._folder / "etc" / "l7proxy" / "policy.yaml").write_text(policy)

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in there."""
        return subprocess.run(
            ["nsenter", "-t", str(self._init), "-a", *command],
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    def show(self, name: str, unit: str = "l7proxy.service") -> str:
        """A property of a unit."""
        return self.call("systemctl", "show", "-P", name, unit).stdout.strip()

    def until(self, name: str, pattern: str, unit: str = "l7proxy.service") -> None:
        """Wait until a property is as it should be."""
        end = time.monotonic() + SECONDS
        while not re.fullmatch(pattern, found := self.show(name, unit)):
            assert time.monotonic() < end, f"{name} is {found}: {self.log()[-2000:]}"
            time.sleep(0.2)

    def log(self) -> str:
        """What systemd said, and the services."""
        said = (self._folder / "log").read_text(errors="replace")
        return said + self.call("tail", "-n", "30", "/run/services.log").stdout

    def stop(self) -> None:
        """End it and all that runs in it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._log.close()
        for group in self._groups:
            self._remove(group)

    @staticmethod
    def _remove(group: Path) -> None:
        """Groups can be removed from the leaves up, once the last process has been reaped."""
        end = time.monotonic() + 10
        while group.exists() and time.monotonic() < end:
            for folder, _, _ in os.walk(group, topdown=False):
                try:
                    os.rmdir(folder)
                except OSError:
                    time.sleep(0.05)


def why_not() -> str:
    """Why it cannot be tried here; empty if it can."""
    if os.geteuid() != 0:
        return "only root can make the namespaces"
    for place in (
        ROOT / "l7proxy",
        ROOT / "l7proxy" / "cli.py",
        Path(sysconfig.get_path("platlib")),
    ):
        if not place.stat().st_mode & 0o004:  # the service's own user reads them
            return f"others may not read {place}"
    for program in (SYSTEMD, PYTHON):
        if not program.exists():
            return f"there is no {program}"
    for name in ("unshare", "nsenter", "systemctl", "ip", "bash"):
        if shutil.which(name) is None:
            return f"there is no {name}"
    version = subprocess.run(
        [PYTHON, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True
    )
    if version.stdout.split() != [str(part) for part in sys.version_info[:2]]:
        return f"{PYTHON} is another Python than that of the tests, whose packages it would need"
    return ""
