"""A pair whose sockets more than one process has: it lives until the last of them lets go.

close(2) of a socket that lingers would wait, and whoever has a duplicate can make it linger: it is
told not to before each close.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from l7proxy.net.messages import MOST_PAIRS

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: the last close resets."""
DELIVER = struct.pack("ii", 0, 0)
"""SO_LINGER: the last close is an end in order."""

_LARGE = 24 * 1024  # characters of records in one message


@dataclass(frozen=True, slots=True)
class Kept:
    """One pair: descriptors of its client and its backend, and what its next worker is told."""

    client: int
    backend: int
    record: str


def let_go(pair: Kept, linger: bytes) -> None:
    """Close both descriptors; the sockets end by `linger` if these are the last."""
    for fd in (pair.client, pair.backend):
        try:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)
        except OSError:  # no socket at all
            os.close(fd)
            continue
        with sock:
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            except OSError:
                pass


def batches(
    pairs: Iterable[tuple[int, Kept]],
) -> Iterator[tuple[tuple[int, ...], tuple[Kept, ...]]]:
    """Pairs by their indices, as many at a time as a message takes."""
    batch: list[tuple[int, Kept]] = []
    size = 0
    for index, one in pairs:
        batch.append((index, one))
        size += len(one.record)
        if len(batch) == MOST_PAIRS or size > _LARGE:
            yield tuple(index for index, _ in batch), tuple(one for _, one in batch)
            batch, size = [], 0
    if batch:
        yield tuple(index for index, _ in batch), tuple(one for _, one in batch)
