"""Backends that nobody uses, that lead back to l7proxy, or whose parts work against each other."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

from l7proxy.config.language import BackendDraft, Draft, ListenerDraft
from l7proxy.config.lint.repeated import repeated
from l7proxy.config.problems import quoted
from l7proxy.config.walker import Walker
from l7proxy.model import (
    Address,
    BalanceType,
    Endpoint,
    HealthCheck,
    NameAddress,
    Policy,
    SocketAddress,
    UnixAddress,
)


def check(walker: Walker, draft: Draft, policy: Policy) -> None:
    """Warns about what each backend says."""
    used = {ref.name for route in policy.routes for ref in route.backend_refs}
    used |= {one.filters.mirror.backend for one in policy.routes if one.filters.mirror}
    bound = _Bound(draft.listeners or [])
    for backend in draft.backends or []:
        if backend.name.value not in used:
            walker.warn(
                backend.name.node,
                f"no route forwards to backend {quoted(backend.name.value)}",
                "remove it, or name it in the `backendRefs` of a route",
            )
        repeated(walker, "`endpoints`", backend.endpoints or [])
        _loops(walker, backend, bound)
        _health(walker, backend)
        _sticky(walker, backend)


def _health(walker: Walker, backend: BackendDraft) -> None:
    at = backend.fields.at("healthCheck")
    if at is None or not isinstance(at.value, HealthCheck):
        return
    check: HealthCheck = at.value
    if check.timeout > check.interval:
        node = walker.key(at.node, "timeout") or walker.key(at.node, "interval") or at.node
        walker.warn(
            node,
            f"a check may take {check.timeout:g}s, longer than the {check.interval:g}s from one to"
            " the next",
            "make `timeout` shorter than `interval`",
        )


def _sticky(walker: Walker, backend: BackendDraft) -> None:
    sticky, balance = backend.fields.at("sticky"), backend.fields.at("balance")
    if sticky is not None and balance is not None and balance.value.type is BalanceType.HASH:
        walker.warn(
            backend.fields.keys["sticky"],
            "`sticky` goes before `hash`, which decides for a client's first request only",
            "use one of the two",
            notes=(walker.note("the hash", balance.node),),
        )


def _loops(walker: Walker, backend: BackendDraft, bound: _Bound) -> None:
    for at in backend.endpoints or []:
        endpoint: Endpoint = at.value
        listener = bound.reached_by(endpoint)
        if listener is not None and listener.address is not None:
            walker.warn(
                at.node,
                f"this endpoint is listener {quoted(listener.name.value)} itself, and connections"
                " would go round in circles",
                "write the address of the application",
                notes=(walker.note("the listener", listener.address.node),),
            )


class _Bound:
    """Listeners by what surely reaches them from this machine."""

    def __init__(self, listeners: list[ListenerDraft]) -> None:
        self._exact: dict[SocketAddress, ListenerDraft] = {}
        self._loopback: dict[tuple[int, int], ListenerDraft] = {}  # by IP version and port
        for listener in listeners:
            if listener.address is None:
                continue
            address = listener.address.value
            self._exact.setdefault(address, listener)
            if isinstance(address, Address):
                for version in _versions(address.host):
                    self._loopback.setdefault((version, address.port), listener)

    def reached_by(self, endpoint: Endpoint) -> ListenerDraft | None:
        """The listener that who dials `endpoint` surely meets."""
        address = endpoint.address
        if isinstance(address, UnixAddress):
            return self._exact.get(address)
        host = _host(address)
        if host is None:
            return None
        exact = self._exact.get(Address(str(host), address.port))
        if exact is None and (host.is_loopback or host.is_unspecified):  # 0.0.0.0 is dialled so
            return self._loopback.get((host.version, address.port))
        return exact


def _versions(host: str) -> Iterator[int]:
    """The versions of IP whose loopback addresses a listener takes all of.

    One on `[::]` takes IPv6 only; one on `*` both.
    """
    if host == "*":
        yield from (4, 6)
    elif ip_address(host).is_unspecified:
        yield ip_address(host).version


def _host(address: Address | NameAddress) -> IPv4Address | IPv6Address | None:
    """Who is dialled; None where only the resolver knows."""
    if isinstance(address, NameAddress):
        return ip_address("127.0.0.1") if address.name == "localhost" else None
    host = ip_address(address.host)
    mapped = host.ipv4_mapped if isinstance(host, IPv6Address) else None
    return mapped or host
