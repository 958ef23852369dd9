"""Where the admin server listens: a unix socket for its owner, or TCP on request."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from l7proxy.errors import StartupError
from l7proxy.model import Address, UnixAddress
from l7proxy.net.adminplace import is_unix
from l7proxy.net.listen import bound_address, open_listener
from l7proxy.net.unixsocket import SocketFile, open_unix

_BACKLOG = 64
_UNIX_MODE = 0o600


@dataclass(frozen=True, slots=True)
class AdminSocket:
    """A listening admin socket; `remove` takes a unix socket's file away again."""

    sock: socket.socket
    text: str
    file: SocketFile | None = None

    def remove(self) -> None:
        """Close, and unlink the file unless another process has put its own there since."""
        self.sock.close()
        if self.file is not None:
            self.file.remove()


def open_admin(where: str, *, has_token: bool = False) -> AdminSocket:
    """Open `unix:PATH`, `/PATH` or `HOST:PORT` (beyond loopback with a token only).

    Raises StartupError.
    """
    if is_unix(where):
        return _open_unix(where.removeprefix("unix:"))
    sock = open_listener(_tcp_address(where, has_token=has_token))
    return AdminSocket(sock, str(bound_address(sock)))


def _tcp_address(where: str, *, has_token: bool) -> Address:
    host, colon, port = where.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not bare or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise StartupError(
            f"--admin {where}: not an address; use /run/l7proxy.sock, unix:PATH or 127.0.0.1:9000"
        )
    if bare == "localhost":
        bare = "127.0.0.1"
    try:
        literal = ipaddress.ip_address(bare)
    except ValueError:
        raise StartupError(
            f"--admin {where}: {bare} is not an IP address; use 127.0.0.1:{port}"
        ) from None
    if not literal.is_loopback and not has_token:
        raise StartupError(
            f"--admin {where}: others can reach that, so a token is wanted: write one into a file"
            " (openssl rand -hex 32) and name it with --admin-token-file, or use"
            f" 127.0.0.1:{port} or /run/l7proxy.sock"
        )
    return Address(str(literal), int(port))


def _open_unix(path: str) -> AdminSocket:
    try:
        # never open to others, not even for a moment
        sock, file = open_unix(UnixAddress(path), _BACKLOG, _UNIX_MODE)
    except StartupError as error:
        raise StartupError(f"--admin unix:{path}: {error}") from error
    return AdminSocket(sock, f"unix:{path}", file)
