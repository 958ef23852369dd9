"""The rules that bring connections to transparent listeners: put in place, looked at, taken away.

    plan      from a policy: which connections go to which listener, and which go nowhere
    ruleset   the same as a ruleset of nftables, one table of our own
    nft       `nft`, which puts a ruleset in place as one transaction
    marked    what TPROXY needs beside it: marked packets are delivered here (rules and routes)
    state     what is in place, and whether it fits

Why `nft`, and not netlink: a ruleset is text that whoever is on call can read before it is used
(`--dry-run`), and what is tested is what is used. The program comes with every distribution. For
rules and routes there is no such program to count on (iproute2 is not in every image), and they are
four messages.
"""

from __future__ import annotations

from l7proxy.errors import L7ProxyError


class SidecarError(L7ProxyError):
    """The rules cannot be put in place, looked at or taken away."""


__all__ = ["SidecarError"]
