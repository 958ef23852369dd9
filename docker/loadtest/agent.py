"""What runs in the container of a contender, or of an origin: starts it, stops it, reads it.

The client's container holds the driver, which can neither start a process in another container nor
read its memory. So each has an agent: an HTTP server that takes calls (`POST /NAME`, a JSON object
of arguments, a JSON object with `result` or `error` back) and sleeps otherwise. It starts nothing
but what `contenders` and `blast` describe, and one at a time: with a new one the old one ends. It
ends itself some seconds after the driver that attended it has gone, however that went.

An agent names itself: `mark` is its name in /proc/PID/comm, which anyone may read, so that a driver
in the machine's pid namespace finds its processes there.
"""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from types import FrameType
from typing import Any

from . import blast, contenders, machine, native
from .contenders import Setup
from .hosts import Addresses, LoadTestError, Order, Own

PORT = 7700
ATTEND = "/attend"  # no call: the connection is kept, and its end is that of the driver
LEAVE_AFTER = 2.0  # seconds behind the driver, whose container is to be the first that ends


def addresses(raw: Mapping[str, Any]) -> Addresses:
    """As JSON gives them back: lists for tuples."""
    return Addresses(**{name: tuple(value) for name, value in raw.items()})


class Agent:
    """The calls. Arguments and results are what JSON can tell; LoadTestError is for the caller."""

    def __init__(self, mark: str) -> None:
        self.leaving = threading.Event()
        self._mark = mark
        self._lock = threading.RLock()
        self._stack = ExitStack()
        self._running: native.NativeRunning | None = None
        self._origin: blast.Child | None = None
        self._scratch = Path(tempfile.mkdtemp(prefix="l7proxy-loadtest-"))
        self._scratch.chmod(0o755)  # contenders may give up root

    # ---- calls -------------------------------------------------------------------------------

    def hello(self) -> dict[str, object]:
        """Who is here."""
        return {"mark": self._mark}

    def version(self, name: str) -> str:
        """Of a contender, "" where this container does not hold it."""
        return contenders.version(contenders.by_name(name))

    def capacity(self, name: str, workers: int) -> int:
        """See `hosts.Host`."""
        return contenders.capacity(contenders.by_name(name), workers)

    def configuration(self, order: dict[str, Any], listen: str, origins: dict[str, Any]) -> str:
        """See `hosts.Host`."""
        setup = self._setup(order, listen, origins)
        return contenders.render(contenders.by_name(setup.order.contender), setup)

    def start(
        self, order: dict[str, Any], listen: str, origins: dict[str, Any]
    ) -> dict[str, object]:
        """Start a contender that listens on the address `listen`; where it accepts."""
        setup = self._setup(order, listen, origins)
        with self._lock:
            self.stop()
            launched = native.launch(contenders.by_name(setup.order.contender), setup)
            self._running = self._stack.enter_context(launched)
            return asdict(self._running.addresses)

    def origin(self, listen: str) -> dict[str, object]:
        """Start an origin there; where it accepts."""
        web, echo = (f"{listen}:{port}" for port in native.ORIGIN_PORTS[0])
        with self._lock:
            self.stop()
            child = blast.origin(blast.build(), [web], [echo])
            self._origin = self._stack.enter_context(child)
        return asdict(Addresses((web,), (web,), (echo,)))

    def own(self, memory: bool) -> dict[str, object]:
        """A reading of the contender's processes; `pids` are those of this container."""
        own = self._running.own(memory=memory) if self._running else Own()
        return asdict(own) | {"pids": sorted(own.pids)}

    def pss_kib(self) -> float:
        """See `hosts.Running`."""
        return self._running.pss_kib() if self._running else 0.0

    def stats(self) -> dict[str, object]:
        """See `hosts.Running`."""
        return dict(self._running.stats()) if self._running else {}

    def problems(self) -> list[str]:
        """What is wrong with what runs here."""
        if self._origin is not None and not self._origin.alive:
            return ["an origin ended"]
        return self._running.problems() if self._running else []

    def stop(self) -> None:
        """End what runs here."""
        with self._lock:
            self._running = self._origin = None
            self._stack.close()

    # ---- the rest ----------------------------------------------------------------------------

    def close(self) -> None:
        """End everything, remove the scratch folder."""
        self.stop()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def call(self, name: str) -> Callable[..., object] | None:
        """The call of that name."""
        calls: list[Callable[..., object]] = [
            *(self.hello, self.version, self.capacity, self.configuration, self.start, self.origin),
            *(self.own, self.pss_kib, self.stats, self.problems, self.stop),
        ]
        return next((call for call in calls if call.__name__ == name), None)

    def _setup(self, order: dict[str, Any], listen: str, origins: dict[str, Any]) -> Setup:
        return Setup(Order(**order), listen, addresses(origins), self._scratch)


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        if self.path == ATTEND:
            self._answer(200, {})
            with suppress(ConnectionError):  # a reset is an end, too
                while self.rfile.read(1):
                    pass
            self.server.agent.leaving.set()
            return
        call = self.server.agent.call(self.path.removeprefix("/"))
        if call is None:
            self._answer(404, {"error": f"no call {self.path}"})
            return
        length = int(self.headers.get("Content-Length", "0"))
        try:
            result = call(**json.loads(self.rfile.read(length) or b"{}"))
        except (LoadTestError, OSError, ValueError, TypeError) as error:
            self._answer(500, {"error": str(error) or repr(error)})
        else:
            self._answer(200, {"result": result})

    def _answer(self, status: int, answer: Mapping[str, object]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """No line for each call."""


class Server(ThreadingTCPServer):
    """An agent that listens. (`HTTPServer` would ask the name service who it is: some seconds.)"""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], agent: Agent) -> None:
        self.agent = agent
        super().__init__(address, _Handler)


def _name_process(name: str) -> None:
    Path("/proc/self/comm").write_text(name)  # the thread group's: written by the main thread


def add(subparsers: Any) -> None:
    """`loadtest agent`."""
    parser = subparsers.add_parser(
        "agent",
        help="serve in a container of the load test (what compose.yaml starts there)",
        description="Start, stop and read what runs in this container, as the client's asks.",
    )
    parser.add_argument("--listen", default="", metavar="ADDRESS", help="all addresses by default")
    parser.set_defaults(command=lambda options: serve(options.listen))


def serve(host: str = "", port: int = PORT) -> int:
    """Serve until SIGTERM or SIGINT, or until a driver that attended has gone."""
    machine.raise_limits()
    mark = f"load-{secrets.token_hex(5)}"  # 15 characters: the most that comm holds
    _name_process(mark)
    agent = Agent(mark)

    def leave(_signal: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    try:
        with Server((host, port), agent) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            print(f"agent on {socket.gethostname()}, port {port}", flush=True)
            agent.leaving.wait()
            time.sleep(LEAVE_AFTER)
            server.shutdown()
    finally:
        agent.close()
    return 0
