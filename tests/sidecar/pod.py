"""A network namespace with an application and its sidecar, and another one that is all the rest.

    outside 10.77.1.1 fd77::1 ── veth ── pod 10.77.1.2 fd77::2

The rest of the world lies behind `outside`, which answers for 203.0.113.0/24 and fd78::9 as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from proxy import PATIENCE, Proxy, until

from l7proxy import cli
from l7proxy.worker.relayed import CALM
from loadtest import netns
from loadtest.netns import Namespace

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = {4: "10.77.1.1", 6: "fd77::1"}
POD = {4: "10.77.1.2", 6: "fd77::2"}
FAR = {4: "203.0.113.9", 6: "fd78::9"}
SIZE = 3 * 1024 * 1024 + 77
BYTES = bytes(range(251)) * (SIZE // 251 + 1)
PAYLOAD = BYTES[:SIZE]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server saw, and said."""

    name: str
    peer: str
    near: str
    port: int  # of its own end
    received: str  # SHA-256
    sent: str

    @property
    def whole(self) -> bool:
        """Whether both directions came through unchanged."""
        wanted = hashlib.sha256(PAYLOAD).hexdigest()
        return (self.received, self.sent) == (wanted, wanted)


class Server:
    """Takes all that a client sends, then tells what it saw, and sends as much."""

    def __init__(self, name: str, listener: socket.socket) -> None:
        self.name = name
        self.port: int = listener.getsockname()[1]
        self._listener = listener
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, peer = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[sock, peer], daemon=True).start()

    def _serve(self, sock: socket.socket, peer: Any) -> None:
        with sock, contextlib.suppress(OSError):
            sock.settimeout(PATIENCE)
            received = hashlib.sha256()
            while data := sock.recv(1 << 18):
                received.update(data)
            near = sock.getsockname()
            told = {"name": self.name, "peer": _plain(peer[0]), "near": _plain(near[0])}
            told |= {"port": near[1], "received": received.hexdigest()}
            sock.sendall(json.dumps(told).encode() + b"\n" + PAYLOAD)


def _plain(host: str) -> str:
    return host.removeprefix("::ffff:")


def exchange(sock: socket.socket, sent: int = 0) -> Answer:
    """All of it over one connection, which is closed; so many bytes were sent already."""
    with sock:
        sock.settimeout(PATIENCE)
        sock.sendall(PAYLOAD[sent:])
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as file:
            told = json.loads(file.readline())
            answer = hashlib.sha256(file.read())
    return Answer(**told, sent=answer.hexdigest())


def dribble(sock: socket.socket) -> int:
    """The beginning of it, so slowly that nothing has to wait and the pair is spliced meanwhile."""
    end = 3 * CALM * 10_000  # several come in one turn of the relay where the machine is busy
    for at in range(0, end, 10_000):
        sock.sendall(PAYLOAD[at : at + 10_000])
        time.sleep(0.02)
    return end


class Pod:
    """The two namespaces, for as long as the `with` block is open."""

    def __enter__(self) -> Pod:
        self.outside, self.pod = netns.create(), netns.create()
        self._servers: list[Server] = []
        links = ["link", "add", "eth0", "type", "veth", "peer", "name", "eth0"]
        self._ip(self.outside, *links, "netns", self.pod.path)
        for place, mine, other in (
            (self.outside, OUTSIDE, POD),
            (self.pod, POD, OUTSIDE),
        ):
            self._ip(place, "address", "add", f"{mine[4]}/24", "dev", "eth0")
            self._ip(place, "address", "add", f"{mine[6]}/64", "dev", "eth0", "nodad")
            # no link-local addresses, whose routes come and go by themselves
            self._ip(place, "link", "set", "eth0", "addrgenmode", "none")
            self._ip(place, "link", "set", "eth0", "up")
            if place is self.pod:
                self._ip(place, "route", "add", "default", "via", other[4])
                self._ip(place, "-6", "route", "add", "default", "via", other[6])
        self._ip(self.outside, "route", "add", "local", "203.0.113.0/24", "dev", "lo")
        self._ip(self.outside, "address", "add", f"{FAR[6]}/128", "dev", "lo", "nodad")
        # the link is up a moment after it was set up, and then IPv6 has a route more
        until(lambda: "ff00::/8 dev eth0" in self.rules()["routes"], "the link is up")
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()
        self.outside.close()
        self.pod.close()

    def _ip(self, place: Namespace, *arguments: str) -> None:
        self.run("ip", *arguments, place=place)

    def run(self, *argv: str, place: Namespace | None = None, code: int = 0) -> str:
        """What a program prints that runs in the pod, or elsewhere."""
        done = subprocess.run(
            [*(place or self.pod).prefix, *argv],
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
            cwd=ROOT,
        )
        assert done.returncode == code, (argv, done.returncode, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def sidecar(self, *arguments: str, code: int = 0) -> str:
        """What `l7proxy sidecar` in the pod prints."""
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            found = netns.inside(self.pod, lambda: cli.main(["sidecar", *arguments]))
        assert found == code, (arguments, found, said.getvalue())
        return said.getvalue()

    def rules(self) -> dict[str, str]:
        """All that packets may meet in the pod."""
        commands = {
            "rules": "ip rule",
            "rules of IPv6": "ip -6 rule",
            "routes": "ip route show table all",  # of both families
            "ruleset": "nft list ruleset",
        }
        return {name: self.run(*command.split()) for name, command in commands.items()}

    def serve(self, name: str, place: Namespace, host: str, port: int) -> Server:
        """A server, on every address of a family."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET

        def listen() -> socket.socket:
            return socket.create_server((host, port), family=family, backlog=64)

        self._servers.append(Server(name, netns.inside(place, listen)))
        return self._servers[-1]

    def dial(self, place: Namespace, host: str, port: int) -> socket.socket:
        """A connection that is made in a namespace."""
        return netns.inside(place, lambda: socket.create_connection((host, port), PATIENCE))

    def cut(self, place: Namespace, host: str, port: int) -> int:
        """A connection that has to be reset, soon or at once; the client's port."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with netns.inside(place, lambda: socket.socket(family)) as sock:
            sock.settimeout(PATIENCE)
            sock.bind(("", 0))
            mine: int = sock.getsockname()[1]
            with pytest.raises(ConnectionResetError):
                _connect_and_read(sock, (host, port))
        return mine

    @contextlib.contextmanager
    def running(self, policy: str, datapath: str = "splice2", **how: Any) -> Iterator[Proxy]:
        """`l7proxy run` in the pod, without rules."""
        proxy = Proxy(policy, datapath, **how)
        netns.inside(self.pod, proxy.__enter__)
        try:
            yield proxy
            proxy.stop()
        except BaseException as error:
            proxy.__exit__(type(error), error, None)
            raise
        proxy.__exit__(None, None, None)

    @contextlib.contextmanager
    def intercepting(self, policy: str, datapath: str = "splice2", **how: Any) -> Iterator[Proxy]:
        """The same, with the rules that fit; afterwards nothing is left of them."""
        before = self.rules()
        with self.running(policy, datapath, **how) as proxy:
            path = str(proxy.directory / "policy.yaml")
            said = self.sidecar("enable", path)
            assert said.startswith("in place, as this policy asks for"), said
            try:
                yield proxy
            finally:
                self.sidecar("disable")
        after = self.rules()
        assert after == before, (before, after)


def _connect_and_read(sock: socket.socket, address: tuple[str, int]) -> None:
    sock.connect(address)
    sock.recv(1)


def as_nobody(call: Callable[[], T]) -> T:
    """Run it in a thread whose user is nobody: what it opens is nobody's."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            ctypes.CDLL(None).setfsuid(65534)  # which is a thread's own, and what `skuid` looks at
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
