"""What cannot go together in a listener, and what two listeners cannot share."""

from __future__ import annotations

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
}


def check(walker: Walker, listeners: list[ListenerDraft]) -> None:
    """Reports what does not fit together."""
    _addresses(walker, listeners)
    for listener in listeners:
        _protocol(walker, listener)
        _unix_mode(walker, listener)
        _trust(walker, listener)


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
    elif "proxyProtocol" in written and not (
        listener.address and isinstance(listener.address.value, UnixAddress)
    ):
        walker.error(
            written["proxyProtocol"],
            "`proxyProtocol` needs `trustedProxies`: whoever is believed can claim any address",
            "write trustedProxies: [10.0.0.0/8] with the blocks of your proxies",
        )


def _addresses(walker: Walker, listeners: list[ListenerDraft]) -> None:
    first: dict[SocketAddress, ListenerDraft] = {}
    ports: dict[int, list[tuple[ListenerDraft, At[SocketAddress]]]] = {}
    for listener in listeners:
        at = listener.address
        if at is None or (isinstance(at.value, Address) and at.value.port == 0):
            continue  # port 0: the kernel finds a free one for each
        other = first.setdefault(at.value, listener)
        if other is not listener:
            message = f"listener {quoted(listener.name.value)} has the address of another one"
            _taken(walker, at, other, message)
        elif isinstance(at.value, Address):
            same_port = ports.setdefault(at.value.port, [])
            for rival, its in same_port:
                if isinstance(its.value, Address) and _overlap(at.value, its.value):
                    part = "it is part of" if _is_any(its.value) else "is part of it"
                    message = (
                        f"listener {quoted(listener.name.value)} cannot bind"
                        f" {quoted(str(at.value))} beside {quoted(str(its.value))}, which {part}"
                    )
                    _taken(walker, at, rival, message)
                    break
            same_port.append((listener, at))


def _taken(walker: Walker, at: At[SocketAddress], other: ListenerDraft, message: str) -> None:
    node = other.name.node if other.address is None else other.address.node
    note = walker.note(f"{quoted(other.name.value)} has it", node)
    walker.error(at.node, message, "give each listener its own address or port", notes=(note,))


def _is_any(address: Address) -> bool:
    return address.host == "*" or ip_address(address.host).is_unspecified


def _overlap(one: Address, two: Address) -> bool:
    """Whether the kernel refuses to listen on both; their ports are known to be equal.

    A listener on `*` takes both families; one on `[::]` takes IPv6 only.
    """
    if "*" in (one.host, two.host):
        return True
    if one.is_ipv6 != two.is_ipv6:
        return False
    return one.host == two.host or _is_any(one) or _is_any(two)
