"""The image, built once, and what it takes to run containers of it.

Only `make docker-test` runs these tests: it looks after an engine and a base image.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_FILE = ROOT / "docker" / "compose.yaml"
IMAGE = "l7proxy"

BUILD = 1800.0  # seconds; it installs Debian packages
RUN = 180.0

Run = subprocess.CompletedProcess[str]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("L7PROXY_DOCKER") != "1":
        here = Path(__file__).parent
        for item in items:
            if here in item.path.parents and "engine" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason="run by `make docker-test`"))


def call(*command: str, seconds: float = RUN, **environment: str) -> Run:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds,
        env=os.environ | environment,
        cwd=ROOT,
    )


def docker(*arguments: str, seconds: float = RUN) -> str:
    done = call("docker", *arguments, seconds=seconds)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@dataclass(frozen=True)
class Engine:
    """`capabilities` are the options that let a container splice, `old` those of Compose for it."""

    capabilities: tuple[str, ...]
    old: tuple[str, ...]

    def compose(self, *arguments: str, seconds: float = RUN, **environment: str) -> Run:
        program = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
        where = ["-f", str(COMPOSE_FILE), "-p", "l7proxy-test"]
        return call(*program, *self.old, *where, *arguments, seconds=seconds, **environment)


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The image is built as the compose file says."""
    first = Engine((), ())
    built = first.compose("build", "sidecar", seconds=BUILD)
    assert built.returncode == 0, built.stdout[-4000:] + built.stderr[-4000:]
    tried = call("docker", "create", "--cap-add", "BPF", IMAGE)
    if tried.returncode == 0:
        docker("rm", tried.stdout.strip())
        names, old = ("BPF", "NET_ADMIN", "PERFMON"), ()
    else:
        assert "capability" in tried.stderr, tried.stderr
        names = ("SYS_ADMIN", "NET_ADMIN")
        old = ("--env-file", str(ROOT / "docker" / "old-engine.env"))
    added = [option for name in names for option in ("--cap-add", name)]
    engine = Engine(("--cap-drop", "ALL", *added), old)
    yield engine
    engine.compose("down", "--volumes")


Doctor = Callable[..., Run]


@pytest.fixture(scope="session")
def doctor(engine: Engine) -> Doctor:
    """`l7proxy doctor` in a container with these options."""

    def run(*options: str) -> Run:
        return call("docker", "run", "--rm", *options, IMAGE, "doctor")

    return run
