"""Where the admin server listens, what it wants there, and how the verbs find it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from proxy import Proxy

from l7proxy.admin.places import find_token, open_places
from l7proxy.commands import reload
from l7proxy.commands.client import AskError, place
from l7proxy.errors import StartupError
from l7proxy.net.adminplace import default_place
from l7proxy.net.adminsocket import open_admin

pytestmark = pytest.mark.net

SECRET = "0123456789abcdef"
POLICY = """\
listeners: {web: {address: "127.0.0.1:0"}}
routes: [{name: all, respond: {status: 200}}]
"""


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("L7PROXY_ADMIN", "L7PROXY_ADMIN_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def test_by_default_it_is_a_unix_socket_for_its_owner(tmp_path: Path) -> None:
    (found,) = open_places(None, None)
    path = tmp_path / "l7proxy.sock"
    assert default_place() == found.socket.text == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert found.guard.is_local
    found.socket.remove()


@pytest.mark.parametrize(
    ("uid", "folder", "wanted"),
    [(0, "", "unix:/run/l7proxy.sock"), (1000, "", None), (1000, "/no/such/folder", None)],
)
def test_the_default_place(
    monkeypatch: pytest.MonkeyPatch, uid: int, folder: str, wanted: str | None
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
    assert default_place() == wanted


def test_a_default_place_that_is_taken_is_no_reason_not_to_start(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (first,) = open_places(None, None)
    assert open_places(None, None) == []
    assert "no admin server" in caplog.text
    assert "another process listens there" in caplog.text
    with pytest.raises(StartupError, match="another process listens there"):
        open_places(None, None, insists=True)
    monkeypatch.setenv("L7PROXY_ADMIN", str(tmp_path / "l7proxy.sock"))  # somebody said so
    with pytest.raises(StartupError, match="another process listens there"):
        open_places(None, None)
    first.socket.remove()


def test_several_places_and_none(tmp_path: Path) -> None:
    places = open_places((str(tmp_path / "a"), "127.0.0.1:0"), None)
    assert [one.guard.is_local for one in places] == [True, False]
    for one in places:
        one.socket.remove()
    assert open_places(("off",), None) == []
    with pytest.raises(StartupError, match="leave one of them out"):
        open_places(("off", "127.0.0.1:0"), None)
    with pytest.raises(StartupError, match="a token is wanted"):
        open_places((str(tmp_path / "a"), "0.0.0.0:0"), None)
    assert not (tmp_path / "a").exists()


# ---- tokens


def test_a_token_from_a_file_or_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text(f"{SECRET}\n")
    assert find_token(None) is None
    found = find_token(str(file))
    assert found is not None
    assert found.accepts(SECRET.encode())
    monkeypatch.setenv("L7PROXY_ADMIN_TOKEN", "another one, and long")
    found = find_token(str(file))  # the file is what was asked for
    assert found is not None
    assert found.accepts(SECRET.encode())
    monkeypatch.setenv("L7PROXY_ADMIN_TOKEN", SECRET)
    found = find_token(None)
    assert found is not None
    assert not found.accepts(b"another one, and long")
    assert found.accepts(SECRET.encode())


@pytest.mark.parametrize("text", ["", "\n", "short", "é" * 20, "x" * 8 + "\0" + "x" * 8])
def test_a_file_with_no_token(tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    with pytest.raises(StartupError, match=r"token: this is no token; .*openssl"):
        find_token(str(file))
    with pytest.raises(StartupError, match="no such file"):
        find_token(str(tmp_path / "none"))


def test_with_a_token_it_may_listen_everywhere() -> None:
    opened = open_admin("0.0.0.0:0", has_token=True)
    assert opened.text.startswith("0.0.0.0:")
    opened.remove()


# ---- the verbs


def verb(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "l7proxy", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
        check=False,
    )


def test_over_tcp_with_a_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(SECRET)
    more = ("--admin=0.0.0.0:0", f"--admin-token-file={file}")
    with Proxy(POLICY, "copy", options=more) as proxy:
        port = proxy.log().rpartition("admin address=0.0.0.0:")[2].split()[0]
        admin = f"127.0.0.1:{port}"
        without = verb("reload", "--admin", admin)
        assert without.returncode == 1
        assert "answered 401: a token is wanted" in without.stderr
        assert verb("health", "--admin", admin).returncode == 0
        found = verb("reload", "--admin", admin, "--admin-token-file", str(file), "--json")
        assert json.loads(found.stdout)["generation"] == 2
        found = verb("reload", L7PROXY_ADMIN=admin, L7PROXY_ADMIN_TOKEN=SECRET)
        assert found.stdout == "policy loaded, generation 3\n"
        wrong = verb("reload", "--admin", admin, "--admin-token-file", str(tmp_path / "none"))
        assert "no such file" in wrong.stderr
        # the unix socket beside it wants none, and it is the one that --pid takes
        assert verb("reload", "--pid", str(proxy.process.pid)).returncode == 0
        assert SECRET not in proxy.log()
        proxy.stop()


@pytest.mark.parametrize(
    ("arguments", "admin"),
    [
        (["--admin", "/a"], "/a"),
        (["--admin=10.0.0.1:9", "--admin", "unix:/b"], "unix:/b"),
        (["--admin=10.0.0.1:9"], "10.0.0.1:9"),
        (["--admin", "off"], None),
        ([], None),
    ],
)
def test_where_a_process_serves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], admin: str | None
) -> None:
    line = "\0".join(["python", "-m", "l7proxy", "run", "p.yaml", *arguments, ""])
    monkeypatch.setattr(Path, "read_bytes", lambda _: line.encode())
    assert reload._admin_of(7) == admin


def test_who_is_asked_when_nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    with pytest.raises(AskError, match="--admin is wanted"):
        place(Namespace(admin=None))
    monkeypatch.setenv("L7PROXY_ADMIN", "/x")
    assert place(Namespace(admin=None)) == "/x"
