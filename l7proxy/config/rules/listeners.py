"""What cannot go together in a listener, and what two listeners cannot share."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from ipaddress import ip_address

from l7proxy.config.language import ListenerDraft
from l7proxy.config.problems import quoted
from l7proxy.config.walker import At, Walker
from l7proxy.model import Address, Protocol, SocketAddress, UnixAddress

# Keys that say something about one protocol only, by the protocols that they are for.
_ONLY_FOR = {
    "hostnames": (Protocol.HTTP, Protocol.TLS),
    "forwarded": (Protocol.HTTP,),
    "limits.headBytes": (Protocol.HTTP, Protocol.TLS),
    "limits.headers": (Protocol.HTTP,),
    "timeouts.keepAlive": (Protocol.HTTP,),
}


def check(walker: Walker, listeners: list[ListenerDraft]) -> None:
    """Reports what does not fit together."""
    _addresses(walker, listeners)
    for listener in listeners:
        _protocol(walker, listener)
        _unix_mode(walker, listener)
        _trust(walker, listener)
        _clients_without_address(walker, listener)


def _protocol(walker: Walker, listener: ListenerDraft) -> None:
    protocol = listener.protocol
    if protocol is None:
        return
    for path, protocols in _ONLY_FOR.items():
        key, _, inner = path.partition(".")
        if protocol in protocols or key not in listener.fields.keys:
            continue
        node = listener.fields.keys[key]
        if inner:
            at = listener.fields.at(key)
            found = None if at is None else walker.key(at.node, inner)
            if found is None:
                continue
            node = found
        wanted = " or ".join(f"`protocol: {one}`" for one in protocols)
        walker.error(
            node,
            f"`{inner or key}` means nothing on a listener that speaks {protocol}",
            f"remove it, or write {wanted}",
        )


def _unix_mode(walker: Walker, listener: ListenerDraft) -> None:
    if "mode" not in listener.fields.keys or listener.address is None:
        return
    address = listener.address.value
    if isinstance(address, UnixAddress) and not address.path.startswith("@"):
        return
    abstract = isinstance(address, UnixAddress)
    what = "an abstract socket has no file" if abstract else f"{quoted(str(address))} is no file"
    walker.error(
        listener.fields.keys["mode"],
        f"`mode` is for the file of a unix socket, and {what}",
        "remove `mode`",
        notes=(walker.note("the address", listener.address.node),),
    )


def _address(listener: ListenerDraft) -> SocketAddress | None:
    return None if listener.address is None else listener.address.value


def _clients_without_address(walker: Walker, listener: ListenerDraft) -> None:
    """Who is at the other end of a unix socket is told by a proxy only, and not on an abstract one.

    `access.Trust`: on a socket in the file system those who may connect are believed; an abstract
    one is open to every process.
    """
    address, written = _address(listener), listener.fields.keys
    if not isinstance(address, UnixAddress) or listener.address is None:
        return
    abstract = address.path.startswith("@")
    note = walker.note("the address", listener.address.node)
    if abstract and "proxyProtocol" in written:
        walker.error(
            written["proxyProtocol"],
            "`proxyProtocol` has no effect: every process can connect to an abstract socket, so"
            " nobody is believed there",
            "listen on a socket in the file system: unix:/run/name.sock",
            notes=(note,),
        )
    elif abstract or (listener.protocol is not Protocol.HTTP and "proxyProtocol" not in written):
        limits = listener.fields.at("limits")
        of_client = None if limits is None else walker.key(limits.node, "clientConnections")
        places = {"allow": written.get("allow"), "deny": written.get("deny")}
        for key, node in {**places, "clientConnections": of_client}.items():
            if node is not None:
                walker.error(
                    node,
                    f"`{key}` is about addresses of clients, and those of this socket have none",
                    "remove it: `mode` says who may connect" if not abstract else "remove it",
                    notes=(note,),
                )


def _trust(walker: Walker, listener: ListenerDraft) -> None:
    written = listener.fields.keys
    if "trustedProxies" in written:
        if listener.protocol in (Protocol.TLS, Protocol.TCP) and "proxyProtocol" not in written:
            walker.error(
                written["trustedProxies"],
                f"`trustedProxies` has no effect: a listener that speaks {listener.protocol} hears"
                " of clients by the PROXY protocol only",
                "add `proxyProtocol: require`, or remove `trustedProxies`",
            )
    elif "proxyProtocol" in written and not isinstance(_address(listener), UnixAddress):
        walker.error(
            written["proxyProtocol"],
            "`proxyProtocol` needs `trustedProxies`: whoever is believed can claim any address",
            "write trustedProxies: [10.0.0.0/8] with the blocks of your proxies",
        )


@dataclass(slots=True)
class _Port:
    """Who listens first on a port of one family: on every address, and on a single one."""

    every: ListenerDraft | None = None
    single: ListenerDraft | None = None


def _addresses(walker: Walker, listeners: list[ListenerDraft]) -> None:
    first: dict[SocketAddress, ListenerDraft] = {}
    ports: defaultdict[tuple[int, bool], _Port] = defaultdict(_Port)
    for listener in listeners:
        at = listener.address
        if at is None or (isinstance(at.value, Address) and at.value.port == 0):
            continue  # port 0: the kernel finds a free one for each
        other = first.setdefault(at.value, listener)
        if other is not listener:
            message = f"listener {quoted(listener.name.value)} has the address of another one"
            _taken(walker, at, other, message)
        elif isinstance(at.value, Address):
            _overlaps(walker, listener, at, at.value, ports)


def _overlaps(
    walker: Walker,
    listener: ListenerDraft,
    at: At[SocketAddress],
    address: Address,
    ports: defaultdict[tuple[int, bool], _Port],
) -> None:
    """Reports what the kernel would refuse: an address beside every address, on the same port.

    A listener on `*` takes both families; one on `[::]` takes IPv6 only.
    """
    both, every = address.host == "*", _is_any(address)
    taken = [ports[address.port, ipv6] for ipv6 in ((False, True) if both else (address.is_ipv6,))]
    rival = next(
        (found for port in taken if (found := port.every or (port.single if every else None))), None
    )
    if rival is not None and rival.address is not None:
        its = rival.address.value
        larger = isinstance(its, Address) and _is_any(its) and not both
        _taken(
            walker,
            at,
            rival,
            f"listener {quoted(listener.name.value)} cannot bind {quoted(str(address))} beside"
            f" {quoted(str(its))}, which {'it is part of' if larger else 'is part of it'}",
        )
    for port in taken:
        if every:
            port.every = port.every or listener
        else:
            port.single = port.single or listener


def _taken(walker: Walker, at: At[SocketAddress], other: ListenerDraft, message: str) -> None:
    node = other.name.node if other.address is None else other.address.node
    note = walker.note(f"{quoted(other.name.value)} has it", node)
    walker.error(at.node, message, "give each listener its own address or port", notes=(note,))


def _is_any(address: Address) -> bool:
    return address.host == "*" or ip_address(address.host).is_unspecified
