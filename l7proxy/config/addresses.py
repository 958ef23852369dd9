"""Addresses of listeners and endpoints, and what people write in their place. Pure.

`authority` reads addresses too, for programs; here the reader is a person, so that everything near
to an address (a name, a URL, a bare port, IPv6 without brackets) is told apart and gets the hint
that mends it, at the character that is wrong.
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from l7proxy.config.bad import Bad
from l7proxy.config.problems import quoted
from l7proxy.model import Address

_PORT = re.compile(r"[0-9]+")
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?")


def listen_address(text: str) -> Address:
    """Where a listener binds. Port 0 lets the kernel choose one."""
    return _address(text, least_port=0)


def endpoint_address(text: str) -> Address:
    """What can be dialled: a port, and one host that is neither "any" nor a group."""
    address = _address(text, least_port=1)
    host = IPv6Address(address.host) if address.is_ipv6 else IPv4Address(address.host)
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


def _address(text: str, least_port: int) -> Address:
    if "://" in text:
        scheme, _, rest = text.partition("://")
        raise Bad(
            f"{quoted(text)} is a URL, and an address is wanted",
            f'write "{rest.split("/")[0]}"',
            slice(0, len(scheme) + 3),
        )
    if text.startswith(("unix:", "/")):
        raise Bad("unix sockets are not supported yet", "use HOST:PORT")
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
        raise Bad(f"{quoted(text)} has no port", f"write it as {_literal(host)}:8080")
    if host in ("", "*"):
        hint = f'write "0.0.0.0:{port}" for every IPv4 address, "[::]:{port}" for every IPv6 one'
        if least_port:
            hint = f"write it as 127.0.0.1:{port}"
        raise Bad(f"{quoted(text)} has no host", hint, slice(0, 1))
    return Address(_ipv4(host, text), _port(port, text, least_port))


def _literal(host: str) -> str:
    try:
        return str(IPv4Address(host))
    except AddressValueError:
        return "127.0.0.1"


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


def _ipv4(host: str, text: str) -> str:
    part = slice(0, len(host))
    try:
        return str(IPv4Address(host))
    except AddressValueError:
        pass
    if host == "localhost":
        port = text.partition(":")[2]
        raise Bad(
            "addresses are literal for now, and `localhost` is a name",
            f'write "127.0.0.1:{port}", or "[::1]:{port}" for IPv6',
            part,
        )
    if re.fullmatch(r"[0-9.]+", host):
        raise Bad(
            f"{quoted(host)} is no IPv4 address",
            "four numbers from 0 to 255 without leading zeros",
            part,
        )
    if all(_LABEL.fullmatch(label) for label in host.split(".")):
        raise Bad(
            f"DNS names such as {quoted(host)} are not supported yet",
            "addresses are literal for now: write the IP address",
            part,
        )
    raise no_address(text)


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
