"""A host without containers: processes on this machine, on loopback or in network namespaces."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from . import blast, contenders, memory, meter, netns
from .contenders import Contender, Setup
from .hosts import Addresses, LoadTestError, Order, Own, Running
from .machine import ROOT
from .procs import Child, accepts, child

ORIGIN_PORTS = ((9001, 9002), (9011, 9012))  # HTTP and raw echo of each
NETWORKS = ("loopback", "namespaces")


class NativeRunning:
    """A contender as a child process of the driver. `child` is None for `direct`."""

    def __init__(
        self, contender: Contender, setup: Setup, process: Child | None, addresses: Addresses
    ) -> None:
        self.addresses = addresses
        self._process = process
        self._admin = contenders.admin_path(setup) if contender.program == "l7proxy" else None

    def own(self, *, memory: bool = True) -> Own:
        """See `hosts.Running`."""
        if self._process is None:
            return Own()
        cpu, switches, pids = meter.own([self._process.pid])
        return Own(cpu, switches, _pss(pids) if memory else 0.0, pids)

    def pss_kib(self) -> float:
        """See `hosts.Running`."""
        if self._process is None:
            return 0.0
        return _pss(meter.tree([self._process.pid], meter.read().processes))

    def stats(self) -> Mapping[str, object]:
        """See `hosts.Running`."""
        return read_stats(self._admin) if self._admin else {}

    def problems(self) -> list[str]:
        """See `hosts.Running`."""
        if self._process is not None and not self._process.alive:
            return [f"the contender ended: {self._process.tail()}"]
        return []


_pss = memory.pss


@contextmanager
def launch(
    contender: Contender, setup: Setup, prefix: Sequence[str] = ()
) -> Iterator[NativeRunning]:
    """Start a contender, wait until it is as ordered, end it with the block.

    `prefix` comes before its command line. Its addresses must be reachable from this thread.
    """
    addresses = contenders.addresses(contender, setup)
    if not contender.program:
        yield NativeRunning(contender, setup, None, addresses)
        return
    contenders.config_path(contender, setup).write_text(contenders.render(contender, setup))
    contenders.admin_path(setup).unlink(missing_ok=True)
    argv = [*prefix, *contenders.argv(contender, setup)]
    with child(argv, setup.scratch / f"{contender.name}.log", cwd=ROOT) as process:

        def ready() -> bool:
            said = contenders.came_up(contender, setup, process.log.read_text(errors="replace"))
            if said:
                raise LoadTestError(said)
            listening = (*addresses.web, *addresses.bulk, *addresses.echo)
            return said is not None and all(accepts(address) for address in listening)

        process.wait_until(ready)
        yield NativeRunning(contender, setup, process, addresses)


class NativeHost:
    """Everything on this machine. The thread that makes it must be in the client's namespace."""

    def __init__(self, network: str, *, sysctls: bool = True) -> None:
        self.network = network
        self._sysctls = sysctls
        hosts = netns.ORIGINS if network == "namespaces" else ("127.0.0.1", "127.0.0.1")
        self._listen = netns.CONTENDER if network == "namespaces" else "127.0.0.1"
        pairs = list(zip(hosts, ORIGIN_PORTS, strict=True))
        web = tuple(f"{host}:{ports[0]}" for host, ports in pairs)
        self.origins = Addresses(web, web, tuple(f"{host}:{ports[1]}" for host, ports in pairs))
        self._stack = ExitStack()
        self._lan: netns.Lan | None = None
        self._origins: list[blast.Child] = []

    def __enter__(self) -> NativeHost:
        """Make the network, start the origins."""
        with ExitStack() as stack:
            self._scratch = Path(tempfile.mkdtemp(prefix="l7proxy-loadtest-"))
            stack.callback(shutil.rmtree, self._scratch, ignore_errors=True)
            self._scratch.chmod(0o755)  # contenders may give up root
            if self.network == "namespaces":
                self._lan = netns.Lan(sysctls=self._sysctls)
                stack.callback(self._lan.close)
            program = blast.build()
            prefix = self._lan.origins.prefix if self._lan else []
            for web, echo in zip(self.origins.web, self.origins.echo, strict=True):
                origin = stack.enter_context(blast.origin(program, [web], [echo], prefix))
                self._origins.append(origin)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """End the origins, let the network go."""
        self._origins.clear()
        self._stack.close()

    def versions(self, names: Sequence[str]) -> dict[str, str]:
        """See `hosts.Host`."""
        return {name: contenders.version(contenders.by_name(name)) for name in names}

    def configuration(self, order: Order) -> str:
        """See `hosts.Host`."""
        return contenders.render(contenders.by_name(order.contender), self._setup(order))

    def capacity(self, name: str, workers: int) -> int:
        """See `hosts.Host`."""
        return contenders.capacity(contenders.by_name(name), workers)

    @contextmanager
    def running(self, order: Order) -> Iterator[Running]:
        """See `hosts.Host`."""
        prefix = self._lan.contender.prefix if self._lan else []
        with launch(contenders.by_name(order.contender), self._setup(order), prefix) as running:
            yield running

    def origin_pids(self) -> frozenset[int]:
        """See `hosts.Host`."""
        return frozenset(origin.pid for origin in self._origins)

    def problems(self) -> list[str]:
        """See `hosts.Host`."""
        return ["an origin ended" for origin in self._origins if not origin.alive]

    def _setup(self, order: Order) -> Setup:
        return Setup(order, self._listen, self.origins, self._scratch)


def read_stats(path: Path) -> Mapping[str, object]:
    """`/stats` of an l7proxy, or what went wrong under the key "error"."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(2)
            connection.connect(str(path))
            connection.sendall(b"GET /stats HTTP/1.1\r\nHost: load\r\nConnection: close\r\n\r\n")
            answer = b""
            while more := connection.recv(65536):
                answer += more
        stats: Mapping[str, object] = json.loads(answer.partition(b"\r\n\r\n")[2])
        return stats
    except (OSError, ValueError) as error:
        return {"error": str(error)}
