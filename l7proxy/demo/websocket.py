"""Just enough of RFC 6455 for an echo: unfragmented frames, one message each.

Both ends are ours, so a frame that breaks a rule ends the connection with `WebSocketError`.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from enum import IntEnum
from typing import Protocol

MAX_PAYLOAD = 16 * 1024 * 1024

# RFC 6455 section 1.3: the server appends this GUID to the key of the client.
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Opcode(IntEnum):
    """RFC 6455 section 5.2, without the continuation frame."""

    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


class WebSocketError(Exception):
    """A frame that is not as RFC 6455 or this module wants it."""


class Reader(Protocol):
    """A buffered stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """Exactly `size` bytes, fewer only at the end of the stream."""


def accept_key(key: str) -> str:
    """`Sec-WebSocket-Accept` for a `Sec-WebSocket-Key` (RFC 6455 section 4.2.2)."""
    # RFC 6455 prescribes SHA-1; it guards nothing here.
    digest = hashlib.sha1(key.encode("ascii") + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode("ascii")


def encode(opcode: Opcode, payload: bytes, mask: bytes = b"") -> bytes:
    """One final frame. A client gives a `mask` of 4 bytes, a server none (section 5.1)."""
    masked = 0x80 if mask else 0
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, masked | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", 0x80 | opcode, masked | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, masked | 127, size)
    return head + mask + (_masked(payload, mask) if mask else payload)


def read_frame(stream: Reader) -> tuple[Opcode, bytes]:
    """Opcode and unmasked payload of the next frame. Raises EOFError and WebSocketError."""
    first, second = _exactly(stream, 2)
    if first & 0xF0 != 0x80:
        raise WebSocketError("fragments and extensions are not spoken here")
    try:
        opcode = Opcode(first & 0x0F)
    except ValueError as error:
        raise WebSocketError(f"opcode {first & 0x0F:#x}") from error
    size = second & 0x7F
    if size == 126:
        (size,) = struct.unpack("!H", _exactly(stream, 2))
    elif size == 127:
        (size,) = struct.unpack("!Q", _exactly(stream, 8))
    if size > MAX_PAYLOAD:
        raise WebSocketError(f"a frame of {size} bytes")
    mask = _exactly(stream, 4) if second & 0x80 else b""
    payload = _exactly(stream, size)
    return opcode, _masked(payload, mask) if mask else payload


def _exactly(stream: Reader, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError(f"{len(data)} of {size} bytes")
    return data


def _masked(payload: bytes, mask: bytes) -> bytes:
    """XOR with the repeated mask (section 5.3), as one big number: a loop would take seconds."""
    size = len(payload)
    repeated = (mask * (size // 4 + 1))[:size]
    number = int.from_bytes(payload, "little") ^ int.from_bytes(repeated, "little")
    return number.to_bytes(size, "little")
