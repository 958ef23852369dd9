"""Boot Debian's kernels under qemu and put the committed BPF object through its tests on each.

    python3 tests/matrix/run.py [--refresh] [--only SERIES] [-- PYTEST-ARGUMENT ...]

As root on Debian, since it installs qemu, with the Python that the tests run with (`make
kernel-matrix` sees to it). Emulation only, so it runs anywhere, containers included; about three
minutes for each kernel. What it makes is under build/matrix, the console of each guest among it.

Run are the self-test, tests/kernel, the interception of tests/sidecar, and the demo; not the
thousands of transfers that are marked slow, whose time limits an emulated machine cannot keep. What
is slow and marked matrix, another l7proxy that takes over, runs.

Exit status 0: every kernel passed everything, or refused the sockmap datapath with a reason and
relayed, exactly, what it intercepted, too.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import sysconfig
import textwrap
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import debian
import initramfs
import report

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "matrix"
TESTS = ["-m", "not slow or matrix", "tests/kernel"]
KERNELS = {"6.1": "bookworm", "6.12": "trixie"}
COMMANDS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "depmod": "kmod",
    "ip": "iproute2",
    "nft": "nftables",
    "curl": "curl",
    "/usr/lib/x86_64-linux-gnu/libbpf.so.1": "libbpf1",
    debian.KEYRING: "debian-archive-keyring",
}
TOOLS = ("ip", "tc", "ss", "nft", "nsenter", "curl", "modprobe", "sh")
MODULES = (
    *("veth", "dummy", "sch_netem", "sch_tbf", "inet_diag", "tcp_diag", "nf_tables", "nft_ct"),
    *("nft_numgen", "nft_limit", "nft_reject_inet", "nft_quota", "nf_conntrack"),
    *("nft_chain_nat", "nft_redir", "nft_tproxy", "nft_socket", "nft_fib_inet"),
)
UNUSED_LIBRARY = (
    *("site-packages", "dist-packages", "test", "ensurepip", "idlelib", "lib2to3", "pydoc_data"),
    *("tkinter", "turtledemo", Path(sysconfig.get_config_var("LIBPL") or "config").name),
    Path(f"_tkinter{sysconfig.get_config_var('EXT_SUFFIX')}").name,
)
UNUSED_PACKAGES = ("pip", "setuptools", "pkg_resources", "mypy", "mypyc", "ruff", "__pycache__")
# Emulation is 10 to 20 times slower than the machine below it, and more when that is busy. See also
# L7PROXY_SLOWNESS below.
SECONDS = {
    "load": 120,
    "check": 60,
    "selftest": 120,
    "test": 900,
    "tests": 3600,
    "interception": 3600,
    "demo": 600,
}
WHOLE_SECONDS = 9000
MEMORY = "2G"
COMMAND_LINE = "console=ttyS0 loglevel=4 panic=-1 random.trust_cpu=on no_timer_check"
# On the kernel's command line: what it does not know, it hands to process 1.
ENVIRONMENT = (
    "PATH=/usr/sbin:/usr/bin HOME=/root PYTHONUNBUFFERED=1 PYTHONPATH=/src:/src/tests/matrix:/site"
    " L7PROXY_SLOWNESS=10"
)


def main() -> int:
    """Command line in, exit status out."""
    options = arguments()
    if not find_spec("pytest"):
        raise debian.Unobtainable(f"{sys.executable} has no pytest: use `make kernel-matrix`")
    debian.install(COMMANDS)
    outcomes = []
    for series in options.series or KERNELS:
        kernel = debian.fetch_kernel(
            KERNELS[series], _folder(BUILD / series), refresh=options.refresh
        )
        archive = BUILD / series / "initramfs.cpio"
        build_guest(kernel, options.tests, archive)
        say(series, f"booting {kernel.release} ({kernel.version})")
        outcomes.append(boot(series, kernel, archive))
    print("\nkernel matrix:")
    for outcome in outcomes:
        print(outcome.line())
        print(textwrap.indent("\n".join(outcome.details()), " " * 9))
    return 0 if all(outcome.good for outcome in outcomes) else 1


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", dest="series", action="append", choices=KERNELS, default=[])
    parser.add_argument("--refresh", action="store_true", help="look for newer kernels")
    parser.add_argument("tests", nargs="*", default=TESTS, help="other arguments for pytest")
    return parser.parse_args()


def say(series: str, text: str) -> None:
    """A line of progress, or of the guest's console."""
    print(f"{series:>5} | {text}", flush=True)


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def build_guest(kernel: debian.Kernel, tests: list[str], archive: Path) -> None:
    """The initramfs: this interpreter and its packages, libbpf, tools, modules, the checkout."""
    python = Path(sys.executable).resolve()
    stdlib = Path(sysconfig.get_path("stdlib"))
    site = Path(sysconfig.get_path("purelib"))
    tree = initramfs.Tree()
    for name in ("bin", "sbin", "lib"):
        tree.link(f"/{name}", f"usr/{name}")
    tree.folder("/proc", "/sys", "/dev", "/run", "/tmp", "/root", "/etc")
    tree.add(python)
    tree.copy(stdlib, stdlib, UNUSED_LIBRARY)
    tree.copy(site, Path("/site"), UNUSED_PACKAGES)
    for part in ("l7proxy", "tests", "bpf", "policies", "docker"):
        tree.copy(ROOT / part, Path("/src", part), ("__pycache__",))
    tree.place(ROOT / "pyproject.toml", "/src/pyproject.toml")
    for tool in TOOLS:
        if path := debian.which(tool):
            tree.add(path)
    tree.add(_library("libbpf.so.1"))
    tree.add_libraries()
    for file in initramfs.module_closure(kernel.modules, kernel.release, MODULES):
        where = Path("/usr/lib/modules", kernel.release, file.relative_to(kernel.modules))
        tree.place(file, where)
    tree.write("/etc/passwd", "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")
    tree.write("/etc/group", "root:x:0:\nnogroup:x:65534:\n")
    tree.write("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")
    tree.write("/etc/matrix.json", json.dumps({"seconds": SECONDS, "tests": tests}))
    tree.write("/init", f"#!{python} /src/tests/matrix/guest.py\n", 0o755)
    tree.pack(archive)


def _library(soname: str) -> str:
    """Where the dynamic linker finds a library."""
    cache = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True)
    for line in cache.stdout.splitlines():
        name, _, path = line.strip().partition(" => ")
        if name.split(" ")[0] == soname:
            return path
    raise debian.Unobtainable(f"the dynamic linker knows no {soname}")


def boot(series: str, kernel: debian.Kernel, archive: Path) -> report.Outcome:
    """Run one guest to its end, or to the time limit; its console goes to ours and to a file."""
    told = archive.with_name("results.jsonl")
    told.unlink(missing_ok=True)
    started = time.monotonic()
    with (
        archive.with_name("console.log").open("w") as log,
        subprocess.Popen(
            qemu(kernel, archive, told),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as machine,
    ):
        alarm = threading.Timer(WHOLE_SECONDS, machine.kill)
        alarm.start()
        try:
            for line in machine.stdout or ():
                log.write(line)
                say(series, line.rstrip())
        finally:
            alarm.cancel()
            machine.kill()
    outcome = report.Outcome(series, kernel.version, seconds=time.monotonic() - started)
    outcome.hear(told.read_text(errors="replace").splitlines() if told.exists() else ())
    return outcome


def qemu(kernel: debian.Kernel, archive: Path, told: Path) -> list[str]:
    """A machine with two serial lines (console, results), no disk, no network but its loopback."""
    return [
        *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot"),
        # A thread for each CPU, since what runs at the same time is what is tested. (Time by
        # counted instructions would spare us the limits below, but it takes a single thread.)
        *("-accel", "tcg,thread=multi"),
        # Five-level page tables would cost the boot a fourth of its time.
        *("-cpu", "max,la57=off", "-smp", "2", "-m", MEMORY),
        *("-kernel", str(kernel.image), "-initrd", str(archive)),
        *("-serial", "stdio", "-serial", f"file:{told}"),
        # On a busy machine the emulated timer is late, and the kernel would take it for broken.
        *("-append", f"{COMMAND_LINE} {ENVIRONMENT}"),
    ]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("kernel matrix: terminated"))
    try:
        sys.exit(main())
    except debian.Unobtainable as reason:
        sys.exit(f"kernel matrix: {reason}")
