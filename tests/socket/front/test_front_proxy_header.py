"""PROXY headers in and out, through the running proxy, over every datapath."""

from __future__ import annotations

import struct
import time
from itertools import product

import pytest
from fronts import (
    LEAVING,
    OK,
    answer_once,
    fields_of,
    get,
    is_reset,
    leave_in_the_middle,
    record_on,
    say_too_little,
)
from peers import Backend, Peer, connect, digest, stream
from proxy import Proxy

from l7proxy.model import Address, ProxyVersion
from l7proxy.proxyproto import MAX_V2, SIGNATURE, HeaderReader, Tlv, encode

pytestmark = pytest.mark.net

CLIENT, ENTRY = Address("203.0.113.5", 4711), Address("198.51.100.7", 443)
V1 = encode(ProxyVersion.V1, CLIENT, ENTRY)
V2 = encode(ProxyVersion.V2, CLIENT, ENTRY)
LOCAL = SIGNATURE + b"\x20\x00\x00\x00"


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("listener", ["accept", "require"])
def test_the_client_is_who_the_header_says(
    proxy: Proxy, backend: Backend, listener: str, header: bytes
) -> None:
    answer_once(backend)
    with connect(proxy.address(listener)) as client:
        client.send(header + get())
        assert client.read(len(OK)) == OK
        port = client.port
    assert fields_of(backend.heard())["x-forwarded-for"] == "203.0.113.5"
    record = record_on(proxy, listener)
    assert record["client"] == "203.0.113.5:4711"
    assert record["proxy"] == f"127.0.0.1:{port}"


@pytest.mark.parametrize("header", [V1, V2, LOCAL], ids=["v1", "v2", "local"])
def test_dripped(proxy: Proxy, backend: Backend, header: bytes) -> None:
    answer_once(backend)
    with connect(proxy.address("require")) as client:
        client.drip(header + get())
        assert client.read(len(OK)) == OK
    said = "127.0.0.1" if header is LOCAL else "203.0.113.5"
    assert fields_of(backend.heard())["x-forwarded-for"] == said


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
def test_cut_anywhere(proxy: Proxy, backend: Backend, header: bytes) -> None:
    sent = header + get()
    for cut in range(1, len(header) + 3, 4):
        answer_once(backend)
        with connect(proxy.address("require")) as client:
            client.send(sent[:cut])
            time.sleep(0.003)
            client.send(sent[cut:])
            assert client.read(len(OK)) == OK
        assert fields_of(backend.heard())["x-forwarded-for"] == "203.0.113.5"


def test_an_optional_header_may_be_missing(proxy: Proxy, backend: Backend) -> None:
    answer_once(backend)
    with connect(proxy.address("accept")) as client:
        client.drip(get())
        assert client.read(len(OK)) == OK
        port = client.port
    assert fields_of(backend.heard())["x-forwarded-for"] == "127.0.0.1"
    assert proxy.record(port)["proxy"] == ""


@pytest.mark.parametrize(
    ("sent", "rule"),
    [
        (get(), "proxy-header-missing"),
        (b"\x16\x03\x01", "proxy-header-missing"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n", "proxy-port"),
        (b"PROXY " + b"x" * 200, "proxy-line-too-long"),
        (SIGNATURE + b"\x21\x11\xff\xff" + bytes(100), "proxy-too-large"),
        (V2[:-1] + bytes([V2[-1] ^ 1]), "proxy-checksum"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_header_is_reset(proxy: Proxy, backend: Backend, sent: bytes, rule: str) -> None:
    before = proxy.settled()["errors"]["proxy_header"]
    with connect(proxy.address("require")) as client:
        client.send(sent)
        assert client.ending() == "reset"
        port = client.port
    record = proxy.record(port)
    assert (record["reason"], record["rule"]) == ("proxy_header", rule)
    assert proxy.settled()["errors"]["proxy_header"] == before + 1
    assert backend.accepted == 0


def test_what_began_like_a_header_must_be_one_even_where_it_is_optional(
    proxy: Proxy, backend: Backend
) -> None:
    with connect(proxy.address("accept")) as client:
        client.send(b"PROXY nonsense\r\n" + get())
        assert client.ending() == "reset"


def test_a_huge_header_of_many_vectors_is_read(proxy: Proxy, backend: Backend) -> None:
    answer_once(backend)
    block = bytes((203, 0, 113, 5, 198, 51, 100, 7)) + struct.pack("!HH", 4711, 443)
    room = MAX_V2 - 16 - len(block) - 3
    tlv = struct.pack("!BH", Tlv.NOOP, room) + bytes(room)
    header = SIGNATURE + b"\x21\x11" + struct.pack("!H", len(block) + len(tlv)) + block + tlv
    with connect(proxy.address("require")) as client:
        client.send(header + get())
        assert client.read(len(OK)) == OK
    assert fields_of(backend.heard())["x-forwarded-for"] == "203.0.113.5"


def test_strangers_are_not_believed(proxy: Proxy, backend: Backend) -> None:
    """Where a header is required they are reset; where it is optional it is their request."""
    assert is_reset(proxy.address("strange"))
    record = record_on(proxy, "strange")
    assert (record["reason"], record["rule"]) == ("proxy_header", "untrusted-proxy")
    with connect(proxy.address("strange-accept")) as client:
        client.send(V1 + get())
        assert client.head().startswith(b"HTTP/1.1 400 ")
    answer_once(backend)
    with connect(proxy.address("strange-accept")) as client:
        client.send(get())
        assert client.read(len(OK)) == OK


def test_no_header_in_time(proxy: Proxy, backend: Backend) -> None:
    begun = (b"", b"PROXY TCP4 203", V2[:20], SIGNATURE[:5])
    say_too_little(proxy, product(("require-soon", "raw-require-soon"), begun))
    assert backend.accepted == 0


@pytest.mark.parametrize("way", LEAVING)
def test_a_client_that_leaves_in_the_middle(proxy: Proxy, backend: Backend, way: str) -> None:
    leave_in_the_middle(proxy, "require", V2[:20], way)
    assert backend.accepted == 0


def test_rules_on_clients_are_about_who_is_served(proxy: Proxy, backend: Backend) -> None:
    header = encode(ProxyVersion.V2, Address("203.0.113.66", 1), ENTRY)
    before = proxy.settled()["errors"]["denied"]
    with connect(proxy.address("accept")) as client:
        client.send(header + get())
        assert client.ending() == "reset"
    record = record_on(proxy, "accept")
    assert (record["reason"], record["client"]) == ("denied", "203.0.113.66:1")
    assert proxy.settled()["errors"]["denied"] == before + 1
    assert backend.accepted == 0


# ---- streams


@pytest.mark.parametrize("listener", ["raw-accept", "raw-require"])
def test_a_stream_behind_a_header_arrives_whole(
    proxy: Proxy, backend: Backend, listener: str
) -> None:
    size = 3_000_000

    def script(peer: Peer) -> None:
        backend.tell(peer.digest_of(size))
        for piece in stream(2, size):
            peer.send(piece)

    backend.play(script)
    with connect(proxy.address(listener)) as client:
        client.send(V2 + bytes(stream(1, size).__next__()[:1000]))
        sent = 1000
        for piece in stream(1, size):
            client.send(piece[sent:])
            sent = 0
        assert backend.heard() == digest(1, size)
        assert client.rest_digest() == (size, digest(2, size))


def test_a_server_that_speaks_first_behind_an_optional_header(
    proxy: Proxy, backend: Backend
) -> None:
    """The client waits for it and sends nothing: after the head timeout it goes on without."""
    backend.play(lambda peer: (peer.send(b"220 ready\r\n"), peer.rest())[0])
    with connect(proxy.address("raw-accept-soon")) as client:
        assert client.read(11) == b"220 ready\r\n"


def test_an_optional_header_on_a_stream(proxy: Proxy, backend: Backend) -> None:
    backend.play(lambda peer: backend.tell(peer.read(5)))
    for sent in (V1 + b"hello", V2 + b"hello", b"hello"):
        with connect(proxy.address("raw-accept")) as client:
            client.send(sent)
            assert backend.heard() == b"hello"


# ---- out


def test_version_1_out(proxy: Proxy, backend: Backend) -> None:
    answer_once(backend)
    with connect(proxy.address("web")) as client:
        client.send(get(b"/v1"))
        assert client.read(len(OK)) == OK
        port = client.port
    heard = backend.heard()
    line, _, head = heard.partition(b"\r\n")
    entry = proxy.address("web")[1]
    assert line == f"PROXY TCP4 127.0.0.1 127.0.0.1 {port} {entry}".encode()
    assert head.startswith(b"GET /v1 HTTP/1.1\r\n")


def test_version_2_out_tells_what_a_header_in_told(proxy: Proxy, backend: Backend) -> None:
    def script(peer: Peer) -> None:
        reader = HeaderReader(required=True)
        while not reader.feed(peer.sock.recv(10)):
            pass
        backend.tell(reader.header)
        peer._kept = reader.surplus
        peer.head()
        peer.send(OK)

    backend.play(script)
    with connect(proxy.address("require")) as client:
        client.send(V1 + get(b"/v2"))
        assert client.read(len(OK)) == OK
    header = backend.heard()
    assert (header.source, header.destination) == (CLIENT, ENTRY)
    assert header.tlv(Tlv.AUTHORITY) == b"app.test"
    assert header.tlv(Tlv.CRC32C) is not None


def test_hops_beyond_the_header(proxy: Proxy, backend: Backend) -> None:
    """The header's client is a trusted proxy itself, so what its request says is believed."""
    answer_once(backend)
    header = encode(ProxyVersion.V1, Address("10.0.0.1", 1), ENTRY)
    with connect(proxy.address("require")) as client:
        client.send(
            header
            + get(fields=b"X-Forwarded-For: 1.1.1.1, 203.0.113.9\r\nX-Forwarded-Proto: wss\r\n")
        )
        assert client.read(len(OK)) == OK
    fields = fields_of(backend.heard())
    assert fields["x-forwarded-for"] == "1.1.1.1, 203.0.113.9, 10.0.0.1"
    assert fields["x-forwarded-proto"] == "wss"
    assert fields["x-forwarded-port"] == str(ENTRY.port)  # where the client came to
    assert fields["x-real-ip"] == "203.0.113.9"
    assert fields["forwarded"] == "for=10.0.0.1;host=app.test;proto=http"
    assert record_on(proxy, "require")["client"] == "203.0.113.9"


CLAIM = b"X-Forwarded-Proto: https\r\n"


def location(client: Peer) -> bytes:
    """Of the redirect that comes."""
    head = client.head()
    assert head.startswith(b"HTTP/1.1 303 "), head
    return next(line for line in head.split(b"\r\n") if line.startswith(b"Location: "))


def test_a_redirect_leads_where_the_client_came_to(proxy: Proxy) -> None:
    """Scheme and port are those of the proxy in front, which ended TLS."""
    header = encode(ProxyVersion.V1, Address("10.0.0.1", 1), ENTRY)
    with connect(proxy.address("require")) as client:
        client.send(header + get(fields=CLAIM))
        assert location(client) == b"Location: https://app.test/claimed/"
    with connect(proxy.address("require")) as client:
        client.send(header + get(fields=CLAIM + b"X-Forwarded-Port: 8443\r\n"))
        assert location(client) == b"Location: https://app.test:8443/claimed/"


def test_what_is_not_believed_does_not_route(proxy: Proxy, backend: Backend) -> None:
    """A stranger's X-Forwarded-Proto is dropped before any route is looked at."""
    answer_once(backend)
    with connect(proxy.address("web")) as client:
        client.send(get(fields=CLAIM))
        assert client.read(len(OK)) == OK
    assert fields_of(backend.heard())["x-forwarded-proto"] == "http"


# ---- limits and rules of listeners


def test_connections_of_one_client(proxy: Proxy, backend: Backend) -> None:
    answer_once(backend)
    before = proxy.settled()["errors"]["client_limit"]
    clients = [connect(proxy.address("few")) for _ in range(2)]
    for client in clients:
        client.send(get())
        assert client.read(len(OK)) == OK
    assert is_reset(proxy.address("few"))
    port = clients[0].port
    clients[0].close()
    proxy.record(port)
    with connect(proxy.address("few")) as fourth:
        fourth.send(get())
        assert fourth.read(len(OK)) == OK
    clients[1].close()
    assert proxy.settled()["errors"]["client_limit"] == before + 1


def test_connections_of_one_client_behind_a_proxy(proxy: Proxy, backend: Backend) -> None:
    """The limit is the client's, not the proxy's."""
    backend.play(lambda peer: (peer.send(b"!"), peer.rest())[0])
    other = encode(ProxyVersion.V2, Address("203.0.113.6", 4711), ENTRY)
    with connect(proxy.address("few-behind")) as one, connect(proxy.address("few-behind")) as two:
        one.send(V2)
        assert one.read(1) == b"!"
        two.send(other)
        assert two.read(1) == b"!"
        with connect(proxy.address("few-behind")) as again:
            again.send(V1)
            assert again.ending() == "reset"


@pytest.mark.parametrize(
    ("listener", "rule", "route"), [("shut", "client", ""), ("raw-shut", "access", "raw-shut")]
)
def test_a_client_that_is_denied(
    proxy: Proxy, backend: Backend, listener: str, rule: str, route: str
) -> None:
    before = proxy.settled()["errors"]["denied"]
    assert is_reset(proxy.address(listener))
    record = record_on(proxy, listener)
    assert proxy.settled()["errors"]["denied"] == before + 1
    assert (record["reason"], record["rule"], record["route"]) == ("denied", rule, route)
    assert (record["listener"], record["state"]) == (listener, "new")
    assert backend.accepted == 0


def test_a_listener_allows_who_comes_through_a_trusted_proxy(
    proxy: Proxy, backend: Backend
) -> None:
    answer_once(backend)
    with connect(proxy.address("behind")) as client:
        client.send(get(fields=b"X-Forwarded-For: 203.0.113.9\r\n"))
        assert client.read(len(OK)) == OK
    with connect(proxy.address("behind")) as client:
        client.send(get(fields=b"X-Forwarded-For: 192.0.2.1\r\n"))
        assert client.ending() == "reset"
