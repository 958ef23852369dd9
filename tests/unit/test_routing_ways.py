"""Which way bytes go: by the mode, the protocol, and what the kernel cannot move."""

from __future__ import annotations

from dataclasses import replace

import pytest

from l7proxy.model import (
    Address,
    Backend,
    BackendRef,
    Endpoint,
    Filters,
    Listener,
    Policy,
    Protocol,
    Splice,
    UnixAddress,
)
from l7proxy.routing.ways import as_dict, lines, ways
from l7proxy.worker.bykernel import LEAST
from tests.routes import route

WEB = Listener("web", Address("127.0.0.1", 80))
TCP, UNIX = Endpoint(Address("127.0.0.1", 1)), Endpoint(UnixAddress("/run/app.sock"))
ALL = route("all > /")
RELAYED = "user space relays them"
KERNEL = "the kernel moves them"
FIRST = "the first request's is parsed, routed and written anew; nobody reads the later ones"
EACH = "each one is parsed, routed and written anew, of requests and of responses"
SWITCHED = "after 101, or 2xx to CONNECT, the kernel moves everything"


def told(
    splice: Splice, *endpoints: Endpoint, listener: Listener = WEB, filters: Filters | None = None
) -> dict[str, str]:
    policy = Policy({"web": listener}, (ALL,), {"app": Backend("app", endpoints or (TCP,))})
    one = replace(ALL, filters=filters or Filters())
    return dict(lines(as_dict(ways(policy, listener, one, splice))))


@pytest.mark.parametrize(
    ("splice", "expected"),
    [
        (Splice.CONNECTION, (FIRST, KERNEL, "the kernel moves everything")),
        (Splice.NEVER, (FIRST, RELAYED, "user space relays")),
        (Splice.UPGRADE, (EACH, RELAYED, SWITCHED)),
    ],
)
def test_modes(splice: Splice, expected: tuple[str, ...]) -> None:
    assert told(splice) == dict(zip(("heads", "bodies", "upgrades"), expected, strict=True))


@pytest.mark.parametrize("splice", [Splice.CONNECTION, Splice.REQUEST, Splice.UPGRADE])
def test_unix_sockets_are_relayed(splice: Splice) -> None:
    for why, found in (
        ("every endpoint is a unix socket", told(splice, UNIX, replace(TCP, weight=0))),
        (
            "clients come by a unix socket",
            told(splice, listener=replace(WEB, address=UnixAddress("@web"))),
        ),
    ):
        assert found["heads"] == (FIRST if splice is Splice.CONNECTION else EACH)
        assert found["bodies"] == f"{RELAYED}: {why}"
        assert found["upgrades"] == f"user space relays: {why}"
    assert "unix" not in str(told(splice, UNIX, TCP))


def test_long_bodies_are_the_kernels() -> None:
    found = told(Splice.REQUEST)
    assert list(found) == ["heads", "small bodies", "large bodies", "upgrades"]
    assert (found["heads"], found["small bodies"], found["upgrades"]) == (EACH, RELAYED, SWITCHED)
    assert f"the kernel moves those of {LEAST // 1024} KiB and more" in found["large bodies"]


def test_streams() -> None:
    tls = replace(WEB, protocol=Protocol.TLS)
    hello = "the ClientHello is read, and goes on as it is"
    assert told(Splice.CONNECTION, listener=tls) == {"heads": hello, "bytes": KERNEL}
    tcp = replace(WEB, protocol=Protocol.TCP)
    assert told(Splice.NEVER, listener=tcp) == {"heads": "none are looked for", "bytes": RELAYED}
    unix = told(Splice.CONNECTION, UNIX, listener=tcp)["bytes"]
    assert unix == f"{RELAYED}: every endpoint is a unix socket"


def test_a_backend_that_is_not_there_says_nothing() -> None:
    policy = Policy({"web": WEB}, (ALL,), {})
    one = replace(ALL, backend_refs=(BackendRef("gone", 1, optional=True),))
    assert ways(policy, WEB, one, Splice.CONNECTION).large == KERNEL
