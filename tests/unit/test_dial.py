"""Connecting without waiting, and how a connection ends on close: on real loopback sockets."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from peers import Blackhole, refusing_port

from l7proxy.model import Address, UnixAddress
from l7proxy.net import dial

pytestmark = pytest.mark.net


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Accepts within five seconds."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(60)
        yield sock


def address_of(sock: socket.socket) -> Address:
    host, port = sock.getsockname()[:2]
    return Address(host, port)


def connected(listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    """(the dialled socket, the other end)."""
    sock = dial.start(address_of(listener))
    assert dial.progress(sock, address_of(listener))
    other, _ = listener.accept()
    other.settimeout(60)
    return sock, other


def linger(sock: socket.socket) -> tuple[int, int]:
    on, seconds = struct.unpack("ii", sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
    return on, seconds


def test_loopback_is_connected_at_once(listener: socket.socket) -> None:
    sock, other = connected(listener)
    with sock, other:
        assert not sock.getblocking()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert dial.progress(sock, address_of(listener))  # and asking again says so again
        sock.send(b"to the backend")
        assert other.recv(100) == b"to the backend"


def test_an_ipv6_literal() -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"no IPv6 on loopback: {error}")
    with listener:
        listener.settimeout(60)
        sock, other = connected(listener)
        with sock, other:
            assert sock.family == socket.AF_INET6
            assert sock.getpeername()[:2] == listener.getsockname()[:2]


def test_refused() -> None:
    address = Address("127.0.0.1", refusing_port())
    with dial.start(address) as sock:
        with pytest.raises(dial.DialError) as told:
            dial.progress(sock, address)
        assert isinstance(told.value, OSError)
        assert told.value.errno == 111  # ECONNREFUSED


def test_still_under_way() -> None:
    hole = Blackhole()
    try:
        address = Address("127.0.0.1", hole.port)
        with dial.start(address) as sock:
            for _ in range(3):
                assert not dial.progress(sock, address)
            assert select.select([], [sock], [], 0.05)[1] == []
    finally:
        hole.close()


def test_failed_at_once_leaves_nothing_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(dial.DialError) as told:
        dial.start(Address("255.255.255.255", 9))  # not for TCP: ENETUNREACH, or EACCES
    assert told.value.errno
    assert len(os.listdir("/proc/self/fd")) == before


# ---- unix sockets


@pytest.mark.parametrize("path", ["{}/sock", "@l7proxy-test-{}"])
def test_a_unix_socket_is_connected_at_once(tmp_path: Path, path: str) -> None:
    address = UnixAddress(path.format(tmp_path))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(dial.sockaddr(address))
        listener.listen()
        with dial.start(address) as sock:
            assert dial.progress(sock, address)
            assert not sock.getblocking()
            other, _ = listener.accept()
            with other:
                sock.send(b"to the backend")
                assert other.recv(100) == b"to the backend"
            dial.watch_for_dead_end(sock)  # there is nothing to be set, and nothing fails


def test_a_unix_socket_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(dial.DialError, match="No such file") as told:
        dial.start(UnixAddress(str(tmp_path / "none")))
    assert not told.value.is_ours
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "deaf"))
        with pytest.raises(dial.DialError, match="refused"):
            dial.start(UnixAddress(str(tmp_path / "deaf")))


def test_a_full_unix_socket_has_to_be_asked_again(tmp_path: Path) -> None:
    address = UnixAddress(str(tmp_path / "full"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address.path)
        listener.listen(0)
        with dial.start(address) as first, dial.start(address) as second:
            assert dial.progress(first, address)
            assert not dial.progress(second, address)
            assert dial.must_ask(address)
            listener.accept()[0].close()
            assert dial.progress(second, address)


def test_what_is_not_the_endpoints_fault() -> None:
    assert dial.DialError(errno.EADDRNOTAVAIL).is_ours
    assert not dial.DialError(errno.ECONNREFUSED).is_ours
    assert dial.DialError(errno.ECONNREFUSED).strerror == "Connection refused"


def test_no_descriptor_is_no_failed_dial(listener: socket.socket) -> None:
    """The endpoint is not to blame: `dial_refused` would be a lie."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    top = max(map(int, os.listdir("/proc/self/fd")))
    held = [os.dup(0) for _ in range(top - len(os.listdir("/proc/self/fd")) + 8)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(held) + 1, hard))
    try:
        with pytest.raises(OSError, match="Too many open files") as told:
            dial.start(address_of(listener))
        assert not isinstance(told.value, dial.DialError)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)


def test_urgent_data_stays_in_the_stream(listener: socket.socket) -> None:
    """Taken out of it, it would be counted by TCP and read by nobody."""
    sock, other = connected(listener)
    with sock, other:
        other.send(b"abc")
        other.send(b"!", socket.MSG_OOB)
        other.send(b"def")
        other.shutdown(socket.SHUT_WR)
        sock.settimeout(60)
        assert b"".join(iter(lambda: sock.recv(100), b"")) == b"abc!def"


# ---- how it ends


def test_close_resets_until_it_is_told_otherwise(listener: socket.socket) -> None:
    """From the first moment: nobody may see a clean end of what is not known to be complete."""
    sock, other = connected(listener)
    with other:
        assert linger(sock) == (1, 0)
        sock.send(b"half of it")
        sock.close()
        with pytest.raises(ConnectionResetError):
            b"".join(iter(lambda: other.recv(100), b""))


def test_close_delivers_when_it_may(listener: socket.socket) -> None:
    sock, other = connected(listener)
    with other:
        dial.deliver_on_close(sock)
        assert linger(sock)[0] == 0
        sent = 0
        while sent < 1 << 20:  # more than the other end's buffer holds: close() finds it queued
            try:
                sent += sock.send(b"x" * 10_000)
            except BlockingIOError:
                break
        sock.close()
        got = 0
        while piece := other.recv(1 << 16):
            got += len(piece)
        assert got == sent


def test_a_dead_process_resets_too(listener: socket.socket) -> None:
    """SIGKILL of the proxy must not look like the end of a stream."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            sock = dial.start(address_of(listener))
            sock.send(b"half of it")
            os.write(told, b"!")
            time.sleep(600)
        finally:
            os._exit(1)
    try:
        other, _ = listener.accept()
        with other:
            other.settimeout(60)
            os.read(ready, 1)
            assert other.recv(100) == b"half of it"
            os.kill(pid, 9)
            with pytest.raises(ConnectionResetError):
                other.recv(100)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(told)


def test_reset_again_after_delivering_was_allowed(listener: socket.socket) -> None:
    sock, other = connected(listener)
    with other:
        dial.deliver_on_close(sock)
        dial.reset_on_close(sock)
        sock.close()
        with pytest.raises(ConnectionResetError):
            other.recv(100)


def test_a_dead_end_is_found(listener: socket.socket) -> None:
    """The end vanishes: 60 s of silence, then four probes, one each 15 s: two minutes."""
    sock, other = connected(listener)
    with sock, other:
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        dial.watch_for_dead_end(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        idle, every, count = (sock.getsockopt(socket.IPPROTO_TCP, name) for name in names)
        assert idle + every * count == 120
