"""The keys of a route."""

from __future__ import annotations

from l7proxy.config.language.common import HOSTNAME, NAME
from l7proxy.config.language.drafts import RefDraft, RouteDraft
from l7proxy.config.language.matches import MATCH
from l7proxy.config.nodes import Node
from l7proxy.config.readers import Whole
from l7proxy.config.schema import Fields, Key, ListOf, Made, Table
from l7proxy.config.walker import At, Walker
from l7proxy.model import Match, Route


def _ref(_walker: Walker, fields: Fields, _node: Node) -> RefDraft | None:
    name = fields.at("name")
    return None if name is None else RefDraft(name, fields.get("weight", 1), False)


BACKEND_REF = Made(
    Table(
        "a backendRef",
        {
            "name": Key(NAME, "the name of a backend", required=True),
            "weight": Key(
                Whole(0, 1_000_000), "its share is weight / sum of weights; 1 when left out"
            ),
        },
        plain="name",
    ),
    _ref,
)


def _route(walker: Walker, fields: Fields, node: Node) -> RouteDraft:
    name: At[str] | None = fields.at("name")
    listeners, hostnames = fields.get("listeners"), fields.get("hostnames")
    matches, refs = fields.get("matches"), fields.get("backendRefs")
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
        )
    return RouteDraft(node, name, listeners, hostnames, matches, refs, fields, route)


ROUTE = Made(
    Table(
        "a route",
        {
            "name": Key(NAME, "its name in logs and messages", required=True),
            "listeners": Key(
                ListOf(NAME, "a listener's name", "leave it out for every listener"),
                "the listeners it takes part on; every one when left out",
            ),
            "hostnames": Key(
                ListOf(HOSTNAME, "a hostname", "leave it out for every host"),
                "the hosts it is for, exact or *.example.com; every one when left out",
            ),
            "matches": Key(
                ListOf(MATCH, "a match", "leave it out for every path", plain="path"),
                "one of these must match; every path when left out",
            ),
            "backendRefs": Key(
                ListOf(BACKEND_REF, "a backendRef", "write [{name: NAME}]", plain="name"),
                "where it forwards to: [{name: NAME}]",
                required=True,
            ),
        },
        later={
            "splice": "every connection is spliced whole after its first request",
            **dict.fromkeys(
                ("respond", "redirect", "deny", "filters", "requestHeaders", "urlRewrite"),
                "this version only forwards, with `backendRefs`",
            ),
            "allow": "remove it",
            "priority": "the most specific route wins, then the earlier one",
            "timeouts": "set `timeouts` on the listener",
        },
    ),
    _route,
)
