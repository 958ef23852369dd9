"""The request rates of routes, as a worker holds them: `ratelimit` says how, `rates` knows since.

A limit is known by its route and its figures: where a reload changes these, it begins anew.
"""

from __future__ import annotations

import time
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING

from l7proxy.model import LimitBy, RateLimit, Route, StaticResponse
from l7proxy.ratelimit import Rate, rate_of, retry_after
from l7proxy.responses import static_response

if TYPE_CHECKING:
    from l7proxy.worker.loop import Worker

TOO_MANY = HTTPStatus.TOO_MANY_REQUESTS


@lru_cache(maxsize=4096)
def _known_as(route: str, limit: RateLimit) -> tuple[str, Rate]:
    rate = rate_of(limit)
    return f"{route} {rate.interval} {rate.early}", rate


def over(worker: Worker, route: Route, client: str) -> int:
    """A request of `client` has come to a route: how long it should have waited, in nanoseconds.

    Zero: it is let through, and counted.
    """
    limit = route.rate_limit
    if limit is None:
        return 0
    name, rate = _known_as(route.name, limit)
    by = client if limit.by is LimitBy.CLIENT else None
    return worker.rates.take(name, by, rate, time.monotonic_ns())


def refusal(wait: int, method: str, *, keep: bool) -> bytes:
    """The answer to a request that should have waited that long."""
    after = str(retry_after(wait))
    headers = (("Retry-After", after), ("Cache-Control", "no-store"))
    body = f"{TOO_MANY.value} {TOO_MANY.phrase}\n"
    return static_response(StaticResponse(TOO_MANY, headers, body), method=method, keep=keep)
