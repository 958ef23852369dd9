"""Where the admin server listens: a unix socket for its owner, or loopback."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import stat
from dataclasses import dataclass

from l7proxy.errors import StartupError
from l7proxy.model import Address
from l7proxy.net.listen import bound_address, open_listener

log = logging.getLogger(__name__)

_BACKLOG = 64
_UNIX_MODE = 0o600


@dataclass(frozen=True, slots=True)
class AdminSocket:
    """A listening admin socket; `remove` takes a unix socket's file away again."""

    sock: socket.socket
    text: str
    path: str = ""
    inode: tuple[int, int] = (0, 0)

    def remove(self) -> None:
        """Close, and unlink the file unless another process has put its own there since."""
        self.sock.close()
        if self.path:
            try:
                found = os.stat(self.path, follow_symlinks=False)
                if (found.st_dev, found.st_ino) == self.inode:
                    os.unlink(self.path)
            except OSError:
                pass


def open_admin(where: str) -> AdminSocket:
    """Open `unix:PATH`, `/PATH` or `HOST:PORT` (loopback only). Raises StartupError."""
    if where.startswith(("unix:", "/")):
        return _open_unix(where.removeprefix("unix:"))
    sock = open_listener(_loopback_address(where))
    return AdminSocket(sock, str(bound_address(sock)))


def _loopback_address(where: str) -> Address:
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
    if not literal.is_loopback:
        raise StartupError(
            f"--admin {where}: the admin server has no authentication, so it listens on loopback or"
            f" a unix socket only; use 127.0.0.1:{port} or /run/l7proxy.sock"
        )
    return Address(str(literal), int(port))


def _open_unix(path: str) -> AdminSocket:
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    mask = os.umask(0o777 & ~_UNIX_MODE)  # never open to others, not even for a moment
    try:
        sock.bind(path)
        sock.listen(_BACKLOG)
        found = os.stat(path, follow_symlinks=False)
    except OSError as error:
        sock.close()
        said = (error.strerror or str(error)).lower()
        raise StartupError(
            f"--admin unix:{path}: {said}; choose a path (at most 107 bytes) in a directory that"
            " exists and that this user may write"
        ) from error
    finally:
        os.umask(mask)
    return AdminSocket(sock, f"unix:{path}", path, (found.st_dev, found.st_ino))


def _remove_stale(path: str) -> None:
    """Unlink a socket that nobody listens on; leave everything else alone."""
    try:
        mode = os.stat(path, follow_symlinks=False).st_mode
    except OSError:
        return  # not there, or bind will say why not
    if not stat.S_ISSOCK(mode):
        raise StartupError(f"--admin unix:{path}: this file is not a socket; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            log.info("stale admin socket %s replaced", path)
            os.unlink(path)
        except OSError:
            return
        else:
            raise StartupError(
                f"--admin unix:{path}: another process listens there; stop it or choose another"
                " path"
            )
