"""Network namespaces: one for everything, or one each for client, contender and origins.

A namespace here has no name. It lives as long as a descriptor of it, a process in it or a mount of
it, and this driver holds descriptors alone: so a run leaves nothing behind, however it ends, and
two runs cannot meet. Interfaces go with their namespace. It has no connection tracking and no
firewall rules, and nobody else's traffic.

`unshare` and `setns` move one thread. What has to be done inside is done by a thread that ends with
it (`inside`), and children get there by `nsenter`, which execs: their pid is that of the program.

    client 10.77.0.1 ──┐
    contender .2 ──────┤ bridge, in a fourth namespace
    origins .3 and .4 ─┘

Every path between two of them is one veth pair, the bridge, one veth pair, with or without a
contender. veth offloads segmentation: a "packet" may be 64 KiB, whatever the MTU.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from .hosts import LoadTestError
from .machine import find, set_sysctls

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
MTU = 1500
CLIENT, CONTENDER, ORIGINS = "10.77.0.1", "10.77.0.2", ("10.77.0.3", "10.77.0.4")

_libc = ctypes.CDLL(None, use_errno=True)


def isolate(*, sysctls: bool = True) -> bool:
    """Move this thread, and all that it starts, into a namespace of its own with loopback up.

    To be called before there are other threads. Returns False, and changes nothing, without the
    privilege.
    """
    if os.geteuid() != 0 or _libc.unshare(CLONE_NEWNET) != 0:
        return False
    _ip("link", "set", "lo", "up")
    if sysctls:
        set_sysctls()
    return True


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace, held by a descriptor until `close`."""

    fd: int

    @property
    def path(self) -> str:
        """A path of it that other processes can open."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    @property
    def prefix(self) -> list[str]:
        """What comes before a command line that is to run in it."""
        return [_tool("nsenter", "util-linux"), f"--net={self.path}", "--"]

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)


def create() -> Namespace:
    """A new namespace with loopback up."""

    def unshare() -> int:
        if _libc.unshare(CLONE_NEWNET) != 0:
            raise LoadTestError("no right to make network namespaces: run as root")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    namespace = Namespace(_in_thread(unshare))
    _ip("link", "set", "lo", "up", inside=namespace)
    return namespace


def inside(namespace: Namespace, function: Callable[[], T]) -> T:
    """What `function` returns or raises, run in the namespace."""

    def run() -> T:
        if _libc.setns(namespace.fd, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        return function()

    return _in_thread(run)


def _in_thread(function: Callable[[], T]) -> T:
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


class Lan:
    """A bridge, with this thread's namespace (the client's) and two new ones on it."""

    def __init__(self, *, sysctls: bool = True) -> None:
        self._all: list[Namespace] = []
        self._plugged = False
        try:
            bridge = self._create()
            _ip("link", "add", "lan", "type", "bridge", inside=bridge)
            _ip("link", "set", "lan", "up", inside=bridge)
            # Frames on a bridge go through the IP hooks too where a host says so: costs, no use.
            inside(bridge, _no_bridge_hooks)
            client = Namespace(os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
            self._all.append(client)
            self.contender, self.origins = self._create(), self._create()
            self._plug(bridge, client, "client", [CLIENT])
            self._plugged = True
            self._plug(bridge, self.contender, "contender", [CONTENDER])
            self._plug(bridge, self.origins, "origins", list(ORIGINS))
            for namespace in (self.contender, self.origins) if sysctls else ():
                inside(namespace, set_sysctls)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the namespaces, which end with the last process in them; idempotent."""
        if self._plugged:
            # The client's own stays: without this its interface would, too, for a moment.
            self._plugged = False
            _ip("link", "delete", "eth0")
        while self._all:
            self._all.pop().close()

    def _create(self) -> Namespace:
        namespace = create()
        self._all.append(namespace)
        return namespace

    def _plug(
        self, bridge: Namespace, namespace: Namespace, port: str, addresses: list[str]
    ) -> None:
        pair = ["link", "add", port, "mtu", str(MTU), "type", "veth"]
        pair += ["peer", "name", "eth0", "mtu", str(MTU), "netns", namespace.path]
        _ip(*pair, inside=bridge)
        _ip("link", "set", port, "master", "lan", "up", inside=bridge)
        for address in addresses:
            _ip("address", "add", f"{address}/24", "dev", "eth0", inside=namespace)
        _ip("link", "set", "eth0", "up", inside=namespace)


def _no_bridge_hooks() -> None:
    for name in ("iptables", "ip6tables", "arptables"):
        try:
            with open(f"/proc/sys/net/bridge/bridge-nf-call-{name}", "w") as file:
                file.write("0")
        except OSError:
            continue  # no br_netfilter, no hooks


def _tool(name: str, package: str) -> str:
    path = find(name)
    if path is None:
        raise LoadTestError(f"`{name}` is missing: apt-get install {package}")
    return path


def _ip(*arguments: str, inside: Namespace | None = None) -> None:
    argv = [*(inside.prefix if inside else []), _tool("ip", "iproute2"), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LoadTestError(f"{' '.join(argv)}: {done.stderr.strip()}")
