"""Listening sockets, and what is said when one cannot be had."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from l7proxy.errors import StartupError
from l7proxy.model import Address, Listener, UnixAddress
from l7proxy.net import listen
from l7proxy.net.listen import bound_address, explain, open_for_clients, open_listener

pytestmark = pytest.mark.net


def ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not ipv6(), reason="there is no IPv6 loopback here")


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


# ---- both families


@needs_ipv6
def test_a_star_takes_both_families_on_one_socket() -> None:
    one = open_for_clients(Listener("web", Address("*", 0)))
    assert isinstance(one.address, Address)
    assert one.address.host == "*"
    for host in ("127.0.0.1", "::1"):
        with socket.create_connection((host, one.address.port), 5):
            pass
    with pytest.raises(StartupError, match="another socket has this port"):
        open_for_clients(Listener("again", Address("127.0.0.1", one.address.port)))
    one.close()


def test_a_star_without_ipv6_is_ipv4_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = socket.socket

    def without(family: int, *more: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "not supported")
        return real(family, *more)

    monkeypatch.setattr("l7proxy.net.listen.socket.socket", without)
    sock = open_listener(Address("*", 0))
    assert sock.family == socket.AF_INET
    assert "there is no IPv6 here: *:0 listens on IPv4 alone" in caplog.text
    sock.close()
    with pytest.raises(StartupError, match="has no IPv6"):
        open_listener(Address("::", 0))


# ---- one that goes


def test_a_socket_that_leaves_lends_its_port_for_the_moment_of_the_bind() -> None:
    old = open_for_clients(Listener("web", Address("127.0.0.1", 0)))
    assert isinstance(old.address, Address)
    everywhere = Listener("web", Address("0.0.0.0", old.address.port))
    with pytest.raises(StartupError, match="another socket has this port"):
        open_for_clients(everywhere)
    new = open_for_clients(everywhere, leaving=[old])
    for one in (old, new):
        assert one.sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
    old.close()
    with socket.create_connection(("127.0.0.1", old.address.port), 5):
        new.sock.setblocking(True)
        new.sock.accept()[0].close()
    new.close()


def test_who_is_in_the_queue_of_a_socket_that_stops_can_be_accepted_and_nobody_else_gets_in() -> (
    None
):
    one = open_for_clients(Listener("web", Address("127.0.0.1", 0)))
    where = one.sock.getsockname()
    with socket.create_connection(where, 5) as early, socket.socket() as late:
        one.stop()
        late.settimeout(0.3)
        assert late.connect_ex(where) == errno.EAGAIN, "it gets no answer: it tries on"
        accepted, _ = one.sock.accept()
        early.sendall(b"x")
        accepted.settimeout(5)
        assert accepted.recv(1) == b"x"
        with pytest.raises(BlockingIOError):
            one.sock.accept()
        accepted.close()
    one.close()
    with socket.socket() as probe:
        assert probe.connect_ex(where) == errno.ECONNREFUSED


# ---- unix


def unix(path: object, mode: int | None = None) -> Listener:
    return Listener("web", UnixAddress(str(path)), mode=mode)


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_a_unix_socket_has_its_mode_from_the_first_moment(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o022)
    try:
        one = open_for_clients(unix(tmp_path / "s", mode))
        assert os.umask(0o022) == 0o022
        assert (tmp_path / "s").stat().st_mode & 0o777 == mode
        one.set_mode(0o604)
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o604
        one.close()
        assert not (tmp_path / "s").exists()
    finally:
        os.umask(before)


def test_a_socket_file_that_nobody_listens_on_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    one = open_for_clients(unix(tmp_path / "s"))
    assert "stale socket" in caplog.text
    with pytest.raises(StartupError, match=r"cannot listen on unix:.*another process listens"):
        open_for_clients(unix(tmp_path / "s"))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))
    one.close()


def test_a_file_that_is_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(StartupError, match="not a socket"):
        open_for_clients(unix(path))
    assert path.read_text() == "precious"
    path.unlink()
    one = open_for_clients(unix(path))
    path.unlink()
    path.write_text("another one's")
    one.set_mode(0o600)
    one.close()
    assert path.read_text() == "another one's"


def test_a_kernel_without_socket_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload is in force by then: a handshake that is reset is no reason to fail."""
    monkeypatch.setattr(listen, "_SO_ATTACH_FILTER", 9999)
    one = open_for_clients(Listener("web", Address("127.0.0.1", 0)))
    one.stop()
    one.close()


def test_a_file_that_is_swapped_while_its_mode_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may write the folder must not get another file's mode changed with our rights."""
    path, precious = tmp_path / "s", tmp_path / "precious"
    precious.write_text("precious")
    precious.chmod(0o600)
    one = open_for_clients(unix(path, 0o600))
    chmod = os.chmod

    def swap(*arguments: object, **more: object) -> None:
        path.rename(tmp_path / "moved")
        path.symlink_to(precious)
        chmod(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "chmod", swap)
    one.set_mode(0o666)
    assert precious.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "moved").stat().st_mode & 0o777 == 0o666
    one.close()


def test_an_abstract_name_is_no_file() -> None:
    name = f"@l7proxy-listen-{os.getpid()}"
    one = open_for_clients(unix(name, 0o600))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + name[1:])
    with pytest.raises(StartupError, match="abstract name"):
        open_for_clients(unix(name))
    assert not os.path.exists(name)
    one.stop()
    one.close()


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/no/such/folder/s", "no such file or directory: create /no/such/folder first"),
        ("/" + "x" * 120, "a path has at most 107 bytes"),
        ("/dev/null/s", "not a directory; choose a path in a directory that exists"),
    ],
)
def test_a_unix_path_that_cannot_be_is_a_sentence(path: str, says: str) -> None:
    with pytest.raises(StartupError) as caught:
        open_for_clients(unix(path))
    assert str(caught.value).startswith(f"cannot listen on unix:{path}: ")
    assert says in str(caught.value)
