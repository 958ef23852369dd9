"""Listening sockets, and what to do when one cannot be opened.

All workers accept from the same socket, so a worker that dies takes no waiting connection with it.
(With SO_REUSEPORT each worker would have a queue of its own, and the connections in a dead worker's
queue are reset.) The supervisor opens them, and takes them away again when a policy without them
has come into force. Two facts about that:

- close(2) of a listening socket resets what waits in its queue, and every handshake under way. A
  socket that is to go gets a filter first that drops SYNs: nobody new gets in, who was on the way
  arrives and is accepted, and a client that came too late tries again and is refused then. (The
  filter is inherited by what is accepted, where there are no SYNs to drop.)
- `*:80` cannot be bound while `127.0.0.1:80` listens, and the other way round, unless both have
  SO_REUSEPORT at that time (`inet_csk_bind_conflict`). So that a reload can widen or narrow an
  address, our own socket that is about to go gets it for the moment of the bind. It is never set
  in ordinary times: any process of the same user could then take a share of the connections.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from l7proxy.errors import StartupError
from l7proxy.model import Address, Interception, Listener, SocketAddress, UnixAddress
from l7proxy.net.dial import LINGER_RESET, keep_urgent_inline, reset_on_close, watch_for_dead_end
from l7proxy.net.interception import make_transparent
from l7proxy.net.unixsocket import SocketFile, open_unix

log = logging.getLogger(__name__)

BACKLOG = 4096  # the kernel cuts it to net.core.somaxconn

_SO_ATTACH_FILTER = 26
# Classic BPF on a TCP segment from its header on (`tcp_filter`): drop SYN without ACK.
_NO_SYN = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # A = the byte with the flags
        (0x54, 0, 0, 0x12),  # A &= ACK | SYN
        (0x15, 0, 1, 0x02),  # if A == SYN
        (0x06, 0, 0, 0),  # drop
        (0x06, 0, 0, 0xFFFFFFFF),  # else pass
    )
)


@dataclass(slots=True, eq=False)
class ListeningSocket:
    """A listener's socket. `asked` is the address in the policy, `address` what it became.

    One that was `passed` is not ours alone (`net.activation`): it goes on when we close it.
    """

    sock: socket.socket
    asked: SocketAddress
    address: SocketAddress
    mode: int | None = None
    file: SocketFile | None = None
    passed: bool = False

    def stop(self) -> None:
        """Let nobody new in. What is in the queue, or on its way there, is still to be accepted.

        Where there are no filters (gVisor), a handshake that is under way at `close` is reset.
        """
        if self.passed:
            log.warning("%s: whoever opened this socket for us goes on to listen", self.address)
            return
        if self.sock.family == socket.AF_UNIX:
            self.remove_file()
            return
        program = ctypes.create_string_buffer(_NO_SYN)
        argument = struct.pack("HL", len(_NO_SYN) // 8, ctypes.addressof(program))
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, argument)
        except OSError as error:
            log.debug("%s: no filter for its socket: %s", self.address, error.strerror)

    def set_mode(self, mode: int | None) -> None:
        """Give the file of a unix socket another mode; None leaves it as it is."""
        if mode is not None and mode != self.mode and self.file is not None:
            self.file.set_mode(mode)
        self.mode = mode

    def remove_file(self) -> None:
        """Take the file of a unix socket away, if it is still ours."""
        if self.file is not None:
            self.file.remove()
            self.file = None

    def close(self) -> None:
        """Close it in this process, and take its file away."""
        self.remove_file()
        self.sock.close()


def open_for_clients(
    listener: Listener, leaving: Iterable[ListeningSocket] = ()
) -> ListeningSocket:
    """A non-blocking socket whose connections have all that clients' sockets need.

    `leaving` are sockets of ours that will be closed soon; one on the same port is no obstacle.
    Raises StartupError.
    """
    address = listener.address
    if isinstance(address, UnixAddress):
        try:
            sock, file = open_unix(address, BACKLOG, listener.mode)
        except StartupError as error:
            raise StartupError(f"cannot listen on {address}: {error}") from error
        return ListeningSocket(sock, address, address, listener.mode, file)
    beside = [
        one.sock
        for one in leaving
        if isinstance(one.address, Address) and one.address.port == address.port
    ]
    sock = open_listener(address, for_clients=True, beside=beside)
    bound = bound_address(sock)
    everywhere = Address("*", bound.port)
    return ListeningSocket(sock, address, everywhere if address.host == "*" else bound)


def adopt(sock: socket.socket, asked: SocketAddress, address: SocketAddress) -> ListeningSocket:
    """A listening socket that somebody else has opened, as if we had."""
    sock.setblocking(False)
    if isinstance(address, Address):
        _prepare_accepted(sock)
    return ListeningSocket(sock, asked, address, passed=True)


def let_intercept(sock: socket.socket, listener: Listener) -> None:
    """Prepare a listener's socket for what is brought to it. Raises StartupError."""
    transparent = listener.transparent
    if transparent is not None and transparent.mode is Interception.TPROXY:
        make_transparent(sock)


def open_listener(
    address: Address, *, for_clients: bool = False, beside: Sequence[socket.socket] = ()
) -> socket.socket:
    """A non-blocking listening TCP socket. Port 0 lets the kernel choose one.

    An IPv6 listener takes IPv6 only: `[::]:80` and `0.0.0.0:80` can stand side by side. `*` takes
    both; where the kernel has no IPv6, IPv4 alone, and says so. `beside`: own sockets that it may
    share its port with.
    """
    if address.host == "*":
        try:
            return _open(address, Address("::", address.port), for_clients, beside, both=True)
        except _NoIPv6:
            log.warning("there is no IPv6 here: %s listens on IPv4 alone", address)
            everywhere = Address("0.0.0.0", address.port)
            return _open(address, everywhere, for_clients, beside)
    try:
        return _open(address, address, for_clients, beside)
    except _NoIPv6 as error:
        raise StartupError(str(error)) from error


class _NoIPv6(Exception):
    pass


def _open(
    asked: Address,
    address: Address,
    for_clients: bool,
    beside: Sequence[socket.socket],
    *,
    both: bool = False,
) -> socket.socket:
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    sock = None
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if for_clients:
            _prepare_accepted(sock)
        if address.is_ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not both))
        # getaddrinfo, for the scope of a link-local address: fe80::1%eth0
        found = socket.getaddrinfo(
            address.host, address.port, family, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST
        )
        with _shared_port([sock, *beside] if beside else []):
            sock.bind(found[0][4])
            sock.listen(BACKLOG)
    except OSError as error:
        if sock is not None:
            sock.close()
        no_ipv6 = error.errno == errno.EAFNOSUPPORT or (both and error.errno == errno.EADDRNOTAVAIL)
        if address.is_ipv6 and no_ipv6:
            raise _NoIPv6(explain(asked, error)) from error
        raise StartupError(explain(asked, error)) from error
    return sock


@contextmanager
def _shared_port(socks: Sequence[socket.socket]) -> Iterator[None]:
    try:
        for sock in socks:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        yield
    finally:
        for sock in socks:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)


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


def prepare_late(client: socket.socket) -> None:
    """Make up for it on a connection that came before `adopt`: clients need not wait for us."""
    if client.family == socket.AF_UNIX:
        return
    if client.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) != LINGER_RESET:
        _prepare_accepted(client)


def is_taken(address: Address) -> bool:
    """Whether somebody listens there, so that nobody else can."""
    is_six = address.is_ipv6 or address.host == "*"
    host = "::" if address.host == "*" else address.host
    try:
        with socket.socket(socket.AF_INET6 if is_six else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if is_six:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address.host != "*"))
            probe.bind((host, address.port))
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False


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
