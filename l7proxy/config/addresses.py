"""Addresses of listeners, endpoints and clients, and what people write in their place. Pure.

`authority` reads addresses too, for programs; here the reader is a person, so that everything near
to an address (a name, a URL, a bare port, IPv6 without brackets) is told apart and gets the hint
that mends it, at the character that is wrong.
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address, ip_network

from l7proxy.config.bad import Bad
from l7proxy.config.problems import quoted
from l7proxy.model import Address, Destination, NameAddress, SocketAddress, UnixAddress

_PORT = re.compile(r"[0-9]+")
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")

MAX_UNIX = 107  # bytes: `sun_path` of unix(7) has 108, and a NUL ends it
MAX_NAME = 253  # characters of a DNS name, RFC 1035, 2.3.4, as text


def listen_address(text: str) -> SocketAddress:
    """Where a listener binds. Port 0 lets the kernel choose one; `*` is every address."""
    if text.startswith("*:"):
        return Address("*", _port(text[2:], text, 0))
    address = _address(text, least_port=0)
    if isinstance(address, NameAddress):
        name, port = text.partition(":")[0], address.port
        hint = "write an IP address of this machine"
        if address.name == "localhost":
            hint = f'write "127.0.0.1:{port}", or "[::1]:{port}" for IPv6'
        raise Bad(
            f"a listener has an address, and {quoted(name)} is a name", hint, slice(len(name))
        )
    return address


def endpoint_address(text: str) -> Address | UnixAddress | NameAddress:
    """What can be dialled: a port, and one host that is neither "any" nor a group."""
    address = _address(text, least_port=1)
    if not isinstance(address, Address):
        return address
    host = ip_address(address.host)
    if host.is_unspecified:
        loopback = Address("::1" if address.is_ipv6 else "127.0.0.1", address.port)
        raise Bad(
            f"{quoted(text)} means every address of this machine and cannot be dialled",
            f'write "{loopback}" for this machine',
        )
    if host.is_multicast or address.host == "255.255.255.255":
        raise Bad(f"{quoted(text)} is a group of machines and cannot be dialled over TCP")
    return address


def no_address(text: str) -> Bad:
    """For what looks like nothing in particular."""
    if text.isascii() and text.isdecimal():
        return Bad(f"{quoted(text)} has no host", f"write it as 127.0.0.1:{text[:5]}")
    return Bad(f"{quoted(text)} is no address", 'write 127.0.0.1:8080, or "[::1]:8080"')


def _address(text: str, least_port: int) -> Address | UnixAddress | NameAddress:
    if text.startswith("unix:"):
        return _unix(text)
    if text.startswith(("/", "@")):
        raise Bad(f"{quoted(text)} is a path, and an address is wanted", f"write unix:{text[:60]}")
    if "://" in text:
        scheme, _, rest = text.partition("://")
        raise Bad(
            f"{quoted(text)} is a URL, and an address is wanted",
            f'write "{rest.split("/")[0]}"',
            slice(0, len(scheme) + 3),
        )
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket:
            raise Bad(f"{quoted(text)} has no closing bracket", 'write it as "[::1]:8080"')
        if not rest.startswith(":"):
            raise Bad(f"{quoted(text)} has no port", f'write it as "[{host}]:8080"')
        return Address(_ipv6(host, text), _port(rest[1:], text, least_port))
    if text.count(":") > 1:
        host, _, port = text.rpartition(":")
        if not is_ipv6(host) and not is_ipv6(text):
            raise no_address(text)
        shown = f"[{host}]:{port}" if is_ipv6(host) and port.isdecimal() else "[::1]:8080"
        raise Bad(f"the IPv6 address in {quoted(text)} needs brackets", f'write it as "{shown}"')
    host, colon, port = text.partition(":")
    if not colon:
        if host.isascii() and host.isdecimal():
            raise no_address(text)
        raise Bad(f"{quoted(text)} has no port", f"write it as {_with_port(host)}")
    if host in ("", "*"):
        hint = f'write "*:{port}" for every address, "127.0.0.1:{port}" for this machine only'
        if least_port:
            hint = f"write it as 127.0.0.1:{port}"
        raise Bad(f"{quoted(text)} has no host", hint, slice(0, 1))
    named = _host(host, text)
    number = _port(port, text, least_port)
    return NameAddress(named, number) if _is_name(named) else Address(named, number)


def _with_port(host: str) -> str:
    return f"{host[:60]}:8080" if all(map(_LABEL.fullmatch, host.split("."))) else "127.0.0.1:8080"


def _unix(text: str) -> UnixAddress:
    path = text.removeprefix("unix:")
    part = slice(len("unix:"), None)
    if path.startswith("//"):
        hint = f"write unix:/{path.lstrip('/')[:60]}"
        raise Bad(f"{quoted(text)} is a URL, and an address is wanted", hint, slice(5, 7))
    if path in ("", "@"):
        raise Bad(f"{quoted(text)} has no path", "write unix:/run/app.sock, or unix:@name")
    if not path.startswith(("/", "@")):
        hint = f"write the whole path, such as unix:/run/{path[:60]}, or unix:@{path[:60]}"
        raise Bad(f"the path {quoted(path)} does not start with `/`", hint, part)
    if not path.isprintable():
        raise Bad(f"the path {quoted(path)} has a control character", "", part)
    if path.startswith("/") and path.endswith("/"):
        raise Bad(f"the path {quoted(path)} is that of a folder", "name the socket in it", part)
    if len(path.encode()) > MAX_UNIX:
        raise Bad(
            f"the path {quoted(path)} has more than {MAX_UNIX} bytes",
            "the kernel takes no longer one",
            part,
        )
    return UnixAddress(path)


def is_ipv6(host: str) -> bool:
    """Whether `host` is an IPv6 literal, without brackets."""
    try:
        IPv6Address(host)
    except AddressValueError:
        return False
    return True


def _ipv6(host: str, text: str) -> str:
    part = slice(1, 1 + len(host))
    if "%" in host:
        raise Bad(
            f"the zone in {quoted(text)} is not supported", "use an address without `%`", part
        )
    try:
        return str(IPv6Address(host))
    except AddressValueError:
        raise Bad(f"{quoted(host)} is no IPv6 address", 'such as "[::1]:8080"', part) from None


def _is_name(host: str) -> bool:
    return not re.fullmatch(r"[0-9.]+", host)


def _host(host: str, text: str) -> str:
    """An IPv4 address, or a DNS name in lower case, without a trailing dot."""
    part = slice(0, len(host))
    try:
        return str(IPv4Address(host))
    except AddressValueError:
        pass
    name = host.removesuffix(".")
    # A last label of digits is never a name (RFC 1123, 2.1), and resolvers read it as an address.
    if re.fullmatch(r"[0-9.]+", host) or name.rpartition(".")[2].isdecimal():
        raise Bad(
            f"{quoted(host)} is no IPv4 address",
            "four numbers from 0 to 255 without leading zeros",
            part,
        )
    if not host.isascii():
        hint = "write its `xn--` form (punycode)"
        raise Bad(f"the name {quoted(host)} is not ASCII", hint, part)
    if not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise no_address(text)
    if len(name) > MAX_NAME:
        raise Bad(f"the name {quoted(host)} has more than {MAX_NAME} characters", "", part)
    return name.lower()


def _port(port: str, text: str, least: int) -> int:
    part = slice(len(text) - len(port), len(text))
    if not port:
        raise Bad(f"{quoted(text)} has no port", "write the port behind the `:`")
    if not _PORT.fullmatch(port):
        raise Bad(f"the port {quoted(port)} is no number", "write it in digits", part)
    if len(port) > 5 or not least <= int(port) <= 65535:
        raise Bad(f"the port {quoted(port)} is not from {least} to 65535", "", part)
    if port != str(int(port)):
        raise Bad(f"the port {quoted(port)} has a leading zero", f"write {int(port)}", part)
    return int(port)


def cidr(text: str) -> str:
    """A block of client addresses, "10.0.0.0/8"; a plain address is the block of it alone."""
    host, slash, length = text.partition("/")
    try:
        address = ip_address(host)
    except ValueError:
        raise _no_block(text, host) from None
    if "%" in host:
        hint = "use an address without `%`"
        raise Bad(f"the zone in {quoted(host)} is not supported", hint, slice(len(host)))
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        bits = int(length) - 96 if length.isdecimal() and 96 <= int(length[:4]) <= 128 else 32
        raise Bad(
            f"{quoted(text)} is an IPv4 address in IPv6's clothes, and clients never have one",
            f"write {address.ipv4_mapped}/{bits}",
        )
    if not slash:
        return f"{address}/{address.max_prefixlen}"
    part = slice(len(host) + 1, None)
    if not (length.isascii() and length.isdecimal()):
        hint = f"a number of bits, such as {host}/{8 if address.version == 4 else 64}"
        if not length:
            raise Bad(f"{quoted(text)} has no prefix length", hint)
        raise Bad(f"{quoted(length)} is no prefix length", hint, part)
    if len(length) > 3 or int(length) > address.max_prefixlen:
        most = address.max_prefixlen
        raise Bad(f"the prefix length {quoted(length)} is not from 0 to {most}", "", part)
    if length != str(int(length)):
        hint = f"write {int(length)}"
        raise Bad(f"the prefix length {quoted(length)} has a leading zero", hint, part)
    block = ip_network((address, int(length)), strict=False)
    if block.network_address != address:
        raise Bad(
            f"{quoted(text)} has bits set beyond its prefix",
            f"write {block}, or {address} for this address alone",
        )
    return str(block)


def destination(text: str) -> Destination:
    """Where connections go: a block, a block and a port, or `*:PORT`."""
    block, port = text, ""
    if text.startswith("["):
        block, bracket, rest = text[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            said = "port" if bracket else "closing bracket"
            raise Bad(f"{quoted(text)} has no {said}", 'write it as "[fd00::/8]:443"')
        port = rest[1:]
    elif text.count(":") == 1:
        block, _, port = text.partition(":")
    elif found := re.fullmatch(r"([^/]*/[0-9]+):([0-9]+)", text):
        hint = f'write it as "[{found[1]}]:{found[2]}"'
        raise Bad(f"the IPv6 block in {quoted(text)} needs brackets", hint)
    number = _port(port, text, 1) if port or block != text else None
    if block == "*":
        if number is None:
            raise Bad(f"{quoted(text)} is everything", "write a port: *:443")
        return Destination(None, number)
    return Destination(cidr(block), number)


def no_destination(text: str) -> Bad:
    """For what looks like nothing in particular."""
    if text.isascii() and text.isdecimal():
        hint = f'write "*:{text[:5]}" for that port of every address'
        return Bad(f"{quoted(text)} is a number, and a destination is wanted", hint)
    return no_block(text)


def _no_block(text: str, host: str) -> Bad:
    if "://" in text:
        return Bad(f"{quoted(text)} is a URL, and a CIDR block is wanted", "such as 10.0.0.0/8")
    bare, _, port = host.rpartition(":")
    if port.isdecimal() and re.fullmatch(r"[0-9.]+|\[.*\]", bare):
        hint = f"write {bare.strip('[]')}: clients come from any port"
        return Bad(f"{quoted(host)} has a port", hint, slice(len(bare), len(host)))
    if host.startswith("[") and is_ipv6(host.strip("[]")):
        return Bad(
            f"{quoted(text)} has brackets", f'write "{text.replace("[", "").replace("]", "")}"'
        )
    if re.fullmatch(r"[0-9.]+", host):
        hint = "such as 10.0.0.0/8: four numbers from 0 to 255 without leading zeros"
        return Bad(f"{quoted(text)} is no CIDR block", hint, slice(len(host)))
    if host and all(_LABEL.fullmatch(label) for label in host.split(".")):
        hint = "clients are told by their addresses: write a block such as 10.0.0.0/8"
        return Bad(f"{quoted(host)} is a name, and a CIDR block is wanted", hint, slice(len(host)))
    return no_block(text)


def no_block(text: str) -> Bad:
    """For what looks like nothing in particular."""
    return Bad(f"{quoted(text)} is no CIDR block", 'such as 10.0.0.0/8, or "fd00::/8"')
