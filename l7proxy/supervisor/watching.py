"""`run --watch`: a reload whenever the files of the policy have changed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from l7proxy.config.fingerprint import Fingerprint, fingerprint
from l7proxy.telemetry.log import event

log = logging.getLogger(__name__)

PERIOD = 0.5  # seconds between two looks; files that stay as they are for that long are read


async def watch(path: str, seen: Fingerprint, reload: Callable[[], object]) -> None:
    """Call `reload` each time that the files at `path` are others than `seen`, and have settled.

    An editor or a tool that writes several files, or one in several steps, changes them a few times
    in a row: what counts is what stands there when they have stayed the same from one look to the
    next.
    """
    before = seen
    while True:
        await asyncio.sleep(PERIOD)
        now = fingerprint(path)
        if now != seen and now == before:
            seen = now
            log.info(event("reloading", why="the files have changed", path=path))
            reload()
        before = now
