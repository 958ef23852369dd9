"""BPF objects as the kernel has them: who holds which, whether one still exists, what a map holds.

An object lives as long as a descriptor, an attachment or another object refers to it; its id is
never given to another one. So an id that was seen once tells later whether the object has gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from l7proxy.datapath import libbpf

KINDS = ("map", "prog")
INDEX_OF = 1  # BPF_MAP_TYPE_HASH: of l7proxy's maps that one alone

Held = tuple[str, int]
"""Kind and id."""


def held(pids: Iterable[int], *, map_type: int | None = None) -> set[Held]:
    """All of which these processes have a descriptor; only maps of a type, if one is given."""
    found: set[Held] = set()
    for text in _fdinfo(pids):
        for kind in KINDS:
            number = re.search(rf"^{kind}_id:\s*(\d+)$", text, re.MULTILINE)
            if number and (map_type is None or f"map_type:\t{map_type}\n" in text):
                found.add((kind, int(number[1])))
    return found


def _fdinfo(pids: Iterable[int]) -> Iterator[str]:
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            for file in Path(f"/proc/{pid}/fdinfo").iterdir():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    yield file.read_text()


def exists(one: Held) -> bool:
    """Whether the kernel still has it. As root."""
    try:
        os.close(_open(one))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    return True


def entries(one: Held) -> dict[int, int]:
    """What a map from 64 bits to 32 bits (`INDEX_OF`) holds."""
    fd = _open(one)
    try:
        return libbpf.entries(fd)
    finally:
        os.close(fd)


def _open(one: Held) -> int:
    kind, number = one
    call = getattr(ctypes.CDLL(libbpf.SONAME), f"bpf_{kind}_get_fd_by_id")
    call.argtypes, call.restype = [ctypes.c_uint32], ctypes.c_int
    fd: int = call(number)
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd))
    return fd
