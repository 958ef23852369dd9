"""The keys of a route that are about each request: how many, how often again, and to whom else.

The words are those of HTTPRouteRetry (GEP-1731) and HTTPRequestMirrorFilter (Gateway API).
"""

from __future__ import annotations

from l7proxy.config import values
from l7proxy.config.language.common import NAME, duration
from l7proxy.config.nodes import Node
from l7proxy.config.readers import Choice, Whole
from l7proxy.config.schema import Fields, Key, ListOf, Made, Record, Table, arguments
from l7proxy.config.walker import Walker
from l7proxy.model import LimitBy, Mirror, RateLimit, Retry

MAX_REQUESTS = 1_000_000
MAX_HOURS = values.MAX_HOURS
MAX_ATTEMPTS = 10


def _rate_limit(walker: Walker, fields: Fields, _node: Node) -> RateLimit | None:
    requests, burst = fields.get("requests"), fields.at("burst")
    if requests is None:
        return None
    limit = RateLimit(**{"burst": requests, **arguments(fields, {})})
    if burst is not None and limit.burst * limit.per / requests > MAX_HOURS * 3600:
        walker.error(
            burst.node,
            f"a burst of {limit.burst:,} takes longer than {MAX_HOURS}h to come back",
            f"one request comes back every {limit.per / requests:g} seconds",
        )
    return limit


RATE_LIMIT = Made(
    Table(
        "`rateLimit`",
        {
            "requests": Key(
                Whole(1, MAX_REQUESTS),
                "Requests that are let through in `per`, over all workers. One more is answered"
                " with 429, and `Retry-After` says when to come again.",
                required=True,
                hint="such as {requests: 100, per: 1s}",
            ),
            "per": Key(
                duration(values.duration_of("1s", "24h"), "1s", "1m"),
                "The time that `requests` is for, from `1s` to `24h`.",
                default="1s",
            ),
            "burst": Key(
                Whole(1, MAX_REQUESTS),
                "Requests that may come at once. They come back one by one, every `per` /"
                " `requests`: with `burst: 1` requests have to come evenly.",
                default="as many as `requests`",
            ),
            "by": Key(
                Choice(
                    LimitBy,
                    docs={
                        "route": "all requests of the route together",
                        "client": "those of each client; of an IPv6 client, those of its /64."
                        " Behind a trusted proxy it is the client that it names",
                    },
                ),
                "Whose requests are counted together.",
                default="route",
            ),
        },
        foreign={
            "rate": "write requests: 100, per: 1s",
            "average": "write `requests`",
            "period": "write `per`",
            "key": "write `by: route` or `by: client`",
        },
        short="requests",
    ),
    _rate_limit,
)


RETRY = Record(
    Table(
        "`retry`",
        {
            "codes": Key(
                ListOf(Whole(400, 599), "a status", "write [502, 503]"),
                "Statuses of a backend's response, from 400 to 599, upon which the request is sent"
                " once more instead of the response to the client.",
                default="only where the backend ended without a response",
            ),
            "attempts": Key(
                Whole(1, MAX_ATTEMPTS),
                "How often one request is sent once more, to another endpoint if there is one."
                " `retries.budget` of the backend holds for these, too.",
                default="1",
            ),
            "backoff": Key(
                duration(values.duration_of("1ms", "1m"), "25ms", "1s"),
                "How long to wait before, from `1ms` to `1m`. It is twice as long each time, up to"
                " ten times as long, and a little longer by chance.",
                default="25ms",
            ),
        },
        foreign={
            **dict.fromkeys(("on", "retryOn", "statuses"), "write codes: [502, 503]"),
            "numRetries": "write `attempts`",
            "perTryTimeout": "`timeouts.request` of the route bounds all attempts together",
            "methods": "what can be sent twice is: GET, HEAD, OPTIONS, TRACE, PUT and DELETE",
        },
        empty="write `codes`, `attempts` or `backoff`",
    ),
    Retry,
)


def _named(name: str) -> str:
    return name


MIRROR = Record(
    Table(
        "`mirror`",
        {
            "backendRef": Key(
                Record(
                    Table(
                        "a backendRef",
                        {
                            "name": Key(
                                NAME,
                                "The name of a backend.",
                                required=True,
                                hint="the name of a backend",
                            ),
                        },
                        foreign={"weight": "write `percent` beside the backendRef"},
                        short="name",
                    ),
                    _named,
                ),
                "The backend that gets copies. A text alone is its name.",
                required=True,
                hint="write backendRef: {name: NAME}",
            ),
            "percent": Key(
                Whole(1, 100, "percent"),
                "How many of the requests are copied.",
                default="100",
            ),
        },
        foreign={"fraction": "write `percent`", "backend": "write backendRef: {name: NAME}"},
        short="backendRef",
    ),
    Mirror,
    names={"backendRef": "backend"},
)
