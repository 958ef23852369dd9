"""Listening sockets, and what to do when one cannot be opened.

All workers accept from the same socket, made before the fork, so a worker that dies takes no
waiting connection with it. (With SO_REUSEPORT each worker would have a queue of its own, and the
connections in a dead worker's queue are reset.)
"""

from __future__ import annotations

import errno
import socket

from l7proxy.errors import StartupError
from l7proxy.model import Address, Listener, Policy
from l7proxy.net.dial import keep_urgent_inline, reset_on_close, watch_for_dead_end

BACKLOG = 4096  # the kernel cuts it to net.core.somaxconn


def open_listeners(policy: Policy) -> list[tuple[Listener, socket.socket]]:
    """Open every listener of the policy, in its order; all of them or none.

    Raises StartupError with one line for each that failed.
    """
    opened: list[tuple[Listener, socket.socket]] = []
    problems: list[str] = []
    for listener in policy.listeners.values():
        try:
            assert isinstance(listener.address, Address)
            opened.append((listener, open_listener(listener.address, for_clients=True)))
        except StartupError as error:
            problems.append(f"listener {listener.name}: {error}")
    if problems:
        for _, sock in opened:
            sock.close()
        raise StartupError("\n".join(problems))
    return opened


def open_listener(address: Address, *, for_clients: bool = False) -> socket.socket:
    """A non-blocking listening TCP socket. Port 0 lets the kernel choose one.

    An IPv6 listener takes IPv6 only: `[::]:80` and `0.0.0.0:80` can stand side by side.
    """
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise StartupError(explain(address, error)) from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if for_clients:
            _prepare_accepted(sock)
        if address.is_ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # getaddrinfo, for the scope of a link-local address: fe80::1%eth0
        found = socket.getaddrinfo(
            address.host, address.port, family, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST
        )
        sock.bind(found[0][4])
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise StartupError(explain(address, error)) from error
    return sock


def _prepare_accepted(sock: socket.socket) -> None:
    """Set on the listener what its connections inherit, and before any of them can exist.

    A connection takes its options over as its handshake completes (`sk_clone_lock`), which can be
    before the first worker runs. Without SO_LINGER {1, 0} from then on, a worker that is killed
    would end a stream cleanly in its middle.
    """
    keep_urgent_inline(sock)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    reset_on_close(sock)
    watch_for_dead_end(sock)


def bound_address(sock: socket.socket) -> Address:
    """The address that a TCP socket is really bound to; what port 0 became."""
    host, port = sock.getsockname()[:2]
    return Address(host, port)


def explain(address: Address, error: OSError) -> str:
    """A failed bind or listen as a sentence that says what to do."""
    said = f"cannot listen on {address}: "
    match error.errno:
        case errno.EADDRINUSE:
            return said + (
                f"another socket has this port; `ss -ltnp 'sport = :{address.port}'` shows whose it"
                " is"
            )
        case errno.EACCES:
            return said + (
                "a port this low is for root or CAP_NET_BIND_SERVICE; run l7proxy with sudo, take a"
                " higher port, or allow it: sudo sysctl"
                f" net.ipv4.ip_unprivileged_port_start={address.port}"
            )
        case errno.EADDRNOTAVAIL:
            everywhere = "[::]" if address.is_ipv6 else "0.0.0.0"
            return said + (
                "no interface here has this address; `ip -brief address` lists them,"
                f" {everywhere}:{address.port} takes all of them"
            )
        case errno.EAFNOSUPPORT:
            family = "IPv6" if address.is_ipv6 else "IPv4"
            return said + f"this kernel or network namespace has no {family}; listen on the other"
        case errno.EMFILE | errno.ENFILE:
            return said + "no file descriptor is left; raise the limit: ulimit -n 65536"
        case _:
            return said + (error.strerror or str(error)).lower()
