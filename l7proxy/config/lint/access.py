"""Blocks of addresses that `allow` names in vain."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network

from l7proxy.config.problems import quoted
from l7proxy.config.walker import At, Walker

Network = IPv4Network | IPv6Network


def unreachable(walker: Walker, allow: list[At[str]], deny: list[At[str]]) -> None:
    """Warns about blocks that are allowed and lie within a block that is denied: `deny` wins.

    Costs a look-up for each length of a prefix, however many blocks there are.
    """
    if not allow or not deny:
        return
    denied: dict[Network, At[str]] = {}
    for at in deny:
        denied.setdefault(ip_network(at.value), at)
    lengths = sorted({(block.version, block.prefixlen) for block in denied})
    for at in allow:
        block = ip_network(at.value)
        for version, length in lengths:
            if version != block.version or length > block.prefixlen:
                continue
            other = denied.get(block.supernet(new_prefix=length))
            if other is not None:
                walker.warn(
                    at.node,
                    f"{quoted(at.value)} in `allow` lets nobody in: `deny` beats it",
                    "remove it, or make the block in `deny` smaller",
                    notes=(walker.note("the block that is denied", other.node),),
                )
                break
