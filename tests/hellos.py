"""ClientHellos: real ones, as Python's ssl sends them, and ones that are built byte by byte."""

from __future__ import annotations

import ssl
import struct
from collections.abc import Iterable

Extension = tuple[int, bytes]

SNI, ALPN, ECH, GREASE = 0, 16, 0xFE0D, 0x0A0A


def real(
    name: str | None = "www.example.com",
    alpn: Iterable[str] = (),
    *,
    most: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> bytes:
    """What OpenSSL sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = most
    if offered := list(alpn):
        context.set_alpn_protocols(offered)
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


def vector(size: int, content: bytes) -> bytes:
    """A vector with its length in front."""
    return len(content).to_bytes(size) + content


def server_name(*names: bytes, kind: int = 0) -> Extension:
    return SNI, vector(2, b"".join(bytes([kind]) + vector(2, name) for name in names))


def protocols(*names: bytes) -> Extension:
    return ALPN, vector(2, b"".join(vector(1, name) for name in names))


def body(
    *extensions: Extension,
    session: bytes = b"",
    suites: bytes = b"\x13\x01",
    compression: bytes = b"\0",
) -> bytes:
    block = b"".join(struct.pack("!H", kind) + vector(2, data) for kind, data in extensions)
    front = b"\x03\x03" + bytes(32) + vector(1, session) + vector(2, suites)
    return front + vector(1, compression) + (vector(2, block) if extensions else b"")


def message(content: bytes, kind: int = 1) -> bytes:
    return bytes([kind]) + vector(3, content)


def records(data: bytes, size: int = 1 << 14, *, kind: int = 22) -> bytes:
    """The data in records of `size` bytes."""
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(bytes([kind, 3, 1]) + vector(2, piece) for piece in pieces)


def hello(*extensions: Extension) -> bytes:
    return records(message(body(*extensions)))
