"""What stands behind every contender: nginx for small answers, `blast origin` for the rest.

Both must be cheaper than any proxy in front of them; each is one process with one event loop, so
that it never takes more than one processor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from .machine import find
from .procs import BenchError, Child, accepts, child, free_port

NGINX = """\
daemon off;
master_process off;         # one process, one loop
pid {scratch}/nginx.pid;
error_log stderr error;
events {{ worker_connections 16384; multi_accept on; }}
http {{
    access_log off;
    tcp_nodelay on;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;      # the default ends a connection after 1,000 requests
    client_body_temp_path {scratch}/nginx-body;
    proxy_temp_path {scratch}/nginx-proxy;
    fastcgi_temp_path {scratch}/nginx-fastcgi;
    uwsgi_temp_path {scratch}/nginx-uwsgi;
    scgi_temp_path {scratch}/nginx-scgi;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        default_type text/plain;
        return 200 "ok\\n";              # from memory, no file
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the two origins, or a contender in front of them, are found on 127.0.0.1."""

    web: int
    blast: int


@dataclass(frozen=True, slots=True)
class Origins:
    """Both origins, running."""

    ports: Ports
    children: tuple[Child, ...]

    @property
    def pids(self) -> list[int]:
        """Their processes."""
        return [running.pid for running in self.children]


@contextmanager
def origins(blast: Path, scratch: Path) -> Iterator[Origins]:
    """Start both, and end both with the block."""
    nginx = find("nginx")
    if nginx is None:
        raise BenchError("nginx is missing: apt-get install nginx")
    ports = Ports(web=free_port(), blast=free_port())
    config = scratch / "nginx-origin.conf"
    config.write_text(NGINX.format(scratch=scratch, port=ports.web))
    with ExitStack() as stack:
        web = stack.enter_context(
            child([nginx, "-p", str(scratch), "-c", str(config)], scratch / "nginx-origin.log")
        )
        bulk = stack.enter_context(
            child([str(blast), "origin", "127.0.0.1", str(ports.blast)], scratch / "blast.log")
        )
        web.wait_until(lambda: accepts(ports.web))
        bulk.wait_until(lambda: accepts(ports.blast))
        yield Origins(ports, (web, bulk))
