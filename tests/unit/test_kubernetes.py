"""docker/kubernetes/ against what l7proxy offers: commands, ports, paths, times, capabilities.

Keys are compared with those that Kubernetes 1.30 knows for each object, so that a misspelt one,
which the API server drops or refuses, shows here.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from l7proxy import cli, config
from l7proxy.model import Address

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docker" / "kubernetes"
DOCKERFILE = ROOT / "docker" / "Dockerfile"
MANIFESTS = sorted(FOLDER.glob("*.yaml"))
PATHS = ("/healthz", "/readyz")  # neither wants a token: tests/socket/test_config_map.py
RESET_SECONDS = 5  # that a drain may take beyond its deadline, to reset what is left

KNOWN = {
    "object": "apiVersion kind metadata spec data",
    "metadata": "name namespace labels annotations",
    "service": "selector ports type clusterIP",
    "servicePort": "name port targetPort protocol",
    "deployment": "replicas selector strategy template minReadySeconds",
    "daemonSet": "selector updateStrategy template minReadySeconds",
    "template": "metadata spec",
    "pod": "containers initContainers volumes terminationGracePeriodSeconds securityContext"
    " hostNetwork dnsPolicy nodeSelector tolerations serviceAccountName"
    " automountServiceAccountToken",
    "container": "name image imagePullPolicy args command env ports startupProbe readinessProbe"
    " livenessProbe lifecycle securityContext resources volumeMounts restartPolicy",
    "containerPort": "name containerPort hostPort protocol",
    "probe": "exec httpGet tcpSocket grpc periodSeconds timeoutSeconds failureThreshold"
    " successThreshold initialDelaySeconds terminationGracePeriodSeconds",
    "lifecycle": "preStop postStart",
    "handler": "exec httpGet sleep tcpSocket",
    "securityContext": "runAsNonRoot runAsUser runAsGroup readOnlyRootFilesystem"
    " allowPrivilegeEscalation capabilities privileged seccompProfile",
    "capabilities": "add drop",
    "mount": "name mountPath readOnly subPath",
    "volume": "name configMap emptyDir secret hostPath",
}


def check_keys(kind: str, given: dict[str, Any]) -> None:
    unknown = given.keys() - set(KNOWN[kind].split())
    assert not unknown, f"a {kind} has no {', '.join(sorted(unknown))}"


def image_admin() -> str:
    found = re.search(r"^ENV .*\bL7PROXY_ADMIN=(\S+)", DOCKERFILE.read_text(), re.M)
    assert found
    return found[1]


@dataclass
class Manifest:
    """One file: its objects by kind, and its container of l7proxy."""

    path: Path
    objects: dict[str, Any]

    @property
    def workload(self) -> Any:
        (found,) = (self.objects[kind] for kind in ("Deployment", "DaemonSet") if kind in self)
        return found

    def __contains__(self, kind: str) -> bool:
        return kind in self.objects

    @property
    def pod(self) -> Any:
        return self.workload["spec"]["template"]["spec"]

    def containers(self) -> Iterator[Any]:
        yield from self.pod.get("initContainers", [])
        yield from self.pod["containers"]

    @property
    def ours(self) -> Any:
        (found,) = (one for one in self.containers() if one["name"] == "l7proxy")
        return found

    @property
    def options(self) -> argparse.Namespace:
        """Its arguments, as l7proxy takes them."""
        return cli._parser().parse_args(self.ours["args"])

    @property
    def admin(self) -> list[str]:
        """Where it serves admin requests; what the image says, if nothing else does."""
        return self.options.admin or [image_admin()]

    @property
    def policy(self) -> str:
        return str(self.objects["ConfigMap"]["data"]["policy.yaml"])


@pytest.fixture(params=MANIFESTS, ids=[one.stem for one in MANIFESTS])
def manifest(request: pytest.FixtureRequest) -> Manifest:
    path: Path = request.param
    documents = list(yaml.safe_load_all(path.read_text()))
    return Manifest(path, {one["kind"]: one for one in documents})


def test_there_are_some() -> None:
    assert [one.stem for one in MANIFESTS] == ["daemonset", "sidecar"]


def test_every_key_is_one_that_kubernetes_knows(manifest: Manifest) -> None:
    for found in manifest.objects.values():
        check_keys("object", found)
        check_keys("metadata", found["metadata"])
        if found["kind"] == "Service":
            check_keys("service", found["spec"])
            for port in found["spec"]["ports"]:
                check_keys("servicePort", port)
    kind = manifest.workload["kind"]
    check_keys(kind[0].lower() + kind[1:], manifest.workload["spec"])
    check_keys("template", manifest.workload["spec"]["template"])
    check_keys("pod", manifest.pod)
    for volume in manifest.pod["volumes"]:
        check_keys("volume", volume)
    for container in manifest.containers():
        check_keys("container", container)
        check_keys("securityContext", container.get("securityContext", {}))
        check_keys("capabilities", container.get("securityContext", {}).get("capabilities", {}))
        check_keys("lifecycle", container.get("lifecycle", {}))
        for name, given in container.items():
            if name.endswith("Probe"):
                check_keys("probe", given)
        for port in container.get("ports", []):
            check_keys("containerPort", port)
        for mount in container.get("volumeMounts", []):
            check_keys("mount", mount)


def test_selectors_name_the_pods(manifest: Manifest) -> None:
    labels = manifest.workload["spec"]["template"]["metadata"]["labels"]
    assert manifest.workload["spec"]["selector"]["matchLabels"].items() <= labels.items()
    if "Service" in manifest:
        service = manifest.objects["Service"]["spec"]
        assert service["selector"].items() <= labels.items()
        ports = {port["name"] for port in manifest.ours["ports"]}
        assert {port["targetPort"] for port in service["ports"]} <= ports


def test_l7proxy_takes_the_policy(
    manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(manifest.policy)
    assert cli.main(["check", "--strict", str(path)]) == 0, capsys.readouterr().err


def test_ports_are_those_of_the_policy(manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(manifest.policy)
    addresses = [one.address for one in config.load(str(path)).listeners.values()]
    listening = {one.port for one in addresses if isinstance(one, Address)}
    ports = {port["name"]: port["containerPort"] for port in manifest.ours["ports"]}
    admin = ports.pop("admin", None)
    assert listening == set(ports.values())
    if admin is not None:
        assert f"0.0.0.0:{admin}" in manifest.admin, "the kubelet asks from outside"
        assert manifest.options.admin_token_file
    if manifest.pod.get("hostNetwork"):
        assert all(port["hostPort"] == port["containerPort"] for port in manifest.ours["ports"])
    if min(listening) < 1024:
        assert "NET_BIND_SERVICE" in manifest.ours["securityContext"]["capabilities"]["add"]


def test_the_policy_is_mounted_where_it_is_read_and_its_changes_arrive(manifest: Manifest) -> None:
    mounts = {one["name"]: one for one in manifest.ours["volumeMounts"]}
    volumes = {one["name"]: one for one in manifest.pod["volumes"]}
    name = manifest.objects["ConfigMap"]["metadata"]["name"]
    (policy,) = (one for one in volumes.values() if "configMap" in one)
    assert policy["configMap"]["name"] == name
    assert manifest.options.policy == f"{mounts[policy['name']]['mountPath']}/policy.yaml"
    assert "subPath" not in mounts[policy["name"]], "a file that is mounted alone never changes"
    assert manifest.options.watch
    (run,) = (one for one in volumes.values() if "emptyDir" in one)
    assert Path(manifest.admin[0]).parent == Path(mounts[run["name"]]["mountPath"])
    token = manifest.options.admin_token_file
    if token is not None:
        (secret,) = (one for one in volumes.values() if "secret" in one)
        assert Path(token).parent == Path(mounts[secret["name"]]["mountPath"])


def test_probes_are_commands_that_there_are(manifest: Manifest) -> None:
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe, is_ready = manifest.ours[name], name == "readinessProbe"
        if "httpGet" in probe:
            assert probe["httpGet"] == {"path": PATHS[is_ready], "port": "admin"}
            continue
        program, *arguments = probe["exec"]["command"]
        assert program == "l7proxy"
        asked = cli._parser().parse_args(arguments)
        assert arguments[0] == "health"
        assert (asked.admin or image_admin()) in manifest.admin
        assert asked.ready == is_ready
        assert asked.seconds < probe["timeoutSeconds"], "l7proxy tells more than a timeout does"


def test_the_drain_fits_into_the_grace_period(manifest: Manifest) -> None:
    before = max(
        one.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        for one in manifest.containers()
    )
    options = manifest.options
    drain = options.drain_delay + options.drain_seconds + RESET_SECONDS
    assert before + drain <= manifest.pod["terminationGracePeriodSeconds"]
    # clients have to be let in until everyone has heard that this pod goes
    assert before + options.drain_delay >= 5


def test_the_sidecar_is_a_native_one() -> None:
    documents = yaml.safe_load_all((FOLDER / "sidecar.yaml").read_text())
    (deployment,) = (one for one in documents if one["kind"] == "Deployment")
    (sidecar,) = deployment["spec"]["template"]["spec"]["initContainers"]
    assert sidecar["name"] == "l7proxy"
    assert sidecar["restartPolicy"] == "Always"
    assert "startupProbe" in sidecar, "else the application does not wait for it"


def test_it_runs_as_the_user_of_the_image_with_what_splicing_takes(manifest: Manifest) -> None:
    dockerfile = DOCKERFILE.read_text()
    user = re.search(r"^USER (\d+):(\d+)$", dockerfile, re.M)
    assert user
    context = manifest.ours["securityContext"]
    assert [context["runAsUser"], context["runAsGroup"]] == [int(user[1]), int(user[2])]
    assert context["runAsNonRoot"]
    assert context["allowPrivilegeEscalation"], "no_new_privs takes away what the file permits"
    assert context["readOnlyRootFilesystem"]
    added = set(context["capabilities"]["add"])
    assert context["capabilities"]["drop"] == ["ALL"]
    assert {"BPF", "NET_ADMIN", "PERFMON"} <= added
    permitted = re.search(r"setcap (\S+)=p", dockerfile)
    assert permitted
    assert {f"cap_{name.lower()}" for name in added} <= set(permitted[1].split(","))
