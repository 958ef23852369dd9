"""The keys of a route."""

from __future__ import annotations

from typing import Any

from l7proxy.config.language.actions import REDIRECT, RESPOND
from l7proxy.config.language.common import (
    BLOCKS,
    DURATION,
    HOSTNAME,
    MAX_WEIGHT,
    NAME,
    POSITIVE_DURATION,
    SNI,
)
from l7proxy.config.language.drafts import RefDraft, RouteDraft
from l7proxy.config.language.filters import FILTERS
from l7proxy.config.language.matches import MATCH
from l7proxy.config.language.requests import RATE_LIMIT, RETRY
from l7proxy.config.nodes import Node
from l7proxy.config.readers import Choice, Flag, Whole
from l7proxy.config.schema import Fields, Key, Kinds, ListOf, Made, Record, Table
from l7proxy.config.walker import At, Walker
from l7proxy.model import Access, Filters, Match, Route, RouteTimeouts, Splice

# Security limits: what a route may have of each.
MAX_MATCHES = 1_000
MAX_REFS = 100
MAX_PRIORITY = 1_000_000

ACTIONS = ("backendRefs", "respond", "redirect", "deny")
"""What a route may do with what it matched; `deny` only when it is `true`."""


# ---- backendRefs


def _ref(_walker: Walker, fields: Fields, _node: Node) -> RefDraft | None:
    name = fields.at("name")
    if name is None:
        return None
    optional = fields.get("optional", "optional" in fields.keys)  # written, and wrong: meant so
    return RefDraft(name, fields.get("weight", 1), optional)


BACKEND_REF = Made(
    Table(
        "a backendRef",
        {
            "name": Key(
                NAME,
                "The name of a backend; `passthrough` is wherever a connection to a transparent"
                " listener was going.",
                required=True,
                hint="the name of a backend",
            ),
            "weight": Key(
                Whole(0, MAX_WEIGHT),
                "Its share of the requests is weight / sum of the weights; with 0 it gets none.",
                default="1",
            ),
            "optional": Key(
                Flag(),
                "Whether the backend may be missing. Its share of the requests is then answered"
                " with 500; without this a backend that is not there is an error.",
                default="false",
            ),
        },
        foreign={
            "port": "a port stands in the `endpoints` of the backend",
            "kind": "a backendRef names a backend of this policy",
            "namespace": "a backendRef names a backend of this policy",
        },
        plain="name",
    ),
    _ref,
)


# ---- allow and deny

Listed = list[At[str]]


def _access_table(verb: str) -> Table:
    return Table(
        f"`{verb}`",
        {
            "clients": Key(
                BLOCKS, "CIDR blocks of client addresses.", default="says nothing about clients"
            ),
            "sni": Key(
                ListOf(SNI, "a name", "write [a.example.com]"),
                "On a TLS listener: names that clients ask for, exact or `*.example.com`.",
                default="says nothing about names",
            ),
        },
        foreign={"hostnames": "write `hostnames` in the route, or `sni` here"},
        empty="write `clients` or `sni`",
        short="clients",
    )


ALLOW, DENY = _access_table("allow"), _access_table("deny")


DENY_ALL = Flag(empty="remove it, or write what it denies")
DENY_OR_ACCESS: Kinds[Any] = Kinds(scalar=DENY_ALL, sequence=DENY, mapping=DENY)


def _access(allow: Fields | None, deny: Fields | None) -> Access:
    def texts(fields: Fields | None, key: str) -> tuple[str, ...]:
        return () if fields is None else tuple(at.value for at in fields.get(key, []))

    return Access(
        allow_clients=texts(allow, "clients"),
        deny_clients=texts(deny, "clients"),
        allow_sni=texts(allow, "sni"),
        deny_sni=texts(deny, "sni"),
    )


# ---- the rest

TIMEOUTS = Record(
    Table(
        "`timeouts`",
        {
            "dial": Key(
                POSITIVE_DURATION,
                "One attempt to reach an endpoint.",
                default="that of the listener",
            ),
            "idle": Key(
                DURATION,
                "Without a byte in either direction; `0s` turns it off.",
                default="that of the listener",
            ),
            "overflow": Key(
                DURATION,
                "How long one side may take nothing while bytes wait for it; `0s` turns it off.",
                default="that of the listener",
            ),
            "request": Key(
                DURATION,
                "From the complete head of a request to the end of its response. Beyond it the"
                " client gets 504, or a reset if it has a part of the response already; `0s` turns"
                " it off.",
                default="any time, without a pause longer than `idle`",
            ),
        },
        later={"backendRequest": "`request` bounds all of it, a second attempt included"},
        foreign={"head": "`head` is waited for before there is a route: set it on the listener"},
        empty="leave `timeouts` out for those of the listener",
    ),
    RouteTimeouts,
)

SPLICE = Choice(
    Splice,
    docs={
        "auto": "`connection` where every request on the listener has the same answer, else"
        " `request`",
        "connection": "after the first request the whole connection is the kernel's; later"
        " requests on it go the same way and are not looked at",
        "request": "every request of a connection is parsed and routed by itself; the kernel moves"
        " long bodies whose length is known, and what follows a 101 or a 2xx to CONNECT",
        "upgrade": "the same, but the kernel moves no bodies",
        "never": "user space moves the bytes; otherwise as `connection`",
    },
)


def _route(walker: Walker, fields: Fields, node: Node) -> RouteDraft:
    name: At[str] | None = fields.at("name")
    listeners, hostnames = fields.get("listeners"), fields.get("hostnames")
    matches, refs = fields.get("matches"), fields.get("backendRefs")
    deny = fields.get("deny")
    route = None
    if name is not None:
        location = walker.location(name.node)
        route = Route(
            name=name.value,
            matches=tuple(at.value.match for at in matches or []) or (Match(location=location),),
            backend_refs=tuple(at.value.ref for at in refs or []),
            hostnames=tuple(dict.fromkeys(at.value for at in hostnames or [])),
            listeners=tuple(dict.fromkeys(at.value for at in listeners or [])),
            location=location,
            respond=fields.get("respond"),
            redirect=fields.get("redirect"),
            deny=deny is True,
            priority=fields.get("priority", 0),
            filters=fields.get("filters", Filters()),
            timeouts=fields.get("timeouts", RouteTimeouts()),
            splice=fields.get("splice", Splice.AUTO),
            access=_access(fields.get("allow"), deny if isinstance(deny, Fields) else None),
            rate_limit=fields.get("rateLimit"),
            retry=fields.get("retry"),
        )
    return RouteDraft(node, name, listeners, hostnames, matches, refs, fields, route)


ROUTE = Made(
    Table(
        "a route",
        {
            "name": Key(
                NAME,
                "Its name in logs and messages. No two routes have the same.",
                required=True,
                hint="its name in logs and messages",
            ),
            "listeners": Key(
                ListOf(NAME, "a listener's name", "leave it out for every listener"),
                "The listeners that it takes part on, by their names.",
                default="every listener",
            ),
            "hostnames": Key(
                ListOf(HOSTNAME, "a hostname", "leave it out for every host"),
                "The hosts it is for (on a TLS listener: names in SNI): exact, or `*.example.com`"
                " for any number of labels in front, but not for `example.com` itself. Case and"
                " port of what a client asks for are ignored.",
                default="every host",
            ),
            "priority": Key(
                Whole(-MAX_PRIORITY, MAX_PRIORITY),
                "Of all routes that match, those with the highest priority are looked at; only"
                " among them the most specific one wins.",
                default="0",
            ),
            "matches": Key(
                ListOf(
                    MATCH, "a match", "leave it out for every path", plain="path", most=MAX_MATCHES
                ),
                "What a request has to be like. One of these must match, and in it everything that"
                " it says.",
                default="everything",
            ),
            "backendRefs": Key(
                ListOf(
                    BACKEND_REF,
                    "a backendRef",
                    "write [{name: NAME}]",
                    plain="name",
                    most=MAX_REFS,
                ),
                "The backends that it forwards to, each with its share: `[{name: app}]`.",
            ),
            "respond": Key(
                RESPOND,
                "An answer of l7proxy's own in place of a backend's. A number alone is its"
                " `status`.",
            ),
            "redirect": Key(REDIRECT, "Sends the client elsewhere."),
            "deny": Key(
                DENY_OR_ACCESS,
                "`true`: what it matches is refused, with 403, on a TLS listener with the alert"
                " access_denied, on a TCP listener with a reset. Otherwise who is refused so, after"
                " this route was chosen: CIDR blocks, or `{clients, sni}`. It beats `allow`.",
                default="nobody",
            ),
            "allow": Key(
                ALLOW,
                "Who is let through, after this route was chosen: CIDR blocks, or `{clients, sni}`."
                " Everybody else is refused as `deny` does.",
                default="everybody",
            ),
            "rateLimit": Key(
                RATE_LIMIT,
                "How many requests it lets through, over all workers, after `allow` and `deny`. A"
                " number alone is for each second.",
                default="any number",
            ),
            "filters": Key(FILTERS, "What is changed in a request on its way to the backend."),
            "timeouts": Key(
                TIMEOUTS, "How long it waits, where the listener's timeouts do not fit."
            ),
            "retry": Key(
                RETRY,
                "When a request is sent once more: where the backend ended without a byte of a"
                " response, or answered with one of `codes`. Only requests that do the same when"
                " they come twice (GET, HEAD, OPTIONS, TRACE, PUT, DELETE), with a body of at most"
                " 64 KiB.",
                default="never; `retries` of a backend is about connections",
            ),
            "splice": Key(
                SPLICE,
                "Which bytes are parsed, and which ones the kernel moves unseen. `l7proxy check`"
                " tells what `auto` chose for each route, and why.",
                default="auto",
            ),
        },
        foreign={
            "rules": "write one route for each rule",
            "parentRefs": "write `listeners`",
            "backend": "write backendRefs: [{name: NAME}]",
            "path": "write matches: [{path: /x}]",
            "requestHeaders": "write filters: {requestHeaders: {...}}",
            "urlRewrite": "write filters: {urlRewrite: {...}}",
            "rateLimits": "write `rateLimit`",
            "retries": "write `retry` for requests; `retries` of a backend is about connections",
            "responseHeaders": "write filters: {responseHeaders: {...}}",
            "mirror": "write filters: {mirror: {...}}",
        },
    ),
    _route,
)
