"""Connections that were going elsewhere: where to, and sockets that may take them.

- A redirected connection (NAT) has the listener's address at its near end; connection tracking
  knows where it was going (`SO_ORIGINAL_DST`, netfilter's `getorigdst`). On a dual-stack socket an
  IPv4 connection is asked about at SOL_IP, though its family is AF_INET6.
- One that TPROXY assigned has at its near end the address that it was going to.
- `IP_TRANSPARENT` needs CAP_NET_ADMIN or CAP_NET_RAW when it is set; what a listener accepts has it
  from the listener.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Iterable

from l7proxy.errors import StartupError
from l7proxy.model import Address, Interception

_SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST is the same
_IP_TRANSPARENT = 19
_IPV6_TRANSPARENT = 75
_SOCKADDR_IN = struct.Struct("!2xH4s8x")
_SOCKADDR_IN6 = struct.Struct("!2xH4x16s4x")


def original_destination(sock: socket.socket, mode: Interception) -> Address:
    """Where an accepted connection was going: its near end where nobody moved it.

    Raises OSError when the client has gone.
    """
    host, port = sock.getsockname()[:2]
    is_ipv6 = ":" in host and not host.startswith("::ffff:")
    if mode is Interception.REDIRECT:
        try:
            return _translated(sock, is_ipv6=is_ipv6)
        except OSError as error:
            # connection tracking knows nothing of it, or there is none
            if error.errno not in (errno.ENOENT, errno.ENOPROTOOPT, errno.EOPNOTSUPP):
                raise
    return Address(host if is_ipv6 else host.removeprefix("::ffff:"), port)


def _translated(sock: socket.socket, *, is_ipv6: bool) -> Address:
    if is_ipv6:
        raw = sock.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, _SOCKADDR_IN6.size)
        port, packed = _SOCKADDR_IN6.unpack(raw)
        return Address(socket.inet_ntop(socket.AF_INET6, packed), port)
    raw = sock.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN.size)
    port, packed = _SOCKADDR_IN.unpack(raw)
    return Address(socket.inet_ntop(socket.AF_INET, packed), port)


def make_transparent(sock: socket.socket) -> None:
    """Let it take, or make, connections with addresses that are not of this machine.

    Raises StartupError.
    """
    ipv6 = sock.family == socket.AF_INET6
    level = socket.IPPROTO_IPV6 if ipv6 else socket.SOL_IP
    try:
        sock.setsockopt(level, _IPV6_TRANSPARENT if ipv6 else _IP_TRANSPARENT, 1)
    except OSError as error:
        said = (error.strerror or str(error)).lower()
        if error.errno in (errno.EPERM, errno.EACCES):
            said = "CAP_NET_ADMIN is missing; add it, or write `transparent: redirect`"
        raise StartupError(f"cannot take what TPROXY brings: {said}") from error


def make_spares(number: int, *, ipv6: bool, user: int | None) -> list[socket.socket]:
    """So many sockets that may dial with any address, or as many as can be made.

    They are of `user`: what dials from them is told apart by that (`skuid` of nftables, which looks
    at who opened the file; and `Owners`).
    """
    if user is None:
        return _spares(number, ipv6=ipv6)
    libc = ctypes.CDLL(None)
    before = libc.setfsuid(user)  # takes away capabilities for files only (capabilities(7))
    try:
        return _spares(number, ipv6=ipv6)
    finally:
        libc.setfsuid(before)


def _spares(number: int, *, ipv6: bool) -> list[socket.socket]:
    made: list[socket.socket] = []
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    try:
        while len(made) < number:
            made.append(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            make_transparent(made[-1])
    except (OSError, StartupError):
        if made:
            made.pop().close()
    return made


class OwnAddresses:
    """The addresses that l7proxy itself listens on."""

    def __init__(self, socks: Iterable[socket.socket]) -> None:
        self._exact: set[tuple[str, int]] = set()
        self._everywhere: set[tuple[bool, int]] = set()  # whether IPv6, port
        for sock in socks:
            if sock.family == socket.AF_UNIX:
                continue
            host, port = sock.getsockname()[:2]
            if host == "0.0.0.0":
                self._everywhere.add((False, port))
            elif host == "::":
                self._everywhere.add((True, port))
                if not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
                    self._everywhere.add((False, port))
            else:
                self._exact.add((host, port))

    def __contains__(self, address: Address) -> bool:
        if (address.host, address.port) in self._exact:
            return True
        return (address.is_ipv6, address.port) in self._everywhere and is_local(address)


def is_local(address: Address) -> bool:
    """Whether it is an address of this network namespace: whether a socket can have it."""
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address.host, 0))
    except OSError:
        return False
    return True
