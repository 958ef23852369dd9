"""Whether, and when, a request is sent once more, as `retry` of its route says (GEP-1731).

Only what does the same when it comes twice, was read to its end, and is still here; not once the
client has a byte of a response, or half of one waits for it; and as long as the backend's retry
budget allows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from l7proxy.model import Retry
from l7proxy.worker.copying import IDEMPOTENT, REPLAY

if TYPE_CHECKING:
    from l7proxy.worker.exchange import Exchange

MOST_PAUSE = 10  # times `backoff`


def pause(retry: Retry, attempt: int, chance: float) -> float:
    """Seconds before the retry of this number, from 1; `chance` is from 0 to 1.

    GEP-1731: `backoff` "specifies the minimum duration a Gateway should wait between retry
    attempts". It doubles, and is up to half as long again, so that those who failed together do not
    come back together.
    """
    growth = min(1 << (attempt - 1), MOST_PAUSE)
    return retry.backoff * growth * (1 + chance / 2)


def once_more(exchange: Exchange, status: int | None) -> float | None:
    """In how many seconds the request is to be sent once more; None: it is not.

    `status` is that of the response, None where the backend ended without one. It is counted.
    """
    retry = exchange.decision.route.retry
    if retry is None or exchange.retries >= retry.attempts:
        return None
    if status is not None and status not in retry.codes:
        return None
    connection, asking = exchange.connection, exchange.asking
    if exchange.head.method not in IDEMPOTENT or exchange.is_blocked:
        return None
    request = asking.whole
    if request is None or len(request) > REPLAY or not connection.dialing.may_retry():
        return None
    exchange.retries += 1
    return pause(retry, exchange.retries, connection.worker.chance())
