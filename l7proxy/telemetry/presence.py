"""How many connections each client has, over all workers: shared memory, no lock, no system call.

The facts behind the layout:

- Every worker has a table of its own in one anonymous shared mapping and is its only writer. To
  know how many connections a client has, a worker adds up what all tables say.
- A client is a 64-bit keyed hash of the listener's name and the client's address; the key is drawn
  when the proxy starts, so nobody outside can choose addresses that collide. Two clients that
  collide all the same (one in 2**64) share a limit.
- An entry is two words, the hash and a count; entries are found by linear probing. An entry whose
  count is back at zero is free for another client, and an end of a chain that is free is emptied,
  so chains do not grow with time.
- A reader may look while the writer changes an entry, and so be one connection off for a moment.
  As two workers may accept at the same instant, the limit is exact but for that.

An IPv6 client is its /64: that is what one subscriber has at the least, and can change within as
it likes (RFC 6177, RFC 8981), so a limit for each address would be none.
"""

from __future__ import annotations

import hashlib
import ipaddress
import mmap
import os

ENTRIES = 1 << 17
"""Clients that a worker can tell apart at once: more than it can have descriptors, usually. It is
16 bytes each, and memory only once it is used."""

PROBES = 64  # entries that are looked at for one client; with none free, it is not counted
NOWHERE = -1  # the entry of a client that could not be counted

_WORD = 8
_IPV6_PREFIX = 64


class SharedPresence:
    """The tables of all workers. Make it before the first fork."""

    def __init__(self, workers: int, entries: int = ENTRIES) -> None:
        """`entries` is a power of two."""
        self._key = os.urandom(16)
        self._mask = entries - 1
        self._map = mmap.mmap(-1, workers * entries * 2 * _WORD)
        self._bytes = memoryview(self._map)
        words = self._bytes.cast("Q")
        size = entries * 2
        self._tables = [words[n * size : (n + 1) * size] for n in range(workers)]
        words.release()

    def slot(self, worker: int) -> Presence:
        """The table of one worker; the same memory each time it is asked for."""
        return Presence(self, self._tables[worker])

    def client(self, listener: str, address: str) -> int:
        """The hash of a client: never zero, which is the mark of an empty entry."""
        hashed = hashlib.blake2b(
            listener.encode() + b"\0" + network(address), digest_size=_WORD, key=self._key
        )
        return int.from_bytes(hashed.digest()) or 1

    def count(self, client: int) -> int:
        """How many connections it has, over all workers."""
        return sum(table[at + 1] for table in self._tables if (at := self.find(table, client)) >= 0)

    def find(self, table: memoryview, client: int) -> int:
        """The place of its entry in a table, NOWHERE when there is none."""
        for probe in range(PROBES):
            at = ((client + probe) & self._mask) * 2
            found = table[at]
            if found == client:
                return at
            if not found:
                return NOWHERE
        return NOWHERE

    def place(self, table: memoryview, client: int) -> int:
        """The place of its entry, or of one that it can have; NOWHERE when all are taken."""
        free = NOWHERE
        for probe in range(PROBES):
            at = ((client + probe) & self._mask) * 2
            found = table[at]
            if found == client:
                return at
            if free == NOWHERE and not table[at + 1]:
                free = at
            if not found:
                return free
        return free

    def tidy(self, table: memoryview, at: int) -> None:
        """Empty the entry at `at`, and free ones before it, if its chain ends here."""
        mask = self._mask
        index = at // 2
        if table[((index + 1) & mask) * 2]:
            return
        while table[index * 2] and not table[index * 2 + 1]:
            table[index * 2] = 0
            index = (index - 1) & mask

    def clear(self, worker: int) -> None:
        """Forget a worker that has died: the kernel closed its connections with it."""
        table = self._tables[worker]
        table.cast("B")[:] = bytes(table.nbytes)

    def close(self) -> None:
        """Unmap. Slots handed out before are unusable afterwards."""
        for table in self._tables:
            table.release()
        self._tables.clear()
        self._bytes.release()
        self._map.close()


class Presence:
    """One worker's table, and a look at everybody's."""

    __slots__ = ("_shared", "_table")

    def __init__(self, shared: SharedPresence, table: memoryview) -> None:
        self._shared = shared
        self._table = table

    def enter(self, listener: str, address: str, limit: int) -> int | None:
        """Count one connection more of this client; None when it has `limit` of them already.

        Returns the entry, for `leave`.
        """
        shared, table = self._shared, self._table
        client = shared.client(listener, address)
        if shared.count(client) >= limit:
            return None
        at = shared.place(table, client)
        if at != NOWHERE:
            if table[at] != client:
                table[at] = client
            table[at + 1] += 1
        return at

    def leave(self, entry: int) -> None:
        """One connection fewer."""
        if entry != NOWHERE:
            table = self._table
            table[entry + 1] -= 1
            if not table[entry + 1]:
                self._shared.tidy(table, entry)


def network(address: str) -> bytes:
    """What one client is: an IPv4 address, a /64 of IPv6, or the text of anything else."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address.encode()
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.packed
    if ip.ipv4_mapped is not None:
        return ip.ipv4_mapped.packed
    return ip.packed[: _IPV6_PREFIX // 8]
