"""A plan as a ruleset of nftables. Pure.

Facts that shape it:

- NAT looks at the first packet of what connection tracking takes for a new connection, and that can
  be one from the middle of an old one, if nobody tracked it before. So only a SYN is taken:
  connections that are there when the rules come go on as they are.
- `redirect` makes the destination 127.0.0.1 or ::1 for what a process here sends, and an address of
  the interface for what comes in.
- TPROXY works on what comes in. What a process here sends is marked, a routing rule sends marked
  packets to loopback, and there they come in. The mark of the connection (`ct mark`) brings along
  the packets that follow, and those of connections from before the rules have none.
- A socket that TPROXY made is transparent, and so is one that dials with a client's address: what
  is for one of them is delivered here, whatever its destination. A listener on every address is
  not meant by that (`socket wildcard`).
- The user of a packet is that of its socket; a SYN-ACK has the listener's. So users are compared on
  SYNs.
- Priorities: ours come just before those of destination NAT, so that what a client asked for is
  seen, and not what a service address stands for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network

from l7proxy.model import Interception, Way
from l7proxy.sidecar.plan import DNS, Plan, Taking

TABLE = "inet l7proxy"
NAT = -101
MANGLE = -151

_SYN = "tcp flags & (fin | syn | rst | ack) == syn"
_NO_SYN = "tcp flags & (fin | syn | rst | ack) != syn accept"
_REDIRECT, _TPROXY = Interception.REDIRECT, Interception.TPROXY


def ruleset(plan: Plan) -> str:
    """What `nft -f` takes: our table, in place of the one that is there, in one transaction."""
    chains = [*_redirects(plan), *_marks(plan)]
    text = "\n".join(chains)
    marked = text.replace("accept\n", f'accept comment "{fingerprint(text)}"\n', 1)
    return f"add table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n{marked}}}\n"


def removal() -> str:
    """What takes it away, whether it is there or not."""
    return f"add table {TABLE}\ndelete table {TABLE}\n"


def fingerprint(chains: str) -> str:
    """A name for these rules: it stands in one of them, to be compared."""
    return f"l7proxy {hashlib.sha256(chains.encode()).hexdigest()[:16]}"


def of(text: str) -> str:
    """The fingerprint in a ruleset."""
    return text.partition('comment "')[2].partition('"')[0]


def _chain(name: str, rules: Iterable[str], hook: str = "") -> str:
    head = [f"type {hook}; policy accept;"] if hook else []
    body = "".join(f"\t\t{line}\n" for line in (*head, *rules))
    return f"\tchain {name} {{\n{body}\t}}\n"


# ---- redirect


def _redirects(plan: Plan) -> Iterator[str]:
    for way in (Way.OUTBOUND, Way.INBOUND):
        takings = plan.of(_REDIRECT, way)
        if not takings:
            continue
        outbound = way is Way.OUTBOUND
        rules = ["meta l4proto != tcp accept"]
        rules += [f"meta mark & {plan.mark:#x} == {plan.mark:#x} accept"] if plan.marks else []
        rules += ['oifname "lo" accept' if outbound else 'iifname "lo" accept', _NO_SYN]
        rules += _left_alone(plan, way)
        rules += [_jump(way, "redirect", one) for one in takings]
        hook = "output" if outbound else "prerouting"
        yield _chain(f"redirect-{way}", rules, f"nat hook {hook} priority {NAT}")
        for one in takings:
            verdict = f"{_family(one)}meta l4proto tcp counter redirect to :{one.port}"
            yield _chain(_name(way, "redirect", one), [*_exceptions(one, way), verdict])


def _left_alone(plan: Plan, way: Way) -> Iterator[str]:
    if way is Way.OUTBOUND:
        yield f"meta skuid {_set(plan.users)} accept"
        ports = plan.untouched
    else:
        yield "fib daddr type != local accept"
        ports = tuple(sorted({*plan.untouched, *plan.own}))
    if ports:
        yield f"tcp dport {_set(ports)} accept"


def _jump(way: Way, mode: str, one: Taking) -> str:
    ports = one.transparent.ports
    return f"{f'tcp dport {_set(ports)} ' if ports else ''}jump {_name(way, mode, one)}"


def _name(way: Way, mode: str, one: Taking) -> str:
    return f"{mode}-{way}-{one.name}"


def _family(one: Taking) -> str:
    if one.ipv4 and one.ipv6:
        return ""
    return "meta nfproto ipv4 " if one.ipv4 else "meta nfproto ipv6 "


def _exceptions(one: Taking, way: Way, *, users: bool = True) -> Iterator[str]:
    transparent = one.transparent
    if one.except_users and way is Way.OUTBOUND and users:
        yield f"meta skuid {_set(one.except_users)} return"
    ports = transparent.except_ports if transparent.ports else (*transparent.except_ports, DNS)
    if ports:
        yield f"tcp dport {_set(sorted(set(ports)))} return"
    side = "daddr" if way is Way.OUTBOUND else "saddr"
    networks = [ip_network(block) for block in transparent.except_blocks]
    ipv4 = collapse_addresses(one for one in networks if isinstance(one, IPv4Network))
    ipv6 = collapse_addresses(one for one in networks if isinstance(one, IPv6Network))
    for family, blocks in (("ip", list(map(str, ipv4))), ("ip6", list(map(str, ipv6)))):
        if blocks:
            yield f"{family} {side} {_set(blocks)} return"


def _set(values: Iterable[int | str]) -> str:
    return f"{{ {', '.join(map(str, values))} }}"


# ---- tproxy


def _marks(plan: Plan) -> Iterator[str]:
    if not plan.marks:
        return
    outbound, inbound = plan.of(_TPROXY, Way.OUTBOUND), plan.of(_TPROXY, Way.INBOUND)
    mark = f"meta mark set meta mark | {plan.mark:#x}"
    keep = f"ct mark set ct mark | {plan.mark:#x}"
    marked = f"meta mark & {plan.mark:#x} == {plan.mark:#x}"
    if outbound or plan.keeps:
        rules = ["meta l4proto != tcp accept"]
        if plan.keeps:  # the answers of a backend that is here have to come back
            who = f"meta skuid {_set(plan.users)}"
            rules.append(f"{_SYN} {who} fib saddr type != local {keep} accept")
        rules.append(f"ct mark & {plan.mark:#x} == {plan.mark:#x} {mark} accept")
        if outbound:
            rules += ['oifname "lo" accept', _NO_SYN, *_left_alone(plan, Way.OUTBOUND)]
            rules += [_jump(Way.OUTBOUND, "mark", one) for one in outbound]
        yield _chain("outgoing", rules, f"route hook output priority {MANGLE}")
        for one in outbound:
            verdict = f"{_family(one)}{keep} {mark} accept"
            yield _chain(
                _name(Way.OUTBOUND, "mark", one), [*_exceptions(one, Way.OUTBOUND), verdict]
            )
    rules = ["meta l4proto != tcp accept", f"socket transparent 1 socket wildcard 0 {mark} accept"]
    looped = f'iifname "lo" {marked} {_SYN}'
    rules += [f"{looped} {_jump(Way.OUTBOUND, 'tproxy', one)}" for one in outbound]
    rules += ['iifname "lo" accept', _NO_SYN]
    if inbound:
        rules += _left_alone(plan, Way.INBOUND)
        rules += [_jump(Way.INBOUND, "tproxy", one) for one in inbound]
    yield _chain("incoming", rules, f"filter hook prerouting priority {MANGLE}")
    for way, takings in ((Way.OUTBOUND, outbound), (Way.INBOUND, inbound)):
        for one in takings:
            rules = [*_exceptions(one, way, users=False)]
            rules.append(
                f"{_family(one)}meta l4proto tcp counter tproxy {_target(one)} {mark} accept"
            )
            yield _chain(_name(way, "tproxy", one), rules)


def _target(one: Taking) -> str:
    if one.ipv4 and one.ipv6:
        return f"to :{one.port}"
    host = f"[{one.host}]" if one.ipv6 and one.host else one.host
    return f"{'ip' if one.ipv4 else 'ip6'} to {host}:{one.port}"
