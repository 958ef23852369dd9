"""Whether the files of a policy are still those that were read, without reading them again.

Polled, and not told by inotify: a policy may lie on NFS or in a mounted ConfigMap, be replaced by
rename, or be reached through a chain of symlinks of which any may be swapped, and each of these
needs another watch. stat(2) of what the path leads to sees all of them alike.
"""

from __future__ import annotations

import os
import stat

from l7proxy.config import sources

Stamp = tuple[int, int, int, int]
Fingerprint = tuple[tuple[str, Stamp | None], ...]
"""Of each file: its name, and device, inode, modification time and size of what it leads to; None
when there is nothing."""


def fingerprint(path: str) -> Fingerprint:
    """The state of the files of a policy; equal as long as nothing has happened to them."""
    try:
        folder = stat.S_ISDIR(os.stat(path).st_mode)
        names = sources.names(path)[: sources.MAX_FILES] if folder else [path]
    except (OSError, ValueError):
        names = [path]
    return tuple((name, _stamp(name)) for name in names)


def _stamp(name: str) -> Stamp | None:
    try:
        found = os.stat(name)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
