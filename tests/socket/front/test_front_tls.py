"""TLS listeners: the ClientHello routes, the stream passes through; over every datapath."""

from __future__ import annotations

import datetime
import ssl
import time
from pathlib import Path

import hellos
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fronts import LEAVING, leave_in_the_middle, record_on, say_too_little
from peers import Backend, Peer, connect, digest, hashed, stream
from proxy import Proxy

from l7proxy.model import Address, ProxyVersion
from l7proxy.proxyproto import HeaderReader, Tlv, encode

pytestmark = pytest.mark.net


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate of its own for *.test, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    names = ["app.test", "told.test", "x.alpn.test", "b.closed.test"]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(map(x509.DNSName, names)), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


SIZE = 2_000_000


def serve(backend: Backend, certificate: Path, *, told: bool = False) -> None:
    """A TLS server: reads SIZE bytes, sends as many."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["h2", "http/1.1"])

    def script(peer: Peer) -> None:
        if told:
            reader = HeaderReader(required=True)
            while not reader.feed(peer.sock.recv(1)):
                pass
            backend.tell(reader.header)
        with context.wrap_socket(peer.sock, server_side=True) as secure:
            got = Peer(secure)
            backend.tell(got.digest_of(SIZE))
            for piece in stream(2, SIZE):
                secure.sendall(piece)
            secure.unwrap()

    backend.play(script)


def talk(
    address: tuple[str, int], certificate: Path, name: str, alpn: list[str], front: bytes = b""
) -> tuple[int, str | None]:
    """A whole exchange, hashed; (the client's port, the protocol that was agreed on)."""
    context = ssl.create_default_context(cafile=str(certificate))
    context.set_alpn_protocols(alpn)
    peer = connect(address)
    port = peer.port
    peer.send(front)
    with context.wrap_socket(peer.sock, server_hostname=name) as secure:
        for piece in stream(1, SIZE):
            secure.sendall(piece)
        received = hashed(iter(lambda: secure.recv(1 << 16), b""))
        assert received == digest(2, SIZE)
        agreed = secure.selected_alpn_protocol()
        secure.unwrap()
        return port, agreed


def test_a_whole_connection_end_to_end(proxy: Proxy, backend: Backend, certificate: Path) -> None:
    serve(backend, certificate)
    port, agreed = talk(proxy.address("tls"), certificate, "app.test", ["h2"])
    assert agreed == "h2"
    assert backend.heard() == digest(1, SIZE)
    record = proxy.record(port)
    assert (record["sni"], record["alpn"], record["route"]) == ("app.test", "h2", "tls-app")
    assert record["reason"] == "done"
    assert record["datapath"] == proxy.datapath
    assert record["bytes_in"] > SIZE
    assert record["bytes_out"] > SIZE


def test_alpn_routes(proxy: Proxy, backend: Backend, certificate: Path) -> None:
    serve(backend, certificate)
    port, _ = talk(proxy.address("tls"), certificate, "x.alpn.test", ["h2", "http/1.1"])
    assert backend.heard() == digest(1, SIZE)
    assert proxy.record(port)["route"] == "tls-h2"
    with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
        talk(proxy.address("tls"), certificate, "x.alpn.test", ["http/1.1"])


def test_behind_and_before_proxy_headers(proxy: Proxy, backend: Backend, certificate: Path) -> None:
    serve(backend, certificate)
    front = encode(ProxyVersion.V2, Address("203.0.113.5", 1), Address("198.51.100.1", 443))
    talk(proxy.address("tls-proxied"), certificate, "app.test", ["h2"], front)
    assert backend.heard() == digest(1, SIZE)
    assert record_on(proxy, "tls-proxied")["client"] == "203.0.113.5:1"

    serve(backend, certificate, told=True)
    port, _ = talk(proxy.address("tls"), certificate, "told.test", ["http/1.1"])
    header = backend.heard()
    assert header.source == Address("127.0.0.1", port)
    assert header.tlv(Tlv.AUTHORITY) == b"told.test"
    assert header.tlv(Tlv.ALPN) == b"http/1.1"
    assert backend.heard() == digest(1, SIZE)


HELLO = hellos.real("app.test", ["h2"])


@pytest.mark.parametrize("size", [1, 7, 200])
@pytest.mark.parametrize("dripped", [False, True], ids=["whole", "dripped"])
def test_a_hello_in_many_records(proxy: Proxy, backend: Backend, size: int, dripped: bool) -> None:
    sent = hellos.records(HELLO[5:], size)
    backend.play(lambda peer: (backend.tell(peer.read(len(sent))), peer.send(b"back"))[0])
    with connect(proxy.address("tls")) as client:
        client.drip(sent) if dripped else client.send(sent)
        assert client.read(4) == b"back"
    assert backend.heard() == sent


def test_cut_anywhere(proxy: Proxy, backend: Backend) -> None:
    backend.play(lambda peer: (backend.tell(peer.read(len(HELLO))), peer.send(b"back"))[0])
    for cut in range(1, len(HELLO), 37):
        with connect(proxy.address("tls")) as client:
            client.send(HELLO[:cut])
            time.sleep(0.002)
            client.send(HELLO[cut:])
            assert client.read(4) == b"back"
        assert backend.heard() == HELLO


UNRECOGNIZED, DENIED = b"\x15\x03\x03\x00\x02\x02\x70", b"\x15\x03\x03\x00\x02\x02\x31"
REFUSED = [
    ("nobody's name", hellos.real("nobody.test"), UNRECOGNIZED, "no_route", ""),
    ("no name", hellos.real(None), UNRECOGNIZED, "no_route", ""),
    ("denied", hellos.real("denied.test"), DENIED, "denied", "deny"),
    ("denied by name", hellos.real("a.closed.test"), DENIED, "denied", "access"),
    ("HTTP", b"GET / HTTP/1.1\r\n\r\n", b"\x15\x03\x03\x00\x02\x02\x0a", "bad_hello", "not-tls"),
    (
        "a name with a NUL",
        hellos.hello(hellos.server_name(b"app.test\0.evil")),
        b"\x15\x03\x03\x00\x02\x02\x2f",
        "bad_hello",
        "name",
    ),
    (
        "endless",
        hellos.records(b"\x01\x00\x7f\x00" + bytes(33_000), 100),
        b"\x15\x03\x03\x00\x02\x02\x2f",
        "bad_hello",
        "hello-too-large",
    ),
]


@pytest.mark.parametrize(
    ("sent", "alert", "reason", "rule"), [one[1:] for one in REFUSED], ids=[x[0] for x in REFUSED]
)
def test_refused_with_an_alert(
    proxy: Proxy, backend: Backend, sent: bytes, alert: bytes, reason: str, rule: str
) -> None:
    with connect(proxy.address("tls")) as client:
        client.send(sent)
        assert client.rest() == alert
        port = client.port
    record = proxy.record(port)
    assert (record["reason"], record["rule"], record["status"]) == (reason, rule, None)
    assert backend.accepted == 0


def test_no_hello_in_time(proxy: Proxy, backend: Backend) -> None:
    say_too_little(proxy, [("tls-soon", b""), ("tls-soon", HELLO[:100])])
    assert backend.accepted == 0


@pytest.mark.parametrize("way", LEAVING)
def test_a_client_that_leaves_in_the_middle(proxy: Proxy, backend: Backend, way: str) -> None:
    leave_in_the_middle(proxy, "tls", HELLO[:100], way)
    assert backend.accepted == 0


def test_a_hello_and_an_end_at_once(proxy: Proxy, backend: Backend) -> None:
    """The client has half-closed when the pair opens: nothing to splice, everything to deliver."""

    def script(peer: Peer) -> None:
        backend.tell(peer.rest())
        peer.send(b"back")

    backend.play(script)
    with connect(proxy.address("tls")) as client:
        client.send(HELLO).half_close()
        assert client.rest() == b"back"
    assert backend.heard() == HELLO
