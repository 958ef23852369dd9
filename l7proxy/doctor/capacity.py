"""What limits how much l7proxy can carry here. Nothing of it can fail, it can only warn."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

from l7proxy.doctor.checks import Check, State, numbers, sysctl

_WANTED_FILES = 20_064  # two descriptors for each of 10,000 connections, and some
_WANTED_PORTS = 20_000
_WANTED_BACKLOG = 4096


def capacity(root: Path) -> Iterator[Check]:
    """Every check of this module."""
    yield open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    yield _local_ports(root)
    yield _somaxconn(root)
    yield _buffers(root, "tcp_rmem")
    yield _buffers(root, "tcp_wmem")
    yield _conntrack(root)


def open_files(soft: int, hard: int) -> Check:
    """Whether the limits of RLIMIT_NOFILE are enough for the default connection limit."""
    names = [_limit(soft), _limit(hard)]
    value = f"soft {names[0]}, hard {names[1]}; l7proxy raises soft to hard"
    if hard == resource.RLIM_INFINITY or hard >= _WANTED_FILES:
        return Check("open files", State.OK, value)
    return Check(
        "open files",
        State.WARN,
        value,
        f"enough for about {max(0, hard - 64) // 2} connections; raise it with LimitNOFILE="
        " (systemd), --ulimit nofile= (docker) or /etc/security/limits.conf",
    )


def _local_ports(root: Path) -> Check:
    setting = "net.ipv4.ip_local_port_range"
    low, high = numbers(sysctl(root, setting), 2) or (0, 0)
    count = max(0, high - low + 1)
    value = f"{low}-{high}, {count} connections to each endpoint"
    if count >= _WANTED_PORTS:
        return Check("local ports", State.OK, value)
    return Check("local ports", State.WARN, value, f'sudo sysctl {setting}="1024 65535"')


def _somaxconn(root: Path) -> Check:
    setting = "net.core.somaxconn"
    (value,) = numbers(sysctl(root, setting), 1) or (0,)
    if value >= _WANTED_BACKLOG:
        return Check("somaxconn", State.OK, str(value))
    return Check(
        "somaxconn",
        State.WARN,
        f"{value}: a burst of connections beyond it is delayed by seconds",
        f"sudo sysctl {setting}={_WANTED_BACKLOG}",
    )


def _buffers(root: Path, name: str) -> Check:
    found = numbers(sysctl(root, f"net.ipv4.{name}"), 3)
    if found is None:
        return Check(name, State.WARN, "cannot be read", f"sysctl net.ipv4.{name}")
    value = "min {}, default {}, max {} bytes".format(*found)
    if found[2] >= 1 << 20:
        return Check(name, State.OK, value)
    return Check(
        name,
        State.WARN,
        f"{value}: slow over long distances",
        f'sudo sysctl net.ipv4.{name}="{found[0]} {found[1]} 6291456"',
    )


def _conntrack(root: Path) -> Check:
    (most,) = numbers(sysctl(root, "net.netfilter.nf_conntrack_max"), 1) or (0,)
    if most <= 0:
        return Check("conntrack", State.OK, "not loaded")
    (count,) = numbers(sysctl(root, "net.netfilter.nf_conntrack_count"), 1) or (0,)
    value = f"{count} of {most} entries"
    if count < most * 0.8:
        return Check("conntrack", State.OK, value)
    return Check(
        "conntrack",
        State.WARN,
        f"{value}: new connections are dropped when it is full",
        f"sudo sysctl net.netfilter.nf_conntrack_max={most * 2}",
    )


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)
