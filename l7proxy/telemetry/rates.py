"""When the next request of each route and client is due, over all workers: `ratelimit`, shared.

The facts behind the layout:

- As in `presence`, an anonymous mapping made before the fork is the same memory in every worker,
  and a name is a 64-bit keyed hash whose key nobody outside knows. A reload leaves it as it is.
- An entry is two words: the hash, and when its next request is due. One that is due in the past
  says the same as none (see `ratelimit`), so nothing ever has to be cleaned up.
- A name can stand in one of the `WAYS` entries of its bucket only. Where all of them are owed by
  others, the one that is due first makes room: it is the one that is forgotten at the least cost.
  The table is bounded, and whoever has enough addresses to fill it has as many limits anyway.
- Two workers that read the same number would both let a request through. So it is read, judged and
  written under a lock: a record lock of the bucket's byte in an anonymous file, which the kernel
  gives back when its holder dies. It is held for some microseconds, across nothing that waits.
- Routes have a table of their own: no crowd of clients can push the limit of a route out.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os

from l7proxy.ratelimit import Rate, arrive
from l7proxy.telemetry.presence import network

ENTRIES = 1 << 17
"""Routes, and clients of routes, that have a limit of their own at once. An entry is 16 bytes, and
memory only once it is used."""

WAYS = 8  # entries of a bucket: two cache lines
_WORD = 8
_BUCKET = 2 * WAYS  # words


class SharedRates:
    """The tables. Make it before the first fork; every process may use it."""

    def __init__(self, entries: int = ENTRIES) -> None:
        """`entries`, of each table, is a power of two and `WAYS` at the least."""
        self._key = os.urandom(16)
        self._buckets = entries // WAYS
        self._map = mmap.mmap(-1, 2 * entries * 2 * _WORD)
        self._bytes = memoryview(self._map)
        self._words = self._bytes.cast("Q")
        self._lock_fd = os.memfd_create("l7proxy-rates", os.MFD_CLOEXEC)

    def take(self, name: str, client: str | None, rate: Rate, now: int) -> int:
        """A request of a route comes: zero if it is let through, else the nanoseconds to wait.

        `name` is the limit's; `client`, an address, has one of its own. `now` is CLOCK_MONOTONIC
        in nanoseconds, which is the same for all processes.
        """
        key = name.encode() if client is None else name.encode() + b"\0" + network(client)
        hashed = hashlib.blake2b(key, digest_size=_WORD, key=self._key)
        tag = int.from_bytes(hashed.digest()) or 1
        bucket = tag % self._buckets + (0 if client is None else self._buckets)
        words, first = self._words, bucket * _BUCKET
        fd = self._lock_fd
        fcntl.lockf(fd, fcntl.LOCK_EX, 1, bucket)
        try:
            at = self._entry(first, tag)
            due, wait = arrive(words[at + 1] if words[at] == tag else 0, now, rate)
            if not wait:
                words[at], words[at + 1] = tag, due
        finally:
            fcntl.lockf(fd, fcntl.LOCK_UN, 1, bucket)
        return wait

    def _entry(self, first: int, tag: int) -> int:
        """The entry of a name in the bucket that begins at `first`, or the one that it gets."""
        words = self._words
        tags = words[first : first + _BUCKET : 2].tolist()
        if tag in tags:
            return first + 2 * tags.index(tag)
        dues = words[first + 1 : first + _BUCKET : 2].tolist()
        return first + 2 * dues.index(min(dues))

    def close(self) -> None:
        """Unmap. It is unusable afterwards."""
        self._words.release()
        self._bytes.release()
        self._map.close()
        os.close(self._lock_fd)
