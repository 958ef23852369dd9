"""What the admin server answers, and has done: the paths, and what stands behind them."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable
from typing import Any

from l7proxy.admin import Answer, Problem, Request, Router, description, json_answer
from l7proxy.supervisor.inquiry import FILTERS, SORTS, WORDS, Inquiry, Unanswered, told
from l7proxy.supervisor.reload import Reloader
from l7proxy.supervisor.showing import Shower, Unshown
from l7proxy.supervisor.upgrading import Upgrader
from l7proxy.supervisor.workers import Supervisor
from l7proxy.telemetry import log as operational
from l7proxy.telemetry.log import event

log = logging.getLogger(__name__)

LIMIT = 100  # connections that are told of when nobody says how many
MOST = 10_000

_BODY = 4 * 1024  # bytes
_NUMBER = re.compile(r"\d{1,6}\Z", re.ASCII)
_ID = re.compile(r"(\d{1,4})-(\d{1,18})\Z", re.ASCII)


class Operations:
    """Asks the parts of the supervisor on behalf of the admin server."""

    def __init__(
        self,
        supervisor: Supervisor,
        reloader: Reloader,
        inquiry: Inquiry,
        upgrader: Upgrader,
        stats: Callable[[], dict[str, Any]],
    ) -> None:
        self._supervisor = supervisor
        self._reloader = reloader
        self._inquiry = inquiry
        self._upgrader = upgrader
        self._stats = stats
        self._shower = Shower()

    def add_to(self, router: Router) -> None:
        """Put all paths into the router."""
        router.add("GET", "/healthz", self._healthz, is_public=True)
        router.add("GET", "/readyz", self._readyz, is_public=True)
        router.add("GET", "/stats", self._get_stats)
        router.add("GET", "/connections", self._connections)
        router.add("DELETE", "/connections/{id}", self._reset, body=_BODY)
        router.add("GET", "/openapi.json", self._describe)
        router.add("GET", "/policy", self._policy)
        router.add("GET", "/loglevel", self._level)
        router.add("POST", "/loglevel", self._set_level, body=_BODY)
        router.add("POST", "/reload", self._reload, body=_BODY)
        router.add("POST", "/upgrade", self._upgrade, body=_BODY)
        router.add("POST", "/drain", self._drain, body=_BODY)

    # ---- how it is

    async def _healthz(self, _request: Request) -> Answer:
        """Alive: it answers, and has workers, or needs none any more."""
        if self._supervisor.running or self._supervisor.draining:
            return Answer(200, b"ok")
        return Answer(503, b"no worker")

    async def _readyz(self, _request: Request) -> Answer:
        """Whether new connections should come here."""
        supervisor = self._supervisor
        if supervisor.draining:
            return Answer(503, b"draining")
        if not supervisor.ready:
            return Answer(503, b"starting")
        if not supervisor.running:
            return Answer(503, b"no worker")
        return Answer(200, b"ok")

    async def _get_stats(self, _request: Request) -> Answer:
        return json_answer(self._stats())

    async def _describe(self, _request: Request) -> Answer:
        return Answer(200, description(), "application/json")

    # ---- connections

    async def _connections(self, request: Request) -> Answer:
        query = dict(request.query)
        sort, limit = query.pop("sort", "age"), query.pop("limit", str(LIMIT))
        name = sort.removeprefix("-")
        if name not in SORTS:
            raise Problem(400, f"sort is one of {', '.join(SORTS)}, or one of these behind a -")
        if not _NUMBER.match(limit) or int(limit) > MOST:
            raise Problem(400, f"limit is a number from 0 to {MOST}")
        for other in query.keys() - set(FILTERS):
            raise Problem(400, f"there is no {other}; there are sort, limit, {', '.join(FILTERS)}")
        reverse = (name in WORDS) == sort.startswith("-")
        found = await self._inquiry.connections(query, name, reverse=reverse, limit=int(limit))
        # a line for each: `json` is ten times as fast as with an indent, and people can read it
        rows = ",\n".join(json.dumps(told(*row)) for row in found.rows)
        head = json.dumps(found.as_dict())[1:]
        return Answer(200, f'{{"connections": [\n{rows}\n],\n{head}\n'.encode(), "application/json")

    async def _reset(self, request: Request) -> Answer:
        name = request.arguments["id"]
        match = _ID.match(name)
        try:
            found = match is not None and await self._inquiry.reset(int(match[1]), int(match[2]))
        except Unanswered:
            raise Problem(503, "its worker does not answer") from None
        if not found:
            raise Problem(404, f"there is no connection {name}")
        log.info(event("connection reset", id=name, why="asked for"))
        return Answer(204)

    # ---- the policy

    async def _policy(self, _request: Request) -> Answer:
        try:
            shown = await self._shower.show(self._reloader.serving, self._reloader.path)
        except Unshown as error:
            raise Problem(503, str(error)) from None
        return Answer(200, shown, "application/json")

    # ---- the log

    async def _level(self, _request: Request) -> Answer:
        return json_answer({"level": operational.level()})

    async def _set_level(self, request: Request) -> Answer:
        asked = request.json()
        level = asked.get("level") if isinstance(asked, dict) else None
        if level not in operational.LEVELS:
            raise Problem(400, f'send {{"level": "..."}}: {", ".join(operational.LEVELS)}')
        before = operational.level()
        self._inquiry.set_log_level(level)
        if level != before:
            log.warning(event("log level changed", before=before, now=level))
        return json_answer({"level": level})

    # ---- what is to be done

    async def _reload(self, _request: Request) -> Answer:
        log.info(event("reloading", why="asked for"))
        outcome = await asyncio.shield(self._reloader.request())
        return json_answer(outcome.as_dict(), 200 if outcome.ok else 422)

    async def _upgrade(self, _request: Request) -> Answer:
        log.info(event("upgrade", why="asked for"))
        outcome = await asyncio.shield(self._upgrader.request())
        return json_answer(outcome.as_dict(), 200 if outcome.ok else 422)

    async def _drain(self, _request: Request) -> Answer:
        """Begin to drain. Asking again changes nothing: only a signal cuts it short."""
        supervisor = self._supervisor
        if not supervisor.draining:
            log.info(event("draining", why="asked for"))
            supervisor.drain()
            await asyncio.sleep(0)  # it begins in the next turn
        return json_answer(supervisor.progress(), 202)
