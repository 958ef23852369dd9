"""systemd's protocol, with a test that plays systemd's part: what it hands over, and is told."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from l7proxy.net import systemd
from l7proxy.net.systemd import Manager, take_passed


class Listening:
    """The manager's end of NOTIFY_SOCKET."""

    def __init__(self, name: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind("\0" + name[1:] if name.startswith("@") else name)
        self.sock.settimeout(60)
        self.fds: list[int] = []

    def read(self) -> list[str]:
        space = socket.CMSG_LEN(systemd.MOST_FDS * 4)
        data, ancillary, _, _ = self.sock.recvmsg(4096, space)
        for _, _, piece in ancillary:
            found = array.array("i")
            found.frombytes(piece)
            self.fds += found
        return data.decode().splitlines()

    def close(self) -> None:
        self.sock.close()
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Listening]:
    end = Listening(str(tmp_path / "notify"))
    yield end
    end.close()


@pytest.fixture
def manager(tmp_path: Path, listening: Listening) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify"))
    yield manager
    manager.close()


# ---- what is told


def test_how_a_service_fares(manager: Manager, listening: Listening) -> None:
    assert manager.ready("2 listeners")
    assert manager.reloading("its policy")
    assert manager.ready("two\nlines")
    assert manager.status("12 connections")
    assert manager.alive()
    assert manager.stopping("draining", 30.5)
    assert listening.read() == ["READY=1", "STATUS=2 listeners"]
    reloading, stamp, status = listening.read()
    assert (reloading, status) == ("RELOADING=1", "STATUS=its policy")
    assert stamp.startswith("MONOTONIC_USEC=")
    assert listening.read() == ["READY=1", "STATUS=two lines"]
    assert listening.read() == ["STATUS=12 connections"]
    assert listening.read() == ["WATCHDOG=1"]
    assert listening.read() == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=30500000", "STATUS=draining"]


def test_a_socket_in_the_abstract_namespace() -> None:
    listening = Listening("@l7proxy-test-notify")
    manager = Manager("@l7proxy-test-notify")
    assert manager.ready("up")
    assert listening.read() == ["READY=1", "STATUS=up"]
    manager.close()
    listening.close()


@pytest.mark.parametrize("address", ["", "vsock:2:1234"])
def test_without_a_manager_nothing_is_told_and_nothing_fails(address: str) -> None:
    manager = Manager(address)
    assert not manager.is_there
    assert not manager.ready("up")
    assert not manager.barrier(0.1)


def test_a_manager_that_is_gone_is_no_failure(tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "nobody"))
    assert not manager.ready("up")
    manager.close()


def test_a_full_queue_costs_a_status_but_not_readiness(
    manager: Manager, listening: Listening
) -> None:
    sent = 0
    while manager.status("full"):
        sent += 1
    reader = threading.Timer(0.2, lambda: [listening.read() for _ in range(sent)])
    reader.start()
    assert manager.ready("up")
    reader.join()
    assert listening.read() == ["READY=1", "STATUS=up"]


def test_the_environment_says_who_is_told_and_is_emptied(listening: Listening) -> None:
    environment = {
        "NOTIFY_SOCKET": listening.sock.getsockname(),
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/",
    }
    manager = Manager.take(environment)
    assert environment == {"HOME": "/"}
    assert manager.watchdog == 3.0
    assert manager.alive()
    assert listening.read() == ["WATCHDOG=1"]
    manager.close()


def test_the_watchdog_of_another_process_is_not_ours() -> None:
    environment = {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getppid())}
    assert Manager.take(environment).watchdog is None


@pytest.mark.parametrize("name", ["{}/notify", "@l7proxy-test-successor"])
def test_a_successor_finds_the_same_manager(tmp_path: Path, name: str) -> None:
    address = name.format(tmp_path)
    listening = Listening(address)
    first = Manager.take({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000"})
    environment = first.environment()
    second = Manager.take(environment)
    assert environment == {}
    assert second.watchdog == 3.0
    assert first.succeeded(4711)
    assert second.ready("up")
    assert listening.read() == ["MAINPID=4711"]
    assert listening.read() == ["READY=1", "STATUS=up"]
    assert Manager().environment() == {}
    for one in (first, second, listening):
        one.close()


# ---- the store


def test_descriptors_are_stored_by_name(manager: Manager, listening: Listening) -> None:
    with ExitStack() as opened:
        pipes = [opened.enter_context(open(os.devnull)) for _ in range(300)]
        assert manager.store("pair-7", [one.fileno() for one in pipes])
    first = listening.read()
    assert first == ["FDSTORE=1", "FDNAME=pair-7", "FDPOLL=0"]
    assert len(listening.fds) == systemd.MOST_FDS
    assert listening.read() == first
    assert len(listening.fds) == 300
    assert manager.forget("pair-7")
    assert listening.read() == ["FDSTOREREMOVE=1", "FDNAME=pair-7"]


@pytest.mark.parametrize("name", ["", "a:b", "ü", "a\nREADY=1", "x" * 256])
def test_a_name_that_the_manager_would_not_take_is_a_bug(manager: Manager, name: str) -> None:
    with pytest.raises(ValueError, match="cannot name"):
        manager.store(name, [0])


def test_a_barrier_waits_until_all_was_read(manager: Manager, listening: Listening) -> None:
    assert not manager.barrier(0.05)
    assert listening.read() == ["BARRIER=1"]

    def read() -> None:
        listening.read()
        os.close(listening.fds.pop())

    reader = threading.Thread(target=read)
    reader.start()
    assert manager.barrier(10)
    reader.join()


# ---- what is handed over


def test_descriptors_for_another_process_are_not_ours() -> None:
    environment = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getppid()), "LISTEN_FDNAMES": "web"}
    assert take_passed(environment) == ()
    assert environment == {}


@pytest.mark.parametrize("value", ["", "x", "-1", "²"])
def test_a_number_that_is_none(value: str) -> None:
    assert take_passed({"LISTEN_FDS": value, "LISTEN_PID": str(os.getpid())}) == ()


# In a process of its own: the descriptors have to be those from 3 on.
_CHILD = """
import os, sys
sys.path.insert(0, sys.argv[1])
for number, fd in enumerate(sys.argv[2:], 3):
    os.dup2(int(fd), number, inheritable=True)
os.environ["LISTEN_PID"] = str(os.getpid())
from l7proxy.net.systemd import take_passed
for one in take_passed():
    print(one.name, one.fd, os.get_inheritable(one.fd))
print(sorted(name for name in os.environ if name.startswith("LISTEN_")))
"""


def test_descriptors_come_with_names_and_stay_with_this_process() -> None:
    root = Path(__file__).resolve().parents[2]
    with socket.socket() as first, socket.socket() as second:
        fds = [fcntl.fcntl(one.fileno(), fcntl.F_DUPFD, 10) for one in (first, second)]
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, str(root), *map(str, fds)],
            env=os.environ | {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "web:"},
            pass_fds=fds,
            capture_output=True,
            text=True,
            check=True,
        )
        for fd in fds:
            os.close(fd)
    assert done.stdout.splitlines() == ["web 3 False", "unknown 4 False", "[]"]
