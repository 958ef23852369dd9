"""One worker's maps, word by word: the slots, the accounts of its directions, the event ring.

The layout is that of bpf/l7proxy.h. What may be done with them, in which order, says
`sockmap.Splicer`.

How many events can be unread: a direction has one for each time that user space opened its gate (by
arming it, or by publishing `relayed`), for after that either the gate is shut or the limit reached;
and one in its life for a fault, which only a client can bring about. Gates that are open when the
ring is read can be as many as there are directions; so the ring has room for that, for a fault of
each client, and for as many openings as there are pairs. After so many it is read ahead (`opened`).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
from typing import Protocol

from l7proxy.datapath import libbpf

SO_COOKIE = 57  # include/uapi/asm-generic/socket.h

# bpf/l7proxy.h, in units of 8 bytes
DIRECTION_WORDS = 16
REDIRECTED, PASSED, FAULT, RELAYED, AIM, LIMIT = 0, 1, 2, 8, 9, 10
ENDED = 11  # the rest of user space's line is the worker's own: the program never looks there
TOTALS_WORDS = 16
NO_LIMIT = (1 << 64) - 1

MAPS = ("socks", "index_of", "events", "directions", "totals")


class Object(Protocol):
    """What holds the maps' descriptors."""

    def map_fd(self, name: str) -> int:
        """The descriptor of a map."""

    def close(self) -> None:
        """Give them back. Idempotent."""


class Inherited:
    """In place of a `BpfObject`: maps that another process has made. The program goes with them."""

    def __init__(self, fds: dict[str, int]) -> None:
        self._fds = fds

    def map_fd(self, name: str) -> int:
        """The descriptor of a map."""
        return self._fds[name]

    def close(self) -> None:
        """Close all descriptors. Idempotent."""
        while self._fds:
            os.close(self._fds.popitem()[1])


class VerdictMaps:
    """The maps of one worker, as its process uses them."""

    def __init__(self, bpf: Object, pairs: int, cpus: int) -> None:
        self.pairs = pairs
        self._bpf = bpf
        self._socks_fd = bpf.map_fd("socks")
        self._index_fd = bpf.map_fd("index_of")
        self.event_fd = bpf.map_fd("events")
        self._totals_map = mmap.mmap(bpf.map_fd("totals"), _pages(cpus * TOTALS_WORDS * 8))
        self._totals = memoryview(self._totals_map).cast("Q")[: cpus * TOTALS_WORDS]
        self._ring: libbpf.Ring | None = None
        self._directions: mmap.mmap | None = None
        self._openings = 0  # of gates, since the ring was read
        self._unheard: list[int] = []  # events that were read ahead

    def _map(self) -> None:
        """Map the accounts and the ring, and forget what is unread there."""
        self._directions = mmap.mmap(
            self._bpf.map_fd("directions"), _pages(2 * self.pairs * DIRECTION_WORDS * 8)
        )
        self._words = memoryview(self._directions).cast("Q")
        self._ring = libbpf.Ring(self.event_fd)
        self._ring.consume()
        self._openings = 0
        self._unheard = []
        self._prepare_calls()

    def _prepare_calls(self) -> None:
        # The arguments of the calls below are made once: building ctypes objects for each call
        # would cost as much as the system calls.
        self._update, self._delete = libbpf.map_calls()
        libc = ctypes.PyDLL(None, use_errno=True)
        self._getsockopt = libc.getsockopt
        self._getsockopt.argtypes = [ctypes.c_int] * 3 + [ctypes.c_void_p] * 2
        self._setsockopt = libc.setsockopt
        self._setsockopt.argtypes = [ctypes.c_int] * 3 + [ctypes.c_void_p, ctypes.c_uint]
        self._cookie = ctypes.c_uint64()
        self._slot = ctypes.c_uint32()
        self._fd = ctypes.c_uint64()
        self._length = ctypes.c_uint()
        self._one = ctypes.c_int(1)
        self._cookie_at = ctypes.addressof(self._cookie)
        self._slot_at = ctypes.addressof(self._slot)
        self._fd_at = ctypes.addressof(self._fd)
        self._length_at = ctypes.addressof(self._length)
        self._one_at = ctypes.addressof(self._one)

    def _cookie_of(self, fd: int) -> int:
        self._length.value = 8
        if self._getsockopt(fd, socket.SOL_SOCKET, SO_COOKIE, self._cookie_at, self._length_at):
            raise failed(ctypes.get_errno())
        return self._cookie.value

    def _publish(self, cookie: int, index: int) -> int:
        self._cookie.value, self._slot.value = cookie, index
        result: int = self._update(
            self._index_fd, self._cookie_at, self._slot_at, libbpf.BPF_NOEXIST
        )
        return result

    def _withdraw(self, cookie: int) -> None:
        self._cookie.value = cookie
        self._delete(self._index_fd, self._cookie_at)

    def _insert(self, index: int, fd: int) -> int:
        self._slot.value, self._fd.value = index, fd
        result: int = self._update(self._socks_fd, self._slot_at, self._fd_at, libbpf.BPF_NOEXIST)
        return result

    def _kick(self, fd: int) -> None:
        # tcp_set_rcvlowat() calls tcp_data_ready(), which runs the verdict over stale bytes.
        if self._setsockopt(fd, socket.SOL_SOCKET, socket.SO_RCVLOWAT, self._one_at, 4):
            raise failed(ctypes.get_errno())

    def _await_verdict(self, fd: int) -> None:
        """Return when no verdict runs for this socket that has not seen our stores.

        The verdict runs under the lock of its socket, and tcp_get_info() takes that. Whichever of
        the two comes second sees what the other one stored. An error means that the socket is
        closed: no verdict runs for it then, for sock_map_close() has taken the lock.
        """
        self._length.value = 8
        self._getsockopt(fd, socket.IPPROTO_TCP, socket.TCP_INFO, self._cookie_at, self._length_at)

    def redirected(self, index: int) -> int:
        """Bytes of this direction that the kernel has queued for its sink."""
        return self._words[index * DIRECTION_WORDS + REDIRECTED]

    def passed(self, index: int) -> int:
        """Bytes of this direction left to user space; counted before they are readable."""
        return self._words[index * DIRECTION_WORDS + PASSED]

    def relayed(self, index: int) -> int:
        """How many of `passed` user space has written to the sink, as it has published."""
        return self._words[index * DIRECTION_WORDS + RELAYED]

    def set_relayed(self, index: int, count: int) -> None:
        """Publish `relayed`. When it equals `passed`, the kernel redirects again.

        Afterwards make a system call that takes the lock of the socket at `index` (recv, TCP_INFO)
        and read `passed` again: the verdict may have passed more just before.
        """
        self._words[index * DIRECTION_WORDS + RELAYED] = count
        self._opened(1)

    def _opened(self, gates: int) -> None:
        """So many gates were opened: each can bring one more event."""
        self._openings += gates
        if self._openings > self.pairs:
            self._unheard = self.events()  # those of before are among them

    @property
    def has_unheard(self) -> bool:
        """Whether `events` has something to tell of which epoll tells no more."""
        return bool(self._unheard)

    def broken(self, index: int) -> int:
        """0, or the bits `BROKEN` and `URGENT`: this direction was given up, reset both sides."""
        return self._words[index * DIRECTION_WORDS + FAULT]

    def set_ended(self, index: int) -> None:
        """Note for another worker that the end of this direction is being passed on."""
        self._words[index * DIRECTION_WORDS + ENDED] = 1

    def ended(self, index: int) -> bool:
        """Whether that was noted."""
        return self._words[index * DIRECTION_WORDS + ENDED] != 0

    def events(self) -> list[int]:
        """The directions of which the verdict has something to tell, since the last call.

        A direction that is armed was passed, or has come to its limit; or it got a fault. An index
        may have been released and used again since its event: look, don't trust.
        """
        assert self._ring is not None
        self._openings = 0
        heard = self._ring.consume()
        if self._unheard:
            heard = self._unheard + heard
            self._unheard = []
        return heard

    def descriptors(self) -> list[int]:
        """The descriptors of the maps, in the order of `MAPS`: see `inherit_splicer`."""
        return [self._bpf.map_fd(name) for name in MAPS]

    def close(self) -> None:
        """Give this process's hold back. Sockets that are spliced stay so. Idempotent."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        if self._directions is not None:
            self._words.release()
            self._directions.close()
            self._directions = None
        self._totals.release()
        self._totals_map.close()  # it has a descriptor of its own
        self._bpf.close()


def _pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def failed(code: int) -> OSError:
    """The exception for an errno."""
    return OSError(code, os.strerror(code))
