"""Which connections go to which transparent listener: a policy, and what the command line adds."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from l7proxy.model import Address, Interception, Listener, Policy, Transparent, Way
from l7proxy.sidecar import SidecarError

MARK = 0x40
"""The bit that packets have which TPROXY is to get. kube-proxy has 0x4000 and 0x8000, Cilium 0xf00,
Calico 0xffff0000, Tailscale 0xff0000, Istio 0x539."""

DNS = 53


@dataclass(frozen=True, slots=True)
class Taking:
    """A transparent listener, with numbers of users in place of names.

    `ipv4`, `ipv6`: what it takes. `host` is "" where it listens on every address.
    """

    name: str
    host: str
    port: int
    ipv4: bool
    ipv6: bool
    transparent: Transparent
    except_users: tuple[int, ...]

    def takes(self, mode: Interception, way: Way) -> bool:
        """Whether it gets connections of that direction in that way."""
        transparent = self.transparent
        return transparent.mode is mode and transparent.direction in (way, Way.BOTH)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be in place. `takings` stand in the order in which they are asked.

    `users` are those that l7proxy dials as; `untouched` ports that are left alone in both
    directions, `own` ports of other listeners, which inbound connections reach as they are.
    """

    takings: tuple[Taking, ...]
    users: tuple[int, ...]
    untouched: tuple[int, ...]
    own: tuple[int, ...]
    mark: int = MARK

    def of(self, mode: Interception, way: Way) -> tuple[Taking, ...]:
        """Who takes connections of that direction in that way."""
        return tuple(one for one in self.takings if one.takes(mode, way))

    @property
    def marks(self) -> bool:
        """Whether anything is there for TPROXY."""
        return any(one.transparent.mode is Interception.TPROXY for one in self.takings)

    @property
    def keeps(self) -> bool:
        """Whether backends are dialled with clients' addresses."""
        return any(one.transparent.keep_client_address for one in self.takings)


def plan(
    policy: Policy, users: Iterable[str] = (), untouched: Iterable[int] = (), mark: int = MARK
) -> Plan:
    """The plan of a checked policy. Raises SidecarError.

    `users` are names or numbers; without any it is whom `run` makes of its workers.
    """
    listeners = [one for one in policy.listeners.values() if one.transparent is not None]
    if not listeners:
        raise SidecarError(
            "no listener of this policy is transparent: write `transparent: redirect` in one"
        )
    takings = tuple(sorted(map(_taking, listeners), key=lambda one: not one.transparent.ports))
    _same_users(takings)
    own = {
        one.address.port
        for one in policy.listeners.values()
        if one.transparent is None and isinstance(one.address, Address) and one.address.port
    }
    return Plan(
        takings=takings,
        users=tuple(sorted({number(user) for user in users} or {_workers()})),
        untouched=tuple(sorted(set(untouched))),
        own=tuple(sorted(own)),
        mark=mark,
    )


def _taking(listener: Listener) -> Taking:
    address, transparent = listener.address, listener.transparent
    assert isinstance(address, Address)
    assert transparent is not None
    every = address.host == "*" or ip_address(address.host).is_unspecified
    return Taking(
        listener.name,
        "" if every else address.host,
        address.port,
        ipv4=not address.is_ipv6,
        ipv6=address.is_ipv6 or address.host == "*",
        transparent=transparent,
        except_users=tuple(sorted({number(user) for user in transparent.except_users})),
    )


def _same_users(takings: tuple[Taking, ...]) -> None:
    """What TPROXY gets is chosen where users are known, and given out where they are not."""
    first: Taking | None = None
    for one in takings:
        if not one.takes(Interception.TPROXY, Way.OUTBOUND):
            continue
        first = first or one
        if one.except_users != first.except_users:
            raise SidecarError(
                f"listeners {first.name} and {one.name} take outbound connections with TPROXY, and"
                " their `exceptUsers` differ: write the same in both"
            )


def number(user: str) -> int:
    """The number of a user. Raises SidecarError."""
    if user.isdecimal():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise SidecarError(
            f"there is no user {user}: name one that there is, or write its number (in a container"
            " that l7proxy runs in, users may have other numbers than here)"
        ) from None


def _workers() -> int:
    return number("nobody") if os.geteuid() == 0 else os.geteuid()
