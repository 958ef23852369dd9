"""The supervisor's word with its guardian (`guardian`), which has all that it has, once more.

    supervisor                                       guardian
        Estate, Listening..., Maps..., Complete ->   at the start, and when listeners change
        Entrusted (pairs)                       ->   a moment after a worker has handed them over
        Withdrawn                               ->   they have ended
                                                <-   Returned: its duplicates are closed
        Farewell                                ->   the end is in order: nobody is to follow

An upgrade adds `Heir`, with the other end of the successor's channel, and `Succeeded`; whoever took
a place waits for `Installed`.

- The place of a pair in the SOCKMAP is free when its last descriptor is closed, and that one is the
  guardian's: so workers are told of it (`Dropped`) when the guardian has answered.
- What the guardian does not read now waits here, by its index: no copies of descriptors pile up.
- A guardian that is killed leaves nothing to do but to say so. Its descriptors are closed before
  its pidfd tells of its end (exit_files comes before exit_notify), the channel's perhaps first: so
  the end of the channel says nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from l7proxy.errors import StartupError
from l7proxy.net.channel import Channel, ChannelBroken, ChannelClosed
from l7proxy.net.kept import Kept, batches, laden
from l7proxy.net.messages import (
    FROM_GUARDIAN,
    GUARDIAN,
    Entrusted,
    Farewell,
    Heir,
    Installed,
    Returned,
    Succeeded,
    Withdrawn,
)
from l7proxy.telemetry.log import event

log = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds that a start waits for the guardian
LEAVE_SECONDS = 5.0  # ... and an end
_MOST = 1000  # pairs in one message without descriptors

_Place = tuple[int, int]  # slot and index of a pair


class Guarded:
    """What the guardian has, and what it is still to be told."""

    def __init__(self, end: Channel, pid: int) -> None:
        """Raises StartupError when there is no such process."""
        self.on_free: Callable[[int, tuple[int, ...]], None] = lambda _slot, _pairs: None
        """Called with a slot and those of its pairs whose places in the kernel are free."""
        self.is_there = True
        self._channel = end
        self._pid = pid
        self._fresh: dict[_Place, Kept] = {}
        self._there: set[_Place] = set()
        self._ended: dict[tuple[int, bool], list[int]] = {}
        self._owed: Counter[_Place] = Counter()  # answers that are to come
        self._awaited: set[_Place] = set()  # ... and which somebody waits for
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_due = False
        try:
            self._process = os.pidfd_open(pid)
        except OSError as error:
            raise StartupError(f"the guardian, process {pid}: {error.strerror}") from error

    @classmethod
    def take(cls) -> Guarded | None:
        """The guardian that has started this process, if one has."""
        number, _, pid = os.environ.pop(GUARDIAN, "").partition(",")
        if not number.isdecimal() or not pid.isdecimal():
            return None
        sock = socket.socket(fileno=int(number))
        sock.set_inheritable(False)
        return cls(Channel(sock, FROM_GUARDIAN), int(pid))

    @property
    def descriptors(self) -> frozenset[int]:
        """What no child may have."""
        return frozenset({self._channel.fileno(), self._process})

    @property
    def pairs(self) -> int:
        """How many pairs it has."""
        return len(self._there)

    # ---- before the loop serves anybody: these wait

    def tell(self, messages: Callable[[Channel], None]) -> None:
        """Have `messages` send what it has to, and wait until it is on its way."""
        try:
            messages(self._channel)
            self._wait(lambda: not self._channel.waiting, select.POLLOUT)
        except (ChannelClosed, ChannelBroken) as error:
            raise StartupError(f"the guardian has gone: {error}") from error

    def has(self, slot: int, index: int) -> None:
        """It keeps this pair already."""
        self._there.add((slot, index))

    def await_installed(self) -> None:
        """Wait for its word that this is the supervisor now."""
        self._wait(self._is_installed, select.POLLIN)

    def _is_installed(self) -> bool:
        try:
            return any(isinstance(one.message, Installed) for one in self._channel.receive())
        except (ChannelClosed, ChannelBroken) as error:
            raise StartupError(f"the guardian does not want this one: {error}") from error

    def _wait(self, true: Callable[[], bool], event_mask: int) -> None:
        poll = select.poll()
        poll.register(self._channel, event_mask)
        while not true():
            if not poll.poll(PATIENCE * 1000):
                raise StartupError("the guardian does not answer")
            self._channel.flush()

    def renew(self, messages: Callable[[Channel], None]) -> None:
        """Tell the estate anew, while the loop runs."""
        if self.is_there:
            try:
                messages(self._channel)
            except (ChannelClosed, ChannelBroken) as error:
                log.warning(event("the guardian does not know of the listeners", why=error))
            self._due()

    # ---- pairs

    def keep(self, slot: int, index: int, pair: Kept) -> None:
        """Have it keep this pair."""
        if self.is_there:
            self._fresh[slot, index] = pair
            self._due()

    def end(self, slot: int, pairs: Sequence[int], *, resets: bool = False) -> list[int]:
        """These are over, or to be reset: those among them whose places are free at once."""
        free = []
        for index in pairs:
            place = slot, index
            self._fresh.pop(place, None)
            if place in self._there:
                self._there.remove(place)
                self._awaited.add(place)
                self._ended.setdefault((slot, resets), []).append(index)
                self._due()
            else:
                free.append(index)
        return free

    def forget(self, slot: int) -> None:
        """Nobody waits for places of this slot any more: its worker has died."""
        self._awaited = {place for place in self._awaited if place[0] != slot}

    def _due(self) -> None:
        if not self._is_due and self._loop is not None:
            self._is_due = True
            self._loop.call_soon(self._tell)

    def _tell(self) -> None:
        """Tell as much as it takes now."""
        self._is_due = False
        if self._loop is None or not self.is_there:
            return
        try:
            self._channel.flush()
            for message, fds, payload in self._news():
                self._channel.send(message, fds, payload)
                if self._channel.waiting:
                    self._loop.add_writer(self._channel.fileno(), self._tell)
                    return
        except (ChannelClosed, ChannelBroken):
            pass  # its end is told of by `_process`
        self._loop.remove_writer(self._channel.fileno())

    def _news(self) -> Iterator[tuple[Withdrawn | Entrusted, list[int], bytes]]:
        """What it does not know yet; whoever takes one of them tells it."""
        while self._ended:
            (slot, resets), ended = next(iter(self._ended.items()))
            some = tuple(ended[:_MOST])
            del ended[:_MOST]
            if not ended:
                del self._ended[slot, resets]
            self._owed.update((slot, index) for index in some)
            yield Withdrawn(slot, some, resets), [], b""
        for slot in {slot for slot, _ in self._fresh}:
            mine = [(index, kept) for (other, index), kept in self._fresh.items() if other == slot]
            for pairs in batches(mine):
                for index, _ in pairs:
                    del self._fresh[slot, index]
                    self._there.add((slot, index))
                yield Entrusted(slot), *laden(pairs)

    # ---- what it says

    def attach(self) -> None:
        """Listen to it from now on, in the loop that runs."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._process, self._gone)
        self._loop.add_reader(self._channel.fileno(), self._hear)
        self._due()

    def detach(self) -> None:
        """No more; `farewell` can still be said."""
        if self._loop is not None and self.is_there:
            self._tell()
            self._loop.remove_reader(self._process)
            self._loop.remove_reader(self._channel.fileno())
            self._loop.remove_writer(self._channel.fileno())
        self._loop = None

    def _hear(self) -> None:
        assert self._loop is not None
        try:
            for received in self._channel.receive():
                if isinstance(received.message, Returned):
                    self._returned(received.message)
        except (ChannelClosed, ChannelBroken):
            self._loop.remove_reader(self._channel.fileno())

    def _returned(self, message: Returned) -> None:
        places = [(message.slot, index) for index in message.pairs]
        self._owed.subtract(places)
        free = [place for place in places if self._owed[place] <= 0]
        for place in free:
            del self._owed[place]
        told = tuple(index for slot, index in free if (slot, index) in self._awaited)
        self._awaited.difference_update(free)
        if told:
            self.on_free(message.slot, told)

    def _gone(self) -> None:
        """It was killed."""
        log.error("the guardian has gone: what is spliced ends with this process from now on")
        self.detach()
        self.close()
        for slot in {slot for slot, _ in self._awaited}:
            self.on_free(slot, tuple(index for other, index in self._awaited if other == slot))
        for left in (self._fresh, self._there, self._ended, self._owed, self._awaited):
            left.clear()

    def close(self) -> None:
        """There is none any more. Idempotent."""
        if self.is_there:
            self.is_there = False
            self._channel.close()
            os.close(self._process)

    # ---- another one in the place of this one

    def variables(self, fd: int) -> dict[str, str]:
        """What a successor finds in its environment; `fd`: its end of a channel."""
        return {GUARDIAN: f"{fd},{self._pid}"}

    def announce(self, pid: int, end: socket.socket) -> None:
        """This process may follow: it has the other end of this channel. Raises ChannelClosed."""
        self._channel.send(Heir(pid), [end.fileno()])

    def succeeded(self, *, adopts: bool) -> None:
        """It has followed."""
        self._tell()  # what has ended is not the successor's
        self._say(Succeeded(adopts))

    def farewell(self) -> None:
        """The end of this process is in order."""
        self._say(Farewell())

    def leave(self) -> None:
        """The same as its last word, without a loop: waits a moment until it is on its way."""
        self.farewell()
        poll = select.poll()
        try:
            poll.register(self._channel, select.POLLOUT)
            while self._channel.waiting and poll.poll(LEAVE_SECONDS * 1000):
                self._channel.flush()
        except (ChannelClosed, OSError, ValueError):  # it has gone
            pass
        self.close()

    def _say(self, message: object) -> None:
        if not self.is_there:
            return
        try:
            self._channel.send(message)
        except (ChannelClosed, ChannelBroken):
            return  # its end is told of by `_process`
        if self._channel.waiting and self._loop is not None:
            self._loop.add_writer(self._channel.fileno(), self._tell)
