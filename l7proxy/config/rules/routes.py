"""What cannot go together in a route, and with the listeners that it takes part on."""

from __future__ import annotations

from collections.abc import Iterator

from l7proxy.config.language import Draft, ListenerDraft, RouteDraft
from l7proxy.config.language.routes import ACTIONS
from l7proxy.config.nodes import Mapping, Node
from l7proxy.config.problems import quoted
from l7proxy.config.readers import alternatives
from l7proxy.config.rules import requests
from l7proxy.config.schema import Fields
from l7proxy.config.walker import Walker
from l7proxy.model import (
    Filters,
    Match,
    PathModifier,
    PathModifierType,
    PathType,
    Protocol,
    RedirectTo,
    Splice,
)

EVERY = frozenset(Protocol)
_HTTP = frozenset({Protocol.HTTP})
_TLS = frozenset({Protocol.TLS})

# The protocols that a key says something about: in the order in which people think of them.
_KEYS = {
    "hostnames": _HTTP | _TLS,
    "respond": _HTTP,
    "redirect": _HTTP,
    "filters": _HTTP,
}
_MATCH_KEYS = {
    "path": _HTTP,
    "method": _HTTP,
    "headers": _HTTP,
    "queryParams": _HTTP,
    "alpn": _TLS,
}
PER_REQUEST = (Splice.REQUEST, Splice.UPGRADE)
"""Ways to splice in which every request of a connection is parsed and routed."""

_ONLY_FORWARDED = ("filters", "timeouts", "retry", "splice")


def check(walker: Walker, draft: Draft) -> None:
    """Reports what does not fit together."""
    listeners = {one.name.value: one for one in draft.listeners or []}
    for route in draft.routes or []:
        _action(walker, route)
        requests.check(walker, route)
        _prefixes(walker, route)
        if draft.listeners is not None:
            _protocols(walker, route, listeners)


def actions(route: RouteDraft) -> list[str]:
    """The keys of what the route does, in the order of the file."""
    denies = route.fields.get("deny") is True
    return [key for key in route.fields.keys if key in ACTIONS and (key != "deny" or denies)]


def _action(walker: Walker, route: RouteDraft) -> None:
    written = actions(route)
    keys = route.fields.keys
    if not written:
        if route.fields.wrong("deny") or route.fields.excused.intersection(ACTIONS):
            return
        node = route.node
        whole = isinstance(node, Mapping) and node.pairs
        walker.error(
            Node(node.start, node.start + 1) if whole else node,
            "a route needs `backendRefs`, `respond`, `redirect` or `deny: true`",
            "where it forwards to: backendRefs: [{name: NAME}]",
        )
        return
    first = keys[written[0]]
    for key in written[1:]:
        walker.error(
            keys[key],
            f"a route does one thing, and `{written[0]}` is one already",
            f"remove `{key}`, or write a second route",
            notes=(walker.note("what it does", first),),
        )
    if "backendRefs" not in written:
        for key in _ONLY_FORWARDED:
            if key in keys:
                walker.error(
                    keys[key],
                    f"`{key}` has no effect: this route forwards nothing",
                    f"remove `{key}`",
                    notes=(walker.note("what it does", first),),
                )


def _prefixes(walker: Walker, route: RouteDraft) -> None:
    """Gateway API v1: ReplacePrefixMatch "is only compatible with a `PathPrefix`" match."""
    other = next(
        (
            at.value.fields.keys.get("path", at.node)
            for at in route.matches or []
            if at.value.match.path.type is not PathType.PATH_PREFIX
        ),
        None,
    )
    if other is None:
        return
    for node in _prefix_modifiers(walker, route.fields):
        walker.error(
            node,
            "`ReplacePrefixMatch` needs a prefix, and a match of this route has none",
            "write {type: ReplaceFullPath, value: ...}, or match by `PathPrefix` only",
            notes=(walker.note("the match", other),),
        )


def _prefix_modifiers(walker: Walker, fields: Fields) -> Iterator[Node]:
    def is_prefix(path: PathModifier | None) -> bool:
        return path is not None and path.type is PathModifierType.REPLACE_PREFIX_MATCH

    redirect, filters = fields.at("redirect"), fields.at("filters")
    to: RedirectTo | None = fields.get("redirect")
    changes: Filters | None = fields.get("filters")
    if redirect is not None and to is not None and is_prefix(to.path):
        yield walker.key(redirect.node, "path") or redirect.node
    if filters is not None and changes is not None:
        rewrite = changes.url_rewrite
        if rewrite is not None and is_prefix(rewrite.path):
            node = walker.value(filters.node, "urlRewrite") or filters.node
            yield walker.key(node, "path") or node


def needs(walker: Walker, route: RouteDraft) -> Iterator[tuple[str, Node, frozenset[Protocol]]]:
    """What is written in a route for some protocols only: key, place, protocols.

    Of the keys of its matches each one where it stands first.
    """
    keys = route.fields.keys
    for key, protocols in _KEYS.items():
        if key in keys:
            yield key, keys[key], protocols
    for key, node in requests.per_request(walker, route):
        if key.partition(".")[0] not in _KEYS:
            yield key, node, _HTTP
    splice = route.fields.get("splice")
    if splice in PER_REQUEST:
        yield f"splice: {splice}", keys["splice"], _HTTP
    seen: set[str] = set()
    for at in route.matches or []:
        for key, node in at.value.fields.keys.items():
            if key not in seen and key in _MATCH_KEYS:
                seen.add(key)
                yield key, node, _MATCH_KEYS[key]
    for key in ("allow", "deny"):
        access = route.fields.get(key)
        if isinstance(access, Fields) and "sni" in access.keys:
            yield "sni", access.keys["sni"], _TLS


def possible(walker: Walker, route: RouteDraft) -> frozenset[Protocol]:
    """The protocols that a connection can have that this route takes."""
    able = EVERY
    for key, protocols in _KEYS.items():
        if key in route.fields.keys:
            able &= protocols
    if any(requests.per_request(walker, route)):
        able &= _HTTP
    if route.matches:
        of_matches: frozenset[Protocol] = frozenset()
        for at in route.matches:
            one = EVERY
            for key in at.value.fields.keys:
                if key != "path" or at.value.match.path != Match().path:  # `/` asks for nothing
                    one &= _MATCH_KEYS.get(key, EVERY)
            of_matches |= one
        able &= of_matches
    return able


def _protocols(walker: Walker, route: RouteDraft, known: dict[str, ListenerDraft]) -> None:
    named = [known[ref.value] for ref in route.listeners or [] if ref.value in known]
    for key, node, protocols in needs(walker, route):
        shown = alternatives(one.value for one in Protocol if one in protocols)
        if "listeners" in route.fields.keys:
            wrong = (one for one in named if one.protocol and one.protocol not in protocols)
            listener = next(wrong, None)
            if listener is not None:
                name = quoted(listener.name.value)
                walker.error(
                    node,
                    f"`{key}` is for {shown}, and listener {name} speaks {listener.protocol}",
                    f"remove `{key}`, or take {name} out of `listeners`",
                    notes=(walker.note("the listener", listener.name.node),),
                )
        elif key not in _LEFT_TO_WARNINGS and not any(
            one.protocol is None or one.protocol in protocols for one in known.values()
        ):
            walker.error(
                node,
                f"`{key}` is for {shown}, and no listener speaks that",
                f"remove `{key}`, or add such a listener",
            )


# A route that asks for what no listener can tell it never matches, which `lint` says.
_LEFT_TO_WARNINGS = frozenset({"hostnames", *_MATCH_KEYS} - {"alpn"})
