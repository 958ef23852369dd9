"""Sockets in a SOCKMAP, in pairs or by themselves, and the accounts that the verdict keeps of them.

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
* A single socket stays in the map for all its life, and no worker after this one takes it over. It
  serves one body after the other: `direct` says to which socket and how many bytes, an event says
  that they are through or that user space is needed, `halt` ends it. Whatever is no body is passed.
* A pair whose descriptors somebody else has, too, outlives the worker: its sockets stay in the map
  and the verdict goes on. The worker after it finds everything in the arrays (`Splicer.adopt`).
* To insert, to delete and to map the arrays takes the descriptors and no capability: the supervisor
  loads, a worker without privileges splices.

Each worker has its own object, so that no two processes write to one map.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Collection, Iterable
from dataclasses import astuple, dataclass, fields
from importlib import resources

from l7proxy.datapath import libbpf
from l7proxy.datapath.maps import (
    AIM,
    DIRECTION_WORDS,
    LIMIT,
    NO_LIMIT,
    PASSED,
    REDIRECTED,
    RELAYED,
    TOTALS_WORDS,
    Inherited,
    Object,
    VerdictMaps,
    failed,
)
from l7proxy.errors import DatapathUnavailable

BROKEN = 1  # a bit of `Splicer.broken`: bytes of the stream are missing or out of reach
URGENT = 2  # another one: urgent data came

_FIRST_EPOCH = 1 << 32
_MOST_EPOCHS = (1 << 32) - 1


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


class _Single:
    """A socket that is in the map by itself."""

    __slots__ = ("cookie", "fd", "sink", "source")

    def __init__(self, fd: int, cookie: int) -> None:
        self.fd = fd
        self.cookie = cookie
        self.sink = -1  # the index that its direction is aimed at
        self.source = -1  # the index whose direction is aimed at it


class Splicer(VerdictMaps):
    """One worker's kernel state: a SOCKMAP, the accounts of its directions, the event ring.

    Made by `load_splicers`; a worker calls `start` first. An index names a direction by the socket
    that its bytes arrive on: the client of a pair is at the even index i, the backend at i ^ 1.
    """

    def __init__(self, bpf: Object, pairs: int, cpus: int) -> None:
        super().__init__(bpf, pairs, cpus)
        self._free: list[int] = []  # the even indices of slots that are free both
        self._halves: tuple[set[int], set[int]] = (set(), set())  # free, beside one in use
        self._cookies: dict[int, tuple[int, int]] = {}
        self._singles: dict[int, _Single] = {}
        self._epoch = 0

    def start(self, kept: Collection[int] = ()) -> None:
        """Map the accounts and the ring. In the worker; needs the descriptors, no capability.

        A worker that was killed leaves its cookies and its unread events. Its sockets are closed,
        so its slots are empty; a direction is zeroed when its index is used again. All that does
        not hold for the pairs in `kept`, by their clients' indices: each of them is to be adopted.
        """
        self._map()
        self._still = memoryview(bytes(DIRECTION_WORDS * 8)).cast("Q")
        blank = bytearray(2 * DIRECTION_WORDS * 8)
        words = memoryview(blank).cast("Q")
        words[LIMIT] = words[DIRECTION_WORDS + LIMIT] = NO_LIMIT
        self._blank = memoryview(bytes(blank)).cast("Q")
        taken = frozenset(kept)
        self._left: dict[int, int] = {}  # index by cookie, of what the worker before has left
        for cookie, index in libbpf.entries(self._index_fd).items():
            if index & ~1 in taken:
                self._left[cookie] = index
            else:
                libbpf.delete(self._index_fd, cookie)
        self._cookies.clear()
        self._singles.clear()
        self._halves = (set(), set())
        every = range(2 * self.pairs - 2, -2, -2)
        self._free = [index for index in every if index not in taken] if taken else list(every)

    def adopt(self, index: int, client_fd: int, backend_fd: int) -> None:
        """Take over a pair that was spliced by the worker before. Raises OSError: it is not one.

        It was named in `start`. Its index is in use from then on, until `release`.
        """
        cookies = self._cookie_of(client_fd), self._cookie_of(backend_fd)
        if [self._left.get(cookie) for cookie in cookies] != [index, index + 1]:
            raise failed(errno.ESTALE)  # its index stays out of use
        self._cookies[index] = cookies

    # ---- pairs: each socket is the other one's sink, for as long as both live

    def splice(self, client_fd: int, backend_fd: int) -> int:
        """Put a pair in the kernel; from now on it moves the bytes. Returns the client's index.

        The caller has read both sockets until EAGAIN and has written what it read. After it, read
        `passed` of both directions: bytes that came meanwhile are passed without an event.

        Raises OSError and leaves both sockets as they were: EOPNOTSUPP (one is not ESTABLISHED),
        ENOSPC (all pairs are taken), EEXIST (one is spliced already), EBUSY (it is in another
        map). Raises `HalfSpliced` if the backend was refused after the client had been inserted.
        """
        if not self._free:
            raise failed(errno.ENOSPC)
        cookies = self._cookie_of(client_fd), self._cookie_of(backend_fd)
        index = self._free.pop()
        first = index * DIRECTION_WORDS
        self._words[first : first + 2 * DIRECTION_WORDS] = self._blank
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
            raise failed(-result)
        self._cookies[index] = cookies
        result = self._insert(index + 1, backend_fd)
        if result:
            half = HalfSpliced(-result, os.strerror(-result))
            half.index = index
            raise half
        self._words[first + AIM] = _FIRST_EPOCH | index + 1
        self._words[first + DIRECTION_WORDS + AIM] = _FIRST_EPOCH | index
        self._opened(2)
        self._kick(client_fd)
        self._kick(backend_fd)
        return index

    def release(self, index: int) -> None:
        """After `close` of both sockets: forget the pair of `index`, which may be used again."""
        client, backend = self._cookies.pop(index & ~1)
        self._withdraw(client)
        self._withdraw(backend)
        self._free.append(index & ~1)

    # ---- single sockets: each direction gets a sink and a number of bytes, again and again

    def enter(self, fd: int, side: int) -> int:
        """Put one socket in the kernel: a client's (0) or a backend's (1). Returns its index.

        All that arrives is passed, and read and written as before, until `direct`. The caller has
        read the socket until EAGAIN: `passed` counts every byte that it has not read. The
        descriptor stays open until the socket is closed, and nobody has a duplicate of it.

        Raises OSError and leaves the socket as it was: EOPNOTSUPP, ENOSPC, EEXIST, EBUSY, as for
        `splice`.
        """
        cookie = self._cookie_of(fd)
        index = self._take(side)
        first = index * DIRECTION_WORDS
        self._words[first : first + DIRECTION_WORDS] = self._still
        result = self._publish(cookie, index)
        if not result:
            result = self._insert(index, fd)
            if result:
                self._withdraw(cookie)
        if result:
            self._give_back(index)
            raise failed(-result)
        self._singles[index] = _Single(fd, cookie)
        self._kick(fd)
        return index

    def leave(self, index: int) -> None:
        """After `close` of a single socket: forget it; its index may be used again.

        A direction that is still aimed at it is halted first. The slot is empty since the close,
        so what arrived there was passed; and a verdict that has read the old aim is over before
        another socket can stand in the slot.
        """
        single = self._singles[index]
        if single.source >= 0:
            self.halt(single.source)
        if single.sink >= 0:
            self._singles[single.sink].source = -1
        del self._singles[index]
        self._withdraw(single.cookie)
        self._give_back(index)

    def direct(self, index: int, sink: int, taken: int, count: int | None) -> bool:
        """Let the kernel move the next `count` bytes of a single socket to another one; None: all.

        `taken`: bytes of `passed` that the caller has read from the socket, since `enter`. Of
        these nothing waits to be written to the sink, and every byte that was ever redirected
        there is in its write queue.

        True: the kernel has the direction. An event tells when it has passed something, because
        the sink has no room or something else is behind the `count` bytes in the same skb; or when
        the last of them was redirected. What follows them is passed without another event: `halt`,
        and look. False: more than `taken` is passed by now, perhaps behind bytes that were
        redirected; read it, write what of it belongs to the `count` bytes as after an event, then
        `resume` or `halt`.

        Raises ValueError: the direction or the sink is in use, or it isn't a single socket.
        """
        single, to = self._singles.get(index), self._singles.get(sink)
        if single is None or to is None or single is to:
            raise ValueError("only from one single socket to another one")
        if single.sink >= 0 or to.source >= 0:
            raise ValueError("halt first")
        if count is not None and count <= 0:
            raise ValueError("nothing to move")
        single.sink, to.source = sink, index
        self._epoch = self._epoch % _MOST_EPOCHS + 1
        first = index * DIRECTION_WORDS
        # The verdict reads these without a lock of ours, and in any order. It redirects nothing
        # until it sees the new aim; until it sees the new limit, it finds 0 or one that is behind
        # it (`halt`); until it sees the new `relayed`, `passed` is another number.
        self._words[first + RELAYED] = taken
        self._words[first + LIMIT] = (
            NO_LIMIT if count is None else self._words[first + REDIRECTED] + taken + count
        )
        self._words[first + AIM] = self._epoch << 32 | sink
        self._opened(1)
        self._await_verdict(single.fd)
        return self._words[first + PASSED] == taken

    def resume(self, index: int, taken: int) -> bool:
        """Give a direction back to the kernel, within the same `count` bytes; see `direct`."""
        self.set_relayed(index, taken)
        self._await_verdict(self._singles[index].fd)
        return self._words[index * DIRECTION_WORDS + PASSED] == taken

    def halt(self, index: int) -> None:
        """Have everything of a single socket passed, from now on. Idempotent.

        After it `redirected` stands still. An event of before may still be unread.
        """
        single = self._singles[index]
        first = index * DIRECTION_WORDS
        self._words[first + AIM] = 0
        self._words[first + LIMIT] = 0
        self._await_verdict(single.fd)
        if single.sink >= 0:
            self._singles[single.sink].source = -1
            single.sink = -1

    def _take(self, side: int) -> int:
        if self._halves[side]:
            return self._halves[side].pop()
        if not self._free:
            raise failed(errno.ENOSPC)
        even = self._free.pop()
        self._halves[1 - side].add(even + 1 - side)
        return even + side

    def _give_back(self, index: int) -> None:
        other = self._halves[1 - (index & 1)]
        if index ^ 1 in other:
            other.remove(index ^ 1)
            self._free.append(index & ~1)
        else:
            self._halves[index & 1].add(index)

    def totals(self) -> Totals:
        """Sums since the load; in any process that holds this object."""
        sums = [sum(self._totals[word::TOTALS_WORDS]) for word in range(len(_TOTALS))]
        return Totals(*sums)


def totals_of(splicers: Iterable[Splicer]) -> Totals:
    """The totals of all of them together."""
    every = [astuple(splicer.totals()) for splicer in splicers]
    return Totals(*map(sum, zip(*every, strict=True))) if every else Totals(*[0] * len(_TOTALS))


def inherit_splicer(fds: dict[str, int], pairs: int) -> Splicer:
    """What another process has loaded, by the descriptors of its `MAPS`; they belong to this one.

    A map holds its program, and each socket in it does.
    """
    return Splicer(Inherited(fds), pairs, libbpf.possible_cpus())


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
    """A power of two, in pages: two records of 16 bytes for each direction; see `maps`."""
    return max(mmap.PAGESIZE, 1 << (32 * directions - 1).bit_length())
