"""What becomes of what `explain` was asked about: the steps of a worker, without a socket.

Everything is decided by the same functions as at run time: the head goes through the reader that
clients' heads go through, and what the backend gets is written by the same writer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from l7proxy import access, filters
from l7proxy.access import Clients, Trust
from l7proxy.errors import BadRequest
from l7proxy.forwarded import ForwardedWriter, Hop, came_to, client_address
from l7proxy.head import Head, HeadReader, serialise
from l7proxy.model import (
    PER_REQUEST,
    Access,
    Address,
    Backend,
    Balance,
    Deny,
    Hello,
    Listener,
    Policy,
    Protocol,
    Redirect,
    Respond,
    Route,
)
from l7proxy.routing.explain import Explanation, Share, explain
from l7proxy.routing.ways import as_dict, ways

if TYPE_CHECKING:
    from l7proxy.commands.asking import Asked

_DENIED = {
    Protocol.HTTP: "403",
    Protocol.TLS: "the alert access_denied",
    Protocol.TCP: "a reset",
}
_NOBODY = {
    Protocol.HTTP: "404: no route matches",
    Protocol.TLS: "the alert unrecognized_name: no route matches",
    Protocol.TCP: "a reset: no route is for this listener",
}


@dataclass(slots=True)
class Outcome:
    """What happens. `details` are the facts of its action, in the form of JSON."""

    action: str  # forward, redirect, respond, deny, refuse
    what: str  # what the client gets, in a few words; "" when it is a backend's answer
    status: int | None = None
    details: dict[str, Any] = field(default_factory=dict)
    client: str = ""  # who it is, after what trusted proxies said
    trusted: bool = False  # whether the connection is from one
    head: Head | None = None
    explanation: Explanation | None = None  # None where no route was looked at


def find(policy: Policy, asked: Asked) -> Outcome:
    """All steps, up to the one that ends it."""
    listener = asked.listener
    trust = Trust(listener)
    head = None
    client, trusted = asked.client, asked.client in trust
    if not trusted and (refusal := _kept_out(listener, client)):
        return refusal
    if asked.raw is not None:
        try:
            head = HeadReader(listener.limits).feed(asked.raw)
        except BadRequest as error:
            why = error.detail or str(error.rule)
            what = f"{error.status}: refused before any route is looked at: {why}"
            details = {"rule": str(error.rule), "detail": error.detail}
            return Outcome("refuse", what, error.status, details, client, trusted)
        assert head is not None  # it is complete
        if trusted:
            client = client_address(client, head.headers, trust)
        else:
            head = head.without_claims()
    if refusal := _kept_out(listener, client):
        return refusal
    read = head if head is not None else asked.hello
    found = explain(policy, listener, read, asked.destination)
    outcome = _of(policy, asked, found, head, client, trusted=trusted)
    outcome.client, outcome.trusted = client, trusted
    outcome.head, outcome.explanation = head, found
    return outcome


def _kept_out(listener: Listener, client: str) -> Outcome | None:
    """What the listener's own `allow` and `deny` do to a client that they keep out."""
    if Clients(listener.allow, listener.deny).admit(client):
        return None
    what = f"a reset: listener `{listener.name}` does not let {client} in"
    return Outcome("deny", what, client=client)


def _kept_out_by(rules: Access, client: str, hello: Hello | None) -> str:
    """What a route's `allow` and `deny` refuse: the client, or else the name that it asks for."""
    of_clients = replace(rules, allow_sni=(), deny_sni=())
    if not access.admits(of_clients, client):
        return client
    return f"the name {hello.sni}" if hello is not None and hello.sni else "who gives no name"


def _of(
    policy: Policy,
    asked: Asked,
    found: Explanation,
    head: Head | None,
    client: str,
    *,
    trusted: bool,
) -> Outcome:
    listener, route, answer = asked.listener, found.route, found.answer
    denied = 403 if listener.protocol is Protocol.HTTP else None
    if route is None:
        if isinstance(answer, Respond) and answer.status != 404:
            return Outcome("refuse", f"{answer.status}: {answer.detail}", answer.status)
        status = 404 if listener.protocol is Protocol.HTTP else None
        return Outcome("refuse", _NOBODY[listener.protocol], status)
    if not access.admits(route.access, client, asked.hello):
        whom = _kept_out_by(route.access, client, asked.hello)
        what = f"{_DENIED[listener.protocol]}: route `{route.name}` does not let {whom} in"
        return Outcome("deny", what, denied)
    if isinstance(answer, Deny):
        return Outcome("deny", f"{_DENIED[listener.protocol]}: the route denies it", denied)
    if isinstance(answer, Redirect):
        assert head is not None
        return _redirect(asked, answer, head, trusted=trusted)
    if isinstance(answer, Respond):
        return _respond(listener, route, answer)
    return _forward(policy, asked, found, head, client, trusted=trusted)


def _port(asked: Asked) -> int | None:
    """The port that the client went to."""
    if asked.destination is not None:
        return asked.destination.port
    address = asked.listener.address
    return address.port if isinstance(address, Address) else None


def _redirect(asked: Asked, answer: Redirect, head: Head, *, trusted: bool) -> Outcome:
    redirect = answer.route.redirect
    assert redirect is not None
    scheme, port = "http", _port(asked)
    if trusted:
        scheme, port = came_to(scheme, port, head.headers)
    location = filters.redirect_location(redirect, answer.match, head, scheme, port)
    if location is None:
        what = "400: the request names no host that it could be redirected to"
        return Outcome("refuse", what, 400)
    what = f"{redirect.status} to {location}"
    return Outcome("redirect", what, redirect.status, {"location": location})


def _respond(listener: Listener, route: Route, answer: Respond) -> Outcome:
    own = route.respond
    if own is not None:
        details = {"headers": [list(pair) for pair in own.headers], "body": own.body}
        return Outcome("respond", str(own.status), own.status, details)
    if listener.protocol is not Protocol.HTTP:
        return Outcome("refuse", f"a reset: {answer.detail}")
    return Outcome("refuse", f"{answer.status}: {answer.detail}", answer.status)


def _forward(
    policy: Policy,
    asked: Asked,
    found: Explanation,
    head: Head | None,
    client: str,
    *,
    trusted: bool,
) -> Outcome:
    route, splice = found.route, found.splice
    assert route is not None
    assert splice is not None
    details: dict[str, Any] = {
        "backends": [
            _backend(policy.backends.get(one.backend), one, asked.destination)
            for one in found.shares
        ],
        "splice": {
            "mode": str(splice.mode),
            "auto": splice.chosen,
            "why": splice.why,
            "ways": as_dict(ways(policy, asked.listener, route, splice.mode)),
        },
    }
    if head is not None:
        listener = asked.listener
        hop = Hop(asked.client, client, trusted, "http", _port(asked))
        fields = ForwardedWriter(listener.forwarded).fields(
            hop, head.headers, authority=head.authority, version=head.version
        )
        details["head"] = serialise(
            head,
            fields,
            trusted=trusted,
            kept=splice.mode in PER_REQUEST,
            rewriting=filters.rewrite(head, route, route.matches[found.match or 0]),
        ).decode("latin-1")
    return Outcome("forward", "", None, details)


def _backend(backend: Backend | None, share: Share, destination: Address | None) -> dict[str, Any]:
    found: dict[str, Any] = {"name": share.backend, "percent": round(share.percent, 1)}
    if backend is None:
        return {**found, "status": 500}
    if backend.original:
        address = "where the connection was going" if destination is None else str(destination)
        return {**found, "endpoints": [{"address": address, "percent": 100.0}]}
    weights = sum(endpoint.weight for endpoint in backend.endpoints)
    found["balance"] = _balance(backend.balance)
    if backend.sticky is not None:
        found["sticky"] = backend.sticky.cookie
    if backend.proxy_protocol is not None:
        found["proxyProtocol"] = str(backend.proxy_protocol)
    found["endpoints"] = [
        {"address": str(endpoint), "percent": round(100 * endpoint.weight / weights, 1)}
        for endpoint in backend.endpoints
        if endpoint.weight
    ]
    return found


def _balance(balance: Balance) -> str:
    """`round_robin`; `hash on header x-user`."""
    if balance.hash_on is None:
        return str(balance.type)
    return f"{balance.type} on {balance.hash_on}{f' {balance.key}' if balance.key else ''}"
