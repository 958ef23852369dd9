"""What is sent through a policy: derived from it, so that any policy can be shown.

The same pure `Router` that a worker asks says where each request has to go; what the backends
answer then shows whether it went there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from l7proxy.demo import traffic
from l7proxy.demo.traffic import Result
from l7proxy.model import (
    Address,
    Forward,
    Listener,
    PathType,
    Policy,
    Protocol,
    Request,
    Route,
    SocketAddress,
)
from l7proxy.routing import Router, compile_routers

_MIB = 1 << 20
_NETWORK = 125_000_000  # bytes a second: as from a backend on a network of 1 Gbit/s


def http_groups(policy: Policy) -> set[str]:
    """The backend groups that an HTTP listener can reach; any other one gets raw streams."""
    return {
        ref.name
        for listener in _listeners(policy, Protocol.HTTP)
        for route in _routes(policy, listener)
        for ref in route.backend_refs
    }


def run(policy: Policy, download: int, upload: int, scratch: Path) -> Iterator[Result]:
    """Send everything, one thing after the other. Sizes in bytes. Raises CheckError."""
    routers = compile_routers(policy)
    for listener in _listeners(policy, Protocol.HTTP):
        yield from _http(policy, listener, routers[listener.name], download, upload, scratch)
    for listener in _listeners(policy, Protocol.TCP):
        decision = routers[listener.name].decide_stream()
        if isinstance(decision, Forward):
            at, group = _reachable(listener.address), decision.backend.name
            if group in http_groups(policy):
                yield traffic.unparsed(at, "http://www.example.com/hello", group, scratch)
                yield traffic.web_socket(at, "www.example.com", "/socket", 8, 4 * _MIB)
            else:
                yield traffic.raw_stream(at, group, upload)


def _http(
    policy: Policy, listener: Listener, router: Router, download: int, upload: int, scratch: Path
) -> Iterator[Result]:
    """A request for each route, one for none, a bad one; then bulk down and up, and messages."""
    at = _reachable(listener.address)
    reached = []
    for route in _routes(policy, listener):
        host, path = _sample(route)
        decision = router.decide(Request(host=host, path=path))
        if isinstance(decision, Forward) and decision.route.name == route.name:
            yield traffic.hello(at, f"http://{host}{path}", _groups(route), scratch)
            reached.append((host, path))
    hosts = [*dict.fromkeys(host for host, _ in reached), "unknown.example"]
    for host, path in [(host, path) for path in ("/nowhere", "/") for host in hosts]:
        if not _forwards(router, host, path):
            yield traffic.missing(at, f"http://{host}{path}", scratch)
            break
    if reached:
        yield traffic.refused(at, *reached[0])
    prefixes = [
        (host, base)
        for host, base in [(host, path.removesuffix("/hello")) for host, path in reached]
        if all(_forwards(router, host, f"{base}/{name}") for name in ("download", "upload"))
    ]
    if prefixes:
        (first, up), (last, down) = prefixes[0], prefixes[-1]
        url = f"http://{last}{down}/download"
        yield traffic.download(at, url, download, scratch, rate=_NETWORK)
        yield traffic.download(at, url, download, scratch)
        yield traffic.upload(at, f"http://{first}{up}/upload", upload, scratch)
        yield traffic.web_socket(at, last, f"{down}/socket", 8, 4 * _MIB)


def _forwards(router: Router, host: str, path: str) -> bool:
    return isinstance(router.decide(Request(host=host, path=path)), Forward)


def _listeners(policy: Policy, protocol: Protocol) -> list[Listener]:
    return [found for found in policy.listeners.values() if found.protocol is protocol]


def _routes(policy: Policy, listener: Listener) -> list[Route]:
    return [r for r in policy.routes if not r.listeners or listener.name in r.listeners]


def _groups(route: Route) -> set[str]:
    return {ref.name for ref in route.backend_refs}


def _sample(route: Route) -> tuple[str, str]:
    """A host and a path that the route matches, unless a more specific route takes them."""
    host = route.hostnames[0] if route.hostnames else "www.example.com"
    path = route.matches[0].path if route.matches else None
    if path is None:
        return host.replace("*", "any"), "/hello"
    more = "/hello" if path.type is PathType.PATH_PREFIX else ""
    return host.replace("*", "any"), path.value.rstrip("/") + more or "/"


def _reachable(address: SocketAddress) -> Address:
    """Where to connect to for what listens at `address`: a wildcard is no destination."""
    assert isinstance(address, Address), "the demo speaks TCP"
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    return Address(local, address.port)
