"""DNS names of endpoints: looked up again and again, beside everything else.

A lookup asks the system (`getaddrinfo`: hosts file, DNS, whatever is configured), for both
families, in a thread of its own pool, as it blocks. The system does not tell how long an answer is
good for, so the policy's interval says how often to ask.

A failure changes nothing: the addresses that are known stay, whether the name server is ill or says
that there is no such name, for an endpoint that is gone shows by itself, and a mistake in a zone
must not take a backend away. It is told once, and tried again sooner, then later and later.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures.thread import ThreadPoolExecutor

from l7proxy.telemetry.log import event

log = logging.getLogger(__name__)

Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""Looks a name up: address literals, in any order. Raises OSError (`socket.gaierror` is one)."""

MOST_ADDRESSES = 512  # of one name; what is beyond it is left out
THREADS = 8
RETRY_FIRST = 0.5  # seconds; doubled with each further failure
RETRY_MOST = 30.0

_pool: ThreadPoolExecutor | None = None


async def system(name: str) -> Sequence[str]:
    """What the system knows."""
    global _pool
    if _pool is None:  # threads do not survive a fork: made where it is used
        _pool = ThreadPoolExecutor(THREADS, "resolve")
    # as bytes: a str would need the codec `idna`, from files that this user may not be able to read
    found = await asyncio.get_running_loop().run_in_executor(
        _pool, socket.getaddrinfo, name.encode("ascii"), None, 0, socket.SOCK_STREAM
    )
    return [str(one[4][0]) for one in found]


resolve: Resolve = system
"""What the prober uses. Tests put another one here before the proxy starts."""


class Name:
    """One name. `tell` gets its addresses when they are known, and when they change.

    It gets an empty tuple, once, when the first lookup fails: so that nobody waits for it.
    """

    def __init__(
        self,
        name: str,
        interval: float,
        known: tuple[str, ...],
        tell: Callable[[str, tuple[str, ...]], None],
    ) -> None:
        self.interval = interval
        self._name = name
        self._known = known
        self._tell = tell
        self._told = bool(known)
        self._failures = 0

    async def watch(self) -> None:
        """Look it up for ever."""
        while True:
            pause = await self.look()
            await asyncio.sleep(pause * random.uniform(0.9, 1.1))

    async def look(self) -> float:
        """Look it up once; seconds until the next time."""
        try:
            answer = await resolve(self._name)
            if not answer:
                raise OSError("it has no address")
        except OSError as error:
            return self._failed(error)
        if self._failures:
            log.info(event("name resolved again", name=self._name))
            self._failures = 0
        # name servers rotate their answers; that is no change
        found = tuple(sorted(set(answer))[:MOST_ADDRESSES])
        if found != self._known:
            self._known = found
            self._told = True
            log.debug(event("name resolved", name=self._name, addresses=",".join(found)))
            self._tell(self._name, found)
        return self.interval

    def _failed(self, error: OSError) -> float:
        self._failures += 1
        if self._failures == 1:
            log.warning(
                event(
                    "name not resolved",
                    name=self._name,
                    why=error.strerror or error,
                    addresses_kept=len(self._known),
                )
            )
        if not self._told:
            self._told = True
            self._tell(self._name, ())
        return min(RETRY_MOST, RETRY_FIRST * 2.0 ** min(self._failures - 1, 10))
