"""Listening sockets, and what is said when one cannot be had."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from l7proxy.errors import StartupError
from l7proxy.model import Address, Listener
from l7proxy.net.listen import bound_address, explain, open_listener, open_listeners

pytestmark = pytest.mark.net


def ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not ipv6(), reason="there is no IPv6 loopback here")


def named(**listeners: Address) -> list[Listener]:
    return [Listener(name, address) for name, address in listeners.items()]


def test_port_zero_becomes_a_port_that_takes_connections() -> None:
    with open_listener(Address("127.0.0.1", 0)) as sock:
        address = bound_address(sock)
        assert address.host == "127.0.0.1"
        assert address.port > 0
        assert not sock.getblocking()
        assert not os.get_inheritable(sock.fileno())
        with socket.create_connection((address.host, address.port), 5):
            pass


@needs_ipv6
def test_ipv4_and_ipv6_stand_side_by_side_on_one_port() -> None:
    with open_listener(Address("0.0.0.0", 0)) as four:
        port = bound_address(four).port
        with open_listener(Address("::", port)) as six:
            assert str(bound_address(six)) == f"[::]:{port}"
            with socket.create_connection(("::1", port), 5):
                pass
            accepted, client = six.accept()
            accepted.close()
            assert client[0] == "::1"


def test_a_port_can_be_taken_again_at_once() -> None:
    with open_listener(Address("127.0.0.1", 0)) as sock:
        address = bound_address(sock)
        with socket.create_connection((address.host, address.port), 5) as client:
            sock.setblocking(True)
            accepted, _ = sock.accept()
            accepted.close()  # first to close: this end is in TIME_WAIT
            assert client.recv(1) == b""
    with open_listener(address) as again:
        assert bound_address(again) == address


def test_all_or_none_and_every_failure_is_told() -> None:
    with open_listener(Address("127.0.0.1", 0)) as taken:
        used = bound_address(taken)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            free = Address(*probe.getsockname()[:2])
        with pytest.raises(StartupError) as caught:
            open_listeners(named(web=free, raw=used, far=Address("192.0.2.1", 80)))
        raw, far = str(caught.value).splitlines()
        assert raw.startswith(f"listener raw: cannot listen on {used}: another socket has this")
        assert f"ss -ltnp 'sport = :{used.port}'" in raw
        assert far.startswith("listener far: cannot listen on 192.0.2.1:80: no interface here")
        assert "ip -brief address" in far
        with open_listener(free):
            pass  # what was opened is closed again


def test_they_come_in_the_order_of_the_policy() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = Address(*probe.getsockname()[:2])
    opened = open_listeners(named(b=Address("127.0.0.1", 0), a=free))
    assert opened[0].address != free
    assert opened[1].address == free
    for one in opened:
        one.close()


def test_what_a_policys_listener_accepts_is_reset_unless_told_otherwise() -> None:
    """A client that connects before there is a worker, whose worker is killed: no clean end."""
    opened = open_listeners(named(web=Address("127.0.0.1", 0)))
    plain = open_listener(Address("127.0.0.1", 0))
    for sock, ends in ((opened[0].sock, "reset"), (plain, "end")):
        with socket.create_connection(sock.getsockname(), 5) as client:
            sock.setblocking(True)
            sock.accept()[0].close()
            try:
                seen = "end" if client.recv(1) == b"" else "data"
            except ConnectionResetError:
                seen = "reset"
        assert seen == ends
        sock.close()


@pytest.mark.parametrize(
    ("number", "address", "says"),
    [
        (errno.EACCES, Address("0.0.0.0", 80), "ip_unprivileged_port_start=80"),
        (errno.EADDRNOTAVAIL, Address("::2", 80), "[::]:80 takes all"),
        (errno.EAFNOSUPPORT, Address("::1", 80), "has no IPv6"),
        (errno.EMFILE, Address("::1", 80), "ulimit -n"),
        (errno.ENOMEM, Address("::1", 80), "cannot allocate memory"),
    ],
)
def test_an_errno_becomes_a_sentence(number: int, address: Address, says: str) -> None:
    text = explain(address, OSError(number, os.strerror(number)))
    assert text.startswith(f"cannot listen on {address}: ")
    assert says in text
