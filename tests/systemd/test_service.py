"""The units of docker/systemd/ under a real systemd, as hardened as they are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from l7proxy.doctor import prove_sockmap
from l7proxy.errors import DatapathUnavailable

from .booted import ROOT, Booted, why_not

PORT = 18480
STREAM, BACKEND = 18481, 18482
POLICY = f"""\
listeners:
  web: {{address: "*:{PORT}"}}
  stream: {{address: "127.0.0.1:{STREAM}", protocol: TCP}}
routes:
  - {{name: hello, listeners: [web], respond: {{status: 200, body: hello}}}}
  - {{name: stream, listeners: [stream], backendRefs: [{{name: echo}}]}}
backends:
  echo: {{endpoints: ["127.0.0.1:{BACKEND}"]}}
"""

# One connection to an echo behind l7proxy, in use until a file is there: how often, to the end.
CONVERSATION = f"""
import os, socket, sys, threading, time
def echo(server):
    end, _ = server.accept()
    while data := end.recv(65536):
        end.sendall(data)
    end.close()
server = socket.create_server(("127.0.0.1", {BACKEND}))
threading.Thread(target=echo, args=[server], daemon=True).start()
sock = socket.create_connection(("127.0.0.1", {STREAM}), 20)
sock.settimeout(20)
end, count = time.monotonic() + 120, 0
while not os.path.exists(sys.argv[1]) and time.monotonic() < end:
    message = os.urandom(3000)
    sock.sendall(message)
    found = b""
    while len(found) < len(message):
        found += sock.recv(65536)
    assert found == message
    count += 1
    time.sleep(0.005)
sock.shutdown(socket.SHUT_WR)
assert sock.recv(1) == b""
print(count, "and a clean end")
"""

# Requests, each on a connection of its own, for so many seconds: how many were answered, which not.
CLIENT = f"""
import socket, sys, time
end, answered, failed = time.monotonic() + float(sys.argv[1]), 0, []
while time.monotonic() < end:
    try:
        with socket.create_connection(("127.0.0.1", {PORT}), 20) as sock:
            sock.settimeout(20)
            sock.sendall(b"GET / HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n")
            data = b""
            while piece := sock.recv(4096):
                data += piece
        if data.endswith(b"hello"):
            answered += 1
        else:
            failed.append(data[:60])
    except OSError as error:
        failed.append(error)
print(answered, failed)
"""

# A service that gives a living connection into the store, and finds it there in its next life.
STORE = """\
[Service]
Type=notify
FileDescriptorStoreMax=8
ExecStart=/usr/bin/python3 -c "%s"
"""
STORING = """
import signal, socket, sys
sys.path.insert(0, '/opt/l7proxy/src')
from l7proxy.net.systemd import Manager, take_passed
manager, kept = Manager.take(), take_passed()
if kept:
    ends = [socket.socket(fileno=one.fd) for one in kept]
    [end.sendall(b'more') for end in ends]
    told = ', '.join(sorted(end.recv(100).decode() for end in ends))  # they come in any order
    told = ' '.join(one.name for one in kept) + ': ' + told
    manager.forget('pair')
else:
    ends = socket.socketpair()
    ends[0].sendall(b'before ')
    stored = manager.store('pair', [one.fileno() for one in ends])
    told = 'stored' if stored and manager.barrier() else 'not stored'
manager.ready(told)
signal.pause()
"""

WHY_NOT = why_not() if os.environ.get("L7PROXY_SYSTEMD") == "1" else "run by `make systemd-test`"
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


@pytest.fixture(scope="module")
def systemd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    """With l7proxy as its service, which was started by its socket's first connection."""
    units = [(path.name, path.read_text()) for path in (ROOT / "docker" / "systemd").iterdir()]
    units.append(("store.service", STORE % STORING.strip().replace("\n", "\\n")))
    told = [(name, text.replace("ListenStream=80", f"ListenStream={PORT}")) for name, text in units]
    folder = tmp_path_factory.mktemp("systemd")
    booted = Booted(folder, told, POLICY)
    try:
        booted.start()
        started = booted.call("systemctl", "start", "l7proxy-web.socket")
        assert started.returncode == 0, started.stderr + booted.log()
        yield booted
    finally:
        booted.stop()


def datapath() -> str:
    """What moves the bytes on this machine."""
    try:
        prove_sockmap()
    except DatapathUnavailable:
        return "splice2"
    return "sockmap"


def requests(systemd: Booted, seconds: float) -> tuple[int, str]:
    done = systemd.call("/usr/bin/python3", "-c", CLIENT, str(seconds))
    answered, _, failed = done.stdout.strip().partition(" ")
    return int(answered), failed


def test_a_connection_starts_it_and_it_is_what_the_unit_says(systemd: Booted) -> None:
    answered, failed = requests(systemd, 0.1)
    assert answered, systemd.log()
    assert failed == "[]"
    assert systemd.show("ActiveState") == "active"
    pid = systemd.show("MainPID")
    found = systemd.call("cat", f"/proc/{pid}/status").stdout
    status = dict(re.findall(r"^(\w+):\s+(.*)$", found, re.M))
    assert "0" not in status["Uid"].split(), "not root"
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    # it splices where this machine can: nothing of the unit is in its way
    told = systemd.show("StatusText")
    assert re.fullmatch(rf"\d+ connections, 0 spliced; policy 1, {datapath()}", told)


def test_a_reload_waits_for_its_outcome(systemd: Booted) -> None:
    assert systemd.call("systemctl", "reload", "l7proxy").returncode == 0
    assert "policy 2" in systemd.show("StatusText")
    systemd.write("listeners: [")
    try:
        assert systemd.call("systemctl", "reload", "l7proxy").returncode == 1
    finally:
        systemd.write(POLICY)
    assert systemd.show("StatusText").endswith("the last policy was refused (1 errors)")
    assert systemd.show("ActiveState") == "active"
    assert systemd.call("systemctl", "reload", "l7proxy").returncode == 0
    assert systemd.show("StatusText").endswith(f"policy 3, {datapath()}")


def test_nobody_is_refused_while_it_restarts(systemd: Booted) -> None:
    """The socket is systemd's: who connects in between waits."""
    before = systemd.show("MainPID")
    restart = '(sleep 0.5; systemctl restart l7proxy) & exec /usr/bin/python3 -c "$0" 5'
    done = systemd.call("bash", "-c", restart, CLIENT)
    answered, _, failed = done.stdout.strip().partition(" ")
    assert failed == "[]"
    assert int(answered) > 100
    assert systemd.show("MainPID") != before
    assert systemd.show("Result") == "success"


def test_spliced_connections_outlive_a_restart(systemd: Booted, tmp_path: Path) -> None:
    """They wait in the store of descriptors; the kernel moves their bytes meanwhile."""
    if datapath() != "sockmap":
        pytest.skip("the kernel does not splice here")
    done = tmp_path / "done"
    with ThreadPoolExecutor(1) as pool:
        command = ("/usr/bin/python3", "-c", CONVERSATION, str(done))
        conversation = pool.submit(systemd.call, *command)
        try:
            systemd.until("StatusText", r"1 connections, 1 spliced; .*")
            for _ in range(3):
                before = systemd.show("MainPID")
                restarted = systemd.call("systemctl", "restart", "l7proxy")
                assert restarted.returncode == 0, systemd.log()
                assert systemd.show("MainPID") != before
            systemd.until("StatusText", r"1 connections, 1 spliced; .*")
        finally:
            done.touch()
        found = conversation.result()
    assert re.fullmatch(r"\d+ and a clean end\n", found.stdout), found.stderr + systemd.log()


def test_a_supervisor_that_hangs_is_replaced(systemd: Booted) -> None:
    """Its watchdog's 30 s would be long for a test: the signal that ends it then is the same."""
    pid = systemd.show("MainPID")
    assert systemd.show("WatchdogUSec") == "30s"
    assert systemd.call("kill", "-ABRT", pid).returncode == 0
    answered, failed = requests(systemd, 2)
    assert answered, systemd.log()
    assert systemd.show("MainPID") != pid
    assert failed == "[]"


def test_what_is_stored_is_there_after_a_restart(systemd: Booted) -> None:
    """Connections live on in the manager's store, with the bytes that wait in them."""
    started = systemd.call("systemctl", "start", "store.service")
    assert started.returncode == 0, started.stderr + systemd.log()
    assert systemd.show("StatusText", "store.service") == "stored"
    assert systemd.show("NFileDescriptorStore", "store.service") == "2"
    assert systemd.call("systemctl", "restart", "store.service").returncode == 0
    assert systemd.show("StatusText", "store.service") == "pair pair: before more, more"
    assert systemd.show("NFileDescriptorStore", "store.service") == "0"


def test_it_stops_in_order(systemd: Booted) -> None:
    assert systemd.call("systemctl", "stop", "l7proxy-web.socket", "l7proxy").returncode == 0
    assert systemd.show("Result") == "success"
    assert systemd.show("ExecMainStatus") == "0"
