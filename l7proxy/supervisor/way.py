"""Which datapath runs: asked for, or as good as the kernel is; and how much room its maps have."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from l7proxy.datapath.sockmap import Splicer, load_splicers
from l7proxy.doctor import prove_sockmap
from l7proxy.errors import DatapathUnavailable, StartupError
from l7proxy.model import Datapath, Listener
from l7proxy.telemetry.log import event

log = logging.getLogger(__name__)

_MOST_PAIRS = 131_072  # in one worker; a pair takes about 0.5 KiB of kernel memory, used or not
_EVEN_SHARE = 16_384  # pairs that each worker can hold however many workers there are
_RESERVE = 64  # descriptors that are no connections


@dataclass(frozen=True, slots=True)
class Way:
    """The datapath that was chosen, why, and the kernel's part of it for each worker."""

    datapath: Datapath
    reason: str
    splicers: tuple[Splicer, ...] = ()

    def splicer(self, slot: int) -> Splicer | None:
        """The kernel's part of the worker in this slot."""
        return self.splicers[slot] if self.splicers else None

    def keep(self, slot: int | None) -> None:
        """In a child: give up the maps of all workers but the one in this slot.

        Whoever has a descriptor of a map may write to it, and a child may be taken over.
        """
        for number, splicer in enumerate(self.splicers):
            if number != slot:
                splicer.close()


def choose(asked: str) -> Way:
    """Sockmap where it is asked for or possible; proven by the self-test either way."""
    if asked not in ("auto", Datapath.SOCKMAP):
        return Way(Datapath(asked), f"asked for with --datapath {asked}")
    try:
        prove_sockmap()
    except DatapathUnavailable as error:
        return _fall_back(asked, error)
    return Way(Datapath.SOCKMAP, "the kernel passed the self-test")


def load(way: Way, asked: str, workers: int, pairs: int, left: Sequence[Splicer] = ()) -> Way:
    """The way with an object for each worker; `left`: those of the l7proxy before, for the first.

    Raises StartupError, if sockmap was asked for and cannot be had.
    """
    if way.datapath is not Datapath.SOCKMAP:
        return way
    try:
        fresh = load_splicers(workers - len(left), pairs)
        return Way(way.datapath, way.reason, (*left, *fresh))
    except DatapathUnavailable as error:
        return _fall_back(asked, error)


def _fall_back(asked: str, error: DatapathUnavailable) -> Way:
    if asked == Datapath.SOCKMAP:
        raise StartupError(f"--datapath sockmap: {error}") from error
    fields = {"why": error.reason} | ({"remedy": error.remedy} if error.remedy else {})
    log.warning(event("the kernel does not splice here, relaying", **fields))
    return Way(Datapath.SPLICE2, str(error))


def room(listeners: Sequence[Listener], workers: int, files: int) -> int:
    """How many pairs each worker's maps hold: what its share of connections may come to.

    The kernel does not spread connections evenly, so a share is generous; beyond it pairs are
    relayed, as is what a reload allows beyond it: a map keeps the size that it was made with.
    """
    connections = sum(listener.limits.connections for listener in listeners)
    share = max(_EVEN_SHARE, 2 * connections // workers)
    most = (files - _RESERVE) // 2 if files > 0 else _MOST_PAIRS  # RLIM_INFINITY is -1
    return max(_RESERVE, min(connections, share, most, _MOST_PAIRS))
