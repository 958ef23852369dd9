"""A listener's rules, compiled: what its connections begin with, and who may make them.

Who the client is, is known in up to three steps: the socket's address; a PROXY header, from trusted
proxies; X-Forwarded-For or Forwarded, likewise. The rules on clients are applied once, as soon as
nobody is left who is believed to know better. So a list of clients need not name the proxies that
they come through.
"""

from __future__ import annotations

import socket
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from l7proxy.access import UNIX_CLIENT, Clients, Trust, plain_address
from l7proxy.errors import Reason
from l7proxy.forwarded import ForwardedWriter
from l7proxy.model import Address, Listener, Protocol, ProxyHeader, RouteTimeouts, Timeouts
from l7proxy.net.interception import OwnAddresses
from l7proxy.telemetry.presence import NOWHERE
from l7proxy.worker.intercepted import Intercepted

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection


@dataclass(frozen=True, slots=True)
class Front:
    """What is decided by the listener alone.

    `port` is the one that clients come to, None on a unix socket. `client_limit` is how many
    connections one client may have, over all workers; None for any number. `intercepted` tells
    where connections of a transparent listener were going.
    """

    clients: Clients
    trust: Trust
    proxy_header: ProxyHeader | None
    forwarded: ForwardedWriter
    is_unix: bool
    port: int | None
    client_limit: int | None
    reads: bool  # whether anything is read of a connection before it is routed
    guarded: bool  # whether there are rules on who may connect
    intercepted: Intercepted | None = None

    def knows(self, host: str) -> bool:
        """Whether the client is who the connection is from: nobody is believed to say otherwise."""
        return not self.trust or host not in self.trust


def compiling_front(
    listener: Listener, sock: socket.socket, own: OwnAddresses
) -> Generator[None, None, Front]:
    """The rules of a listener that listens on `sock`, a few client blocks in each step.

    `own` are the addresses that l7proxy listens on.
    """
    clients = yield from Clients.building(listener.allow, listener.deny)
    limit = listener.limits.client_connections
    is_unix = sock.family == socket.AF_UNIX
    return Front(
        clients=clients,
        trust=Trust(listener),
        proxy_header=listener.proxy_protocol,
        forwarded=ForwardedWriter(listener.forwarded),
        is_unix=is_unix,
        port=None if is_unix else sock.getsockname()[1],
        client_limit=limit,
        reads=listener.protocol is not Protocol.TCP or listener.proxy_protocol is not None,
        guarded=bool(clients) or limit is not None,
        intercepted=None
        if listener.transparent is None
        else Intercepted(listener.transparent, own),
    )


def served(connection: Connection, host: str, name: str) -> None:
    """A trusted proxy said who is served: the address, and as the log shows it."""
    record = connection.record
    if not record.proxy:
        record.proxy = record.client
    connection.client_host = host
    record.client = name


def admit(connection: Connection) -> bool:
    """Apply the listener's rules on clients to who is served; False when it was reset."""
    front = connection.listener.front
    if not front.guarded:
        return True
    if not front.clients.admit(connection.client_host):
        connection.record.rule = "client"
        connection.abort(Reason.DENIED)
        return False
    if front.client_limit is not None and connection.presence == NOWHERE:
        counted = connection.worker.presence.enter(
            connection.listener.name, connection.client_host, front.client_limit
        )
        if counted is None:
            connection.abort(Reason.CLIENT_LIMIT)
            return False
        connection.presence = counted
    return True


def peer_of(address: Any) -> tuple[str, str]:
    """(host without a zone, `host:port`) of what accept(2) told; "unix:" on a unix socket.

    An IPv4 client of a dual-stack socket is told of as IPv4.
    """
    if not isinstance(address, tuple):
        return UNIX_CLIENT, UNIX_CLIENT
    host, port = address[0], address[1]
    if ":" not in host:
        return host, f"{host}:{port}"
    plain = plain_address(host)
    return plain, f"[{host}]:{port}" if ":" in plain else f"{plain}:{port}"


def socket_address(address: Any) -> Address | None:
    """The address of one end of a TCP socket as the PROXY protocol tells it; None of unix."""
    return Address(peer_of(address)[0], address[1]) if isinstance(address, tuple) else None


@lru_cache(maxsize=4096)
def _merged(listener: Timeouts, route: RouteTimeouts) -> Timeouts:
    return replace(
        listener,
        idle=listener.idle if route.idle is None else route.idle,
        overflow=listener.overflow if route.overflow is None else route.overflow,
    )


def timeouts_of(listener: Timeouts, route: RouteTimeouts) -> Timeouts:
    """The listener's timeouts with those that the route sets; `dial` is for `Dialing`."""
    if route.idle is None and route.overflow is None:
        return listener
    return _merged(listener, route)
