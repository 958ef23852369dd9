"""Pairs of sockets in a SOCKMAP, and the accounts that the verdict program keeps of them.

Facts and consequences (the verdict's own are in bpf/l7proxy.bpf.c)

* A socket takes the program over when it is inserted, so the program is attached first.
* An insertion must find its slot empty (`BPF_NOEXIST`): replaced in place, the old other side's
  bytes would go to the new connection. A slot becomes empty when its socket is closed, not when it
  is reset. So an index is used again only after `release`, and `release` comes after both closes.
* A live socket is never deleted from the map: what it passed and nobody read is lost, and the
  socket is wedged. So if the second insertion fails, the first socket stays, not armed: it can be
  read and written as before (`HalfSpliced`).
* Bytes that were in the receive queue before the insertion stay there until something calls
  `sk_data_ready`. Setting `SO_RCVLOWAT`, to what it is anyway, does that at once.
* `recv` can return b"" before it returns passed bytes, when these wait behind bytes that are being
  sent to the same socket. A direction has ended when all of `passed` was read and `recv` gives b"".
* A pair whose descriptors somebody else has, too, outlives the worker: its sockets stay in the map
  and the verdict goes on. The worker after it finds everything in the arrays (`Splicer.adopt`).
* To insert, to delete and to map the arrays takes the descriptors and no capability: the supervisor
  loads, a worker without privileges splices.

Each worker has its own object, so that no two processes write to one map.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct
from collections.abc import Collection, Iterable
from dataclasses import astuple, dataclass, fields
from importlib import resources

from l7proxy.datapath import libbpf
from l7proxy.errors import DatapathUnavailable

SO_COOKIE = 57  # include/uapi/asm-generic/socket.h

# bpf/l7proxy.h, in units of 8 bytes
_DIRECTION_WORDS = 16
_REDIRECTED, _PASSED, _FAULT, _RELAYED, _ARMED = 0, 1, 2, 8, 9
_ENDED = 10  # the rest of user space's line is the worker's own: the program never looks there
_TOTALS_WORDS = 16

BROKEN = 1  # a bit of `Splicer.broken`: bytes of the stream are missing or out of reach
URGENT = 2  # another one: urgent data came


class HalfSpliced(OSError):
    """The client stands in the map and the backend could not be inserted.

    Both sockets work as before, by `recv` and `send` (`splice(2)` from the client gives EAGAIN).
    `index` is to be given to `Splicer.release` after both are closed.
    """

    index: int


@dataclass(frozen=True, slots=True)
class VerdictLimits:
    """What the verdict admits beyond a free send buffer; constants of the loaded program.

    `backlog_bytes`: how far redirected bytes may exceed the room in the send queue.
    `backlog_skbs`: redirected skbs that may be on their way to the send queue, at most 65535.
    `skb_overhead`: bytes of send buffer that one of them is assumed to cost beyond its data.
    """

    backlog_bytes: int = 0
    backlog_skbs: int = 256
    skb_overhead: int = 1024

    def pack(self) -> bytes:
        """As `struct l7_limits`."""
        return struct.pack("=III", self.backlog_bytes, self.backlog_skbs, self.skb_overhead)


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all CPUs and all pairs since the load. Bytes, except where it says skbs."""

    redirected_client: int  # that came from clients
    redirected_backend: int  # that came from backends
    passed: int
    overflows: int  # events for a first pass
    trims: int  # skbs whose front had been taken before
    trimmed_bytes: int
    drops: int  # skbs of directions with a fault


_TOTALS = fields(Totals)

MAPS = ("socks", "index_of", "events", "directions", "totals")


class _Inherited:
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


class Splicer:
    """One worker's kernel state: a SOCKMAP, the accounts of its directions, the event ring.

    Made by `load_splicers`; a worker calls `start` first. An index names a direction by the socket
    that its bytes arrive on: the client of a pair is at the even index i, the backend at i ^ 1.
    """

    def __init__(self, bpf: libbpf.BpfObject | _Inherited, pairs: int, cpus: int) -> None:
        self.pairs = pairs
        self._bpf = bpf
        self._socks_fd = bpf.map_fd("socks")
        self._index_fd = bpf.map_fd("index_of")
        self.event_fd = bpf.map_fd("events")
        self._totals_map = mmap.mmap(bpf.map_fd("totals"), _pages(cpus * _TOTALS_WORDS * 8))
        self._totals = memoryview(self._totals_map).cast("Q")[: cpus * _TOTALS_WORDS]
        self._ring: libbpf.Ring | None = None
        self._directions: mmap.mmap | None = None
        self._free: list[int] = []
        self._cookies: dict[int, tuple[int, int]] = {}

    def start(self, kept: Collection[int] = ()) -> None:
        """Map the accounts and the ring. In the worker; needs the descriptors, no capability.

        A worker that was killed leaves its cookies and its unread events. Its sockets are closed,
        so its slots are empty; a direction is zeroed when its index is used again. All that does
        not hold for the pairs in `kept`, by their clients' indices: each of them is to be adopted.
        """
        self._directions = mmap.mmap(
            self._bpf.map_fd("directions"), _pages(2 * self.pairs * _DIRECTION_WORDS * 8)
        )
        self._words = memoryview(self._directions).cast("Q")
        self._blank = memoryview(bytes(2 * _DIRECTION_WORDS * 8)).cast("Q")
        self._ring = libbpf.Ring(self.event_fd)
        self._ring.consume()
        taken = frozenset(kept)
        self._left: dict[int, int] = {}  # index by cookie, of what the worker before has left
        for cookie, index in libbpf.entries(self._index_fd).items():
            if index & ~1 in taken:
                self._left[cookie] = index
            else:
                libbpf.delete(self._index_fd, cookie)
        self._cookies.clear()
        every = range(2 * self.pairs - 2, -2, -2)
        self._free = [index for index in every if index not in taken] if taken else list(every)
        self._prepare_calls()

    def adopt(self, index: int, client_fd: int, backend_fd: int) -> None:
        """Take over a pair that was spliced by the worker before. Raises OSError: it is not one.

        It was named in `start`. Its index is in use from then on, until `release`.
        """
        cookies = self._cookie_of(client_fd), self._cookie_of(backend_fd)
        if [self._left.get(cookie) for cookie in cookies] != [index, index + 1]:
            raise _failed(errno.ESTALE)  # its index stays out of use
        self._cookies[index] = cookies

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
            raise _failed(ctypes.get_errno())
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
            raise _failed(ctypes.get_errno())

    def splice(self, client_fd: int, backend_fd: int) -> int:
        """Put a pair in the kernel; from now on it moves the bytes. Returns the client's index.

        The caller has read both sockets until EAGAIN and has written what it read. After it, read
        `passed` of both directions: bytes that came meanwhile are passed without an event.

        Raises OSError and leaves both sockets as they were: EOPNOTSUPP (one is not ESTABLISHED),
        ENOSPC (all pairs are taken), EEXIST (one is spliced already), EBUSY (it is in another
        map). Raises `HalfSpliced` if the backend was refused after the client had been inserted.
        """
        if not self._free:
            raise _failed(errno.ENOSPC)
        cookies = self._cookie_of(client_fd), self._cookie_of(backend_fd)
        index = self._free.pop()
        first = index * _DIRECTION_WORDS
        self._words[first : first + 2 * _DIRECTION_WORDS] = self._blank
        published, result = 0, 0
        for side, cookie in enumerate(cookies):
            result = self._publish(cookie, index + side)
            if result:
                break
            published += 1
        result = result or self._insert(index, client_fd)
        if result:
            for cookie in cookies[:published]:  # one that was refused is another pair's
                self._withdraw(cookie)
            self._free.append(index)
            raise _failed(-result)
        self._cookies[index] = cookies
        result = self._insert(index + 1, backend_fd)
        if result:
            half = HalfSpliced(-result, os.strerror(-result))
            half.index = index
            raise half
        self._words[first + _ARMED] = 1
        self._words[first + _DIRECTION_WORDS + _ARMED] = 1
        self._kick(client_fd)
        self._kick(backend_fd)
        return index

    def release(self, index: int) -> None:
        """After `close` of both sockets: forget the pair of `index`, which may be used again."""
        client, backend = self._cookies.pop(index & ~1)
        self._withdraw(client)
        self._withdraw(backend)
        self._free.append(index & ~1)

    def redirected(self, index: int) -> int:
        """Bytes of this direction that the kernel has queued for the other side."""
        return self._words[index * _DIRECTION_WORDS + _REDIRECTED]

    def passed(self, index: int) -> int:
        """Bytes of this direction left to user space; counted before they are readable."""
        return self._words[index * _DIRECTION_WORDS + _PASSED]

    def relayed(self, index: int) -> int:
        """How many of `passed` user space has written to the other side."""
        return self._words[index * _DIRECTION_WORDS + _RELAYED]

    def set_relayed(self, index: int, count: int) -> None:
        """Publish `relayed`. When it equals `passed`, the kernel redirects again.

        Afterwards make a system call that takes the lock of the socket at `index` (recv, TCP_INFO)
        and read `passed` again: the verdict may have passed more just before.
        """
        self._words[index * _DIRECTION_WORDS + _RELAYED] = count

    def broken(self, index: int) -> int:
        """0, or the bits `BROKEN` and `URGENT`: this direction was given up, reset both sides."""
        return self._words[index * _DIRECTION_WORDS + _FAULT]

    def set_ended(self, index: int) -> None:
        """Note for another worker that the end of this direction is being passed on."""
        self._words[index * _DIRECTION_WORDS + _ENDED] = 1

    def ended(self, index: int) -> bool:
        """Whether that was noted."""
        return self._words[index * _DIRECTION_WORDS + _ENDED] != 0

    def events(self) -> list[int]:
        """The directions that were passed for the first time, or got a fault, since the last call.

        An index may have been released and used again since its event: look, don't trust.
        """
        assert self._ring is not None
        return self._ring.consume()

    def descriptors(self) -> list[int]:
        """The descriptors of the maps, in the order of `MAPS`: see `inherit_splicer`."""
        return [self._bpf.map_fd(name) for name in MAPS]

    def totals(self) -> Totals:
        """Sums since the load; in any process that holds this object."""
        sums = [sum(self._totals[word::_TOTALS_WORDS]) for word in range(len(_TOTALS))]
        return Totals(*sums)

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


def totals_of(splicers: Iterable[Splicer]) -> Totals:
    """The totals of all of them together."""
    every = [astuple(splicer.totals()) for splicer in splicers]
    return Totals(*map(sum, zip(*every, strict=True))) if every else Totals(*[0] * len(_TOTALS))


def inherit_splicer(fds: dict[str, int], pairs: int) -> Splicer:
    """What another process has loaded, by the descriptors of its `MAPS`; they belong to this one.

    A map holds its program, and each socket in it does.
    """
    return Splicer(_Inherited(fds), pairs, libbpf.possible_cpus())


def load_splicers(
    workers: int, pairs: int, limits: VerdictLimits | None = None, program: str | None = None
) -> list[Splicer]:
    """Load one object for each worker, with room for `pairs` pairs. Needs the capabilities.

    `program` names one of the two verdict programs, for tests; by default the kernel decides.
    Raises `DatapathUnavailable`.
    """
    try:
        image = resources.files("l7proxy.datapath").joinpath("l7proxy.bpf.o").read_bytes()
    except OSError as error:
        raise DatapathUnavailable(
            f"cannot read {error.filename}: {error.strerror}",
            "install l7proxy anew, where its user may read it",
        ) from error
    splicers: list[Splicer] = []
    try:
        for _ in range(workers):
            bpf, program = _load(image, pairs, limits or VerdictLimits(), program)
            splicers.append(Splicer(bpf, pairs, libbpf.possible_cpus()))
    except DatapathUnavailable:
        for splicer in splicers:
            splicer.close()
        raise
    return splicers


# In order of preference; the first needs kfuncs of Linux 6.2, the second works on 6.1.
PROGRAMS = ("verdict", "verdict_probe")


def _load(
    image: bytes, pairs: int, limits: VerdictLimits, program: str | None
) -> tuple[libbpf.BpfObject, str]:
    """Load with the first of the programs that this kernel takes; returns which one."""
    refusals: dict[str, libbpf.ProgramRefused] = {}
    for name in (program,) if program else PROGRAMS:
        bpf = libbpf.BpfObject(image)
        try:
            for other in PROGRAMS:
                bpf.choose(other, other == name)
            for sized in ("socks", "index_of", "directions"):
                bpf.resize(sized, 2 * pairs)
            bpf.resize("totals", libbpf.possible_cpus())
            bpf.resize("events", _ring_bytes(2 * pairs))
            bpf.set_constants(limits.pack())
            bpf.load()
            bpf.attach_verdict(name, "socks")
        except libbpf.ProgramRefused as refusal:
            bpf.close()
            refusals[name] = refusal
            continue
        except DatapathUnavailable:
            bpf.close()
            raise
        return bpf, name
    told = "; ".join(f"{name}: {refusal.reason}" for name, refusal in refusals.items())
    raise libbpf.ProgramRefused(told, next(iter(refusals.values())).remedy)


def _ring_bytes(directions: int) -> int:
    """A power of two, in pages: two records of 16 bytes for each direction, overflow and fault."""
    return max(mmap.PAGESIZE, 1 << (32 * directions - 1).bit_length())


def _pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _failed(code: int) -> OSError:
    return OSError(code, os.strerror(code))
