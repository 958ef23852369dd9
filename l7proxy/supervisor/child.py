"""A place for a child of the supervisor, one after the other, and the channel to it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from l7proxy.net import channel, process
from l7proxy.net.channel import Channel, ChannelBroken, ChannelClosed, Received
from l7proxy.telemetry.log import event

log = logging.getLogger(__name__)

_LAST_WORDS = 16  # batches of messages; more does not fit into the channel


class Child:
    """`body(control_fd)` runs in the child and answers with its exit code.

    `hear(number, received)` is called for each message of a type in `accepts`, and may raise
    ChannelBroken; the descriptors that came with it are its own then, at most `fds`. `heard()` is
    called after each lot of them. A child that breaks the protocol, or does not read what it is
    told, is killed.
    """

    def __init__(
        self,
        number: int,
        name: str,
        body: Callable[[int], int],
        accepts: Sequence[type],
        hear: Callable[[int, Received], None],
        heard: Callable[[], None],
        fds: int = 0,
    ) -> None:
        self.number = number
        self.name = name
        self.pid = 0  # while there is one
        self.started = 0.0
        self.early_deaths = 0
        self.restart: asyncio.TimerHandle | None = None
        self._body = body
        self._accepts = accepts
        self._fds = fds
        self._hear_one = hear
        self._heard = heard
        self._channel: Channel | None = None
        self._is_silent = False  # its end of the channel is closed

    @property
    def is_connected(self) -> bool:
        """Whether it can be told anything."""
        return self._channel is not None

    # ---- life

    def start(self, keep: frozenset[int]) -> None:
        """Fork one that holds the descriptors in `keep`. Raises OSError."""
        ours, theirs = channel.pair()
        with theirs:
            try:
                body = partial(self._body, theirs.fileno())
                self.pid = process.fork(body, keep | {theirs.fileno()})
            except OSError:
                ours.close()
                raise
        self.started = time.monotonic()
        self._is_silent = False
        self._channel = Channel(ours, self._accepts, fds=self._fds, may_lose=self._fds > 0)
        asyncio.get_running_loop().add_reader(ours.fileno(), self._hear)
        log.debug(event(f"{self.name} started", slot=self.number, pid=self.pid))

    def kill(self, why: str) -> None:
        """End one that cannot be relied on any more."""
        if not self.pid:
            return
        log.error(event(f"{self.name} killed", slot=self.number, pid=self.pid, why=why))
        try:
            os.kill(self.pid, signal.SIGKILL)
        except PermissionError:
            pass  # it leaves when its channel is closed
        self.hang_up()

    def hang_up(self) -> None:
        """Close the channel: a worker resets its connections and leaves at once."""
        if self._channel is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._channel.fileno())
        loop.remove_writer(self._channel.fileno())
        self._channel.close()
        self._channel = None

    def ended(self) -> None:
        """It was waited for. What it had said before is heard first."""
        self.pid = 0
        for _ in range(_LAST_WORDS):
            if self._channel is None or self._is_silent:
                break
            self._hear()
        self.hang_up()

    def cancel_restart(self) -> None:
        """Do not start another one later."""
        if self.restart is not None:
            self.restart.cancel()
            self.restart = None

    # ---- messages

    def send(self, message: Any, fds: Sequence[int] = ()) -> None:
        """Send it a message; one that is gone is not told."""
        if self._channel is None:
            return
        try:
            self._channel.send(message, fds)
        except ChannelClosed:
            return  # it is ending: SIGCHLD says when
        except ChannelBroken as error:
            self.kill(str(error))
            return
        if self._channel.waiting:
            asyncio.get_running_loop().add_writer(self._channel.fileno(), self._flush)

    def _flush(self) -> None:
        if self._channel is None:
            return
        try:
            self._channel.flush()
        except ChannelClosed:
            pass
        else:
            if self._channel.waiting:
                return
        asyncio.get_running_loop().remove_writer(self._channel.fileno())

    def _hear(self) -> None:
        end = self._channel
        assert end is not None
        try:
            for received in end.receive():
                self._hear_one(self.number, received)
                if self._channel is not end:
                    return
        except ChannelClosed:
            self._is_silent = True
            asyncio.get_running_loop().remove_reader(end.fileno())  # SIGCHLD says how it ended
        except ChannelBroken as error:
            self.kill(str(error))
        self._heard()
