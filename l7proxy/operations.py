"""What the admin server answers, and has done: the paths, and what stands behind them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from l7proxy.admin import Answer, Request, Router, json_answer
from l7proxy.reload import Reloader
from l7proxy.supervisor import Supervisor
from l7proxy.telemetry.log import event

log = logging.getLogger(__name__)

_TEXT = 64 * 1024  # bytes of a body that nobody needs


class Operations:
    """Asks the parts of the supervisor on behalf of the admin server."""

    def __init__(
        self, supervisor: Supervisor, reloader: Reloader, stats: Callable[[], dict[str, Any]]
    ) -> None:
        self._supervisor = supervisor
        self._reloader = reloader
        self._stats = stats

    def add_to(self, router: Router) -> None:
        """Put all paths into the router."""
        router.add("GET", "/healthz", self._healthz, is_public=True)
        router.add("GET", "/readyz", self._readyz, is_public=True)
        router.add("GET", "/stats", self._get_stats)
        router.add("POST", "/reload", self._reload, body=_TEXT)
        router.add("POST", "/drain", self._drain, body=_TEXT)

    # ---- how it is

    async def _healthz(self, _request: Request) -> Answer:
        """Alive: it answers, and has workers, or needs none any more."""
        if self._supervisor.running or self._supervisor.draining:
            return Answer(200, b"ok")
        return Answer(503, b"no worker")

    async def _readyz(self, _request: Request) -> Answer:
        """Whether new connections should come here."""
        if self._supervisor.draining:
            return Answer(503, b"draining")
        if not self._supervisor.running:
            return Answer(503, b"no worker")
        return Answer(200, b"ok")

    async def _get_stats(self, _request: Request) -> Answer:
        return json_answer(self._stats())

    # ---- what is to be done

    async def _reload(self, _request: Request) -> Answer:
        log.info(event("reloading", why="asked for"))
        outcome = await asyncio.shield(self._reloader.request())
        return json_answer(outcome.as_dict(), 200 if outcome.ok else 422)

    async def _drain(self, _request: Request) -> Answer:
        """Begin to drain, once however often it is asked for: a second signal would reset."""
        supervisor = self._supervisor
        if not supervisor.draining:
            log.info(event("draining", why="asked for"))
            supervisor.stop()
        return json_answer({"draining": True, "connections": self._stats()["connections"]}, 202)
