"""What runs inside the virtual machine, as process 1: load, self-test, tests, the whole product.

Each stage is a process of its own with a time limit; what it found goes to the second serial line.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serial import KernelLog, send

MOUNTS = (  # file system, where
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("devpts", "/dev/pts"),
    ("tmpfs", "/dev/shm"),
    ("tmpfs", "/run"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
)
INTERCEPTION = ["tests/sidecar"]
TRANSFERS = ("--download", "8", "--upload", "4")  # MiB
_RB_AUTOBOOT = 0x01234567  # <linux/reboot.h>; qemu -no-reboot makes it the end
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def say(text: str) -> None:
    """A line on the console, with the machine's age."""
    age = Path("/proc/uptime").read_text().split()[0]
    print(f"== {text} (up {age} s)", flush=True)


def boot(plan: Callable[[], None]) -> None:
    """Be process 1: mount, bring loopback up, run the plan, reap orphans, end the machine."""
    libc = ctypes.CDLL(None, use_errno=True)
    for kind, where in MOUNTS:
        os.makedirs(where, exist_ok=True)
        libc.mount(kind.encode(), where.encode(), kind.encode(), 0, None)
    interface_up("lo")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            plan()
            status = 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    while os.wait()[0] != child:  # orphans come to process 1; a zombie would look alive to a test
        pass
    os.sync()
    libc.reboot(_RB_AUTOBOOT)


def interface_up(name: str) -> None:
    """`ip link set NAME up`, without ip (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", name.encode(), 0)
        flags = struct.unpack_from("h", fcntl.ioctl(control, _SIOCGIFFLAGS, request), 16)[0]
        request = struct.pack("16sh14x", name.encode(), flags | _IFF_UP)
        fcntl.ioctl(control, _SIOCSIFFLAGS, request)


def stages(settings: dict[str, Any]) -> None:
    """Everything that is asked of this kernel."""
    limits = settings["seconds"]
    send(kernel=os.uname().release, btf=Path("/sys/kernel/btf/vmlinux").exists())
    with stage("load"):
        send(programs=ask(LOAD, limits["load"]))
    with stage("self-test"):
        proven = ask(SELFTEST, limits["selftest"], str(limits["check"]))
        send(selftest=proven)
    asked, intercepting = settings["tests"], INTERCEPTION
    if not proven.get("ok"):  # nothing is spliced here, so nothing is handed over
        asked = [one.removesuffix(" or matrix") for one in asked]
        intercepting = [*INTERCEPTION, "-k", "not sockmap"]
    with stage("tests"):
        send(pytest_exit=run_pytest(asked, limits["tests"], limits["test"]))
    with stage("interception"):
        send(interception_exit=run_pytest(intercepting, limits["interception"], limits["test"]))
    with stage("demo"):
        send(demo=run_demo(limits["demo"]))
    say("end")
    send(end=True)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Announce it; afterwards tell what the kernel said meanwhile."""
    say(name)
    send(doing=name)
    log = KernelLog()
    yield
    if complaints := log.complaints():
        send(complaints=complaints)


# Which of the object's verdict programs this kernel takes; l7proxy uses the first that loads.
LOAD = """
import json
from l7proxy.datapath import sockmap
from l7proxy.errors import DatapathUnavailable
answer = {}
for name in sockmap.PROGRAMS:
    try:
        sockmap.load_splicers(1, 1, program=name)[0].close()
        answer[name] = ""
    except DatapathUnavailable as refusal:
        answer[name] = str(refusal)
print(json.dumps(answer))
"""


# The product's own answer to whether this kernel can carry the sockmap datapath.
SELFTEST = """
import dataclasses, json, sys
from l7proxy.datapath.selftest import prove_kernel
result = prove_kernel(timeout=float(sys.argv[1]))
print(json.dumps({"ok": result.ok, **dataclasses.asdict(result)}))
"""


# The product as a user runs it, whatever datapath it chooses, with an emulated machine's patience.
DEMO = """
import sys
from l7proxy.demo import proxy, show, traffic
proxy._START_SECONDS *= 10
proxy._STOP_SECONDS *= 10
traffic._SECONDS *= 10
sys.exit(show.main(sys.argv[1:]))
"""


def ask(program: str, seconds: int, *arguments: str) -> dict[str, Any]:
    """Run a Python program; the JSON object in the last line of its output."""
    code, out = _child([sys.executable, "-c", program, *arguments], seconds)
    try:
        answer: dict[str, Any] = json.loads(out.splitlines()[-1])
        return answer
    except (ValueError, IndexError):
        return {"crash": f"exit code {code}:\n{out}"}


def run_pytest(tests: list[str], seconds: int, each: int) -> int | None:
    """The tests, for `each` so many seconds at most; results.py reports each of them."""
    os.environ["MATRIX_TEST_SECONDS"] = str(each)
    options = ["-v", "--color=no", "-o", "console_output_style=classic", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, "-p", "results", *tests]
    return _child(command, seconds)[0]


def run_demo(seconds: int) -> dict[str, Any]:
    """Every transfer of the demo is checked by itself; its exit code tells."""
    code, out = _child([sys.executable, "-c", DEMO, *TRANSFERS], seconds)
    datapath = next((line for line in out.splitlines() if line.startswith("  datapath ")), "")
    return {"exit": code, "datapath": datapath.strip(), "tail": out[-600:]}


def _child(command: list[str], seconds: int) -> tuple[int | None, str]:
    """Exit code (None: killed for taking too long) and output, which the console shows at once."""
    lines: list[str] = []
    with subprocess.Popen(
        command,
        cwd="/src",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as child:
        # With its children, who have the same pipe for their output.
        alarm = threading.Timer(seconds, os.killpg, (child.pid, signal.SIGKILL))
        alarm.start()
        for line in child.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
        late = not alarm.is_alive()
        alarm.cancel()
    return (None if late else child.returncode), "".join(lines)


if __name__ == "__main__":
    boot(lambda: stages(json.loads(Path("/etc/matrix.json").read_text())))
