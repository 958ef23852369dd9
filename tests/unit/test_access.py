"""CIDR sets, and who is let in."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7proxy.access import (
    UNIX_CLIENT,
    Blocks,
    Clients,
    RouteAccess,
    Trust,
    admits,
    host_of,
    plain_address,
)
from l7proxy.model import Access, Address, Hello, Listener, UnixAddress

HOLDS = [
    ("10.0.0.0/8", "10.255.255.255", True),
    ("10.0.0.0/8", "11.0.0.0", False),
    ("192.0.2.1", "192.0.2.1", True),
    ("192.0.2.1/32", "192.0.2.2", False),
    ("192.0.2.0/31", "192.0.2.1", True),
    ("0.0.0.0/0", "203.0.113.9", True),
    ("0.0.0.0/0", "2001:db8::1", False),
    ("::/0", "2001:db8::1", True),
    ("::/0", "192.0.2.1", False),
    ("::/0", "::ffff:192.0.2.1", False),  # an IPv4 client
    ("192.0.2.0/24", "::ffff:192.0.2.77", True),
    ("::ffff:192.0.2.0/120", "192.0.2.77", True),
    ("::ffff:0:0/96", "192.0.2.77", True),
    ("fe80::/10", "fe80::1%eth0", True),
    ("2001:db8::/32", "2001:db8:ffff::", True),
    ("2001:db8::/32", "2001:db9::", False),
    ("0.0.0.0/0", UNIX_CLIENT, False),
    ("0.0.0.0/0", "nonsense", False),
    ("0.0.0.0/0", "", False),
]


@pytest.mark.parametrize(("block", "address", "inside"), HOLDS)
def test_a_block(block: str, address: str, inside: bool) -> None:
    assert (address in Blocks([block])) is inside
    assert (address in Blocks([block, "198.51.100.7/32", "2001:db8:1::/48"])) is inside


def test_nothing_holds_nothing() -> None:
    assert not Blocks()
    assert "192.0.2.1" not in Blocks()
    assert Blocks(["192.0.2.1"])


addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
blocks = st.tuples(addresses, st.integers(0, 128)).map(
    lambda pair: str(
        ipaddress.ip_network(f"{pair[0]}/{min(pair[1], 128 if ':' in pair[0] else 32)}", False)
    )
)


@given(st.lists(blocks, max_size=8), addresses)
def test_as_ipaddress_says(held: list[str], address: str) -> None:
    ip = ipaddress.ip_address(address)
    mapped = getattr(ip, "ipv4_mapped", None)
    if mapped is None:
        expected = any(ip in ipaddress.ip_network(block) for block in held)
        assert (address in Blocks(held)) == expected


def test_deny_beats_allow() -> None:
    clients = Clients(("10.0.0.0/8",), ("10.1.0.0/16", "192.0.2.1"))
    assert clients
    assert clients.admit("10.2.0.1")
    assert not clients.admit("10.1.0.1")
    assert not clients.admit("192.0.2.9")
    assert not clients.admit(UNIX_CLIENT)
    assert Clients((), ("10.0.0.0/8",)).admit(UNIX_CLIENT)
    assert not Clients((), ())
    assert Clients((), ()).admit("192.0.2.1")


ROUTES = [
    (Access(), "192.0.2.1", "", True),
    (Access(allow_clients=("192.0.2.0/24",)), "192.0.2.1", "", True),
    (Access(allow_clients=("192.0.2.0/24",)), "192.0.3.1", "", False),
    (Access(deny_clients=("192.0.2.0/24",)), "192.0.2.1", "", False),
    (Access(allow_sni=("a.example",)), "192.0.2.1", "a.example", True),
    (Access(allow_sni=("a.example",)), "192.0.2.1", "b.example", False),
    (Access(allow_sni=("a.example",)), "192.0.2.1", "", False),
    (Access(deny_sni=("a.example",)), "192.0.2.1", "", True),
    (Access(deny_sni=("*.example",)), "192.0.2.1", "a.b.example", False),
    (Access(deny_sni=("*.example",)), "192.0.2.1", "example", True),
    (Access(allow_sni=("*.example",), deny_sni=("x.example",)), "192.0.2.1", "x.example", False),
    (Access(allow_sni=("*.e",), allow_clients=("10.0.0.0/8",)), "192.0.2.1", "a.e", False),
]


@pytest.mark.parametrize(("access", "client", "sni", "let_in"), ROUTES)
def test_a_route(access: Access, client: str, sni: str, let_in: bool) -> None:
    assert admits(access, client, Hello(sni)) is let_in
    if not sni:
        assert admits(access, client) is let_in


def test_trust() -> None:
    tcp = Address("127.0.0.1", 80)
    assert not Trust(Listener("a", tcp))
    trust = Trust(Listener("a", tcp, trusted_proxies=("10.0.0.0/8",)))
    assert trust
    assert "10.1.1.1" in trust
    assert "192.0.2.1" not in trust
    assert UNIX_CLIENT not in trust


def test_who_may_connect_to_a_unix_socket_is_trusted_but_not_on_an_abstract_one() -> None:
    assert UNIX_CLIENT in Trust(Listener("a", UnixAddress("/run/a.sock")))
    assert UNIX_CLIENT not in Trust(Listener("a", UnixAddress("@a")))
    assert not Trust(Listener("a", UnixAddress("@a")))


@pytest.mark.parametrize(
    ("address", "plain"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:c000:201", "::ffff:c000:201"),
        ("fe80::1%eth0", "fe80::1"),
        ("2001:db8::1", "2001:db8::1"),
        (UNIX_CLIENT, UNIX_CLIENT),
    ],
)
def test_plain(address: str, plain: str) -> None:
    assert plain_address(address) == plain


@pytest.mark.parametrize(
    ("client", "host"),
    [
        ("203.0.113.5:4711", "203.0.113.5"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("203.0.113.5", "203.0.113.5"),  # who a proxy says that it is has no port
        ("2001:db8::1", "2001:db8::1"),
        ("2001:db8::1:80", "2001:db8::1:80"),
        ("api.internal:80", "api.internal"),
        (UNIX_CLIENT, UNIX_CLIENT),
        ("unix:/run/app.sock", "unix:/run/app.sock"),
        ("", ""),
    ],
)
def test_the_host_of_a_client(client: str, host: str) -> None:
    assert host_of(client) == host


def test_thousands_of_blocks_are_compiled_a_few_at_a_time() -> None:
    """Else the first request of a route with a country's addresses would stop a worker."""
    blocks = [f"10.{high}.{low}.0/24" for high in range(8) for low in range(256)]
    building = RouteAccess.building(Access(tuple(blocks), tuple(blocks[:1])))
    steps = 0
    while True:
        try:
            next(building)
            steps += 1
        except StopIteration as done:
            rules: RouteAccess = done.value
            break
    assert steps == len(blocks) // 64
    assert rules.admit("10.7.255.1")
    assert not rules.admit("10.8.0.1")
    assert not rules.admit("10.0.0.1"), "denied"
