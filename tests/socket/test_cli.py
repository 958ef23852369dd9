"""The commands as a user runs them: lines, exit codes, and no traceback."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from l7proxy.net import privileges

pytestmark = pytest.mark.net

L7PROXY = [sys.executable, "-m", "l7proxy"]
POLICY = """\
listeners:
  web: {address: 127.0.0.1:0}
  raw: {address: 127.0.0.1:0, protocol: TCP}
routes:
  - name: all
    backendRefs: [{name: app}]
backends:
  app: {endpoints: [127.0.0.1:PORT]}
"""


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*L7PROXY, *arguments], capture_output=True, text=True, timeout=120, **options
    )


@pytest.fixture
def backend() -> Iterator[int]:
    """An echo server's port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def echo(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                while data := connection.recv(65536):
                    connection.sendall(data)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    threading.Thread(target=echo, args=[connection], daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(60)


@pytest.fixture
def policy(tmp_path: Path, backend: int) -> str:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY.replace("PORT", str(backend)))
    return str(path)


class Running:
    """`l7proxy run`, from its `ready` line on."""

    def __init__(
        self, policy: str, *arguments: str, prefix: Sequence[str] = (), **options: Any
    ) -> None:
        self.arguments = [*prefix, *L7PROXY, "run", policy, "--workers", "2", *arguments]
        self.options = options
        self.log = ""

    def __enter__(self) -> Running:
        self.process = subprocess.Popen(
            self.arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **self.options,
        )
        try:
            self.wait_for(" ready ")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=60)

    def wait_for(self, text: str) -> None:
        assert self.process.stderr is not None
        deadline = time.monotonic() + 60
        while text not in self.log:
            left = deadline - time.monotonic()
            assert select.select([self.process.stderr], [], [], max(0, left))[0], self.log
            more = os.read(self.process.stderr.fileno(), 65536).decode()
            assert more, f"it ended: {self.log}"
            self.log += more

    def address(self, listener: str) -> tuple[str, int]:
        found = re.search(rf"listening name={listener} address=(\S+):(\d+) protocol=", self.log)
        assert found
        return found[1], int(found[2])

    def ended(self) -> tuple[int, list[dict[str, Any]]]:
        """Exit code and access log."""
        out, err = self.process.communicate(timeout=120)
        self.log += err
        return self.process.returncode, [json.loads(line) for line in out.splitlines()]


def get(path: Path, what: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(60)
    with contextlib.closing(connection):
        connection.sock.connect(str(path))
        connection.request("GET", what)
        response = connection.getresponse()
        return response.status, response.read()


def stats(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(get(path, "/stats")[1])
    return found


# ---- without running


def test_help_needs_neither_network_nor_yaml_nor_libbpf() -> None:
    script = (
        "import sys\nfrom l7proxy.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'asyncio', 'h11', 'yaml', 'ctypes', 'socket', 'logging'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for command in ("run", "reload", "health", "check", "explain", "diff", "schema", "doctor"):
        assert command in done.stdout


def test_version() -> None:
    assert run("--version").stdout.startswith("l7proxy 0.")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["rnu"],
        ["run"],
        ["run", "p", "--workers", "0"],
        ["run", "p", "--workers", "x"],
        ["run", "p", "--drain-seconds", "nan"],
        ["run", "p", "--drain-seconds", "-1"],
        ["run", "p", "--datapath", "xdp"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")


def test_check(tmp_path: Path, policy: str) -> None:
    done = run("check", policy)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ok" in done.stdout or "warning" in done.stdout

    broken = tmp_path / "broken.yaml"
    broken.write_text(Path(policy).read_text().replace("name: app}]", "name: apq}]"))
    done = run("check", str(broken))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{broken}:6:" in done.stderr
    assert "Traceback" not in done.stderr

    done = run("check", "--json", str(broken))
    told = json.loads(done.stdout)
    assert done.returncode == 1
    assert told["ok"] is False
    assert told["problems"][0]["line"] == 6
    assert json.loads(run("check", "--json", policy).stdout)["ok"] is True


def test_verbs_that_look_at_policies_load_no_driver(policy: str) -> None:
    """They start fast, and run where there is neither libbpf nor asyncio to spare."""
    script = (
        "import sys\nfrom l7proxy.cli import main\n"
        "codes = [main(['check', sys.argv[1]]),\n"
        "    main(['explain', sys.argv[1], 'GET', 'http://a/']),\n"
        "    main(['diff', sys.argv[1], sys.argv[1]]), main(['schema'])]\n"
        "assert codes == [0, 0, 0, 0], codes\n"
        "heavy = {'asyncio', 'ctypes', 'socket', 'logging', 're2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, policy], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_explain_and_diff_as_a_user_runs_them(tmp_path: Path, policy: str) -> None:
    done = run("explain", policy, "GET", "http://any.test/x", "-H", "a: b")
    assert (done.returncode, done.stderr) == (0, "")
    assert "GET /x HTTP/1.1" in done.stdout
    other = tmp_path / "other.yaml"
    other.write_text(Path(policy).read_text().replace("name: all", "name: every"))
    assert [run("diff", policy, new).returncode for new in (policy, str(other), "none")] == [
        0,
        1,
        2,
    ]


def test_output_of_explain_into_a_closed_pipe(policy: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            [*L7PROXY, "explain", policy, "GET", "http://a/"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    assert done.stderr == ""


def test_check_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    done = run("check", str(tmp_path / "none.yaml"))
    assert done.returncode == 1
    assert "none.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_output_into_a_closed_pipe_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer) as closed:
        done = subprocess.run(
            [*L7PROXY, "doctor"], stdout=closed, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert done.stderr == ""


# ---- what keeps it from running


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--admin", "0.0.0.0:9"], "a token is wanted"),
        (["--access-log", "/no/such/dir/log"], "mkdir -p /no/such/dir"),
        (["--user", "no-such-user"], "there is no such user"),
    ],
)
def test_it_says_why_it_does_not_start(policy: str, arguments: list[str], says: str) -> None:
    done = run("run", policy, "--datapath", "copy", *arguments)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("l7proxy: error: ")
    assert says in line


def test_a_broken_policy_is_told_whole_and_nothing_starts(tmp_path: Path, policy: str) -> None:
    broken = tmp_path / "broken.yaml"
    text = Path(policy).read_text()
    broken.write_text(
        text.replace("name: app}]", "name: apq}]").replace("protocol: TCP", "protocol: X")
    )
    done = run("run", str(broken))
    assert done.returncode == 1
    assert f"{broken}:3:" in done.stderr
    assert f"{broken}:6:" in done.stderr
    assert "listening" not in done.stderr


def test_an_address_in_use(tmp_path: Path, policy: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        used = tmp_path / "used.yaml"
        used.write_text(Path(policy).read_text().replace("127.0.0.1:0}", f"127.0.0.1:{port}}}"))
        done = run("run", str(used), "--datapath", "copy")
    assert done.returncode == 1
    assert f"listener web: cannot listen on 127.0.0.1:{port}: another socket" in done.stderr
    assert f"ss -ltnp 'sport = :{port}'" in done.stderr


# ---- running


def talk(address: tuple[str, int], data: bytes, calm: bytes = b"") -> bytes:
    """What an echo answers to `data`; after an exchange of the few bytes of `calm`."""
    with socket.create_connection(address, 60) as client:
        client.sendall(calm)
        while calm:
            calm = calm.removeprefix(client.recv(len(calm)))
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        got = b""
        while more := client.recv(65536):
            got += more
        return got


@pytest.mark.parametrize("datapath", ["splice2", "copy"])
def test_a_life(tmp_path: Path, policy: str, datapath: str) -> None:
    admin = tmp_path / "admin"
    with Running(policy, "--datapath", datapath, "--admin", f"unix:{admin}") as proxy:
        assert f"ready datapath={datapath} workers=2" in proxy.log
        assert get(admin, "/healthz") == (200, b"ok")
        assert get(admin, "/readyz") == (200, b"ok")
        data = os.urandom(300_000)
        assert talk(proxy.address("raw"), data) == data
        found = settled(admin)
        assert set(found) == {
            "version",
            "pid",
            "datapath",
            "datapath_reason",
            "workers",
            "uptime_seconds",
            "draining",
            "drain",
            "condition",
            "policy",
            "listeners",
            "backends",
            "connections",
            "pairs",
            "requests",
            "bytes",
            "overflows",
            "odd_answers",
            "access_log_dropped",
            "errors",
            "kernel",
            "kept",
        }
        assert found["datapath"] == datapath
        assert found["workers"] == {"configured": 2, "running": 2, "restarts": 0}
        assert found["connections"] == {"accepted": 1, "active": 0, "refused": 0}
        assert found["bytes"]["relayed"] == {"from_client": 300_000, "from_backend": 300_000}
        assert "libbpf" not in Path(f"/proc/{proxy.process.pid}/maps").read_text()
        proxy.process.send_signal(signal.SIGTERM)
        code, records = proxy.ended()
    assert code == 0, proxy.log
    (record,) = records
    assert (record["listener"], record["bytes_in"], record["bytes_out"]) == (
        "raw",
        300_000,
        300_000,
    )
    assert not admin.exists()


def test_a_folder_with_a_variable(tmp_path: Path, backend: int) -> None:
    """Three files, as a ConfigMap is mounted; the port comes from the environment."""
    folder = tmp_path / "policies"
    version = folder / "..2026_01_31"
    version.mkdir(parents=True)
    for line in POLICY.replace("127.0.0.1:PORT", '"127.0.0.1:${L7_PORT}"').split("\nroutes:"):
        name = "a.yaml" if line.startswith("listeners") else "b.yaml"
        (version / name).write_text(line if name == "a.yaml" else f"routes:{line}")
        (folder / name).symlink_to(f"..data/{name}")
    (folder / "..data").symlink_to(version.name)
    unset = run("check", str(folder))
    assert unset.returncode == 1
    assert f"{folder}/b.yaml:5:32: error: the variable `L7_PORT` is not set" in unset.stderr
    environment = {**os.environ, "L7_PORT": str(backend)}
    with Running(str(folder), "--datapath", "copy", env=environment) as proxy:
        assert talk(proxy.address("raw"), b"hello") == b"hello"
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.ended()[0] == 0


def settled(admin: Path) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while (found := stats(admin))["connections"]["active"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def workers_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_killed_worker_is_replaced_and_service_goes_on(tmp_path: Path, policy: str) -> None:
    admin = tmp_path / "admin"
    with Running(policy, "--datapath", "splice2", "--admin", str(admin)) as proxy:
        with socket.create_connection(proxy.address("raw"), 60) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            for worker in workers_of(proxy.process.pid):
                os.kill(worker, signal.SIGKILL)
            proxy.wait_for("connections_lost=1")
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert talk(proxy.address("raw"), b"again") == b"again"
        deadline = time.monotonic() + 60
        while (found := settled(admin))["workers"]["restarts"] < 2:
            assert time.monotonic() < deadline
        assert found["workers"] == {"configured": 2, "running": 2, "restarts": 2}
        assert found["pairs"]["active"] == 0
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.ended()[0] == 0


def test_ctrl_c_drains(policy: str) -> None:
    """A terminal's Ctrl-C reaches the workers too: they leave it to the supervisor."""
    with Running(policy, "--datapath", "copy", start_new_session=True) as proxy:
        with socket.create_connection(proxy.address("raw"), 60) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            os.killpg(proxy.process.pid, signal.SIGINT)
            proxy.wait_for("draining")
            client.sendall(b"still here")
            assert client.recv(100) == b"still here"
            assert refused(proxy.address("raw"))
        assert proxy.ended()[0] == 0


def refused(address: tuple[str, int]) -> bool:
    """Whether new connections are refused, once each process has closed its listener."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            socket.create_connection(address, 60).close()
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:
            pass  # a worker took it and then closed; others may listen still
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(
    ("seconds", "again"), [("0.3", False), ("60", True)], ids=["deadline", "second signal"]
)
def test_what_does_not_end_is_reset(tmp_path: Path, policy: str, seconds: str, again: bool) -> None:
    admin = tmp_path / "admin"
    arguments = ["--datapath", "copy", "--drain-seconds", seconds, "--admin", str(admin)]
    with Running(policy, *arguments) as proxy:
        with socket.create_connection(proxy.address("raw"), 60) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            proxy.process.send_signal(signal.SIGTERM)
            proxy.wait_for("draining connections=1")
            if again:
                assert get(admin, "/healthz") == (200, b"ok")
                assert get(admin, "/readyz") == (503, b"draining")
                assert stats(admin)["draining"] is True
                proxy.process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        code, records = proxy.ended()
    assert code == 3
    assert [record["reason"] for record in records] == ["drain_deadline"]


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv"
)
@pytest.mark.parametrize("ends", [True, False], ids=["ends by itself", "deadline"])
def test_root_that_may_not_signal_its_workers_drains_them(policy: str, ends: bool) -> None:
    """As in a container with `--cap-drop ALL`: workers are another user's, and CAP_KILL is gone."""
    tied = ["setpriv", "--bounding-set=-kill", "--"]
    seconds = "20" if ends else "0.5"
    with Running(policy, "--datapath", "copy", "--drain-seconds", seconds, prefix=tied) as proxy:
        with socket.create_connection(proxy.address("raw"), 60) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            proxy.process.send_signal(signal.SIGTERM)
            proxy.wait_for("draining connections=1")
            if ends:
                assert refused(proxy.address("raw"))
                client.sendall(b"still here")
                assert client.recv(100) == b"still here"
            else:
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
        code, records = proxy.ended()
    assert code == (0 if ends else 3)
    assert records[0]["reason"] == ("done" if ends else "drain_deadline")
    assert f"stopped connections_reset={0 if ends else 1}" in proxy.log
    assert "Traceback" not in proxy.log


def rights(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_workers_have_no_rights(policy: str) -> None:
    with Running(policy, "--datapath", "copy") as proxy:
        for worker in workers_of(proxy.process.pid):
            deadline = time.monotonic() + 60
            while (found := rights(worker))["NoNewPrivs"] != "1":  # the last that is given up
                assert time.monotonic() < deadline
                time.sleep(0.01)
            for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
                assert found[name] == "0" * 16
            if os.geteuid() == 0:
                assert found["CapBnd"] == "0" * 16
                assert "0" not in found["Uid"].split()


# ---- the datapath where there are no capabilities


def without_capabilities() -> None:
    privileges.drop(None)


USER = ["--user", "root"] if os.geteuid() == 0 else []


def test_auto_relays_and_says_why_and_what_mends_it(tmp_path: Path, policy: str) -> None:
    admin = tmp_path / "admin"
    arguments = ["--admin", str(admin), *USER]
    with Running(policy, *arguments, preexec_fn=without_capabilities) as proxy:
        (line,) = [line for line in proxy.log.splitlines() if "relaying" in line]
        assert "warning" in line
        assert 'why="missing CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON"' in line
        assert "--cap-add BPF" in line
        assert "ready datapath=splice2" in proxy.log
        assert talk(proxy.address("raw"), b"hello") == b"hello"
        assert "CAP_BPF" in stats(admin)["datapath_reason"]
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.ended()[0] == 0


def test_sockmap_that_is_asked_for_and_cannot_be_is_an_error(policy: str) -> None:
    done = run("run", policy, "--datapath", "sockmap", *USER, preexec_fn=without_capabilities)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("l7proxy: error: --datapath sockmap: missing CAP_BPF")


def test_doctor_without_capabilities() -> None:
    done = run("doctor", "--json", preexec_fn=without_capabilities)
    assert done.returncode == 1
    assert json.loads(done.stdout)["can_splice"] is False


@pytest.mark.kernel
@pytest.mark.skipif(
    bool(privileges.missing_for_splicing(privileges.held())), reason="needs BPF capabilities"
)
def test_auto_splices_where_it_can(tmp_path: Path, policy: str) -> None:
    admin = tmp_path / "admin"
    with Running(policy, "--admin", str(admin)) as proxy:
        assert "ready datapath=sockmap workers=2" in proxy.log
        data = os.urandom(300_000)
        assert talk(proxy.address("raw"), data, calm=b"hello") == data
        found = settled(admin)
        for side in ("from_client", "from_backend"):
            assert found["bytes"]["redirected"][side] + found["bytes"]["relayed"][side] == 300_005
        assert found["bytes"]["redirected"]["from_backend"] > 0
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.ended()[0] == 0
