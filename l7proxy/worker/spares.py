"""Sockets that may dial with a client's address: the supervisor makes them, workers have no right.

`IP_TRANSPARENT` needs a capability once, when it is set. So a worker keeps a few sockets that have
it and are nothing else yet, and asks for more when they run low. A dial that finds none waits for
them a moment, and never goes out with another address than it should.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from l7proxy.net.dial import DialError
from l7proxy.net.messages import Spare

LOW = 64  # with so few left, or none, more are asked for
_IP_BIND_ADDRESS_NO_PORT = 24


class Spares:
    """Those that are left, of each family."""

    def __init__(self, say: Callable[[object], bool]) -> None:
        """`say` tells the supervisor something, unless other messages wait."""
        self._say = say
        self._left: dict[bool, list[socket.socket]] = {False: [], True: []}
        self._asked = {False: False, True: False}

    def take(self, host: str) -> socket.socket | None:
        """One that is bound to this address, and to a port when it connects; None: none is here.

        Raises DialError.
        """
        ipv6 = ":" in host
        left = self._left[ipv6]
        if len(left) < LOW and not self._asked[ipv6]:
            self._asked[ipv6] = self._say(Spare(ipv6))
        if not left:
            return None
        sock = left.pop()
        try:
            # else the port is chosen now, and no other connection from this address may have it
            sock.setsockopt(socket.SOL_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((host, 0))
        except OSError as error:
            sock.close()
            raise DialError(error.errno or 0) from error
        return sock

    def prime(self) -> None:
        """Ask for the first ones, before anybody needs them."""
        for ipv6 in self._asked:
            self._asked[ipv6] = self._say(Spare(ipv6))

    def put(self, ipv6: bool, fds: list[int]) -> None:
        """Some have come; none: the supervisor could make none."""
        self._asked[ipv6] = False
        while fds:
            sock = socket.socket(fileno=fds.pop())
            sock.setblocking(False)
            self._left[ipv6].append(sock)
