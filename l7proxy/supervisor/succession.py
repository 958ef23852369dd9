"""Another l7proxy in the place of this one: `l7proxy upgrade`, SIGUSR2.

    old                                              new (a child, the same command line)
        Estate, Listening..., Maps..., Complete ->   loads its policy, takes the sockets
                                                <-   Ready: up to here it had nothing to undo
        its workers leave, their pairs flow on
        Entrusted (pairs)..., Complete          ->   holds them
                                                <-   Taken
        exits                                        its workers start, and adopt

Until `Taken` the old one has everything that it had: whatever goes wrong before, its workers start
again, adopt what theirs was, and it goes on. Clients that come meanwhile wait in the queues of the
listening sockets, which both have.

The maps are taken with everything in them only where both mean the same by it (`layout`). Else the
new one begins with maps of its own, and the old one drains as on SIGTERM: nothing is guessed.
"""

from __future__ import annotations

import hashlib
import os
import select
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

from l7proxy.datapath.maps import MAPS
from l7proxy.datapath.sockmap import Splicer, inherit_splicer
from l7proxy.errors import StartupError
from l7proxy.net import channel
from l7proxy.net.activation import Activation
from l7proxy.net.channel import MAX_FDS, Channel, ChannelBroken, ChannelClosed, Received
from l7proxy.net.kept import Kept, laden, take
from l7proxy.net.listen import ListeningSocket
from l7proxy.net.messages import (
    FROM_PREDECESSOR,
    SUCCESSION,
    Complete,
    Entrusted,
    Estate,
    Listening,
    Maps,
    Ready,
    Taken,
)
from l7proxy.net.systemd import Passed
from l7proxy.supervisor.keeper import Keeper
from l7proxy.worker import handover

PATIENCE = 60.0  # seconds that either waits for the other's next word

_LAYOUT = 2  # of the messages here


def layout() -> str:
    """What has to be the same for maps and records to be understood: the program, and the words."""
    image = resources.files("l7proxy.datapath").joinpath("l7proxy.bpf.o").read_bytes()
    return f"{_LAYOUT}-{handover.VERSION}-{hashlib.sha256(image).hexdigest()[:16]}"


@dataclass
class Heritage:
    """What came from the l7proxy before; `splicers` is empty where its pairs are not adopted."""

    channel: Channel | None  # to it; None: it has gone, and what it left is `stored`
    same: bool
    activation: Activation
    passed: frozenset[str] = frozenset()  # addresses of sockets that a service manager has opened
    splicers: tuple[Splicer, ...] = ()
    pairs: int = 0  # of each of them
    stored: tuple[tuple[int, int, Kept], ...] = ()  # slot, index, pair

    # ---- in the new one

    @classmethod
    def take(cls) -> Heritage | None:
        """What was left to this process, if it is to take another one's place."""
        number = os.environ.pop(SUCCESSION, "")
        if not number.isdecimal():
            return None
        sock = socket.socket(fileno=int(number))
        sock.set_inheritable(False)
        end = Channel(sock, FROM_PREDECESSOR, fds=MAX_FDS)
        listening: list[Passed] = []
        found = cls(end, same=False, activation=Activation())
        for received in _messages(end):
            message, fds = received.message, received.fds
            match message:
                case Estate():
                    found.same = message.layout == layout()
                    found.pairs = message.pairs
                case Listening():
                    found.passed |= frozenset(message.passed)
                    listening += map(Passed, message.names, fds)
                case Maps() if found.same:
                    found.splicers += (
                        inherit_splicer(dict(zip(MAPS, fds, strict=True)), found.pairs),
                    )
                case Complete():
                    found.activation = Activation(listening)
                    return found
                case _:
                    for fd in fds:
                        os.close(fd)
        raise StartupError("the l7proxy before has gone")

    def settle(self, sockets: Iterator[ListeningSocket]) -> None:
        """The policy has the sockets that it wants: they are this process's own, others go."""
        for one in sockets:
            if one.passed and str(one.address) not in self.passed:
                one.passed = False
        self.activation.close()

    def enter(self, keeper: Keeper) -> int:
        """Take the place: how many pairs come with it. Raises StartupError when there is none."""
        if self.channel is None:
            for slot, index, one in self.stored:
                keeper.entrust(slot, index, one)
            return len(self.stored)
        total = 0
        try:
            self.channel.send(Ready(self.same))
            if not self.same:
                return 0
            for received in _messages(self.channel):
                match received.message:
                    case Entrusted(slot):
                        for index, pair in take(received) or ():
                            keeper.entrust(slot, index, pair)
                            total += 1
                    case Complete():
                        self.channel.send(Taken(total))
                        return total
        except (ChannelClosed, ChannelBroken) as error:
            raise StartupError(f"the l7proxy before has gone: {error}") from error
        raise StartupError("the l7proxy before does not go")


def bequeath(
    end: Channel,
    sockets: Iterator[tuple[str, ListeningSocket]],
    splicers: tuple[Splicer, ...],
    pairs: int,
) -> None:
    """In the old one: tell the new one of everything but the pairs. Raises ChannelClosed."""
    end.send(Estate(layout(), pairs))
    for name, one in sockets:
        passed = (str(one.address),) if one.passed else ()
        end.send(Listening((name,), passed), [one.sock.fileno()])
    for splicer in splicers:
        end.send(Maps(), splicer.descriptors())
    end.send(Complete())


def entrust(end: Channel, keeper: Keeper, slots: int) -> Iterator[None]:
    """In the old one: send all pairs; pauses where the other end has to read first."""
    for slot in range(slots):
        for pairs in keeper.batches(slot):
            end.send(Entrusted(slot), *laden(pairs))
            while end.waiting:
                yield
                end.flush()
    end.send(Complete())


def ends() -> tuple[socket.socket, socket.socket]:
    """Both ends of a channel."""
    return channel.pair()


def _messages(end: Channel) -> Iterator[Received]:
    """What comes, one after the other, for as long as the other end has patience."""
    poll = select.poll()  # select(2) knows no descriptor beyond 1023
    poll.register(end, select.POLLIN)
    while poll.poll(PATIENCE * 1000):
        yield from end.receive()
