"""What `explain` is asked about: arguments -> a listener, and a request or a ClientHello."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from l7proxy.errors import L7ProxyError

if TYPE_CHECKING:
    from l7proxy.model import Address, Hello, Listener, Policy

CLIENT = "192.0.2.1"  # RFC 5737: an address for documentation
_PORTS = {"http": 80, "https": 443}


class Unclear(L7ProxyError):
    """The arguments do not tell what is asked about."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Exactly one of `raw` (an HTTP request as it would be sent) and `hello` is for `listener`.

    Both are None for a TCP stream. `chosen` says why it is this listener, `client` is whom the
    connection is from, or whom its PROXY header names; `destination` where it was going when it was
    intercepted, as far as that was told.
    """

    listener: Listener
    chosen: str
    client: str
    raw: bytes | None = None
    hello: Hello | None = None
    destination: Address | None = None


def client_address(text: str) -> str:
    """For argparse: an IP address."""
    try:
        return str(ip_address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no IP address") from None


def destination(text: str) -> Address:
    """For argparse: an IP address and a port."""
    from l7proxy.config.addresses import endpoint_address
    from l7proxy.config.bad import Bad
    from l7proxy.model import Address

    try:
        found = endpoint_address(text)
    except Bad as bad:
        raise argparse.ArgumentTypeError(bad.message) from None
    if not isinstance(found, Address):
        raise argparse.ArgumentTypeError(f"{text!r} is no IP address with a port")
    return found


def header(text: str) -> tuple[str, str]:
    """For argparse: `name: value`."""
    name, colon, value = text.partition(":")
    if not colon or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is no header: write 'name: value'")
    return name, value.strip(" \t")


def read(policy: Policy, options: argparse.Namespace) -> Asked:
    """What is asked; raises Unclear."""
    stream = options.what in ("tcp", "tls")
    asked = _stream(policy, options) if stream else _request(policy, options)
    listener = asked.listener
    if options.destination is None:
        if listener.transparent is not None and any(
            match.destinations for route in policy.routes for match in route.matches
        ):
            raise Unclear(
                f"listener {listener.name} is transparent, and routes look at where a connection"
                " was going: say so with --destination"
            )
        return asked
    if listener.transparent is None:
        raise Unclear(f"listener {listener.name} is not transparent: leave --destination out")
    return replace(asked, destination=options.destination)


def _client(listener: Listener, options: argparse.Namespace) -> str:
    """Who the connection is from: an address, or nobody's on a unix socket."""
    from l7proxy.access import UNIX_CLIENT
    from l7proxy.model import UnixAddress

    if options.client is not None:
        return str(options.client)
    plain = isinstance(listener.address, UnixAddress) and listener.proxy_protocol is None
    return UNIX_CLIENT if plain else CLIENT


def _stream(policy: Policy, options: argparse.Namespace) -> Asked:
    from l7proxy.model import Hello, Protocol

    protocol = Protocol(options.what.upper())
    if options.header:
        raise Unclear(f"a stream of {protocol} has no headers: leave -H out")
    if protocol is Protocol.TCP and (options.sni or options.alpn):
        raise Unclear("a stream of TCP has no ClientHello: leave --sni and --alpn out")
    listener = _named(policy, options.target)
    if listener.protocol is not protocol:
        raise Unclear(f"listener {listener.name} speaks {listener.protocol}, not {protocol}")
    hello = None
    if protocol is Protocol.TLS:
        hello = Hello((options.sni or "").lower().rstrip("."), tuple(options.alpn))
    return Asked(listener, "it was named", _client(listener, options), hello=hello)


def _request(policy: Policy, options: argparse.Namespace) -> Asked:
    from l7proxy.model import Hello, Protocol

    try:
        url = urlsplit(options.target)
    except ValueError as error:
        raise Unclear(f"{options.target!r} is no URL: {error}") from None
    whole = options.target == "*"  # asterisk-form: about the server as a whole
    if not (whole or options.target.startswith("/")) and (
        url.scheme not in _PORTS or not url.netloc
    ):
        raise Unclear(
            f"{options.target!r} is no URL: write http://HOST/PATH, or tcp or tls and a listener"
        )
    try:
        port = url.port or _PORTS.get(url.scheme)
    except ValueError:
        raise Unclear(f"the port of {options.target!r} is no number") from None
    protocol = Protocol.TLS if url.scheme == "https" else Protocol.HTTP
    listener, chosen = _listening(policy, options.listener, protocol, port)
    client = _client(listener, options)
    if protocol is Protocol.TLS:
        sni = (options.sni or url.hostname or "").lower()
        return Asked(listener, chosen, client, hello=Hello(sni, tuple(options.alpn)))
    if options.sni or options.alpn:
        raise Unclear("an HTTP request has no ClientHello: leave --sni and --alpn out")
    path = options.target if not url.netloc else url.path or "/"
    query = f"?{url.query}" if url.netloc and "?" in options.target else ""
    if options.what == "CONNECT" and url.netloc and port is not None:
        path, query = url.netloc if url.port else f"{url.netloc}:{port}", ""  # authority-form
    fields = list(options.header)
    if url.netloc and not any(name.lower() == "host" for name, _ in fields):
        fields.insert(0, ("Host", url.netloc))
    lines = [f"{options.what} {path}{query} HTTP/1.1", *(f"{n}: {v}" for n, v in fields), "", ""]
    raw = "\r\n".join(lines).encode("utf-8", "surrogateescape")
    return Asked(listener, chosen, client, raw=raw)


def _named(policy: Policy, name: str) -> Listener:
    listener = policy.listeners.get(name)
    if listener is None:
        names = ", ".join(policy.listeners)
        raise Unclear(f"no listener has the name {name!r}: there are {names}")
    return listener


def _listening(
    policy: Policy, name: str | None, protocol: str, port: int | None
) -> tuple[Listener, str]:
    """The listener that such a URL leads to, and why it is that one."""
    from l7proxy.model import Address

    if name is not None:
        listener = _named(policy, name)
        if listener.protocol != protocol:
            raise Unclear(
                f"listener {name} speaks {listener.protocol}, and this is a request of {protocol}"
            )
        return listener, "it was named"
    speaking = [one for one in policy.listeners.values() if one.protocol == protocol]
    if not speaking:
        raise Unclear(f"no listener speaks {protocol}")
    if len(speaking) == 1:
        return speaking[0], f"it is the only one that speaks {protocol}"
    there = [
        one for one in speaking if isinstance(one.address, Address) and one.address.port == port
    ]
    if len(there) == 1:
        return there[0], f"it is on port {port}"
    names = ", ".join(one.name for one in speaking)
    raise Unclear(f"several listeners speak {protocol}: choose one with --listener ({names})")
