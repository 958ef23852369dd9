"""The top level of the repository stays small: what is new has a place below, or a reason here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

ALLOWED = {
    ".ci": "what make and continuous integration call",
    ".dockerignore": "what the images are made of: the classic builder looks nowhere else",
    ".gitignore": "",
    "ARCHITECTURE.md": "how it works, and the rules of the splice",
    "CHANGELOG.md": "",
    "LICENSE": "",
    "Makefile": "the commands",
    "README.md": "",
    "bpf": "the verdict program",
    "docker": "the image",
    "l7proxy": "the package",
    "policies": "policies to start from",
    "pyproject.toml": "",
    "requirements.lock": "exact versions to run with; those to test with are in tests/",
    "tests": "",
}


def test_nothing_else_is_committed() -> None:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    # The checkout may belong to somebody else than who tests it (a container, sudo).
    command = [git, "-c", "safe.directory=*", "-C", str(ROOT), "ls-files", "-z"]
    files = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    top = {name.partition("/")[0] for name in files.split("\0") if name}
    assert top - ALLOWED.keys() == set()


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_what_is_promised_is_there(name: str) -> None:
    assert (ROOT / name).exists()
