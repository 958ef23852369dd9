"""Listening sockets in the file system: their mode, stale ones, and taking them away again.

The facts, and what follows:

- bind(2) makes the file, and fails when there is one, even if nobody listens there any more. So a
  socket that refuses connections is removed first; anything else is left alone.
- The file's mode is 0777 without the umask (`unix_mknod`), and connect(2) wants write permission.
  The umask is set around bind(2): a chmod(2) after it would leave a moment in which anybody can
  connect.
- A later change of the mode goes through a descriptor of the file: between a look at the path and
  chmod(2) of it, who may write the folder could put a link there, and the rights are ours.
- Nobody removes the file at the end but whoever made it. By then another process may have put its
  own there, so device and inode are compared.
- A name that begins with NUL (written `@`) is no file: it has no mode, and goes with its socket.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from dataclasses import dataclass

from l7proxy.errors import StartupError
from l7proxy.model import UnixAddress

log = logging.getLogger(__name__)

MAX_PATH = 107  # bytes; sun_path has room for one more, the NUL

_PROBE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class SocketFile:
    """What bind(2) made; `remove` takes it away again."""

    path: str
    inode: tuple[int, int]

    def set_mode(self, mode: int) -> None:
        """Change who may connect, if the file is still ours."""
        try:
            fd = os.open(self.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                found = os.fstat(fd)
                if (found.st_dev, found.st_ino) == self.inode:
                    os.chmod(f"/proc/self/fd/{fd}", mode)
            finally:
                os.close(fd)
        except OSError as error:
            log.warning("%s: its mode could not be changed: %s", self.path, error.strerror)

    def remove(self) -> None:
        """Unlink it, unless another process has put its own there since."""
        try:
            found = os.stat(self.path, follow_symlinks=False)
            if (found.st_dev, found.st_ino) == self.inode:
                os.unlink(self.path)
        except OSError:
            pass


def open_unix(
    address: UnixAddress, backlog: int, mode: int | None = None
) -> tuple[socket.socket, SocketFile | None]:
    """A non-blocking listening socket, and its file unless the name is abstract.

    `mode` None leaves it to the umask. Raises StartupError with a sentence about the path.
    """
    abstract = address.path.startswith("@")
    if not abstract:
        _remove_stale(address)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    mask = os.umask(0o777 & ~mode) if mode is not None else None
    try:
        sock.bind("\0" + address.path[1:] if abstract else address.path)
        sock.listen(backlog)
        if abstract:
            return sock, None
        found = os.stat(address.path, follow_symlinks=False)
    except OSError as error:
        sock.close()
        raise StartupError(explain(address, error)) from error
    finally:
        if mask is not None:
            os.umask(mask)
    return sock, SocketFile(address.path, (found.st_dev, found.st_ino))


def explain(address: UnixAddress, error: OSError) -> str:
    """A failed bind as a sentence that says what to do."""
    path = address.path
    if len(os.fsencode(path)) > MAX_PATH:
        return f"a path has at most {MAX_PATH} bytes; choose a shorter one"
    match error.errno:
        case errno.EADDRINUSE if path.startswith("@"):
            return "another process listens on this abstract name; `ss -lx` shows which"
        case errno.ENOENT:
            folder = os.path.dirname(path)
            return f"no such file or directory: create {folder} first, or choose another path"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            said = (error.strerror or "not permitted").lower()
            return f"{said}; choose a path in a directory that this user may write"
        case errno.EMFILE | errno.ENFILE:
            return "no file descriptor is left; raise the limit: ulimit -n 65536"
        case _:
            said = (error.strerror or str(error)).lower()
            return f"{said}; choose a path in a directory that exists and that this user may write"


def _remove_stale(address: UnixAddress) -> None:
    """Unlink a socket that nobody listens on; leave everything else alone."""
    path = address.path
    try:
        mode = os.stat(path, follow_symlinks=False).st_mode
    except (OSError, ValueError):
        return  # not there, or bind will say why not
    if not stat.S_ISSOCK(mode):
        raise StartupError("this file is not a socket; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            log.info("stale socket %s replaced", path)
            os.unlink(path)
        except OSError:
            return
        else:
            raise StartupError("another process listens there; stop it or choose another path")
