"""A pair whose sockets more than one process has: it lives until the last of them lets go.

close(2) of a socket that lingers would wait, and whoever has a duplicate can make it linger: it is
told not to before each close.
"""

from __future__ import annotations

import os
import socket
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from l7proxy.net.channel import Received
from l7proxy.net.messages import MOST_PAIRS

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: the last close resets."""
DELIVER = struct.pack("ii", 0, 0)
"""SO_LINGER: the last close is an end in order."""

LARGE = 40 * 1024  # bytes of records in one message, before its last one

Pairs = Sequence[tuple[int, "Kept"]]
"""Pairs by the indices of their clients."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One pair: descriptors of its client and its backend, and what its next worker is told."""

    client: int
    backend: int
    record: bytes


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


def batches(pairs: Iterable[tuple[int, Kept]]) -> Iterator[Pairs]:
    """As many at a time as a message takes."""
    batch: list[tuple[int, Kept]] = []
    size = 0
    for index, one in pairs:
        batch.append((index, one))
        size += len(one.record)
        if len(batch) == MOST_PAIRS or size > LARGE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def load(places: Sequence[int], records: Iterable[bytes]) -> bytes:
    """The payload of a message: index and size of each, one after the other, then the records."""
    return array("I", places).tobytes() + b"".join(records)


def laden(pairs: Pairs) -> tuple[list[int], bytes]:
    """Descriptors and payload, as `take` takes them."""
    fds = [fd for _, one in pairs for fd in (one.client, one.backend)]
    places = [number for index, one in pairs for number in (index, len(one.record))]
    return fds, load(places, [one.record for _, one in pairs])


def take(received: Received) -> Pairs | None:
    """The pairs of a message; None, and the descriptors are still its own, if they do not fit."""
    fds, payload = received.fds, received.payload
    at = 4 * len(fds)  # two numbers for two descriptors
    if not received.is_whole or len(fds) % 2 or len(payload) < at:
        return None
    places = array("I", payload[:at])
    found = []
    for number in range(0, len(fds), 2):
        index, size = places[number : number + 2]
        record = payload[at : at + size]
        found.append((index, Kept(fds[number], fds[number + 1], record)))
        at += size
    return found if at == len(payload) else None
