"""What the supervisor and its children say to each other.

When the policy is replaced:

    supervisor                                worker
        Sockets (new listening sockets)  ->
        Prepare (the policy, sealed)     ->   builds everything aside, a few ms at a time
                                         <-   Prepared, or Unprepared
        (once all are prepared)
        Commit                           ->   swaps
                                         <-   Committed
        (a second later)
        Retire (sockets)                 ->   empties their queues, closes them

`Abandon` in place of `Commit` makes them forget it. A socket has a number for as long as it is
open; a policy names its listeners' sockets by it, in the policy's order.

About pairs that are in the kernel, which are to outlive their worker (`keeper`):

                                         <-   Spliced (both sockets of each)
                                         <-   Ended
        Dropped                          ->   their indices are free again
                                         <-   Adopted, by the successor of a worker that died
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

_NEWS = 24 * 1024
"""Bytes of a message about names, before its last name: with it, one has at most twice as many."""


@dataclass(frozen=True, slots=True)
class Sockets:
    """Listening sockets; their descriptors come along in this order."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prepare:
    """A policy (`net.bundle`); its descriptor comes along.

    `sockets` and `rows` (of the counters) belong to its listeners, in their order. `passed` are
    those sockets that others opened for us: their first connections lack what ours inherit.
    """

    generation: int
    sockets: tuple[int, ...]
    rows: tuple[int, ...]
    passed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Commit:
    """From now on this is the policy."""

    generation: int


@dataclass(frozen=True, slots=True)
class Abandon:
    """This will not be the policy: forget it, and the sockets that came for it."""

    generation: int
    sockets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Retire:
    """These sockets get nothing new any more: take what waits in their queues, and close them."""

    sockets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything is built; `longest_us`: microseconds that its longest part took."""

    generation: int
    longest_us: int


@dataclass(frozen=True, slots=True)
class Unprepared:
    """It could not be built: a bug, or no descriptor or memory is left."""

    generation: int
    why: str


@dataclass(frozen=True, slots=True)
class Committed:
    """It is in use."""

    generation: int


@dataclass(frozen=True, slots=True)
class Resolved:
    """The addresses of DNS names: from the prober, when they change, and on to the workers.

    An empty tuple, in place of a first answer: the name could not be resolved, so do not wait.
    """

    names: dict[str, tuple[str, ...]]

    @classmethod
    def take(cls, news: dict[str, tuple[str, ...]]) -> Resolved:
        """Take as many names out of `news` as one message may tell of; at least one.

        A message for each name would be more than a channel holds, where a policy has thousands.
        """
        taken: dict[str, tuple[str, ...]] = {}
        size = 0
        while news and size < _NEWS:
            name, addresses = news.popitem()
            taken[name] = addresses
            size += len(name) + 8 + sum(len(address) + 3 for address in addresses)
        return cls(taken)


@dataclass(frozen=True, slots=True)
class Rotated:
    """The access log's file was moved away; the descriptor of the one in its place comes along."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The same as `process.STOP`, where the supervisor may not signal: end; again: at once."""


@dataclass(frozen=True, slots=True)
class Probe:
    """To the prober: look after the backends of this policy (`net.bundle`); it comes along."""


# ---- what an operator asks (the admin server)


@dataclass(frozen=True, slots=True)
class ListConnections:
    """Tell of the connections that are as `only` says: name of a field -> its value.

    Sorted by `sort`, the first `limit` of them; `inquiry` comes back with the answer.
    """

    inquiry: int
    only: dict[str, str]
    sort: str
    reverse: bool
    limit: int


@dataclass(frozen=True, slots=True)
class ConnectionRow:
    """A connection as it is now; `age` and `idle` in seconds.

    `number` is its worker's, and never another one's. `kernel`: how many of the bytes to both ends
    the kernel has moved.
    """

    number: int
    listener: str
    route: str
    backend: str
    endpoint: str
    client: str
    state: str
    way: str | None
    age: float
    idle: float
    to_backend: int
    to_client: int
    kernel: int


@dataclass(frozen=True, slots=True)
class Connections:
    """A part of what a worker has to tell; `total` of its connections are as was asked."""

    inquiry: int
    rows: tuple[ConnectionRow, ...]
    total: int
    is_last: bool


@dataclass(frozen=True, slots=True)
class ResetConnection:
    """Reset this connection."""

    inquiry: int
    number: int


@dataclass(frozen=True, slots=True)
class WasReset:
    """It was, or there was none of this number."""

    inquiry: int
    found: bool


@dataclass(frozen=True, slots=True)
class LogLevel:
    """From now on log what is as important as this, or more."""

    level: str


# ---- pairs that outlive their worker


@dataclass(frozen=True, slots=True)
class Spliced:
    """Pairs that last: keep a duplicate of both sockets.

    The descriptors come along, client and backend of each pair. The payload (`net.kept`) has the
    index of each client, and a record: what another worker needs to know of it (`worker.handover`);
    nobody else looks into that.
    """

    has_payload: ClassVar = True


@dataclass(frozen=True, slots=True)
class Ended:
    """These pairs have ended: the duplicates are to be closed."""

    pairs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Dropped:
    """They are closed, so that their places in the kernel are free."""

    pairs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Adopted:
    """The pairs of the worker before are this one's; `refused` of them had to be reset."""

    pairs: int
    refused: int


@dataclass(frozen=True, slots=True)
class Spare:
    """From a worker: it needs sockets that may dial with a client's address; and back, with them.

    No descriptors with it: none could be made, or the policy in force has no use for them.
    """

    ipv6: bool


@dataclass(frozen=True, slots=True)
class Leave:
    """Another l7proxy takes this one's place: hand over what is spliced, end the rest soon."""


# ---- to another l7proxy, and back (`succession`)


@dataclass(frozen=True, slots=True)
class Estate:
    """What is to be understood by everything that follows; `pairs`: what each map holds."""

    layout: str
    pairs: int


@dataclass(frozen=True, slots=True)
class Listening:
    """Listening sockets, whose descriptors come along, by the names of their listeners.

    `passed`: addresses of those among them that a service manager has opened.
    """

    names: tuple[str, ...]
    passed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Maps:
    """The descriptors of the maps of the next slot come along (`datapath.maps.MAPS`)."""


@dataclass(frozen=True, slots=True)
class Entrusted:
    """Kept pairs, as in `Spliced`."""

    has_payload: ClassVar = True
    slot: int


@dataclass(frozen=True, slots=True)
class Complete:
    """That was all of it."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The new one could start now. `adopts`: it takes the pairs."""

    adopts: bool


@dataclass(frozen=True, slots=True)
class Taken:
    """It has them."""

    pairs: int


# ---- to the guardian, and back (`guardian`): besides what a predecessor says


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The guardian is to let go of these pairs. `resets`: they have not ended, and are to now."""

    slot: int
    pairs: tuple[int, ...]
    resets: bool


@dataclass(frozen=True, slots=True)
class Returned:
    """They are closed."""

    slot: int
    pairs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Heir:
    """This process may take the place of who says so; the other end of its channel comes along."""

    pid: int


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The heir has. `adopts`: all pairs are its own now."""

    adopts: bool


@dataclass(frozen=True, slots=True)
class Installed:
    """To whoever took a place: it is the supervisor from now on."""


@dataclass(frozen=True, slots=True)
class Farewell:
    """This supervisor ends in order: nobody is to take its place, and nothing is listened to."""


SUCCESSION = "L7PROXY_SUCCESSION"
"""In the environment of a process that is to take another one's place: its end of the channel."""
GUARDIAN = "L7PROXY_GUARDIAN"
"""In the environment of a supervisor that has one: its end of the channel, and whose the other is.
"""

FROM_PREDECESSOR = (Estate, Listening, Maps, Entrusted, Complete)
FROM_SUCCESSOR = (Ready, Taken)
TO_GUARDIAN = (*FROM_PREDECESSOR, Withdrawn, Heir, Succeeded, Farewell)
FROM_GUARDIAN = (Returned, Installed)

MOST_PAIRS = 125
"""Pairs in one message: each has two descriptors, and the kernel takes 253 (`channel.MAX_FDS`)."""

TO_WORKER = (
    *(Sockets, Prepare, Commit, Abandon, Retire, Resolved, Rotated, Stop),
    *(ListConnections, ResetConnection, LogLevel, Dropped, Leave, Spare),
)
FROM_WORKER = (
    *(Prepared, Unprepared, Committed, Connections, WasReset),
    *(Spliced, Ended, Adopted, Spare),
)
TO_PROBER = (Probe, LogLevel)
FROM_PROBER = (Resolved,)
