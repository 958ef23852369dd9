"""Listening sockets that a service manager has opened, given to the policy's listeners.

The facts, and what follows:

- The manager keeps its own duplicate. So connections wait in the queue while we are away, and a
  socket that we close still listens: nothing of ours may stay on it, no filter and no file.
- It may have listened, and been connected to, before we existed. Connections that came before then
  lack what accepted ones inherit from our listeners (`net.listen`): workers have to look.
- What the policy says of an address stays true. A socket that listens elsewhere than its listener
  says is a mistake in one of the two, and refused: else `check` and `explain` would be lies.

A socket is found by its name, that of the listener, or by its address: a socket unit with several
addresses has but one name for them.
"""

from __future__ import annotations

import socket
from collections.abc import Container, Iterable
from dataclasses import dataclass

from l7proxy.errors import StartupError
from l7proxy.model import Address, Listener, SocketAddress, UnixAddress
from l7proxy.net.listen import ListeningSocket, adopt
from l7proxy.net.systemd import Passed


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A socket that was passed; `sock` stays open here, so that a later policy can have it too."""

    name: str
    sock: socket.socket
    address: SocketAddress


class Activation:
    """The listening sockets among what was passed. `rest` is what is none: not ours to close."""

    def __init__(self, passed: Iterable[Passed] = ()) -> None:
        self._sockets: list[_Waiting] = []
        self.rest: tuple[Passed, ...] = ()
        for one in passed:
            sock = _listening(one.fd)
            if sock is None:
                self.rest += (one,)
            else:
                self._sockets.append(_Waiting(one.name, sock, _address(sock)))

    def open(self, listener: Listener) -> ListeningSocket | None:
        """The socket for this listener, if there is one. Raises StartupError for a wrong one."""
        for one in self._sockets:
            if one.name == listener.name:
                if not _fits(listener.address, one.address):
                    raise StartupError(
                        f"the policy says {listener.address}, and the socket that was passed under"
                        f" this name listens on {one.address}; make ListenStream= of its socket"
                        " unit and the policy say the same"
                    )
                return adopt(one.sock.dup(), listener.address, one.address)
        for one in self._sockets:
            if one.address == listener.address:
                return adopt(one.sock.dup(), listener.address, one.address)
        return None

    def addresses(self, fds: Container[int]) -> frozenset[str]:
        """Where those of these descriptors listen."""
        return frozenset(str(one.address) for one in self._sockets if one.sock.fileno() in fds)

    def unused(self, listeners: Iterable[Listener]) -> list[str]:
        """Each socket that no listener has: its name and address. Clients wait there for nobody."""
        wanted = list(listeners)
        names = {listener.name for listener in wanted}
        addresses = {listener.address for listener in wanted}
        return [
            f"{one.name} {one.address}"
            for one in self._sockets
            if one.name not in names and one.address not in addresses
        ]

    def close(self) -> None:
        """Let go of them; whoever opened them has them still."""
        for one in self._sockets:
            one.sock.close()
        self._sockets.clear()  # a later policy opens what it needs


def _listening(fd: int) -> socket.socket | None:
    """The stream socket behind a descriptor, if it listens."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        return None
    if (
        sock.family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
        and sock.type == socket.SOCK_STREAM
        and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    ):
        return sock
    sock.detach()
    return None


def _address(sock: socket.socket) -> SocketAddress:
    """Where it listens, as a policy writes it."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        path = name if isinstance(name, str) else "@" + name[1:].decode(errors="surrogateescape")
        return UnixAddress(path)
    host, port = name[:2]
    both = sock.family == socket.AF_INET6 and not sock.getsockopt(
        socket.IPPROTO_IPV6, socket.IPV6_V6ONLY
    )
    return Address("*" if both and host == "::" else host, port)


def _fits(asked: SocketAddress, there: SocketAddress) -> bool:
    """Whether a socket is where the policy says. Port 0 takes any port."""
    if isinstance(asked, UnixAddress) or isinstance(there, UnixAddress):
        return asked == there
    return asked.host == there.host and asked.port in (0, there.port)
