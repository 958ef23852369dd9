"""What is done to each request of a connection, where only the first one is looked at."""

from __future__ import annotations

from collections.abc import Iterator

from l7proxy.config.language import RouteDraft
from l7proxy.config.nodes import Node
from l7proxy.config.problems import quoted
from l7proxy.config.walker import Walker
from l7proxy.model import Splice

_INNER = (("timeouts", "request"), ("filters", "responseHeaders"), ("filters", "mirror"))

WHOLE = (Splice.CONNECTION, Splice.NEVER)
"""Ways to splice in which only the first request of a connection is looked at."""


def check(walker: Walker, route: RouteDraft) -> None:
    """Reports what would be done to the first request of a connection only, or to none."""
    splice = route.fields.at("splice")
    if splice is not None and splice.value in WHOLE:
        for key, node in per_request(walker, route):
            walker.error(
                node,
                f"{quoted(key)} is for each request, and with `splice: {splice.value}` only the"
                " first one of a connection is looked at",
                "remove `splice`, or write `splice: request`",
                notes=(walker.note("the splice", splice.node),),
            )
    if "rateLimit" in route.fields.keys and route.fields.get("deny") is True:
        walker.error(
            route.fields.keys["rateLimit"],
            "`rateLimit` has no effect: this route lets nothing through",
            "remove `rateLimit`",
            notes=(walker.note("what it does", route.fields.keys["deny"]),),
        )


def per_request(walker: Walker, route: RouteDraft) -> Iterator[tuple[str, Node]]:
    """What is written in a route for each request of a connection: key and place."""
    keys = route.fields.keys
    if "rateLimit" in keys:
        yield "rateLimit", keys["rateLimit"]
    if "retry" in keys:
        yield "retry", keys["retry"]
    for outer, inner in _INNER:
        at = route.fields.at(outer)
        key = None if at is None else walker.key(at.node, inner)
        if key is not None:
            yield f"{outer}.{inner}", key
