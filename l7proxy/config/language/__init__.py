"""The policy language: its keys, what each may hold, and what is made of them.

Everything the language knows stands in tables, one key a line: those of a policy here, the others
in `listeners`, `routes` (`matches`, `actions`, `filters`) and `backends` (`balance`, `health`).
What the tables read becomes a draft; `references` and `rules` then check what only the whole shows,
and the policy is made.
"""

from __future__ import annotations

from l7proxy.config.language.accesslog import ACCESS_LOG
from l7proxy.config.language.backends import BACKEND, backend
from l7proxy.config.language.common import NAME
from l7proxy.config.language.drafts import (
    BackendDraft,
    Draft,
    ListenerDraft,
    MatchDraft,
    RefDraft,
    RouteDraft,
)
from l7proxy.config.language.listeners import LISTENER, listener
from l7proxy.config.language.routes import ROUTE
from l7proxy.config.nodes import Node
from l7proxy.config.schema import Key, ListOf, MapOf, Table
from l7proxy.config.walker import Walker
from l7proxy.model import PASSTHROUGH

__all__ = [
    "POLICY",
    "BackendDraft",
    "Draft",
    "ListenerDraft",
    "MatchDraft",
    "RefDraft",
    "RouteDraft",
    "read",
]

# Security limits: what a policy may have of each.
MAX_LISTENERS = 1_000
MAX_ROUTES = 100_000
MAX_BACKENDS = 100_000

POLICY = Table(
    "a policy",
    {
        "listeners": Key(
            MapOf(LISTENER, "at least one listener", NAME, most=MAX_LISTENERS),
            "The addresses that connections are accepted on, by their names.",
            required=True,
            hint="write listeners: {web: {address: 127.0.0.1:8080}}",
        ),
        "routes": Key(
            ListOf(
                ROUTE,
                "a route",
                "write [{name: all, backendRefs: [{name: app}]}]",
                most=MAX_ROUTES,
            ),
            "What decides where a first request goes. Of all routes that match it the most"
            " specific one wins: by hostname, then an `Exact` path, a `RegularExpression`, the"
            " longest `PathPrefix`, a method, the number of headers, the number of query"
            " parameters; of equals the first in the file.",
            required=True,
            hint="write routes: [{name: all, backendRefs: [{name: app}]}]",
        ),
        "backends": Key(
            MapOf(BACKEND, "at least one backend", NAME, most=MAX_BACKENDS),
            "Groups of endpoints that can stand in for each other, by their names. A policy none of"
            " whose routes forwards has none.",
            hint="write backends: {app: {endpoints: [127.0.0.1:9000]}}",
        ),
        "accessLog": Key(
            ACCESS_LOG,
            "Which connections get a record in the access log, and what is in it. Where it goes to"
            " is told with `l7proxy run --access-log`.",
            default="a JSON object for every connection",
        ),
    },
)


def read(walker: Walker, root: Node) -> Draft:
    """The draft of the policy in `root`; what is wrong is in the walker's problems."""
    fields = POLICY.read(walker, root, "a policy")
    if fields is None:
        return Draft(None, None, None)
    if "routes" not in fields.values or any(
        _names_backend(at.value) for at in fields.get("routes")
    ):
        POLICY.want(walker, fields, "backends")
    listeners, routes, backends = map(fields.get, ("listeners", "routes", "backends"))
    return Draft(
        listeners=None if listeners is None else [listener(walker, *one) for one in listeners],
        routes=None if routes is None else [at.value for at in routes],
        backends=None if backends is None else [backend(walker, *one) for one in backends],
        access_log=fields.get("accessLog"),
    )


def _names_backend(route: RouteDraft) -> bool:
    """Whether a route needs a backend that a policy has to tell of."""
    refs = route.backend_refs
    if refs is None:
        return "backendRefs" in route.fields.keys
    return any(at.value.name.value != PASSTHROUGH for at in refs)
