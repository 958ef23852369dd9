"""A host of containers: the driver is in the client's, contenders and origins have an agent each.

A service of compose.yaml has the name of its contender; the origins are `origin-1` and `origin-2`.

Processes are read twice: by the agent beside them (memory, exact CPU time) and in the driver's own
/proc, which therefore has to be the machine's (`pid: host`). Otherwise kworkers would look idle and
other people's load would go unseen: the driver does not go on without.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import agent, contenders, meter
from .hosts import Addresses, LoadTestError, Order, Own, Running

ORIGINS = ("origin-1", "origin-2")
SERVICES = {
    name: name for name in (*ORIGINS, *(c.name for c in contenders.CONTENDERS if c.program))
}

PATIENCE = 60.0  # seconds for an agent to come up
RESOLVE = 5.0  # for the name of its container: it has one from its start
CALL = 60.0  # for the answer to a call; the slowest is a start, which gives up after 20


class NoContainer(LoadTestError):
    """Nothing has that name in the network."""


class Remote:
    """The agent of one container, by its calls. Raises LoadTestError that names the service."""

    def __init__(self, service: str, host: str) -> None:
        self.service = service
        self._host = host
        self.address = self.mark = ""  # numeric, and the agent's name, once `connect` found them

    def connect(self, patience: float = PATIENCE) -> None:
        """Wait until its agent answers; NoContainer when its name means nothing to anyone."""
        began = time.monotonic()
        while True:
            waited = time.monotonic() - began
            try:
                self.address = str(socket.getaddrinfo(self._host, None, socket.AF_INET)[0][4][0])
                self.mark = str(self.call("hello")["mark"])
                return
            except socket.gaierror as error:
                if waited > min(patience, RESOLVE):
                    raise NoContainer(f"no container {self._host}: {error.strerror}") from None
            except LoadTestError:
                if waited > patience:
                    raise
            time.sleep(0.2)

    def call(self, name: str, /, **arguments: object) -> Any:
        """What the agent answers."""
        connection = http.client.HTTPConnection(self.address, agent.PORT, timeout=CALL)
        try:
            connection.request("POST", f"/{name}", json.dumps(arguments))
            answer = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise LoadTestError(f"{self.service}: {name}: {error!r}") from None
        finally:
            connection.close()
        if "error" in answer:
            raise LoadTestError(f"{self.service}: {answer['error']}")
        return answer["result"]

    def attend(self) -> socket.socket:
        """A connection that the agent takes for the life of its driver."""
        attending = socket.create_connection((self.address, agent.PORT), CALL)
        attending.sendall(f"POST {agent.ATTEND} HTTP/1.0\r\n\r\n".encode())
        return attending

    def pids(self) -> frozenset[int]:
        """The processes that it started, as this machine's /proc has them."""
        processes = meter.read().processes
        return frozenset(pid for pid, one in processes.items() if one.parent == self._pid())

    def _pid(self) -> int:
        for comm in Path("/proc").glob("[0-9]*/comm"):
            try:
                if comm.read_text().strip() == self.mark:
                    return int(comm.parent.name)
            except (FileNotFoundError, ProcessLookupError):
                continue
        raise LoadTestError(
            f"{self.service}: its processes are not in /proc here. The client needs the machine's"
            " pid namespace (`pid: host` in compose.yaml) to tell whose CPU time it is"
        )


class RemoteRunning:
    """A contender in its container. `remote` is None for `direct`."""

    def __init__(self, remote: Remote | None, addresses: Addresses) -> None:
        self.addresses = addresses
        self._remote = remote
        self._pids = remote.pids() if remote else frozenset()

    def own(self, *, memory: bool = True) -> Own:
        """See `hosts.Running`."""
        if self._remote is None:
            return Own()
        raw = self._remote.call("own", memory=memory)
        return Own(raw["cpu"], raw["switches"], raw["pss_kib"], self._pids)

    def pss_kib(self) -> float:
        """See `hosts.Running`."""
        return float(self._remote.call("pss_kib")) if self._remote else 0.0

    def stats(self) -> Mapping[str, object]:
        """See `hosts.Running`."""
        return dict(self._remote.call("stats")) if self._remote else {}

    def problems(self) -> list[str]:
        """See `hosts.Running`."""
        return list(self._remote.call("problems")) if self._remote else []


class ContainerHost:
    """Everything in containers that are up. `hosts`: the host name of each service."""

    network = "docker"

    def __init__(self, hosts: Mapping[str, str] = SERVICES) -> None:
        self._remotes = {name: Remote(name, host) for name, host in hosts.items()}
        self._connected: set[str] = set()
        self.origins = Addresses((), ())

    def __enter__(self) -> ContainerHost:
        """Start the origins."""
        found = []
        for name in ORIGINS:
            remote = self._remote(name)
            found.append(agent.addresses(remote.call("origin", listen=remote.address)))
        self.origins = Addresses(
            web=tuple(address for one in found for address in one.web),
            bulk=tuple(address for one in found for address in one.bulk),
            echo=tuple(address for one in found for address in one.echo),
        )
        self.origin_pids()
        return self

    def __exit__(self, *error: object) -> None:
        """End the origins."""
        for name in ORIGINS:
            with suppress(LoadTestError):  # the agent has ended, and they with it
                self._remote(name).call("stop")

    @contextmanager
    def attended(self) -> Iterator[None]:
        """The agents of all containers that are there end soon after this block."""
        with ExitStack() as stack:
            for name in self._remotes:
                with suppress(NoContainer):
                    stack.enter_context(self._remote(name).attend())
            yield

    def versions(self, names: Sequence[str]) -> dict[str, str]:
        """See `hosts.Host`. A contender without a container is not there."""
        return {name: self._version(name) for name in names}

    def _version(self, name: str) -> str:
        contender = contenders.by_name(name)
        if not contender.program:
            return contenders.version(contender)
        try:
            return str(self._remote(name).call("version", name=name))
        except NoContainer:
            return ""

    def configuration(self, order: Order) -> str:
        """See `hosts.Host`."""
        if not contenders.by_name(order.contender).program:
            return ""
        return str(self._order("configuration", order))

    def capacity(self, name: str, workers: int) -> int:
        """See `hosts.Host`."""
        contender = contenders.by_name(name)
        if not contender.program:
            return contenders.capacity(contender, workers)
        return int(self._remote(name).call("capacity", name=name, workers=workers))

    @contextmanager
    def running(self, order: Order) -> Iterator[Running]:
        """See `hosts.Host`."""
        if not contenders.by_name(order.contender).program:
            yield RemoteRunning(None, self.origins)
            return
        remote = self._remote(order.contender)
        try:
            where = agent.addresses(self._order("start", order))
            yield RemoteRunning(remote, where)
        finally:
            remote.call("stop")

    def origin_pids(self) -> frozenset[int]:
        """See `hosts.Host`."""
        return frozenset().union(*(self._remote(name).pids() for name in ORIGINS))

    def problems(self) -> list[str]:
        """See `hosts.Host`."""
        return [problem for name in ORIGINS for problem in self._remote(name).call("problems")]

    def _remote(self, name: str) -> Remote:
        """Connected: containers come up in any order."""
        remote = self._remotes[name]  # the services are those of `contenders`
        if name not in self._connected:
            remote.connect()
            self._connected.add(name)
        return remote

    def _order(self, call: str, order: Order) -> Any:
        remote = self._remote(order.contender)
        return remote.call(
            call, order=asdict(order), listen=remote.address, origins=asdict(self.origins)
        )
