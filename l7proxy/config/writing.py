"""A policy back as text: what is in force, with its defaults, whatever it was written with.

Files are one, `${NAME}` is replaced, short forms are spelled out, and the limits and timeouts of
listeners stand there. What is left out is what is not there, and the route that a transparent
listener brings along. Reading the text gives the same policy
again, its places in files apart; a test holds that for every key of the language.
"""

from __future__ import annotations

from typing import Any

from l7proxy.config.emitting import emit
from l7proxy.config.references import UNMATCHED
from l7proxy.model import (
    Access,
    AccessLogRules,
    Backend,
    BalanceType,
    Endpoint,
    Filters,
    ForwardedFields,
    HashOn,
    HeaderChanges,
    HealthCheck,
    Listener,
    Match,
    NameAddress,
    PathModifier,
    PathType,
    Policy,
    ProbeType,
    Protocol,
    RateLimit,
    Retry,
    Route,
    Splice,
    Sticky,
    Transparent,
    ValueMatch,
)

Document = dict[str, Any]


def write(policy: Policy) -> str:
    """The policy as YAML."""
    return emit(document(policy))


def document(policy: Policy) -> Document:
    """The policy as what its YAML says."""
    found: Document = {
        "listeners": {name: _listener(one) for name, one in policy.listeners.items()},
        "routes": [_route(route) for route in policy.routes if route.name != UNMATCHED],
    }
    backends = {name: _backend(one) for name, one in policy.backends.items() if not one.original}
    found |= {"backends": backends} if backends else {}
    return found | _access_log(policy.access_log)


def _access_log(rules: AccessLogRules) -> Document:
    default = AccessLogRules()
    values = {
        "format": rules.format,
        "sample": f"{round(rules.sample * 100, 4):g}%" if rules.sample != default.sample else None,
        "liveEvery": _time(rules.live_every) if rules.live_every else None,
    }
    return {} if rules == default else {"accessLog": _without(values)}


# ---- values


def _without(values: Document) -> Document:
    """Without what is not there."""
    return {key: value for key, value in values.items() if value not in (None, "", (), [], {})}


def _time(seconds: float) -> str:
    whole = round(seconds)
    if whole != seconds:
        return f"{round(seconds * 1000)}ms"
    for size, unit in ((3600, "h"), (60, "m")):
        if whole and whole % size == 0:
            return f"{whole // size}{unit}"
    return f"{whole}s"


def _time_or_none(seconds: float | None) -> str | None:
    return None if seconds is None else _time(seconds)


def _named(pairs: tuple[tuple[str, str], ...]) -> list[Document]:
    return [{"name": name, "value": value} for name, value in pairs]


# ---- listeners


def _listener(one: Listener) -> Document:
    limits, timeouts = one.limits, one.timeouts
    is_http = one.protocol is Protocol.HTTP
    return _without(
        {
            "address": str(one.address),
            "mode": None if one.mode is None else f"{one.mode:04o}",
            "protocol": str(one.protocol),
            "hostnames": list(one.hostnames),
            "proxyProtocol": one.proxy_protocol,
            "trustedProxies": list(one.trusted_proxies),
            "forwarded": _forwarded(one.forwarded) if is_http else None,
            "allow": list(one.allow),
            "deny": list(one.deny),
            "transparent": None if one.transparent is None else _transparent(one.transparent),
            "limits": _without(
                {
                    "headBytes": None if one.protocol is Protocol.TCP else limits.head_bytes,
                    "headers": limits.headers if is_http else None,
                    "connections": limits.connections,
                    "clientConnections": limits.client_connections,
                }
            ),
            "timeouts": {
                "head": _time(timeouts.head),
                "dial": _time(timeouts.dial),
                "idle": _time(timeouts.idle),
                "overflow": _time(timeouts.overflow),
                **({"keepAlive": _time(timeouts.keep_alive)} if is_http else {}),
            },
        }
    )


def _forwarded(one: ForwardedFields) -> Document:
    return {
        "xForwardedFor": one.x_forwarded_for,
        "xForwardedProto": one.x_forwarded_proto,
        "xForwardedHost": one.x_forwarded_host,
        "xForwardedPort": one.x_forwarded_port,
        "xRealIp": one.x_real_ip,
        "forwarded": one.forwarded,
        "via": one.via,
    }


def _transparent(one: Transparent) -> Document:
    return _without(
        {
            "mode": one.mode,
            "direction": one.direction,
            "ports": list(one.ports),
            "exceptPorts": list(one.except_ports),
            "exceptBlocks": list(one.except_blocks),
            "exceptUsers": list(one.except_users),
            "unmatched": one.unmatched,
            "keepClientAddress": one.keep_client_address,
        }
    )


# ---- routes


def _route(one: Route) -> Document:
    timeouts, matches = one.timeouts, [_match(match) for match in one.matches]
    return _without(
        {
            "name": one.name,
            "listeners": list(one.listeners),
            "hostnames": list(one.hostnames),
            "priority": one.priority or None,
            "matches": None if matches == [{}] else matches,
            "filters": _filters(one.filters),
            "timeouts": _without(
                {
                    "dial": _time_or_none(timeouts.dial),
                    "idle": _time_or_none(timeouts.idle),
                    "overflow": _time_or_none(timeouts.overflow),
                    "request": _time_or_none(timeouts.request),
                }
            ),
            "rateLimit": None if one.rate_limit is None else _rate_limit(one.rate_limit),
            "retry": None if one.retry is None else _retry(one.retry),
            "splice": None if one.splice is Splice.AUTO else one.splice,
            **_access(one.access),
            "backendRefs": [
                _without({"name": ref.name, "weight": ref.weight, "optional": ref.optional or None})
                for ref in one.backend_refs
            ],
            "respond": None
            if one.respond is None
            else _without(
                {
                    "status": one.respond.status,
                    "headers": _named(one.respond.headers),
                    "body": one.respond.body,
                }
            ),
            "redirect": None
            if one.redirect is None
            else _without(
                {
                    "scheme": one.redirect.scheme,
                    "hostname": one.redirect.hostname,
                    "path": _modifier(one.redirect.path),
                    "port": one.redirect.port,
                    "status": one.redirect.status,
                }
            ),
        }
        | ({"deny": True} if one.deny else {})
    )


def _rate_limit(one: RateLimit) -> Document:
    return {
        "requests": one.requests,
        "per": _time(one.per),
        "burst": one.burst,
        "by": one.by,
    }


def _retry(one: Retry) -> Document:
    values = {
        "codes": list(one.codes),
        "attempts": one.attempts,
        "backoff": _time(one.backoff),
    }
    return _without(values)


def _match(one: Match) -> Document:
    path = one.path
    anything = path.type is PathType.PATH_PREFIX and path.value == "/"
    return _without(
        {
            "path": None if anything else {"type": path.type, "value": path.value},
            "method": one.method,
            "headers": [_value(header) for header in one.headers],
            "queryParams": [_value(parameter) for parameter in one.query],
            "alpn": list(one.alpn),
            "destinations": [str(destination) for destination in one.destinations],
        }
    )


def _value(one: ValueMatch) -> Document:
    return {"name": one.name, "type": one.type, "value": one.value}


def _filters(one: Filters) -> Document:
    rewrite = one.url_rewrite
    return _without(
        {
            "requestHeaders": _changes(one.request_headers),
            "responseHeaders": _changes(one.response_headers),
            "mirror": None
            if one.mirror is None
            else {"backendRef": {"name": one.mirror.backend}, "percent": one.mirror.percent},
            "urlRewrite": None
            if rewrite is None
            else _without({"hostname": rewrite.hostname, "path": _modifier(rewrite.path)}),
        }
    )


def _changes(one: HeaderChanges | None) -> Document | None:
    if one is None:
        return None
    values = {"set": _named(one.set), "add": _named(one.add), "remove": list(one.remove)}
    return _without(values)


def _modifier(one: PathModifier | None) -> Document | None:
    return None if one is None else {"type": one.type, "value": one.value}


def _access(one: Access) -> Document:
    return {
        "allow": _without({"clients": list(one.allow_clients), "sni": list(one.allow_sni)}),
        "deny": _without({"clients": list(one.deny_clients), "sni": list(one.deny_sni)}),
    }


# ---- backends


def _backend(one: Backend) -> Document:
    ejection, retries, circuit = one.ejection, one.retries, one.circuit
    is_named = any(isinstance(endpoint.address, NameAddress) for endpoint in one.endpoints)
    return _without(
        {
            "endpoints": [_endpoint(endpoint) for endpoint in one.endpoints],
            "balance": _balance(one),
            "sticky": None if one.sticky is None else _sticky(one.sticky),
            "healthCheck": None if one.health is None else _health(one.health),
            "ejection": {
                "failures": ejection.failures,
                "base": _time(ejection.base),
                "max": _time(ejection.most),
                "share": ejection.share,
            },
            "slowStart": _time(one.slow_start) if one.slow_start else None,
            "retries": {"attempts": retries.attempts, "budget": retries.budget},
            "circuit": _without(
                {
                    "connections": circuit.connections,
                    "pending": circuit.pending,
                    "endpointConnections": circuit.endpoint_connections,
                }
            ),
            "panic": one.panic or None,
            "resolve": {"interval": _time(one.resolving.interval)} if is_named else None,
            "proxyProtocol": one.proxy_protocol,
        }
    )


def _endpoint(one: Endpoint) -> Document:
    return {"address": str(one.address), "weight": one.weight}


def _balance(backend: Backend) -> object:
    balance = backend.balance
    if balance.type is not BalanceType.HASH:
        return balance.type
    if balance.hash_on in (HashOn.HEADER, HashOn.COOKIE):
        return {"hash": {balance.hash_on: balance.key}}
    return {"hash": balance.hash_on}


def _sticky(one: Sticky) -> Document:
    ttl = _time_or_none(one.ttl)
    return _without({"cookie": one.cookie, "ttl": ttl, "path": one.path}) | {"secure": one.secure}


def _health(one: HealthCheck) -> Document:
    http: Document = {}
    if one.type is ProbeType.HTTP:
        statuses = [low if low == high else f"{low}-{high}" for low, high in one.statuses]
        http = {"path": one.path, "host": one.host, "statuses": statuses, "body": one.body}
    return {
        "type": one.type,
        **_without(http),
        "interval": _time(one.interval),
        "timeout": _time(one.timeout),
        "healthy": one.healthy,
        "unhealthy": one.unhealthy,
    }
