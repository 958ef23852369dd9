"""What this process may do, and giving it up.

The supervisor loads BPF and opens low ports; a worker reads what strangers send and needs none of
that: it keeps no capability, not even one that it could get back (bounding and ambient sets,
no_new_privs), and, when started as root, another user.

Order matters (capabilities(7), prctl(2)): the bounding set can only be cut while CAP_SETPCAP is
held, groups can only be changed before the user is, and a capset that clears everything always
works. libc's wrappers are used directly: Python has none.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import resource
from dataclasses import dataclass
from functools import cache

from l7proxy.errors import StartupError

# linux/capability.h
_NUMBERS = {
    "SETGID": 6,
    "SETUID": 7,
    "NET_BIND_SERVICE": 10,
    "NET_ADMIN": 12,
    "SYS_ADMIN": 21,
    "PERFMON": 38,
    "BPF": 39,
}
_VERSION_3 = 0x20080522

# linux/prctl.h
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4


@dataclass(frozen=True, slots=True)
class Account:
    """A user that workers run as, with its primary group."""

    name: str
    uid: int
    gid: int


def held(status: str = "/proc/self/status") -> frozenset[str]:
    """The effective capabilities that matter to l7proxy, by name without `CAP_`."""
    bits = _status_field(status, "CapEff")
    return frozenset(name for name, number in _NUMBERS.items() if bits >> number & 1)


def use_permitted() -> None:
    """Make every permitted capability effective.

    A file may permit capabilities without the bit that makes them effective at once: with that bit,
    execve(2) fails where the bounding set (a container's) lacks one of them, and without it, we run
    and relay. See docker/Dockerfile.
    """
    status = "/proc/self/status"
    permitted, inheritable = (_status_field(status, name) for name in ("CapPrm", "CapInh"))
    if permitted != _status_field(status, "CapEff"):
        _capset(permitted, permitted, inheritable)


def are_withheld() -> bool:
    """Whether capabilities of the program's file had no effect: no_new_privs was set before."""
    if not _status_field("/proc/self/status", "NoNewPrivs"):
        return False
    try:
        return bool(os.getxattr("/proc/self/exe", "security.capability"))
    except OSError:
        return False


def missing_for_splicing(capabilities: frozenset[str]) -> tuple[str, ...]:
    """What is missing to load the verdict program; empty when it can be loaded.

    CAP_BPF creates maps and programs, CAP_NET_ADMIN loads and attaches sk_skb programs,
    CAP_PERFMON lets the program read kernel structures. CAP_SYS_ADMIN stands for BPF and PERFMON
    (`bpf_capable`, `perfmon_capable`), and, for BPF, for NET_ADMIN too.
    """
    if "SYS_ADMIN" in capabilities:
        return ()
    return tuple(name for name in ("BPF", "NET_ADMIN", "PERFMON") if name not in capabilities)


def account(user: str | None) -> Account | None:
    """Whom workers become: `user`, `nobody` when it is None; None: nobody else.

    Only root can become somebody else; for everybody else a user that is asked for must be the
    one that l7proxy runs as. Raises StartupError for a user that there is not, or that
    this process may not become.
    """
    if os.geteuid() != 0:
        if user is not None and _find(user).uid != os.geteuid():
            raise StartupError(
                f"--user {user}: only root can become another user; run l7proxy with sudo, or leave"
                " --user out"
            )
        return None
    wanted = _find("nobody" if user is None else user)
    if wanted.uid == 0 and wanted.gid == os.getegid():
        return None  # asked for by name: root without capabilities
    lacking = {"SETUID", "SETGID"} - held()
    if lacking:
        names = " and ".join(f"CAP_{name}" for name in sorted(lacking))
        raise StartupError(
            f"workers cannot become user {wanted.name}: {names} missing; add it, start l7proxy as"
            " that user, or keep root without capabilities: --user root"
        )
    return wanted


def drop(to: Account | None) -> None:
    """Give up every capability for good, and become `to` unless it is None.

    Raises StartupError when something could not be given up: the caller must not go on.
    """
    try:
        _clear_ambient_and_bounding()
        if to is not None:
            os.setgroups([])
            os.setresgid(to.gid, to.gid, to.gid)
            os.setresuid(to.uid, to.uid, to.uid)
        _clear_capabilities()
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    except OSError as error:
        raise StartupError(f"cannot give up privileges: {error.strerror}") from error
    status = "/proc/self/status"
    if any(_status_field(status, name) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")):
        raise StartupError("cannot give up privileges: a capability is left")


def inherit_orphans() -> None:
    """Have children of children that have died become this process's own. Raises OSError."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def raise_nofile() -> tuple[int, int]:
    """Raise the soft limit of open files to the hard one; (before, now)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # hard above fs.nr_open: the soft limit stays as it was
            return soft, soft
    return soft, hard


def _find(user: str) -> Account:
    try:
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError:
        if user.isdecimal():  # usual in containers: a number that no file knows
            return Account(user, int(user), int(user))
        raise StartupError(
            f"--user {user}: there is no such user; make one (sudo useradd --system {user}) or"
            " name another"
        ) from None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _status_field(path: str, name: str) -> int:
    prefix = f"{name}:".encode()
    # Bytes: this runs as the new user too, who may not be able to import a codec.
    with open(path, "rb") as file:
        for line in file:
            if line.startswith(prefix):
                return int(line.split()[1], 16)
    return 0


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Data(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    libc.prctl.restype = ctypes.c_int
    libc.capset.argtypes = [ctypes.POINTER(_Header), ctypes.POINTER(_Data)]
    libc.capset.restype = ctypes.c_int
    return libc


def _prctl(option: int, first: int = 0, second: int = 0) -> int:
    result: int = _libc().prctl(option, first, second, 0, 0)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _clear_ambient_and_bounding() -> None:
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    number = 0
    while True:
        try:
            present = _prctl(_PR_CAPBSET_READ, number)
        except OSError:  # EINVAL: the kernel knows no capability of this number
            return
        if present:
            try:
                _prctl(_PR_CAPBSET_DROP, number)
            except OSError:  # EPERM: no CAP_SETPCAP; no_new_privs closes that way as well
                return
        number += 1


def _clear_capabilities() -> None:
    _capset(0, 0, 0)


def _capset(effective: int, permitted: int, inheritable: int) -> None:
    header = _Header(_VERSION_3, 0)
    low, high = (
        [n >> shift & 0xFFFFFFFF for n in (effective, permitted, inheritable)] for shift in (0, 32)
    )
    data = (_Data * 2)(_Data(*low), _Data(*high))
    if _libc().capset(ctypes.byref(header), data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
