"""What docker/kubernetes/ describes, with its own arguments and probes, as the kubelet runs it."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from answering import Answering, ask
from proxy import START, until

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "docker" / "kubernetes"

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


def container(name: str) -> tuple[str, dict[str, Any]]:
    """The policy of a manifest, and l7proxy's container."""
    text = (MANIFESTS / f"{name}.yaml").read_text()
    objects = {one["kind"]: one for one in yaml.safe_load_all(text)}
    (workload,) = (objects[kind] for kind in ("Deployment", "DaemonSet") if kind in objects)
    pod = workload["spec"]["template"]["spec"]
    (found,) = (
        one
        for one in (*pod.get("initContainers", ()), *pod["containers"])
        if one["name"] == "l7proxy"
    )
    return objects["ConfigMap"]["data"]["policy.yaml"], found


class Pod:
    """l7proxy as its container says, with everything below one folder."""

    def __init__(self, folder: Path, container: dict[str, Any]) -> None:
        self._folder = folder
        self._container = container
        self._log = folder / "log"
        self._environment = os.environ | {"L7PROXY_ADMIN": f"{folder}/run/admin.sock"}  # as ENV
        (folder / "run").mkdir()

    def __enter__(self) -> Pod:
        with self._log.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "l7proxy", *map(self._here, self._container["args"])],
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=self._environment,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def _here(self, argument: str) -> str:
        for place in ("/etc/l7proxy-admin", "/etc/l7proxy/", "/run/l7proxy"):
            argument = argument.replace(place, f"{self._folder}/{place.strip('/').split('/')[0]}/")
        return argument.replace("0.0.0.0:9901", "0.0.0.0:0")

    def log(self) -> str:
        return self._log.read_text()

    def probe(self, name: str) -> bool:
        """Whether a probe is content."""
        probe = self._container[name]
        if "exec" in probe:
            command = [sys.executable, "-m", "l7proxy", *probe["exec"]["command"][1:]]
            return subprocess.run(command, env=self._environment, check=False).returncode == 0
        return self.get(probe["httpGet"]["path"]) == 200

    def get(self, path: str) -> int:
        """The status that the admin server answers over TCP, or 0."""
        found = re.search(r"admin address=0\.0\.0\.0:(\d+)", self.log())
        if found is None:
            return 0
        asked = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
        with closing(asked):
            asked.request("GET", path, headers={"Host": "10.1.2.3:9901"})
            return asked.getresponse().status


def test_the_sidecar_follows_its_config_map(tmp_path: Path) -> None:
    policy, found = container("sidecar")
    inbound = str(tmp_path / "inbound")

    def adapted(backend: Answering) -> str:
        text = policy.replace("0.0.0.0:8080", f"unix:{inbound}")
        return text.replace("127.0.0.1:3000", f"127.0.0.1:{backend.port}")

    mounted = Mounted(tmp_path / "etc")
    with closing(Answering("blue")) as blue, closing(Answering("green")) as green:
        mounted.write(adapted(blue))
        with Pod(tmp_path, found) as pod:
            until(lambda: pod.probe("startupProbe"), "it has started", START)
            assert pod.probe("readinessProbe")
            assert ask(inbound) == "blue"
            mounted.write(adapted(green))
            until(lambda: ask(inbound) == "green", "the change is in force")
            mounted.write("listeners: [")
            until(lambda: "policy refused" in pod.log(), "the bad one is refused")
            assert ask(inbound) == "green"
            assert pod.probe("livenessProbe")
            pod.process.send_signal(signal.SIGTERM)
            assert pod.process.wait(60) == 0


def test_the_daemon_set_leaves_in_order(tmp_path: Path) -> None:
    """Its probes need no token, all else does; what drains is not ready, and not restarted."""
    _, found = container("daemonset")
    Mounted(tmp_path / "etc").write(
        f"listeners: {{web: {{address: 'unix:{tmp_path}/web'}}}}\n"
        "routes: [{name: all, respond: {status: 200, body: here}}]\n"
    )
    (tmp_path / "etc" / "token").write_text("a-token-of-a-cluster\n")
    with Pod(tmp_path, found) as pod:
        until(lambda: pod.probe("startupProbe"), "it has started", START)
        assert pod.probe("readinessProbe")
        assert pod.get("/stats") == 401
        pod.process.send_signal(signal.SIGTERM)
        until(lambda: not pod.probe("readinessProbe"), "it is not ready any more")
        assert pod.probe("livenessProbe")
        assert ask(f"{tmp_path}/web") == "here", "until everyone has heard of it"
        pod.process.send_signal(signal.SIGTERM)
        assert pod.process.wait(60) == 0
