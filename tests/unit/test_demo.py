"""The demo's own parts: frames, addresses, and what it sends for a policy."""

from __future__ import annotations

import io
import socket
from pathlib import Path

import pytest
from peers import free_port

from l7proxy import config
from l7proxy.demo import websocket
from l7proxy.demo.backends import pattern
from l7proxy.demo.place import addresses, settle
from l7proxy.demo.websocket import Opcode
from l7proxy.errors import StartupError
from l7proxy.model import Address


def test_the_accept_key_of_rfc_6455_section_1_3() -> None:
    assert websocket.accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


# RFC 6455 section 5.7.
@pytest.mark.parametrize(
    ("frame", "opcode", "payload", "mask"),
    [
        (b"\x81\x05Hello", Opcode.TEXT, b"Hello", b""),
        (
            b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58",
            Opcode.TEXT,
            b"Hello",
            b"\x37\xfa\x21\x3d",
        ),
        (b"\x89\x05Hello", Opcode.PING, b"Hello", b""),
        (b"\x82\x7e\x01\x00" + bytes(256), Opcode.BINARY, bytes(256), b""),
        (b"\x82\x7f\0\0\0\0\0\x01\0\0" + bytes(65536), Opcode.BINARY, bytes(65536), b""),
    ],
)
def test_frames_as_the_rfc_shows_them(
    frame: bytes, opcode: Opcode, payload: bytes, mask: bytes
) -> None:
    assert websocket.encode(opcode, payload, mask) == frame
    assert websocket.read_frame(io.BytesIO(frame)) == (opcode, payload)


@pytest.mark.parametrize(
    ("description", "frame"),
    [
        ("a fragment", b"\x01\x05Hello"),
        ("a reserved bit", b"\xc1\x05Hello"),
        ("a continuation", b"\x80\x05Hello"),
        ("an unknown opcode", b"\x83\x05Hello"),
        ("a frame beyond the limit", b"\x82\x7f\0\0\0\1\0\0\0\0"),
    ],
)
def test_other_frames_are_refused(description: str, frame: bytes) -> None:
    with pytest.raises(websocket.WebSocketError):
        websocket.read_frame(io.BytesIO(frame))


@pytest.mark.parametrize("kept", range(11))
def test_a_frame_that_ends_early(kept: int) -> None:
    with pytest.raises(EOFError):
        websocket.read_frame(io.BytesIO(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"[:kept]))


@pytest.mark.parametrize("size", [0, 1, 8, 262_143, 262_144, 262_145, 1_000_000])
def test_the_pattern_is_as_long_as_asked_and_its_chunks_differ(size: int) -> None:
    chunks = list(pattern(size))
    assert sum(map(len, chunks)) == size
    assert len(set(chunks)) == len(chunks)


POLICY = """\
listeners:
  web: {{address: {web}}}
routes:
  - backendRefs: [{{name: app}}]
    name: all
backends:
  app: {{endpoints: [{app}]}}
"""


def free() -> Address:
    return Address("127.0.0.1", free_port())


def written(tmp_path: Path, web: object, app: object) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY.format(web=web, app=app))
    return path


def test_a_policy_with_free_addresses_runs_as_it_stands(tmp_path: Path) -> None:
    path = written(tmp_path, free(), free())
    policy = config.load(str(path))
    assert settle(policy, path, tmp_path) == (policy, path, [])


def test_a_taken_address_is_replaced_in_a_copy(tmp_path: Path) -> None:
    app = free()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        web = Address("127.0.0.1", taken.getsockname()[1])
        path = written(tmp_path, web, app)
        before = path.read_text()
        policy, copy, notes = settle(config.load(str(path)), path, scratch)
        assert copy == scratch / "policy.yaml"
        assert path.read_text() == before
        assert app in addresses(policy)
        assert web not in addresses(policy)
        assert len(notes) == 1
        assert str(web) in notes[0]


def test_a_taken_address_that_is_spelt_otherwise_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        # YAML reads \\x31 as "1": the address is nowhere in the text.
        path = written(tmp_path, f'"\\x3127.0.0.1:{port}"', free())
        with pytest.raises(StartupError, match=str(port)):
            settle(config.load(str(path)), path, tmp_path)
