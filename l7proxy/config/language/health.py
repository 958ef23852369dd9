"""The keys of how a backend's endpoints are watched, and of what happens when they fail."""

from __future__ import annotations

from l7proxy.config import httpvalues, values
from l7proxy.config.language.common import DURATION, duration, refuse
from l7proxy.config.readers import Choice, Text, Whole
from l7proxy.config.schema import Fields, Key, ListOf, Record, Table
from l7proxy.config.walker import Walker
from l7proxy.model import Circuit, Ejection, HealthCheck, ProbeType, Resolving, Retries

MAX_COUNT = 100  # of answers, failures and attempts in a row
MAX_CONNECTIONS = 10_000_000
MAX_RANGES = 50

_INTERVAL = duration(values.duration_of("100ms", "24h"), "10s")
_TIMEOUT = duration(values.duration_of("10ms", "1h"), "2s")
_PERCENT = Whole(0, 100, "percent")

_RANGE = Text(
    httpvalues.statuses,
    refuse(httpvalues.no_statuses),
    kind="a range of statuses",
    pattern="^[1-5][0-9]{2}(-[1-5][0-9]{2})?$",
    examples=("200-399",),
    numbers=True,
)
_HOST = Text(
    httpvalues.host,
    kind="a host",
    pattern=r"^[A-Za-z0-9.\[\]:_-]+$",
    most=values.MAX_HOSTNAME + 6,
    examples=("app.internal", "app.internal:8080"),
)


def _only_of_http(walker: Walker, fields: Fields) -> None:
    if fields.wrong("type") or fields.get("type") is ProbeType.HTTP:
        return
    for key in ("path", "host", "statuses", "body"):
        if key in fields.keys:
            walker.error(
                fields.keys[key],
                f"`{key}` is for checks over HTTP, and this one connects by TCP only",
                "write `type: HTTP`, or remove it",
            )


HEALTH_CHECK = Record(
    Table(
        "`healthCheck`",
        {
            "type": Key(
                Choice(
                    ProbeType,
                    docs={
                        "TCP": "an endpoint that can be connected to is healthy",
                        "HTTP": "an endpoint that answers a GET as expected is healthy",
                    },
                ),
                "How an endpoint is looked at.",
                default="TCP",
            ),
            "path": Key(
                Text(
                    httpvalues.request_target,
                    kind="a path, and a query",
                    pattern="^/",
                    most=values.MAX_PATH,
                    examples=("/healthz",),
                ),
                "HTTP only: the path, and query, that is asked for.",
                default="/",
            ),
            "host": Key(
                _HOST,
                "HTTP only: the `Host` of the request.",
                default="the address of the endpoint",
            ),
            "statuses": Key(
                ListOf(_RANGE, "a range of statuses", "write [200-399]", most=MAX_RANGES),
                "HTTP only: the statuses that are good, alone or as ranges: `[200-299, 404]`.",
                default="`[200-399]`",
            ),
            "body": Key(
                Text(httpvalues.expected, kind="text", most=httpvalues.MAX_EXPECTED),
                "HTTP only: text that has to stand in the first 64 KiB of the answer's body.",
                default="any body",
            ),
            "interval": Key(
                _INTERVAL,
                "From one check of an endpoint to the next, from `100ms` to `24h`.",
                default="10s",
            ),
            "timeout": Key(
                _TIMEOUT,
                "A check that takes longer has failed; from `10ms` to `1h`.",
                default="2s",
            ),
            "healthy": Key(
                Whole(1, MAX_COUNT),
                "Checks in a row that succeed before an endpoint gets connections again.",
                default="2",
            ),
            "unhealthy": Key(
                Whole(1, MAX_COUNT),
                "Checks in a row that fail before an endpoint gets none.",
                default="3",
            ),
        },
        short="type",
    ),
    HealthCheck,
    check=_only_of_http,
)


def _base_and_max(walker: Walker, fields: Fields) -> None:
    usual = Ejection()
    base, most = fields.get("base", usual.base), fields.get("max", usual.most)
    at = fields.at("base") or fields.at("max")
    if at is None or fields.wrong("base") or fields.wrong("max") or base <= most:
        return
    other = fields.at("max") if at is fields.at("base") else None
    walker.error(
        at.node,
        "`base` is longer than `max`",
        f"`base` is {usual.base:g}s and `max` is {usual.most:g}s where they are left out",
        notes=() if other is None else (walker.note("`max`", other.node),),
    )


EJECTION = Record(
    Table(
        "`ejection`",
        {
            "failures": Key(
                Whole(0, MAX_COUNT),
                "Consecutive failed dials and early resets after which an endpoint gets no"
                " connections for a while; 0 turns ejection off.",
                default="3",
            ),
            "base": Key(
                duration(values.duration_of("100ms", "24h"), "5s"),
                "How long the first ejection takes; each further one takes twice as long as the"
                " one before.",
                default="5s",
            ),
            "max": Key(
                duration(values.duration_of("100ms", "24h"), "5m"),
                "The longest that an ejection takes.",
                default="5m",
            ),
            "share": Key(
                _PERCENT,
                "Percent of the endpoints that may be ejected at once. The last one never is.",
                default="100",
            ),
        },
    ),
    Ejection,
    names={"max": "most"},
    check=_base_and_max,
)

RETRIES = Record(
    Table(
        "`retries`",
        {
            "attempts": Key(
                Whole(0, MAX_COUNT),
                "Further endpoints that are dialled for one connection when the first cannot be"
                " reached.",
                default="3",
            ),
            "budget": Key(
                _PERCENT,
                "Percent of the recent connections that may be retries, so that a backend in"
                " trouble is not overrun. Ten retries are always allowed.",
                default="20",
            ),
        },
        foreign=dict.fromkeys(
            ("statuses", "codes", "on", "retryOn", "methods"),
            "this is about connections: write `retry` in a route for requests",
        ),
        short="attempts",
    ),
    Retries,
)

CIRCUIT = Record(
    Table(
        "`circuit`",
        {
            "connections": Key(
                Whole(1, MAX_CONNECTIONS),
                "Connections to the backend at once, over all workers; 503 beyond (a reset on a"
                " stream).",
                default="no limit",
            ),
            "pending": Key(
                Whole(1, MAX_CONNECTIONS),
                "Connections that are being dialled at once, over all workers; 503 beyond.",
                default="no limit",
            ),
            "endpointConnections": Key(
                Whole(1, MAX_CONNECTIONS),
                "Connections to one endpoint at once, over all workers. Beyond it the others are"
                " tried; 503 when none is left.",
                default="no limit",
            ),
        },
        empty="write `connections`, `pending` or `endpointConnections`",
    ),
    Circuit,
)

SLOW_START = DURATION
PANIC = _PERCENT

RESOLVE = Record(
    Table(
        "`resolve`",
        {
            "interval": Key(
                duration(values.duration_of("1s", "24h"), "10s"),
                "From one look-up of a name to the next, from `1s` to `24h`.",
                default="10s",
            ),
        },
        short="interval",
    ),
    Resolving,
)
