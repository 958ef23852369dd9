"""What a policy needs opened: all of it or nothing, in its order, and kept while it is wanted."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from peers import free_port

from l7proxy.model import Address, Listener, Policy
from l7proxy.net import bundle
from l7proxy.net.listen import bound_address, open_listener
from l7proxy.supervisor.serving import Opener, Refused, Serving
from l7proxy.telemetry.counters import Rows, SharedCounters

pytestmark = pytest.mark.net


class Policies:
    """Opens policies that consist of listeners, one after the other."""

    def __init__(self) -> None:
        self._shared = SharedCounters(1, rows=8)
        self.rows = Rows(self._shared)
        self._opener = Opener(self.rows)
        self._opened: list[Serving] = []

    def open(self, current: Serving | None = None, /, **listeners: Address) -> Serving:
        named = {name: Listener(name, address) for name, address in listeners.items()}
        found = self._opener.open(bundle.pack(Policy(named, (), {})), current)
        self._opened.append(found)
        return found

    def close(self) -> None:
        for one in self._opened:
            os.close(one.policy)
            for listening in one.sockets.values():
                listening.close()
        self._shared.close()


@pytest.fixture
def policies() -> Iterator[Policies]:
    found = Policies()
    yield found
    found.close()


def free() -> Address:
    return Address("127.0.0.1", free_port())


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


CHOSEN = Address("127.0.0.1", 0)


def test_all_or_none_and_every_failure_is_told(policies: Policies) -> None:
    with open_listener(CHOSEN) as taken:
        used, unused = bound_address(taken), free()
        before = descriptors()
        with pytest.raises(Refused) as caught:
            policies.open(web=unused, raw=used, far=Address("192.0.2.1", 80))
        raw, far = str(caught.value).splitlines()
        assert raw.startswith(f"listener raw: cannot listen on {used}: another socket has this")
        assert f"ss -ltnp 'sport = :{used.port}'" in raw
        assert far.startswith("listener far: cannot listen on 192.0.2.1:80: no interface here")
        assert "ip -brief address" in far
        assert descriptors() == before, "neither a socket is left nor the policy"
        assert len(policies.rows) == 0
        with open_listener(unused):
            pass  # what was opened is closed again


def test_what_is_in_force_is_left_alone_by_a_policy_that_is_refused(policies: Policies) -> None:
    current = policies.open(web=CHOSEN)
    with open_listener(CHOSEN) as taken, pytest.raises(Refused):
        policies.open(current, web=CHOSEN, raw=bound_address(taken))
    (one,) = current.sockets.values()
    with socket.create_connection(one.sock.getsockname(), 5):
        pass


def test_too_many_names_are_refused_and_nothing_stays_open(policies: Policies) -> None:
    before = descriptors()
    with pytest.raises(Refused, match="8 can be counted at once"):
        policies.open(**{f"l{number}": CHOSEN for number in range(9)})
    assert descriptors() == before


def test_they_come_in_the_order_of_the_policy(policies: Policies) -> None:
    known = free()
    opened = policies.open(b=CHOSEN, a=known)
    first, second = opened.sockets.values()
    assert first.address != known
    assert second.address == known
    assert [listener.name for listener, _ in opened.listeners()] == ["b", "a"]
    assert opened.rows == (policies.rows["listener:b"], policies.rows["listener:a"])


def test_a_socket_stays_with_its_address_and_has_its_number_for_good(policies: Policies) -> None:
    known = free()
    old = policies.open(a=known, b=CHOSEN)
    new = policies.open(old, b=CHOSEN, c=CHOSEN, other=known)
    numbers = list(old.sockets)
    assert list(new.sockets)[0::2] == numbers[::-1]
    assert [new.sockets[number] for number in numbers] == list(old.sockets.values())
    assert set(new.sockets) - set(numbers) == {max(numbers) + 1}
    assert (old.number, new.number) == (1, 2)


def test_what_a_policys_listener_accepts_is_reset_unless_told_otherwise(
    policies: Policies,
) -> None:
    """A client that connects before there is a worker, whose worker is killed: no clean end."""
    (ours,) = policies.open(web=CHOSEN).sockets.values()
    with open_listener(CHOSEN) as plain:
        for sock, ends in ((ours.sock, "reset"), (plain, "end")):
            with socket.create_connection(sock.getsockname(), 5) as client:
                sock.setblocking(True)
                sock.accept()[0].close()
                try:
                    seen = "end" if client.recv(1) == b"" else "data"
                except ConnectionResetError:
                    seen = "reset"
            assert seen == ends
