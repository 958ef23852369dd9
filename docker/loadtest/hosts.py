"""Where contenders and origins run, as the driver sees it.

The driver and its client always run in one place: in the namespace of the client, or in the
client's container. Where the rest runs is a `Host`: `native.NativeHost` starts processes on this
machine (loopback, or network namespaces); with Docker each contender has a container with an agent.

What may differ between hosts is only where a process runs and how it is asked. Configurations
(`contenders`), loads (`workloads`) and the rules of a sample (`run`) are the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol


class LoadTestError(Exception):
    """A run or a sample that could not be taken; the text says why, and what to do about it."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where something is reached, each "HOST:PORT" with a numeric host.

    More than one: the client dials them in turn (the two origins; a contender has one of each).
    `web`: HTTP, small messages and the 101 of WebSocket; `bulk`: HTTP, large bodies (the same
    origin behind it, but a listener of its own, since contenders are told to treat it differently);
    `echo`: raw TCP, empty where a contender speaks HTTP only.
    """

    web: tuple[str, ...]
    bulk: tuple[str, ...]
    echo: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Order:
    """What to start: `contender` by its name, with `workers` workers (threads, processes) and room
    for `connections` clients at once."""

    contender: str
    workers: int
    connections: int


@dataclass(frozen=True, slots=True)
class Own:
    """A contender's processes at one moment, summed over its whole tree.

    `cpu` seconds and `switches` since their start; `pss_kib` is the proportional set size; `pids`
    as seen in this machine's /proc by the driver, empty where it cannot see them (another pid
    namespace): then CPU of others cannot be told from that of the contender.
    """

    cpu: float = 0.0
    switches: int = 0
    pss_kib: float = 0.0
    pids: frozenset[int] = frozenset()


class Running(Protocol):
    """A contender in operation. For `direct` everything is empty but its addresses."""

    @property
    def addresses(self) -> Addresses:
        """Where the client finds it."""

    def own(self, *, memory: bool = True) -> Own:
        """A reading of its processes now. Without `memory` it is faster and has pss_kib = 0."""

    def pss_kib(self) -> float:
        """Its proportional set size now: asked several times a second, from another thread."""

    def stats(self) -> Mapping[str, object]:
        """What it says of itself (l7proxy's /stats), {} where it says nothing."""

    def problems(self) -> list[str]:
        """What makes a sample with it invalid: it ended, it was killed for memory, ..."""


class Host(Protocol):
    """Where contenders and the two origins run. Enter it to start the origins."""

    network: str  # "loopback", "namespaces" or "docker"
    origins: Addresses  # both, in each of the tuples

    def __enter__(self) -> Host:
        """Start the origins."""

    def __exit__(self, *error: object) -> None:
        """End everything that was started."""

    def versions(self, names: Sequence[str]) -> dict[str, str]:
        """The version of each contender; "" for one that is not there."""

    def configuration(self, order: Order) -> str:
        """The text of its configuration as `running` would use it, for the results file."""

    def capacity(self, name: str, workers: int) -> int:
        """How many connections this contender can hold at once (RLIMIT_NOFILE, mostly)."""

    def running(self, order: Order) -> AbstractContextManager[Running]:
        """The contender, started with the block and ended with it.

        On entry it accepts connections, and came up as it was asked to (l7proxy: on its datapath
        and with all its workers). Raises LoadTestError with what it said otherwise.
        """

    def origin_pids(self) -> frozenset[int]:
        """The roots of the origins' process trees as the driver's /proc has them, empty where they
        cannot be seen."""

    def problems(self) -> list[str]:
        """What makes any sample invalid: an origin that ended."""
