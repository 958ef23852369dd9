"""The sidecar of docker/kubernetes/, with its own arguments and policy, as the kubelet runs it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from answering import Answering, ask
from proxy import START, until

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ROOT / "docker" / "kubernetes" / "sidecar.yaml"

pytestmark = pytest.mark.net


class Mounted:
    """A ConfigMap in a pod: `policy.yaml` -> `..data/policy.yaml`, `..data` -> `..version`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._versions = 0

    def write(self, text: str) -> None:
        """The kubelet's order: the new files, the link in one step, and the old files go."""
        old = self.folder / f"..{self._versions}"
        self._versions += 1
        new = self.folder / f"..{self._versions}"
        new.mkdir(parents=True)
        (new / "policy.yaml").write_text(text)
        link = self.folder / "..data_tmp"
        link.symlink_to(new.name)
        link.rename(self.folder / "..data")
        if self._versions == 1:
            (self.folder / "policy.yaml").symlink_to("..data/policy.yaml")
        shutil.rmtree(old, ignore_errors=True)


def manifest() -> tuple[str, Sequence[str], dict[str, Any]]:
    """The policy, l7proxy's arguments, and its container."""
    objects = {one["kind"]: one for one in yaml.safe_load_all(MANIFEST.read_text())}
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["initContainers"]
    return objects["ConfigMap"]["data"]["policy.yaml"], container["args"], container


def test_the_sidecar_of_the_manifest_follows_its_config_map(tmp_path: Path) -> None:
    policy, arguments, container = manifest()
    places = {"/etc/l7proxy": str(tmp_path / "etc"), "/run/l7proxy": str(tmp_path)}

    def here(argument: str) -> str:
        for place, other in places.items():
            argument = argument.replace(place, other)
        return argument

    def probe(name: str) -> int:
        command = [here(one) for one in container[name]["exec"]["command"][1:]]
        return subprocess.run([sys.executable, "-m", "l7proxy", *command], check=False).returncode

    def adapted(backend: Answering) -> str:
        text = policy.replace("0.0.0.0:8080", f"unix:{inbound}")
        return text.replace("127.0.0.1:3000", f"127.0.0.1:{backend.port}")

    log = tmp_path / "log"
    mounted = Mounted(tmp_path / "etc")
    inbound = str(tmp_path / "inbound")
    with closing(Answering("blue")) as blue, closing(Answering("green")) as green:
        mounted.write(adapted(blue))
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "l7proxy", *map(here, arguments)],
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=os.environ,
            )
        try:
            until(lambda: probe("startupProbe") == 0, "it has started", START)
            assert probe("readinessProbe") == 0
            assert ask(inbound) == "blue"
            mounted.write(adapted(green))
            until(lambda: ask(inbound) == "green", "the change is in force")
            mounted.write("listeners: [")
            until(lambda: "policy refused" in log.read_text(), "the bad one is refused")
            assert ask(inbound) == "green"
            assert probe("livenessProbe") == 0
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()
