"""What splicing needs of this machine, up to the proof that it works."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from l7proxy.doctor.checks import Check, State, read, sysctl
from l7proxy.errors import DatapathUnavailable
from l7proxy.net import privileges

log = logging.getLogger(__name__)

CAPABILITIES_REMEDY = (
    "start l7proxy with sudo (workers give everything up), or in a container with"
    " --cap-add BPF --cap-add NET_ADMIN --cap-add PERFMON"
)
_NO_NEW_PRIVILEGES = (
    "no_new_privs is set, so the capabilities of the program's file have no effect: allow privilege"
    " escalation (Kubernetes: allowPrivilegeEscalation: true; docker: without --security-opt"
    " no-new-privileges), or run it as user 0 with these capabilities alone"
)


class Behaviour(Protocol):
    """One behaviour of the kernel that the self-test tried."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def ok(self) -> bool: ...  # noqa: D102
    @property
    def detail(self) -> str: ...  # noqa: D102


class Proof(Protocol):
    """What a self-test found."""

    @property
    def ok(self) -> bool: ...  # noqa: D102
    @property
    def checks(self) -> Sequence[Behaviour]: ...  # noqa: D102


def prove_kernel() -> Proof:
    """The self-test of the datapath. Raises DatapathUnavailable when it cannot run.

    That includes a bug in it: l7proxy then relays, which needs none of what is tested.
    """
    from l7proxy.datapath import selftest

    try:
        return selftest.prove_kernel()
    except DatapathUnavailable:
        raise
    except Exception as error:
        log.debug("the self-test broke", exc_info=True)
        what = f"{type(error).__name__}: {error}"
        raise DatapathUnavailable(f"the self-test broke ({what})", "please report it") from error


def prove_sockmap(prove: Callable[[], Proof] = prove_kernel) -> None:
    """Raise DatapathUnavailable unless this process, on this kernel, splices correctly."""
    missing = privileges.missing_for_splicing(privileges.held())
    if missing:
        names = ", ".join(f"CAP_{name}" for name in missing)
        raise DatapathUnavailable(f"missing {names}", _remedy())
    result = prove()
    if not result.ok:
        failed = "; ".join(f"{one.name}: {one.detail}" for one in result.checks if not one.ok)
        raise DatapathUnavailable(f"the kernel failed the self-test ({failed})", "l7proxy doctor")


def requirements(root: Path) -> Iterator[Check]:
    """What can be seen without trying it."""
    yield _kernel()
    yield _btf(root)
    yield _libbpf()
    yield _capabilities()
    yield _unprivileged_bpf(root)
    yield _lockdown(root)


def self_test(prove: Callable[[], Proof]) -> Iterator[Check]:
    """One check for each behaviour of the kernel that was tried; a failed one forbids splicing."""
    missing = privileges.missing_for_splicing(privileges.held())
    if missing:
        yield Check("self-test", State.FAIL, "not run: capabilities are missing (see above)")
        return
    try:
        result = prove()
    except DatapathUnavailable as error:
        yield Check("self-test", State.FAIL, f"cannot run: {error.reason}", error.remedy)
        return
    for one in result.checks:
        yield Check(
            f"self-test: {one.name}",
            State.OK if one.ok else State.FAIL,
            one.detail or ("passed" if one.ok else "failed"),
            "" if one.ok else "update the kernel; until then l7proxy relays",
        )
    if not result.checks:
        yield Check("self-test", State.FAIL, "nothing was tried", "please report it")


def _kernel() -> Check:
    return Check(
        "kernel", State.OK, f"{platform.system()} {platform.release()} {os.uname().machine}"
    )


def _btf(root: Path) -> Check:
    path = "sys/kernel/btf/vmlinux"
    try:
        size = (root / path).stat().st_size
    except OSError:
        return Check(
            "btf",
            State.FAIL,
            f"no /{path}",
            "use a kernel built with CONFIG_DEBUG_INFO_BTF=y (those of all large distributions)",
        )
    return Check("btf", State.OK, f"/{path}, {size // 1024} KiB")


def _libbpf() -> Check:
    from l7proxy.datapath import libbpf

    try:
        return Check("libbpf", State.OK, f"{libbpf.version()} ({libbpf.SONAME})")
    except DatapathUnavailable as error:
        return Check("libbpf", State.FAIL, error.reason, error.remedy)


def _capabilities() -> Check:
    capabilities = privileges.held()
    missing = privileges.missing_for_splicing(capabilities)
    wanted = ("BPF", "NET_ADMIN", "PERFMON", "SYS_ADMIN")
    value = " ".join(name for name in wanted if name in capabilities) or "none"
    if not missing:
        return Check("capabilities", State.OK, value)
    return Check("capabilities", State.FAIL, f"{value}; missing {' '.join(missing)}", _remedy())


def _remedy() -> str:
    return _NO_NEW_PRIVILEGES if privileges.are_withheld() else CAPABILITIES_REMEDY


def _unprivileged_bpf(root: Path) -> Check:
    name, setting = "unprivileged bpf", "kernel.unprivileged_bpf_disabled"
    value = sysctl(root, setting)
    if value is None:
        return Check(name, State.OK, f"{setting} is not known to this kernel")
    if value != "0":
        return Check(name, State.OK, f"{setting} = {value}")
    return Check(
        name,
        State.WARN,
        f"{setting} = 0: every user may load BPF programs",
        f"l7proxy does not need that: sudo sysctl {setting}=2",
    )


def _lockdown(root: Path) -> Check:
    text = read(root / "sys/kernel/security/lockdown")
    if text is None:
        return Check("lockdown", State.OK, "not in use")
    mode = text.partition("[")[2].partition("]")[0] or text
    if mode != "confidentiality":
        return Check("lockdown", State.OK, mode)
    return Check(
        "lockdown",
        State.WARN,
        mode,
        "BPF may not read kernel memory in this mode; if the self-test fails, boot with"
        " lockdown=integrity",
    )
