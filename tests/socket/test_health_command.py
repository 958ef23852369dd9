"""`l7proxy health`, as HEALTHCHECK and exec probes use it: its exit code follows a real l7proxy."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from proxy import Proxy, until

from l7proxy import cli

pytestmark = pytest.mark.net

POLICY = """\
listeners: {web: {address: 127.0.0.1:0}}
routes: [{name: all, respond: {status: 204}}]
"""


def test_alive_and_ready_until_it_drains(capsys: pytest.CaptureFixture[str]) -> None:
    with Proxy(POLICY, "splice2", options=["--drain-delay=30"]) as proxy:
        admin = f"--admin=unix:{proxy.admin}"
        assert cli.main(["health", admin]) == 0
        assert capsys.readouterr().out == "ok\n"
        assert cli.main(["health", admin, "--ready"]) == 0
        proxy.signal(signal.SIGTERM)
        until(lambda: cli.main(["health", admin, "--ready"]) == 1, "it is not ready any more")
        assert "draining" in capsys.readouterr().err
        assert cli.main(["health", admin]) == 0, "a container that drains is not to be restarted"
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
        assert cli.main(["health", admin]) == 1


def test_nobody_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["health", "--admin", str(tmp_path / "none")]) == 1
    assert "no such file" in capsys.readouterr().err
