"""Listeners that are not IPv4: unix sockets, also as backends, and both families on one socket."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fronts import OK, answer_once, fields_of, get
from peers import Backend, Peer, connect, connect_unix, digest, stream
from proxy import DATAPATHS, Proxy, until

from l7proxy.model import Address, ProxyVersion
from l7proxy.proxyproto import encode

pytestmark = pytest.mark.net

POLICY = """\
listeners:
  file: {{address: "unix:{folder}/web.sock", mode: "0600"}}
  raw: {{address: "unix:{folder}/raw.sock", protocol: TCP}}
  idle: {{address: "unix:{folder}/idle.sock", protocol: TCP, timeouts: {{idle: 1s}}}}
  abstract: {{address: "unix:@{name}"}}
  proxied: {{address: "unix:{folder}/proxied.sock", proxyProtocol: require}}
  guarded: {{address: "unix:{folder}/guarded.sock", allow: [127.0.0.1]}}
  dual: {{address: "*:0", allow: [127.0.0.1, "::1"]}}
  dual-shut: {{address: "*:0", deny: [127.0.0.0/8]}}
  tcp: {{address: 127.0.0.1:0}}
routes:
  - {{name: raw, listeners: [raw, idle], backendRefs: [{{name: unix}}]}}
  - {{name: told, listeners: [file], matches: [{{path: /told}}], backendRefs: [{{name: told}}]}}
  - name: sticky
    listeners: [file]
    matches: [{{path: /sticky}}]
    backendRefs: [{{name: sticky}}]
  - {{name: rest, listeners: [file, abstract, proxied, guarded, dual, dual-shut, tcp],
     backendRefs: [{{name: unix}}]}}
backends:
  unix: {{endpoints: ["unix:{folder}/app.sock"]}}
  told: {{endpoints: ["unix:{folder}/app.sock"], proxyProtocol: v1}}
  sticky: {{endpoints: ["unix:{folder}/app.sock"], sticky: {{cookie: l7}}}}
"""


class Place:
    """A proxy, the folder of its sockets, and the backend behind it."""

    def __init__(self, proxy: Proxy, folder: Path, backend: Backend) -> None:
        self.proxy, self.folder, self.backend = proxy, folder, backend

    @property
    def name(self) -> str:
        """The abstract socket."""
        return f"@{self.folder.name}"

    def connect(self, listener: str) -> Peer:
        return connect_unix(str(self.folder / f"{listener}.sock"))


@pytest.fixture(scope="module", params=DATAPATHS)
def shared(request: pytest.FixtureRequest) -> Iterator[Place]:
    # The workers are nobody in particular: they must get to the backend's socket.
    folder = Path(tempfile.mkdtemp(prefix="l7proxy-"))
    folder.chmod(0o755)
    backend = Backend(path=str(folder / "app.sock"))
    (folder / "app.sock").chmod(0o777)
    policy = POLICY.format(folder=folder, name=folder.name)
    with Proxy(policy, request.param) as proxy:
        yield Place(proxy, folder, backend)
        proxy.stop()
    backend.close()
    shutil.rmtree(folder)


@pytest.fixture
def place(shared: Place) -> Iterator[Place]:
    shared.proxy.forget_records()
    yield shared
    stats = shared.proxy.settled()
    shared.backend.finish()
    assert stats["pairs"] == {"active": 0, "spliced": 0, "relayed": 0}
    assert stats["errors"]["internal"] == 0
    shared.proxy.check_log()


def only_record(proxy: Proxy) -> dict[str, object]:
    records = until(lambda: proxy.records()[proxy._old :], "a record")
    assert len(records) == 1
    found: dict[str, object] = records[0]
    return found


def test_unix_on_both_sides(place: Place) -> None:
    answer_once(place.backend)
    with place.connect("web") as client:
        client.send(get())
        assert client.read(len(OK)) == OK
    fields = fields_of(place.backend.heard())
    assert "x-forwarded-for" not in fields
    assert fields["x-forwarded-proto"] == "http"
    record = only_record(place.proxy)
    assert (record["client"], record["reason"]) == ("unix:", "done")
    assert record["datapath"] != "sockmap"
    assert record["endpoint"] == f"unix:{place.folder}/app.sock"


def test_a_client_that_leaves_before_the_answer(place: Place) -> None:
    """A unix socket tells of that by EPOLLHUP alone, which cannot be masked."""

    def never(peer: Peer) -> None:
        peer.head()
        place.backend.tell("asked")
        peer.ending()

    place.backend.play(never)
    with place.connect("web") as client:
        client.send(get(b"/sticky"))
        place.backend.heard()
    assert only_record(place.proxy)["reason"] == "client_reset"


def test_an_abstract_name(place: Place) -> None:
    answer_once(place.backend)
    with connect_unix(place.name) as client:
        client.send(get())
        assert client.read(len(OK)) == OK


@pytest.mark.parametrize("size", [1, 100_000, 5_000_000])
def test_a_stream_arrives_whole_and_ends(place: Place, size: int) -> None:
    def script(peer: Peer) -> None:
        place.backend.tell(peer.rest_digest())
        for piece in stream(2, size):
            peer.send(piece)

    place.backend.play(script)
    with place.connect("raw") as client:
        for piece in stream(1, size):
            client.send(piece)
        client.half_close()
        assert place.backend.heard() == (size, digest(1, size))
        assert client.rest_digest() == (size, digest(2, size))
    assert only_record(place.proxy)["reason"] == "done"


def test_tcp_to_unix(place: Place) -> None:
    size = 3_000_000

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for piece in stream(2, size):
            peer.send(piece)

    place.backend.play(script)
    with connect(place.proxy.address("tcp")) as client:
        client.send(get())
        client.head()
        assert client.rest_digest() == (size, digest(2, size))


def test_an_idle_unix_connection_ends(place: Place) -> None:
    place.backend.play(lambda peer: place.backend.tell(peer.ending()))
    with place.connect("idle") as client:
        client.send(b"hello")
        assert client.ending() in ("end", "reset")
    assert only_record(place.proxy)["reason"] == "idle_timeout"


def test_a_cookie_over_unix(place: Place) -> None:
    answer_once(place.backend)
    with place.connect("web") as client:
        client.send(get(b"/sticky"))
        assert fields_of(client.head())["set-cookie"].startswith("l7=")
        assert client.read(2) == b"ok"


def test_a_header_in_over_unix(place: Place) -> None:
    """Who may connect to the file is believed."""
    answer_once(place.backend)
    header = encode(ProxyVersion.V2, Address("203.0.113.5", 7), Address("198.51.100.1", 80))
    with place.connect("proxied") as client:
        client.send(header + get())
        assert client.read(len(OK)) == OK
    assert fields_of(place.backend.heard())["x-forwarded-for"] == "203.0.113.5"
    record = only_record(place.proxy)
    assert (record["client"], record["proxy"]) == ("203.0.113.5:7", "unix:")


def test_a_header_out_for_a_client_without_an_address(place: Place) -> None:
    def script(peer: Peer) -> None:
        place.backend.tell(peer.read(15))
        peer.head()
        peer.send(OK)

    place.backend.play(script)
    with place.connect("web") as client:
        client.send(get(b"/told"))
        assert client.read(len(OK)) == OK
    assert place.backend.heard() == b"PROXY UNKNOWN\r\n"


def test_what_a_client_of_a_file_says_of_hops_is_believed(place: Place) -> None:
    answer_once(place.backend)
    with place.connect("web") as client:
        client.send(get(fields=b"X-Forwarded-For: 203.0.113.9\r\n"))
        assert client.read(len(OK)) == OK
    assert fields_of(place.backend.heard())["x-forwarded-for"] == "203.0.113.9"
    assert only_record(place.proxy)["client"] == "203.0.113.9"


def test_a_client_without_an_address_is_in_no_list(place: Place) -> None:
    with place.connect("guarded") as client:
        client.send(get())
        assert client.ending() in ("end", "reset")
    assert only_record(place.proxy)["reason"] == "denied"
    assert place.backend.accepted == 0


def port_of(proxy: Proxy, listener: str) -> int:
    return proxy.address(listener)[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_both_families_on_one_socket(place: Place, host: str) -> None:
    answer_once(place.backend)
    with connect((host, port_of(place.proxy, "dual"))) as client:
        client.send(get())
        assert client.read(len(OK)) == OK
        port = client.port
    assert fields_of(place.backend.heard())["x-forwarded-for"] == host
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    assert only_record(place.proxy)["client"] == shown


def test_rules_see_ipv4_as_such_on_a_socket_of_both_families(place: Place) -> None:
    answer_once(place.backend)
    port = port_of(place.proxy, "dual-shut")
    with connect(("::1", port)) as client:
        client.send(get())
        assert client.read(len(OK)) == OK
    with socket.socket() as raw:
        try:
            raw.connect(("127.0.0.1", port))
            assert Peer(raw).ending() == "reset"
        except ConnectionResetError:
            pass
    reasons = until(
        lambda: (
            len(found := [r["reason"] for r in place.proxy.records()[place.proxy._old :]]) == 2
            and found
        ),
        "two records",
    )
    assert sorted(reasons) == ["denied", "done"]
