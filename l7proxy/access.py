"""Who is let in: sets of CIDR blocks, and the `allow` and `deny` of listeners and routes. Pure.

An address is looked up in as many steps as the set has different prefix lengths, however many
blocks it has. An IPv4 address that came over an IPv6 socket (`::ffff:192.0.2.1`) is the IPv4
address: on a dual-stack socket every IPv4 client looks like that, and no rule must miss it.

The client of a unix socket has no address: no block holds it, so an `allow` refuses it and a
`deny` does not.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Generator, Iterable, Iterator
from functools import lru_cache

from l7proxy.model import Access, Hello, Listener, UnixAddress

UNIX_CLIENT = "unix:"
"""What stands where an address would, for the client of a unix socket."""

_IPV4_BITS = 32
_STEP = 64  # blocks that are compiled in one step
_MAPPED = 96  # the prefix length of ::ffff:0:0/96


@lru_cache(maxsize=4096)
def address_number(text: str) -> tuple[int, int] | None:
    """(bits of the address, its value) of an IP address; None for what is none.

    A zone (`fe80::1%eth0`) is left aside: blocks have none.
    """
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.max_prefixlen, int(address)


def plain_address(text: str) -> str:
    """The address without a zone, and an IPv4 address as such; anything else as it is."""
    if text.startswith("::ffff:") and "." in text:
        return text[7:]
    return text.partition("%")[0] if "%" in text else text


def host_of(client: str) -> str:
    """The address in `host:port` or `[host]:port`; what has no port stays as it is."""
    if client.startswith("["):
        return client[1:].partition("]")[0]
    host, _, port = client.partition(":")
    return host if port.isdecimal() else client


class Blocks:
    """A set of CIDR blocks: `"192.0.2.1" in blocks`. Empty, it holds nothing and is false."""

    __slots__ = ("_networks",)

    def __init__(self, blocks: Iterable[str] = ()) -> None:
        self._networks: dict[int, list[tuple[int, frozenset[int]]]] = {}
        for _ in self.filling(blocks):
            pass

    def filling(self, blocks: Iterable[str]) -> Iterator[None]:
        """Take these blocks, a few in each step: a country has thousands of them."""
        # by address bits: (bits to shift away, the networks of that length)
        found: dict[tuple[int, int], set[int]] = {}
        for number, block in enumerate(blocks):
            if number % _STEP == _STEP - 1:
                yield
            network = ipaddress.ip_network(block, strict=False)
            bits: int = network.max_prefixlen
            length = network.prefixlen
            value = int(network.network_address)
            if bits > _IPV4_BITS and length >= _MAPPED and value >> _IPV4_BITS == 0xFFFF:
                bits, length, value = _IPV4_BITS, length - _MAPPED, value & 0xFFFF_FFFF
            found.setdefault((bits, bits - length), set()).add(value >> (bits - length))
        for (bits, shift), values in found.items():
            self._networks.setdefault(bits, []).append((shift, frozenset(values)))

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __contains__(self, address: str) -> bool:
        number = address_number(address)
        if number is None:
            return False
        bits, value = number
        return any(value >> shift in held for shift, held in self._networks.get(bits, ()))


class Clients:
    """`allow` and `deny` by client address. An entry of `deny` beats `allow`."""

    __slots__ = ("_allow", "_deny")

    def __init__(self, allow: Iterable[str] = (), deny: Iterable[str] = ()) -> None:
        self._allow = Blocks(allow)
        self._deny = Blocks(deny)

    @classmethod
    def building(cls, allow: Iterable[str], deny: Iterable[str]) -> Generator[None, None, Clients]:
        """The same, a few blocks in each step."""
        clients = cls()
        yield from clients._allow.filling(allow)
        yield from clients._deny.filling(deny)
        return clients

    def __bool__(self) -> bool:
        """Whether there is any rule at all."""
        return bool(self._allow) or bool(self._deny)

    def admit(self, address: str) -> bool:
        """Whether the client with this address (without port) is let in."""
        if self._deny and address in self._deny:
            return False
        return not self._allow or address in self._allow


class _Names:
    """A set of server names, exact or `*.example.com` (any number of labels in front)."""

    __slots__ = ("_exact", "_suffixes")

    def __init__(self, names: tuple[str, ...]) -> None:
        self._exact = frozenset(name for name in names if not name.startswith("*."))
        self._suffixes = tuple(name[1:] for name in names if name.startswith("*."))

    def __bool__(self) -> bool:
        return bool(self._exact) or bool(self._suffixes)

    def __contains__(self, name: str) -> bool:
        return name in self._exact or any(
            name.endswith(suffix) and len(name) > len(suffix) for suffix in self._suffixes
        )


class RouteAccess:
    """A route's rules, compiled."""

    __slots__ = ("_allow_sni", "_clients", "_deny_sni")

    def __init__(self, access: Access, clients: Clients) -> None:
        self._clients = clients
        self._allow_sni = _Names(access.allow_sni)
        self._deny_sni = _Names(access.deny_sni)

    @classmethod
    def building(cls, access: Access) -> Generator[None, None, RouteAccess]:
        """Compile the rules, a few blocks in each step."""
        return cls(access, (yield from Clients.building(access.allow_clients, access.deny_clients)))

    def admit(self, client: str, hello: Hello | None = None) -> bool:
        """Whether they let this client in, and the name that it asks for.

        A connection without a server name is in no list of names: `allow` refuses it, `deny` does
        not.
        """
        sni = "" if hello is None else hello.sni
        if sni in self._deny_sni or not self._clients.admit(client):
            return False
        return not self._allow_sni or sni in self._allow_sni


def has_rules(access: Access) -> bool:
    """Whether the rules of a route say anything at all."""
    return bool(access.allow_clients or access.deny_clients or access.allow_sni or access.deny_sni)


def admits(access: Access, client: str, hello: Hello | None = None) -> bool:
    """Whether a route's rules let this client in; for one question. See `RouteAccess`."""
    clients = Clients(access.allow_clients, access.deny_clients)
    return RouteAccess(access, clients).admit(client, hello)


class Trust:
    """Whom a listener believes in what they say about the client.

    On a unix socket in the file system, those who may connect: its mode says who that is. An
    abstract one is open to every process of the network namespace, so there nobody is believed.
    """

    __slots__ = ("_blocks", "_unix")

    def __init__(self, listener: Listener) -> None:
        self._blocks = Blocks(listener.trusted_proxies)
        address = listener.address
        self._unix = isinstance(address, UnixAddress) and not address.path.startswith("@")

    def __bool__(self) -> bool:
        """Whether anybody is believed."""
        return self._unix or bool(self._blocks)

    def __contains__(self, address: str) -> bool:
        return self._unix if address == UNIX_CLIENT else address in self._blocks
